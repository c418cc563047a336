"""COCO's average precision: the hundred best detections of an image and class, 101 recalls, ten IoUs.

pycocotools gives the same numbers, but takes many times as long; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from yolo_prune.evaluation.average_precision import interpolate_precision, rank
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.matching import GroundTruth, Matches, match_at

MAX_DETECTIONS = 100
"""The most detections per image and class that COCO counts."""
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


def measure_coco_ap(detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> tuple[float, float]:
    """Return COCO's AP at IoU 0.5 and its AP over IoU 0.50 … 0.95; each argument has one entry per image.

    Objects of all sizes count. Return (nan, nan) without counted ground truth.

    Source: COCOeval in pycocotools, `areaRng` "all", `maxDets` 100.
    """
    pairs = zip(map(_cap, detections), truths, strict=True)
    images = [match_at(found, truth, IOU_THRESHOLDS) for found, truth in pairs]
    if not images:
        return float("nan"), float("nan")
    values = [_measure_mean(matches) for matches in zip(*images, strict=True)]
    return values[0], float(np.mean(values))


def _measure_mean(matches: Sequence[Matches]) -> float:
    """Return the mean interpolated AP of the classes that have ground truth; nan if none has."""
    values = [interpolate_precision(each.hits, int(each.positives.sum())) for each in rank(matches).values()]
    return float(np.mean(values)) if values else float("nan")


def _cap(detections: Detections) -> Detections:
    """Keep the best detections of each class."""
    if len(detections) <= MAX_DETECTIONS:
        return detections
    order = np.argsort(detections.classes, kind="stable")
    classes = detections.classes[order]
    kept = np.sort(order[np.arange(len(order)) - np.searchsorted(classes, classes) < MAX_DETECTIONS])
    return replace(
        detections,
        boxes_xyxy=detections.boxes_xyxy[kept],
        scores=detections.scores[kept],
        classes=detections.classes[kept],
    )
