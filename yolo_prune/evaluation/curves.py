"""Precision and recall over the confidence threshold, the best operating point, and recall by the size of objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from yolo_prune.evaluation.matching import FloatArray, IntArray, Matches, pool_detections, pool_truths

SIZE_BOUNDS_PX = (0.0, 16.0, 32.0, 64.0, 96.0, math.inf)
"""Where the bins of object size end: COCO's small below 32, medium below 96 and large, small and medium halved."""


@dataclass(frozen=True)
class Curve:
    """What every confidence threshold gives, all classes together, from the highest threshold to the lowest."""

    confidence: FloatArray
    """(T,) the scores that occur, falling; detections scored so high or higher count."""

    seen: IntArray
    """(T,) how many detections these are."""

    found: IntArray
    """(T,) how many of them are right."""

    instances: int
    """How many ground truths there are to find."""

    @property
    def precision(self) -> FloatArray:
        """(T,) share of the detections that are right."""
        return self.found / self.seen

    @property
    def recall(self) -> FloatArray:
        """(T,) share of the ground truths that are found, rising; nan where there are none."""
        return self.found / self.instances if self.instances else np.full(len(self.found), np.nan)

    @property
    def f1(self) -> FloatArray:
        """(T,) harmonic mean of precision and recall."""
        return 2 * self.found / (self.seen + self.instances)

    def sample(self, recalls: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return precision and confidence (R,) at the first threshold that reaches each recall; nan where none does."""
        places = np.searchsorted(self.recall, recalls)
        reached = (places < len(self.recall)) & (self.instances > 0)
        return tuple(  # type: ignore[return-value]  # two of them
            np.where(reached, np.append(values, np.nan)[places.clip(max=len(values))], np.nan)
            for values in (self.precision, self.confidence)
        )


@dataclass(frozen=True)
class OperatingPoint:
    """What one confidence threshold gives."""

    confidence: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class SizeRecall:
    """How many objects of one size were found; the size is the geometric mean of width and height."""

    low_px: float
    """Smallest size."""

    high_px: float
    """The size that belongs to the next bin; inf for the last."""

    instances: int
    """Ground truths of this size."""

    recall: float
    """Share of them found by any detection; nan where there are none."""

    recall_at_confidence: float
    """Share of them found by detections at or above the confidence that was asked for."""


def measure_curve(matches: Sequence[Matches]) -> Curve:
    """Measure precision and recall at every score that occurs; equal scores, which no threshold parts, are one point."""
    pool, instances = pool_detections(matches), len(pool_truths(matches)[1])
    order = np.argsort(-pool.scores, kind="stable")
    scores, found, seen = pool.scores[order], pool.hits[order].cumsum(), np.arange(1, len(order) + 1)
    last = np.append(scores[:-1] != scores[1:], True)[: len(scores)]
    return Curve(scores[last].astype(np.float64), seen[last], found[last], instances)


def find_best(curve: Curve) -> OperatingPoint:
    """Return the point of the highest F1; of several, the one of the highest confidence.

    Precision, recall and F1 are 0 at confidence 1 where nothing was detected, and nan where there is nothing to find.
    """
    if not curve.instances:
        return OperatingPoint(*(math.nan,) * 4)
    if not len(curve.confidence):
        return OperatingPoint(1.0, 0.0, 0.0, 0.0)
    best = int(curve.f1.argmax())
    values = (curve.confidence, curve.precision, curve.recall, curve.f1)
    return OperatingPoint(*(float(value[best]) for value in values))


def measure_size_recalls(matches: Sequence[Matches], confidence: float) -> list[SizeRecall]:
    """Measure the recall of objects by their size in `SIZE_BOUNDS_PX`, by all detections and at a confidence."""
    sides = np.concatenate([np.zeros(0), *(each.truth_sides_px for each in matches)])
    scores = np.concatenate([np.zeros(0, np.float32), *(each.truth_scores for each in matches)])
    bins = []
    for low, high in pairwise(SIZE_BOUNDS_PX):
        own = scores[(sides >= low) & (sides < high)]
        recalls = (float(found.mean()) if len(own) else math.nan for found in (np.isfinite(own), own >= confidence))
        bins.append(SizeRecall(low, high, len(own), *recalls))
    return bins
