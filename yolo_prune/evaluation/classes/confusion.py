"""The confusion matrix: which classes are taken for which others, and for background.

               detected as
               cat   dog   background
truth  cat      8     1        3          12 cats: 8 found, 1 taken for a dog, 3 missed
       dog      0     5        1
background      2     0        –          2 detections of cats where there is no object
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo_prune.arrays import Float64Array
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.matching import GroundTruth, IntArray, Matches, find_errors, measure_iou

BACKGROUND = "background"
"""What is no object."""
IOU = 0.5
"""The least IoU of a detection and an object that it is counted with."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of objects by their class, and by the class that they are detected as."""

    names: tuple[str, ...]
    """The C classes' names."""
    confidence: float
    """Detections with this score or a higher one count; nan: none does."""
    counts: IntArray
    """(C + 1, C + 1) rows by truth, columns by detection; background is the last of both."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of rows and columns."""
        return (*self.names, BACKGROUND)

    @property
    def shares(self) -> Float64Array:
        """(C + 1, C + 1) each row divided by its sum, nan in a row without any count."""
        sums = self.counts.sum(1, keepdims=True)
        shares: Float64Array = np.divide(self.counts, sums, out=np.full(self.counts.shape, np.nan), where=sums > 0)
        return shares

    def as_dict(self) -> dict[str, Any]:
        """Return the matrix under the names that JSON output uses."""
        return {
            "confidence": self.confidence,
            "iou": IOU,
            "labels": list(self.labels),
            "counts": self.counts.tolist(),
        }


def measure_confusion(
    found: Sequence[Detections],
    truths: Sequence[GroundTruth],
    matches: Sequence[Matches],
    names: Sequence[str],
    confidence: float,
) -> ConfusionMatrix:
    """Count what objects are detected as; every sequence but `names` has one entry per image.

    Objects that AP counts as found are on the diagonal, so that the diagonal over the row's sum is the recall. Of what
    is left, pairs of a detection and an object of another class are made by falling IoU, down to 0.5, each used once.
    What has no partner then is missed, or a false alarm. Ignored objects, and detections of them, are left out.

    Args:
        matches: the detections matched with the truths at IoU 0.5.
        confidence: the least score of a detection that counts; nan: none does.
    """
    side = len(names) + 1
    images = [_name_image(*image, side - 1, confidence) for image in zip(found, truths, matches, strict=True)]
    rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *images], axis=1)
    counts = np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)
    return ConfusionMatrix(tuple(names), confidence, counts)


def _name_image(
    found: Detections, truth: GroundTruth, matches: Matches, background: int, confidence: float
) -> IntArray:
    """Return (2, K) the classes of the truth and of the detection, for all that there is in an image."""
    is_missed, is_false = find_errors(matches, confidence)
    right, missed, wrong = matches.truth_classes[~is_missed], np.flatnonzero(is_missed), np.flatnonzero(is_false)
    objects = GroundTruth(truth.boxes_xyxy[truth.counted][missed], matches.truth_classes[missed])
    pairs = _pair(measure_iou(found.boxes_xyxy[wrong], objects))
    taken_for = np.full(len(missed), background)
    taken_for[pairs[:, 1]] = matches.classes[wrong[pairs[:, 0]]]
    alone = matches.classes[np.delete(wrong, pairs[:, 0])]
    return np.stack(
        (
            np.concatenate((right, objects.classes, np.full(len(alone), background))),
            np.concatenate((right, taken_for, alone)),
        )
    )


def _pair(iou: Float64Array) -> IntArray:
    """Return (P, 2) rows and columns paired by falling IoU, each used once; of equal IoUs the first row has priority."""
    rows, columns = np.nonzero(iou >= IOU)
    order = np.argsort(-iou[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used[0] and column not in used[1]:
            pairs.append((row, column))
            used[0].add(row)
            used[1].add(column)
    return np.array(pairs, np.int64).reshape(-1, 2)
