"""Average precision at one IoU: sort all detections by score, and measure the area under precision over recall.

    Detections + GroundTruth ─match─► Matches, one per image ─rank─► Ranking, one per class ─► AP ─► Score

A `Ranking` records the image of each detection, so that the bootstrap can rank a resample without matching again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yolo_prune.arrays import Float64Array
from yolo_prune.evaluation.curves import find_best, measure_curve
from yolo_prune.evaluation.matching import BoolArray, IntArray, Matches, pool_detections, pool_truths

RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO reads the precision."""


@dataclass(frozen=True)
class Ranking:
    """The detections of one class in all I images, sorted by falling score, without ignored ones."""

    images: IntArray
    """(D,) the image of each detection, 0 … I − 1."""

    hits: BoolArray
    """(D,) whether the detection matches a ground truth."""

    positives: IntArray
    """(I,) number of counted ground truths per image."""


@dataclass(frozen=True)
class Score:
    """The scores of detections. Without any counted ground truth every float is nan."""

    map50: float
    """Mean of `ap50` over the classes."""

    ap50: dict[int, float]
    """AP of each class that has ground truth, by class index."""

    precision: float
    """Precision of all classes together at the best confidence; 0 without detections."""

    recall: float
    """Recall of all classes together at the best confidence."""

    f1: float
    """The highest F1 over all confidence thresholds."""

    confidence: float
    """The threshold with the highest F1: detections with this score or a higher one count; 1 without detections."""

    images: int
    """Images."""

    instances: int
    """Number of counted ground truths."""


def rank(matches: Sequence[Matches]) -> dict[int, Ranking]:
    """Rank the detections of all images: one ranking per class with counted ground truth."""
    pool, (truth_images, truth_classes) = pool_detections(matches), pool_truths(matches)
    rankings = {}
    for own in np.unique(truth_classes).tolist():
        members = np.flatnonzero(pool.classes == own)
        members = members[np.argsort(-pool.scores[members], kind="stable")]
        positives = np.bincount(truth_images[truth_classes == own], minlength=len(matches))
        rankings[own] = Ranking(pool.images[members], pool.hits[members], positives)
    return rankings


def average_precision(hits: BoolArray, positives: int) -> float:
    """Return the area under the monotone envelope of precision over recall, at all points.

    `hits` (D,) are the detections by falling score, `positives` the number of ground truths. Return nan without
    positives.

    Source: PASCAL VOC 2010 development kit, section 3.4.1.
    """
    if not positives:
        return float("nan")
    return float(_measure_envelope(hits).sum() / positives)


def interpolate_precision(hits: BoolArray, positives: int) -> float:
    """Return COCO's average precision: the mean of the envelope at 101 points of recall; nan without positives.

    Source: COCOeval.accumulate in pycocotools.
    """
    if not positives:
        return float("nan")
    envelope = _measure_envelope(hits)
    places = np.searchsorted(np.arange(1, len(envelope) + 1) / positives, RECALLS)
    return float(envelope[places[places < len(envelope)]].sum() / len(RECALLS))


def measure_ap(ranking: Ranking) -> float:
    """Return the AP of a class; nan without ground truth."""
    return average_precision(ranking.hits, int(ranking.positives.sum()))


def measure_map(rankings: Mapping[int, Ranking]) -> float:
    """Return the mean AP of the classes that have ground truth; nan if none has."""
    values = [measure_ap(ranking) for ranking in rankings.values()]
    return float(np.mean(values)) if values else float("nan")


def measure_score(matches: Sequence[Matches]) -> Score:
    """Measure all scores of a set of images, each matched once."""
    rankings = rank(matches)
    instances = sum(int(ranking.positives.sum()) for ranking in rankings.values())
    ap50 = {own: measure_ap(ranking) for own, ranking in rankings.items()}
    best = find_best(measure_curve(matches))
    return Score(
        measure_map(rankings), ap50, best.precision, best.recall, best.f1, best.confidence, len(matches), instances
    )


def _measure_envelope(hits: BoolArray) -> Float64Array:
    """Return for each hit the highest precision at its recall or a higher one; misses cannot raise it."""
    places = np.flatnonzero(hits)
    precision = np.arange(1, len(places) + 1) / (places + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]
