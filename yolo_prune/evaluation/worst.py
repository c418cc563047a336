"""The images with the most loss, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.datasets.images import fit_image, is_larger, read_image
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.matching import GroundTruth, Matches, find_errors
from yolo_prune.evaluation.previews import draw_detections, make_side_by_side, save_image

LONGEST_PX = 960
"""Images are drawn no longer than this."""


@dataclass(frozen=True)
class ImageLoss:
    """How wrong the detections of one image are."""

    index: int
    """The image's place among those that were scored."""
    loss: float
    """See `measure_image_loss`."""
    instances: int
    """Number of counted ground truths."""
    missed: int
    """Number of them that no detection at the confidence threshold matches."""
    false_alarms: int
    """Number of detections at the threshold that match nothing."""

    def as_dict(self) -> dict[str, Any]:
        """Return the loss under the names that JSON output uses, without the image."""
        return {key: value for key, value in asdict(self).items() if key != "index"}


def measure_image_loss(matches: Matches) -> float:
    """Return the sum of the squared errors of an image's confidences.

    An object that is not found counts 1, one found with score s (1 − s)², and a detection of nothing s². So a missed
    object and a false alarm that the network is sure of weigh the same, and a hundred weak ones weigh little. There is
    no threshold. The scores with the least expected loss are the true probabilities.

    Source: G. Brier, "Verification of Forecasts Expressed in Terms of Probability" (1950).
    """
    missing = 1 - np.where(np.isfinite(matches.truth_scores), matches.truth_scores, 0).astype(np.float64)
    wrong = matches.scores[~matches.hits & ~matches.ignored].astype(np.float64)
    return float(np.square(missing).sum() + np.square(wrong).sum())


def find_worst(matches: Sequence[Matches], confidence: float, count: int) -> list[ImageLoss]:
    """Return up to `count` images with the most loss, the worst first; images without loss are left out.

    Args:
        matches: one per image.
        confidence: the threshold at which objects count as missed, and detections as false alarms.
    """
    losses = np.array([measure_image_loss(own) for own in matches])
    worst = np.argsort(-losses, kind="stable")[:count].tolist()
    return [_count(index, matches[index], float(losses[index]), confidence) for index in worst if losses[index] > 0]


def _count(index: int, matches: Matches, loss: float, confidence: float) -> ImageLoss:
    missed, wrong = (int(part.sum()) for part in find_errors(matches, confidence))
    return ImageLoss(index, loss, len(matches.truth_scores), missed, wrong)


def draw_beside_truth(
    path: Path, source: Path, truth: GroundTruth, found: Detections, names: Sequence[str], confidence: float
) -> Path:
    """Draw an image twice, with the labelled boxes and with the detections, ignored boxes in grey, and return `path`.

    Args:
        source: the image's file; both sets of boxes are in its pixels.
        confidence: the least score of a detection that is drawn.

    Raises:
        DatasetError: the image cannot be read.
        OutputError: the file cannot be written.
    """
    whole = read_image(source)
    image = fit_image(whole, LONGEST_PX) if is_larger(whole, LONGEST_PX) else whole
    scale = max(image.shape[:2]) / max(whole.shape[:2])
    unsure = ~truth.counted
    ignored = GroundTruth(truth.boxes_xyxy[unsure] * scale, truth.classes[unsure], unsure[unsure])
    counted = truth.classes[truth.counted]
    labels = make_detections(truth.boxes_xyxy[truth.counted] * scale, np.ones(len(counted)), counted)
    shown = found.with_boxes(found.boxes_xyxy * scale)
    left = draw_detections(image, labels, names, ignored, has_scores=False)
    right = draw_detections(image, shown, names, ignored, confidence)
    return save_image(path, make_side_by_side([("truth", [left]), ("detections", [right])]))
