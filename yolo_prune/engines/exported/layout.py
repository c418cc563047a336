"""The outputs of exported files: boxes and scores, or one array as ultralytics' tools read it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolo_prune.errors import CheckpointError

NAMES = {"yoloprune": ("boxes", "scores"), "ultralytics": ("output0",)}
"""The names of the outputs of each layout."""


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


def split_outputs(outputs: Sequence[Tensor], layout: str, where: str) -> tuple[Tensor, Tensor]:
    """Return boxes_xyxy (B, N, 4) and scores (B, N, C) from a file's outputs, in the order of `NAMES`.

    Raises:
        CheckpointError: the file has another number of outputs.
    """
    if len(outputs) != len(NAMES[layout]):
        what = f"has {len(outputs)} outputs, and the layout {layout} has {len(NAMES[layout])}"
        raise CheckpointError(what, where=where, right="export it again")
    if layout == "yoloprune":
        return outputs[0], outputs[1]
    rows = outputs[0].transpose(1, 2)
    centres, halves = rows[..., :2], rows[..., 2:4] / 2
    return torch.cat((centres - halves, centres + halves), -1), rows[..., 4:]
