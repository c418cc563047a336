"""Average precision at one IoU: rank all detections by score, measure the area under precision over recall.

    Detections + GroundTruth ─match─► Matches, one per picture ─rank─► Ranking, one per class ─► AP ─► Score

A `Ranking` remembers which picture each detection came from, so the AP of a resample of pictures is an AP with weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yolo_prune.evaluation.curves import find_best, measure_curve
from yolo_prune.evaluation.matching import BoolArray, FloatArray, IntArray, Matches, pool_detections, pool_truths

RECALLS = np.linspace(0, 1, 101)
"""The points of recall at which COCO reads the precision."""


@dataclass(frozen=True)
class Ranking:
    """The detections of one class in all I pictures by falling score, ignored ones left out."""

    images: IntArray
    """(D,) the picture of each detection, 0 … I − 1."""

    hits: BoolArray
    """(D,) those that found a ground truth."""

    positives: IntArray
    """(I,) counted ground truths of each picture."""


@dataclass(frozen=True)
class Score:
    """How well pictures were detected. Without any counted ground truth every float is nan."""

    map50: float
    """Mean of `ap50` over the classes."""

    ap50: dict[int, float]
    """AP of each class that has ground truth, by class index."""

    precision: float
    """Precision of all classes together at the best confidence; 0 where nothing was detected."""

    recall: float
    """Recall of all classes together at the best confidence."""

    f1: float
    """The highest F1 that a confidence threshold gives."""

    confidence: float
    """The threshold that gives it: detections scored so high or higher count; 1 where nothing was detected."""

    images: int
    """Pictures."""

    instances: int
    """Counted ground truths."""


def rank(matches: Sequence[Matches]) -> dict[int, Ranking]:
    """Rank the detections of all pictures, one ranking for each class that has counted ground truth."""
    pool, (truth_images, truth_classes) = pool_detections(matches), pool_truths(matches)
    rankings = {}
    for own in np.unique(truth_classes).tolist():
        members = np.flatnonzero(pool.classes == own)
        members = members[np.argsort(-pool.scores[members], kind="stable")]
        positives = np.bincount(truth_images[truth_classes == own], minlength=len(matches))
        rankings[own] = Ranking(pool.images[members], pool.hits[members], positives)
    return rankings


def average_precision(hits: BoolArray, positives: float, weights: FloatArray | None = None) -> float:
    """Return the area under the monotone envelope of precision over recall, every point taken.

    `hits` (D,) are the detections by falling score, `positives` the number of ground truths; a detection of weight 2
    stands for two. nan where there are no positives.

    Source: PASCAL VOC 2010 development kit, section 3.4.1.
    """
    if not positives:
        return float("nan")
    found, envelope = _measure_envelope(hits, np.ones(len(hits)) if weights is None else weights)
    return float(found @ envelope / positives)


def interpolate_precision(hits: BoolArray, positives: float) -> float:
    """Return COCO's average precision: the mean of the envelope at 101 points of recall; nan without positives.

    Source: COCOeval.accumulate in pycocotools.
    """
    if not positives:
        return float("nan")
    found, envelope = _measure_envelope(hits, np.ones(len(hits)))
    places = np.searchsorted(found.cumsum() / positives, RECALLS)
    return float(envelope[places[places < len(envelope)]].sum() / len(RECALLS))


def measure_ap(ranking: Ranking, weights: FloatArray | None = None) -> float:
    """Return the AP of a class, each picture counted `weights` (I,) times; nan where that leaves no ground truth."""
    if weights is None:
        return average_precision(ranking.hits, float(ranking.positives.sum()))
    return average_precision(ranking.hits, float(weights @ ranking.positives), weights[ranking.images])


def measure_map(rankings: Mapping[int, Ranking], weights: FloatArray | None = None) -> float:
    """Return the mean AP of the classes that have ground truth, each picture counted `weights` (I,) times.

    nan where no class has any.
    """
    values = [ap for ranking in rankings.values() if not np.isnan(ap := measure_ap(ranking, weights))]
    return float(np.mean(values)) if values else float("nan")


def measure_score(matches: Sequence[Matches]) -> Score:
    """Measure everything that one set of pictures, each matched once, tells."""
    rankings = rank(matches)
    instances = sum(int(ranking.positives.sum()) for ranking in rankings.values())
    ap50 = {own: measure_ap(ranking) for own, ranking in rankings.items()}
    best = find_best(measure_curve(matches))
    return Score(
        measure_map(rankings), ap50, best.precision, best.recall, best.f1, best.confidence, len(matches), instances
    )


def _measure_envelope(hits: BoolArray, gained: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each hit's weight and the highest precision at its recall or beyond; a miss only lowers precision."""
    found, seen = gained[hits], gained.cumsum()[hits]
    precision = np.divide(found.cumsum(), seen, out=np.zeros_like(seen), where=seen > 0)
    return found, np.maximum.accumulate(precision[::-1])[::-1]
