"""Average precision at one IoU: match each picture once, rank all detections by score, measure the area.

    Detections + GroundTruth ─match─► Matches, one per picture ─rank─► Ranking, one per class ─► AP ─► Score

A `Ranking` remembers which picture each detection came from, so the AP of a resample of pictures is an AP with weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # detections.py needs torch, this does not
    from yolo_prune.evaluation.detections import Detections

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruth:
    """The labelled boxes of one picture."""

    boxes_xyxy: NDArray[np.floating]
    """(G, 4) in pixels."""

    classes: IntArray
    """(G,) class indices."""

    ignore: BoolArray | None = None
    """(G,) crowds and the like: finding or missing them neither helps nor hurts. None: there are none."""

    @property
    def counted(self) -> BoolArray:
        """(G,) which boxes are to be found."""
        return np.ones(len(self.classes), np.bool_) if self.ignore is None else ~self.ignore


@dataclass(frozen=True)
class Matches:
    """What became of the detections of one picture, by falling score."""

    scores: NDArray[np.float32]
    """(N,) scores."""

    classes: IntArray
    """(N,) class indices."""

    hits: BoolArray
    """(N,) those that found a counted ground truth."""

    ignored: BoolArray
    """(N,) those that lie on an ignored ground truth: neither right nor wrong."""

    truth_classes: IntArray
    """(G,) classes of the counted ground truths."""


NOTHING = Matches(
    np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.bool_), np.zeros(0, np.int64)
)
"""A picture without detections or ground truth, which pooling appends so that even no pictures can be joined."""


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


def measure_iou(boxes_xyxy: NDArray[np.floating], truth: GroundTruth) -> FloatArray:
    """Return the (N, G) overlaps of boxes (N, 4) with a ground truth's, in pixels.

    With an ignored ground truth it is the share of the box that lies inside, since a crowd may hold many boxes.

    Source: bbIou in maskApi.c of pycocotools.
    """
    box, other = boxes_xyxy.astype(np.float64)[:, None], truth.boxes_xyxy.astype(np.float64)[None]
    sides = np.minimum(box[..., 2:], other[..., 2:]) - np.maximum(box[..., :2], other[..., :2])
    shared = sides.clip(min=0).prod(-1)
    area, other_area = ((each[..., 2:] - each[..., :2]).prod(-1) for each in (box, other))
    whole = np.where(truth.counted, area + other_area - shared, area)
    iou: FloatArray = np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)
    return iou


def match(detections: Detections, truth: GroundTruth, iou_threshold: float = 0.5) -> Matches:
    """Match the detections of one picture, highest score first, each to the best ground truth of its class still free.

    An overlap of `iou_threshold` suffices; of equal overlaps the last ground truth is taken. What finds no counted one
    but lies on an ignored one is ignored, however many do.

    Source: COCOeval.evaluateImg in pycocotools.
    """
    iou = measure_iou(detections.boxes_xyxy, truth)
    enough = (iou >= iou_threshold) & (detections.classes[:, None] == truth.classes)
    free = enough & truth.counted
    hits = np.zeros(len(detections), np.bool_)
    for row in np.flatnonzero(free.any(1)):
        if free[row].any():
            candidates = np.flatnonzero(free[row])[::-1]
            free[:, candidates[iou[row, candidates].argmax()]] = False
            hits[row] = True
    ignored = ~hits & (enough & ~truth.counted).any(1)
    return Matches(detections.scores, detections.classes, hits, ignored, truth.classes[truth.counted])


def rank(matches: Sequence[Matches]) -> dict[int, Ranking]:
    """Rank the detections of all pictures, one ranking for each class that has counted ground truth."""
    images, scores, classes, hits = _pool(matches)
    truth_images, truth_classes = _pool_truths(matches)
    rankings = {}
    for own in np.unique(truth_classes).tolist():
        members = np.flatnonzero(classes == own)
        members = members[np.argsort(-scores[members], kind="stable")]
        positives = np.bincount(truth_images[truth_classes == own], minlength=len(matches))
        rankings[own] = Ranking(images[members], hits[members], positives)
    return rankings


def average_precision(hits: BoolArray, positives: float, weights: FloatArray | None = None) -> float:
    """Return the area under the monotone envelope of precision over recall, every point taken.

    `hits` (D,) are the detections by falling score, `positives` the number of ground truths; a detection of weight 2
    stands for two. nan where there are no positives.

    Source: PASCAL VOC 2010 development kit, section 3.4.1.
    """
    if not positives:
        return float("nan")
    gained = np.ones(len(hits)) if weights is None else weights
    # A miss only lowers precision, so the envelope is decided by the hits alone.
    found = gained[hits]
    seen = gained.cumsum()[hits]
    precision = np.divide(found.cumsum(), seen, out=np.zeros_like(seen), where=seen > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(found @ envelope / positives)


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
    instances = len(_pool_truths(matches)[1])
    ap50 = {own: measure_ap(ranking) for own, ranking in rankings.items()}
    return Score(measure_map(rankings), ap50, *_measure_best_f1(matches, instances), len(matches), instances)


def _measure_best_f1(matches: Sequence[Matches], instances: int) -> tuple[float, float, float, float]:
    """Return precision, recall, F1 and confidence where F1 is highest; of several, at the highest confidence."""
    _, scores, _, hits = _pool(matches)
    if not instances:
        return (float("nan"),) * 4
    if not len(scores):
        return 0.0, 0.0, 0.0, 1.0
    order = np.argsort(-scores, kind="stable")
    scores, found, seen = scores[order], hits[order].cumsum(), np.arange(1, len(order) + 1)
    f1 = 2 * found / (seen + instances)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # no threshold parts equal scores
    best = int(f1.argmax())
    return float(found[best] / seen[best]), float(found[best] / instances), float(f1[best]), float(scores[best])


def _pool(matches: Sequence[Matches]) -> tuple[IntArray, NDArray[np.float32], IntArray, BoolArray]:
    """Join all detections that are not ignored: picture, score, class, hit."""
    every = (*matches, NOTHING)
    kept = [~each.ignored for each in every]
    scores = np.concatenate([each.scores[own] for each, own in zip(every, kept, strict=True)])
    classes = np.concatenate([each.classes[own] for each, own in zip(every, kept, strict=True)])
    hits = np.concatenate([each.hits[own] for each, own in zip(every, kept, strict=True)])
    return np.repeat(np.arange(len(every)), [np.count_nonzero(own) for own in kept]), scores, classes, hits


def _pool_truths(matches: Sequence[Matches]) -> tuple[IntArray, IntArray]:
    """Join all counted ground truths: picture, class."""
    every = (*matches, NOTHING)
    images = np.repeat(np.arange(len(every)), [len(each.truth_classes) for each in every])
    return images, np.concatenate([each.truth_classes for each in every])
