"""Precision and recall over the confidence threshold, the best operating point, and recall by object size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from yolo_prune.arrays import Float32Array, Float64Array
from yolo_prune.evaluation.matching import BoolArray, IntArray, Matches, pool_detections, pool_truths

SIZE_BOUNDS_PX = (0.0, 16.0, 32.0, 64.0, 96.0, math.inf)
"""Bounds of the bins of object size: COCO's small below 32, medium below 96 and large, with small and medium halved."""


@dataclass(frozen=True)
class Curve:
    """Detections and hits at every confidence threshold, from the highest to the lowest."""

    confidence: Float64Array
    """(T,) the different scores, falling; at a threshold, detections with this score or a higher one count."""

    seen: IntArray
    """(T,) number of detections at each threshold."""

    found: IntArray
    """(T,) number of these that match a ground truth."""

    instances: int
    """Number of ground truths."""

    @property
    def precision(self) -> Float64Array:
        """(T,) share of the detections that match a ground truth."""
        return self.found / self.seen

    @property
    def recall(self) -> Float64Array:
        """(T,) share of the ground truths that are found, rising; nan without ground truth."""
        return self.found / self.instances if self.instances else np.full(len(self.found), np.nan)

    @property
    def f1(self) -> Float64Array:
        """(T,) harmonic mean of precision and recall."""
        return 2 * self.found / (self.seen + self.instances)

    def sample(self, recalls: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return precision and confidence (R,) at the first threshold that reaches each recall; nan if none does."""
        places = np.searchsorted(self.recall, recalls)
        reached = (places < len(self.recall)) & (self.instances > 0)
        return tuple(  # type: ignore[return-value]  # two arrays
            np.where(reached, np.append(values, np.nan)[places.clip(max=len(values))], np.nan)
            for values in (self.precision, self.confidence)
        )


@dataclass(frozen=True)
class OperatingPoint:
    """Precision, recall and F1 at one confidence threshold."""

    confidence: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class SizeRecall:
    """Recall of objects of one size; the size is the geometric mean of width and height."""

    low_px: float
    """Smallest size, inclusive."""

    high_px: float
    """Largest size, exclusive; inf for the last bin."""

    instances: int
    """Number of ground truths of this size."""

    recall: float
    """Share of them found by any detection; nan without ground truth."""

    recall_at_confidence: float
    """Share of them found by detections at or above the given confidence."""


def measure_curve(matches: Sequence[Matches]) -> Curve:
    """Measure precision and recall at every different score; detections with equal scores form one point."""
    pool = pool_detections(matches)
    return make_curve(pool.scores, pool.hits, len(pool_truths(matches)[1]))


def measure_class_curves(matches: Sequence[Matches], classes: int) -> list[Curve]:
    """Measure the curve of each class by itself, 0 … C − 1."""
    pool, (_, truths) = pool_detections(matches), pool_truths(matches)
    order = np.argsort(pool.classes, kind="stable")
    bounds = np.searchsorted(pool.classes[order], np.arange(classes + 1))
    counts = np.bincount(truths, minlength=classes).tolist()
    members = [order[low:high] for low, high in pairwise(bounds.tolist())]
    return [make_curve(pool.scores[own], pool.hits[own], count) for own, count in zip(members, counts, strict=True)]


def make_curve(scores: Float32Array, hits: BoolArray, instances: int) -> Curve:
    """Make the curve of detections (D,) in any order, of which some match one of so many ground truths."""
    order = np.argsort(-scores, kind="stable")
    scores, found, seen = scores[order], hits[order].cumsum(), np.arange(1, len(order) + 1)
    last = np.append(scores[:-1] != scores[1:], True)[: len(scores)]
    return Curve(scores[last].astype(np.float64), seen[last], found[last], instances)


def find_best(curve: Curve) -> OperatingPoint:
    """Return the point of the highest F1; of several, the one with the highest confidence.

    Precision, recall and F1 are 0 at confidence 1 without detections, and nan without ground truth.
    """
    if not curve.instances:
        return OperatingPoint(*(math.nan,) * 4)
    if not len(curve.confidence):
        return OperatingPoint(1.0, 0.0, 0.0, 0.0)
    best = int(curve.f1.argmax())
    values = (curve.confidence, curve.precision, curve.recall, curve.f1)
    return OperatingPoint(*(float(value[best]) for value in values))


def measure_size_recalls(matches: Sequence[Matches], confidence: float) -> list[SizeRecall]:
    """Measure the recall of objects by their size in `SIZE_BOUNDS_PX`, for all detections and at a confidence."""
    sides = np.concatenate([np.zeros(0), *(each.truth_sides_px for each in matches)])
    scores = np.concatenate([np.zeros(0, np.float32), *(each.truth_scores for each in matches)])
    bins = []
    for low, high in pairwise(SIZE_BOUNDS_PX):
        own = scores[(sides >= low) & (sides < high)]
        recalls = (float(found.mean()) if len(own) else math.nan for found in (np.isfinite(own), own >= confidence))
        bins.append(SizeRecall(low, high, len(own), *recalls))
    return bins
