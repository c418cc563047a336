"""What all engines of exported files share: several images through a file that takes fewer at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import split_outputs
from yolo_prune.engines.exported.metadata import Metadata


class ExportedEngine(nn.Module):
    """An exported file as an engine."""

    def __init__(self, path: Path, metadata: Metadata, batch: int | None) -> None:
        """Take a file, what it says of itself, and how many images it takes at a time; None for any number."""
        super().__init__()
        self.path, self.metadata, self.batch = path, metadata, batch

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        parts = [self._split(part) for part in (torch.split(images, self.batch) if self.batch else [images])]
        boxes, scores = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores)

    def _split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return split_outputs(self.run(images.contiguous()), self.metadata, str(self.path))

    @abstractmethod
    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Map contiguous images (b, 3, H, W), as many as the file takes, to its outputs, in their order."""
