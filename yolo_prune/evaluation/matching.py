"""Match each image's detections with its labelled boxes, and pool the matches over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolo_prune.arrays import Float64Array

if TYPE_CHECKING:  # detections.py imports torch, this module does not
    from yolo_prune.evaluation.detections import Detections

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruth:
    """The labelled boxes of one image."""

    boxes_xyxy: NDArray[np.floating]
    """(G, 4) in pixels."""

    classes: IntArray
    """(G,) class indices."""

    ignore: BoolArray | None = None
    """(G,) whether a box is ignored, such as a crowd: detecting or missing it does not change scores. None: none."""

    @property
    def counted(self) -> BoolArray:
        """(G,) which boxes count."""
        return np.ones(len(self.classes), np.bool_) if self.ignore is None else ~self.ignore


@dataclass(frozen=True)
class Matches:
    """The matched detections of one image, by falling score, and its G counted ground truths."""

    scores: NDArray[np.float32]
    """(N,) scores."""

    classes: IntArray
    """(N,) class indices."""

    hits: BoolArray
    """(N,) whether the detection matches a counted ground truth."""

    ignored: BoolArray
    """(N,) whether the detection is ignored, because it lies on an ignored ground truth."""

    truth_classes: IntArray
    """(G,) classes of the ground truths."""

    truth_scores: NDArray[np.float32]
    """(G,) score of the detection that matches each, -inf without one."""

    truth_sides_px: Float64Array
    """(G,) geometric mean of width and height."""


NOTHING = Matches(
    scores=np.zeros(0, np.float32),
    classes=np.zeros(0, np.int64),
    hits=np.zeros(0, np.bool_),
    ignored=np.zeros(0, np.bool_),
    truth_classes=np.zeros(0, np.int64),
    truth_scores=np.zeros(0, np.float32),
    truth_sides_px=np.zeros(0),
)
"""An image without detections or ground truth; appended when pooling, so that zero images can be joined."""


@dataclass(frozen=True)
class Pool:
    """The detections of all images, in the images' order, without ignored ones."""

    images: IntArray
    """(D,) the image of each detection, 0 … I − 1."""

    scores: NDArray[np.float32]
    """(D,) scores."""

    classes: IntArray
    """(D,) class indices."""

    hits: BoolArray
    """(D,) whether the detection matches a ground truth."""


def measure_iou(boxes_xyxy: NDArray[np.floating], truth: GroundTruth) -> Float64Array:
    """Return the (N, G) IoUs of boxes (N, 4) with a ground truth's, in pixels.

    For an ignored ground truth, return the share of the box that lies inside it, because a crowd may hold many boxes.

    Source: bbIou in maskApi.c of pycocotools.
    """
    box, other = boxes_xyxy.astype(np.float64)[:, None], truth.boxes_xyxy.astype(np.float64)[None]
    shared: Float64Array = np.ones((len(boxes_xyxy), len(truth.classes)))
    for low, high in ((0, 2), (1, 3)):  # one side at a time, as an image may have 50,000 boxes
        side = np.minimum(box[..., high], other[..., high]) - np.maximum(box[..., low], other[..., low])
        shared *= side.clip(0, out=side)
    area, other_area = ((each[..., 2:] - each[..., :2]).prod(-1) for each in (box, other))
    whole = np.where(truth.counted, area + other_area - shared, area)
    iou: Float64Array = np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)
    return iou


def match(detections: Detections, truth: GroundTruth, iou_threshold: float = 0.5) -> Matches:
    """Match the detections of one image, highest score first, each to the best unmatched ground truth of its class.

    An IoU of at least `iou_threshold` is a match; of equal IoUs the last ground truth is taken. A detection that
    matches no counted ground truth, but an ignored one, is ignored. An ignored ground truth can match several
    detections.

    Source: COCOeval.evaluateImg in pycocotools.
    """
    (matches,) = match_at(detections, truth, (iou_threshold,))
    return matches


def find_errors(matches: Matches, confidence: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which counted ground truths (G,) are missed at a confidence, and which detections (N,) are false alarms.

    At a confidence of nan everything is missed, and nothing is a false alarm.
    """
    return ~(matches.truth_scores >= confidence), (matches.scores >= confidence) & ~matches.hits & ~matches.ignored


def match_at(detections: Detections, truth: GroundTruth, iou_thresholds: Sequence[float]) -> list[Matches]:
    """Match one image as `match` does, at each of several thresholds."""
    counted = truth.counted
    iou = np.where(detections.classes[:, None] == truth.classes, measure_iou(detections.boxes_xyxy, truth), -1)
    sides = (truth.boxes_xyxy[counted, 2:] - truth.boxes_xyxy[counted, :2]).astype(np.float64)
    sides_px = np.sqrt(sides.prod(axis=1).clip(min=0))
    made = []
    for threshold in iou_thresholds:
        enough = iou >= threshold
        found = _assign(iou, enough & counted)
        hits = found >= 0
        ignored = ~hits & (enough & ~counted).any(1)
        truth_scores = np.full(len(counted), -np.inf, np.float32)
        truth_scores[found[hits]] = detections.scores[hits]
        labels = truth.classes[counted], truth_scores[counted], sides_px
        made.append(Matches(detections.scores, detections.classes, hits, ignored, *labels))
    return made


def pool_detections(matches: Sequence[Matches]) -> Pool:
    """Join the detections of all images, without ignored ones."""
    every = (*matches, NOTHING)
    kept = ~np.concatenate([each.ignored for each in every])
    images = np.repeat(np.arange(len(every)), [len(each.scores) for each in every])
    scores = np.concatenate([each.scores for each in every])
    classes = np.concatenate([each.classes for each in every])
    hits = np.concatenate([each.hits for each in every])
    return Pool(images[kept], scores[kept], classes[kept], hits[kept])


def pool_truths(matches: Sequence[Matches]) -> tuple[IntArray, IntArray]:
    """Return the image and the class of all counted ground truths."""
    every = (*matches, NOTHING)
    images = np.repeat(np.arange(len(every)), [len(each.truth_classes) for each in every])
    return images, np.concatenate([each.truth_classes for each in every])


def _assign(iou: Float64Array, free: BoolArray) -> IntArray:
    """Return for each detection, by falling score, its ground truth, or -1; `free` (N, G) is changed in place."""
    taken = np.full(len(free), -1)
    for row in np.flatnonzero(free.any(1)):
        if free[row].any():
            candidates = np.flatnonzero(free[row])[::-1]
            taken[row] = candidates[iou[row, candidates].argmax()]
            free[:, taken[row]] = False
    return taken
