"""Compare the outputs of an exported file with those of the network that it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.errors import OutputError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import suppress
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector
from yolo_prune.text_tables import pluralize

IMAGES = 8
"""Images that are compared on."""
BOXES = 100
"""Boxes of an image that are compared: those of the highest scores, as a network that has learnt little has no high ones."""


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be off."""

    score: float
    box: float
    """As a share of the box's longer side."""


Outputs: TypeAlias = tuple[Tensor, Tensor]
"""boxes_xyxy (1, N, 4) and scores (1, N, C)."""
TOLERANCES = {"fp32": Tolerance(1e-4, 1e-4), "fp16": Tolerance(1e-2, 1e-2)}
"""The largest differences, by the precision of the weights."""
INT8 = Tolerance(0.1, 0.1)
"""The mean differences in int8, where single boxes may be far off."""
NMS = Tolerance(1e-2, 1e-2)
"""The mean differences with NMS inside, where a box may be kept or dropped by the last digit."""


@dataclass(frozen=True)
class Parity:
    """The differences found; those of boxes as shares of a box's longer side."""

    images: int
    compared_boxes: int
    score: float
    """The largest."""
    box: float
    """The largest."""
    mean_score: float
    """The mean, boxes weighted by the network's own score."""
    mean_box: float
    """The mean, boxes weighted by the network's own score."""

    def as_dict(self) -> dict[str, Any]:
        """Return the differences for JSON output."""
        return asdict(self)


class _Differences(NamedTuple):
    """Of one image, for K boxes."""

    weights: Tensor
    """(K,) the network's own scores."""
    scores: Tensor
    """(K,)"""
    boxes: Tensor
    """(K,)"""


@torch.inference_mode()
def measure_parity(model: Detector, engine: nn.Module, images: Iterable[Tensor], metadata: Metadata) -> Parity:
    """Compare the engine of an exported file with a network in evaluation mode, on images (1, 3, H, W) in 0 … 1."""
    decoded = DecodedDetector(model)
    nms = None if metadata.nms is None else DetectConfig(**metadata.nms)  # type: ignore[arg-type]  # as it was written
    parts = []
    for image in images:
        wanted, found = decoded(image), engine(image)
        parts.append(_compare(wanted, found) if nms is None else _compare_kept(wanted, found, nms))
    weights, scores, boxes = (torch.cat(part).double() for part in zip(*parts, strict=True))
    total = weights.sum().clamp(min=1e-12)
    return Parity(
        images=len(parts),
        compared_boxes=len(boxes),
        score=float(scores.max()) if len(scores) else 0,
        box=float(boxes.max()) if len(boxes) else 0,
        mean_score=float((weights * scores).sum() / total),
        mean_box=float((weights * boxes).sum() / total),
    )


def _compare(wanted: Outputs, found: Outputs) -> _Differences:
    """Compare row by row."""
    (boxes, scores), (found_boxes, found_scores) = wanted, found
    if boxes.shape != found_boxes.shape or scores.shape != found_scores.shape:
        return _Differences(torch.ones(1), torch.full((1,), math.inf), torch.full((1,), math.inf))
    best = scores[0].amax(1)
    highest = best.topk(min(BOXES, len(best))).indices
    corners, off = boxes[0, highest], (boxes - found_boxes)[0, highest].abs().amax(1)
    return _Differences(best[highest], (scores - found_scores)[0, highest].abs().amax(1), off / _measure_sides(corners))


def _compare_kept(outputs: Outputs, found: Outputs, nms: DetectConfig) -> _Differences:
    """Compare what NMS keeps: each box with the nearest one of its class, 1 where there is none so near."""
    (wanted,) = suppress(*outputs, nms)
    found_boxes, found_scores = found
    rows, weights = torch.from_numpy(wanted.boxes_xyxy), torch.from_numpy(wanted.scores)
    own = found_scores[0][:, torch.from_numpy(wanted.classes)]  # (M, K): the scores of each box's class
    off = (found_boxes[0][:, None] - rows).abs().amax(2) / _measure_sides(rows)
    off = torch.where(own > 0, off, torch.inf).clamp(max=1)
    nearest = off.argmin(0)
    columns = torch.arange(len(rows))
    return _Differences(weights, (own[nearest, columns] - weights).abs(), off[nearest, columns])


def _measure_sides(corners: Tensor) -> Tensor:
    return (corners[:, 2:] - corners[:, :2]).amax(1).clamp(min=1)


def describe_parity(parity: Parity, metadata: Metadata) -> str:
    """Return the differences as a sentence."""
    end = f"on {pluralize(parity.images, 'image')} ({pluralize(parity.compared_boxes, 'box', 'boxes')})"
    if metadata.precision == "int8":
        return f"scores differ from the checkpoint's by {parity.mean_score:.1e} on average, boxes by {parity.mean_box:.1e} of a side, {end}"
    return f"outputs equal the checkpoint's to {parity.score:.1e} in scores and {parity.box:.1e} of a box's side, {end}"


def check_parity(parity: Parity, metadata: Metadata, path: Path) -> None:
    """Raise if the differences are more than the precision explains.

    Raises:
        OutputError: they are; names the file and the differences.
    """
    found, kind = (parity.mean_score, parity.mean_box), " on average"
    if metadata.precision == "int8":
        limit = INT8
    elif metadata.nms is not None:
        limit = NMS
    else:
        limit, found, kind = TOLERANCES[metadata.precision], (parity.score, parity.box), ""
    if not (found[0] <= limit.score and found[1] <= limit.box):
        what = (
            f"its outputs differ from the checkpoint's by {found[0]:.2g} in scores and {found[1]:.2g} of a box's side{kind}, "
            f"where {metadata.precision} explains {limit.score:g} and {limit.box:g}"
        )
        raise OutputError(what, where=path, right="report this; --no-verify writes it all the same")
