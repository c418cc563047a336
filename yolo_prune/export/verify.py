"""Compare the outputs of an exported file with those of the network that it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.errors import OutputError
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector

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


TOLERANCES = {"fp32": Tolerance(1e-4, 1e-4), "fp16": Tolerance(5e-3, 5e-3)}
"""By the precision of the weights."""


@dataclass(frozen=True)
class Parity:
    """The largest differences found."""

    images: int
    score: float
    box: float
    """As a share of the box's longer side."""
    compared_boxes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the differences for JSON output."""
        return asdict(self)


@torch.inference_mode()
def measure_parity(model: Detector, engine: nn.Module, images: Iterable[Tensor]) -> Parity:
    """Compare an engine with a network in evaluation mode, on images (1, 3, H, W) in 0 … 1."""
    wanted_of, count, boxes, score, box = DecodedDetector(model), 0, 0, 0.0, 0.0
    for image in images:
        count += 1
        wanted, found = wanted_of(image), engine(image)
        if [part.shape for part in wanted] != [part.shape for part in found]:
            return Parity(count, float("inf"), float("inf"), boxes)
        score = max(score, float((wanted[1] - found[1]).abs().max()))
        highest = wanted[1].amax(-1).flatten().topk(min(BOXES, wanted[1].shape[1])).indices
        corners, other = wanted[0].flatten(0, 1)[highest], found[0].flatten(0, 1)[highest]
        boxes += len(corners)
        if len(corners):
            sides = (corners[:, 2:] - corners[:, :2]).amax(1, keepdim=True)
            box = max(box, float(((corners - other).abs() / sides.clamp(min=1)).max()))
    return Parity(count, score, box, boxes)


def check_parity(parity: Parity, precision: str, path: Path) -> None:
    """Raise if the differences are more than the precision explains.

    Raises:
        OutputError: they are; names the file and the differences.
    """
    limit = TOLERANCES[precision]
    if not (parity.score <= limit.score and parity.box <= limit.box):
        what = (
            f"its outputs differ from the checkpoint's by {parity.score:.2g} in scores and {parity.box:.2g} of a box's side, "
            f"where {precision} explains {limit.score:g} and {limit.box:g}"
        )
        raise OutputError(what, where=path, right="report this; --no-verify writes it all the same")
