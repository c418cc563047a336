"""Images for the report: detections before and after, misses and false alarms, as JPEG with boxes in shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_prune.commands.reporting.evidence import Evidence
from yolo_prune.datasets.images import ImageArray, fit_image, is_larger, read_image
from yolo_prune.datasets.spec import Sample
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.evaluate import Evaluation, load_truths
from yolo_prune.evaluation.matching import GroundTruth, find_errors
from yolo_prune.evaluation.previews import pick_evenly
from yolo_prune.evaluation.worst import find_worst
from yolo_prune.report.data import Box, ErrorCount, Preview

WITHOUT_F1 = 0.25
"""The confidence at which detections are drawn where there is no object to measure F1 with."""
ALL_BYTES = 1_000_000
"""The most that all images take together, as JPEG."""
SIDES_PX, QUALITIES = (640, 512, 400, 320), (85, 75, 62)
"""Long sides and JPEG qualities, tried in this order: every quality of a side before the next side."""

MOST_BOXES = 20
"""The most boxes of a kind that are drawn on an image: the first, which are those of the highest scores."""

Chosen = list[int]
"""Indices of images of the split."""


def find_confidence(evaluation: Evaluation) -> float:
    """Return the confidence at which a model's detections are drawn: that of its best F1."""
    confidence = evaluation.score.confidence
    return WITHOUT_F1 if math.isnan(confidence) else confidence


def count_errors(evidence: Evidence) -> tuple[ErrorCount, ...]:
    """Count what each model misses, and its false alarms."""
    counts = []
    for name, evaluation in evidence.evaluations.items():
        confidence = find_confidence(evaluation)
        pairs = [find_errors(matches, confidence) for matches in evaluation.matches]
        misses, alarms = (sum(int(part.sum()) for part in parts) for parts in zip(*pairs, strict=True))
        counts.append(ErrorCount(name, confidence, evaluation.score.instances, misses, alarms))
    return tuple(counts)


def pick_comparisons(evidence: Evidence, images: int) -> Chosen:
    """Return images spread evenly over the split, those with objects if there are any."""
    first = next(iter(evidence.evaluations.values()))
    with_objects = [index for index, matches in enumerate(first.matches) if len(matches.truth_classes)]
    pool = with_objects or list(range(len(evidence.samples)))
    return [pool[place] for place in pick_evenly(len(pool), images)] if images else []


def pick_mistakes(evidence: Evidence, images: int) -> Chosen:
    """Return the images with the most loss among those on which the last model makes mistakes, the worst first."""
    last = list(evidence.evaluations.values())[-1]
    worst = find_worst(last.matches, find_confidence(last), len(last.matches))
    return [one.index for one in worst if one.missed or one.false_alarms][:images]


def make_previews(
    evidence: Evidence, comparisons: Chosen, mistakes: Chosen
) -> tuple[tuple[Preview, ...], tuple[Preview, ...]]:
    """Return the chosen images with the first and the last model's detections, and with the last one's mistakes.

    Raises:
        DatasetError: an image or a label cannot be read.
    """
    most_bytes = ALL_BYTES // max(1, len(comparisons) + len(mistakes))
    kinds = ("truth", "before", "after") if len(evidence.evaluations) > 1 else ("truth", "after")
    compared = (_make_preview(evidence, index, most_bytes, _draw_both, kinds) for index in comparisons)
    mistaken = (_make_preview(evidence, index, most_bytes, _draw_mistakes, ("miss", "false")) for index in mistakes)
    return tuple(compared), tuple(mistaken)


Draw = Callable[[Evidence, int, GroundTruth], Iterator[tuple[NDArray[np.floating], str, str]]]
"""From an image and its labels to boxes_xyxy (4,) in pixels with their kinds and labels."""


def _make_preview(evidence: Evidence, index: int, most_bytes: int, draw: Draw, kinds: Sequence[str]) -> Preview:
    sample = evidence.samples[index]
    image = read_image(sample.image)
    height, width = image.shape[:2]
    jpeg, shape = _encode(image, most_bytes)
    truth = _load_truth(sample, len(evidence.names))
    boxes = [_make_box(*one, width, height) for one in draw(evidence, index, truth)]
    drawn = [box for kind in kinds for box in [box for box in boxes if box.kind == kind][:MOST_BOXES]]
    return Preview(
        sample.image.name, jpeg, shape[1], shape[0], tuple(drawn), _describe(sample.image.name, boxes, kinds)
    )


def _load_truth(sample: Sample, classes: int) -> GroundTruth:
    (truth,) = load_truths([sample], classes)
    return truth


def _draw_both(evidence: Evidence, index: int, truth: GroundTruth) -> Iterator[tuple[NDArray[np.floating], str, str]]:
    for box in truth.boxes_xyxy[truth.counted]:
        yield box, "truth", ""
    evaluations = list(evidence.evaluations.values())
    kinds = ("before", "after") if len(evaluations) > 1 else ("after",)
    for evaluation, kind in zip((evaluations[0], evaluations[-1]), kinds, strict=False):
        found = evaluation.detections[index]
        yield from _list_found(found, found.scores >= find_confidence(evaluation), kind, evidence.names)


def _draw_mistakes(
    evidence: Evidence, index: int, truth: GroundTruth
) -> Iterator[tuple[NDArray[np.floating], str, str]]:
    evaluation = list(evidence.evaluations.values())[-1]
    misses, alarms = find_errors(evaluation.matches[index], find_confidence(evaluation))
    boxes, classes = truth.boxes_xyxy[truth.counted], truth.classes[truth.counted]
    for row in np.flatnonzero(misses).tolist():
        yield boxes[row], "miss", f"missed {evidence.names[classes[row]]}"
    yield from _list_found(evaluation.detections[index], alarms, "false", evidence.names)


def _list_found(
    found: Detections, wanted: NDArray[np.bool_], kind: str, names: Sequence[str]
) -> Iterator[tuple[NDArray[np.floating], str, str]]:
    for row in np.flatnonzero(wanted).tolist():
        yield found.boxes_xyxy[row], kind, f"{names[int(found.classes[row])]} {found.scores[row]:.2f}"


def _make_box(box_xyxy: NDArray[np.floating], kind: str, label: str, width: int, height: int) -> Box:
    x1, y1, x2, y2 = (box_xyxy / (width, height, width, height)).clip(0, 1).tolist()
    return Box(x1, y1, x2 - x1, y2 - y1, kind, label)


WORDS = {
    "truth": "labelled",
    "before": "found before",
    "after": "found after",
    "miss": "missed",
    "false": "false",
}
"""What a box of a kind is, after the number of them."""


def _describe(name: str, boxes: Sequence[Box], kinds: Sequence[str]) -> str:
    found = [box.kind for box in boxes]
    return f"{name}: {', '.join(f'{found.count(kind)} {WORDS[kind]}' for kind in kinds)}"


def _encode(image: ImageArray, most_bytes: int) -> tuple[bytes, tuple[int, ...]]:
    """Return an image as JPEG of at most so many bytes, or as small as it is made, and its shape."""
    data, small = b"", image
    for side_px in SIDES_PX:
        small = fit_image(image, side_px) if is_larger(image, side_px) else image
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        for quality in QUALITIES:
            data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(data) <= most_bytes:
                return data, small.shape
    return data, small.shape
