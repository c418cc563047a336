"""The outputs of exported files: boxes and scores, one array as ultralytics' tools read it, or detections after NMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.errors import CheckpointError

if TYPE_CHECKING:
    from yolo_prune.engines.exported.metadata import Metadata

NAMES = {"yoloprune": ("boxes", "scores"), "ultralytics": ("output0",)}
"""The names of the outputs of each layout."""
NMS_NAMES = {"yoloprune": ("detections",), "ultralytics": ("output0",)}
"""The same with NMS inside."""


class JoinedOutputs(nn.Module):
    """An engine whose boxes and scores are one array (B, 4 + C, N), boxes as cx cy w h. Source: ultralytics' Detect."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in 0 … 1 to (B, 4 + C, N)."""
        boxes, scores = self.engine(images)
        low, high = boxes[..., :2], boxes[..., 2:]
        return torch.cat(((low + high) / 2, high - low, scores), -1).transpose(1, 2)


def list_output_names(metadata: Metadata) -> tuple[str, ...]:
    """Return the names of a file's outputs, in their order."""
    return (NMS_NAMES if metadata.nms else NAMES)[metadata.layout]


def split_outputs(outputs: Sequence[Tensor], metadata: Metadata, where: str) -> tuple[Tensor, Tensor]:
    """Return boxes_xyxy (B, N, 4) and scores (B, N, C) from a file's outputs, in the order of `list_output_names`.

    Of a file with NMS inside these are what NMS left: each row has one score that is not 0.

    Raises:
        CheckpointError: the file has other outputs.
    """
    names = list_output_names(metadata)
    if len(outputs) != len(names):
        what = f"has {len(outputs)} outputs, and the layout {metadata.layout} has {len(names)}"
        raise CheckpointError(what, where=where, right="export it again")
    count = len(metadata.names)
    if metadata.nms:
        (rows,) = outputs
        _check(rows, where, None, 6)
        kinds = rows[..., 5].long()
        if ((kinds < 0) | (kinds >= count)).any():
            raise CheckpointError(f"finds classes that are none of its {count}", where=where, right="export it again")
        return rows[..., :4], rows[..., 4:5] * functional.one_hot(kinds, count)
    if metadata.layout == "yoloprune":
        boxes, scores = outputs
        _check(boxes, where, None, 4)
        _check(scores, where, boxes.shape[1], count)
        return boxes, scores
    _check(outputs[0], where, 4 + count, None)
    rows = outputs[0].transpose(1, 2)
    centres, halves = rows[..., :2], rows[..., 2:4] / 2
    return torch.cat((centres - halves, centres + halves), -1), rows[..., 4:]


def _check(output: Tensor, where: str, *sides: int | None) -> None:
    """Raise if an output is not (B, *sides), where None stands for any number."""
    if output.ndim != 3 or any(side not in (None, own) for own, side in zip(output.shape[1:], sides, strict=True)):
        wanted = ", ".join("any" if side is None else str(side) for side in sides)
        what = f"has an output of shape {tuple(output.shape)}, not (images, {wanted})"
        raise CheckpointError(what, where=where, right="export it again")
