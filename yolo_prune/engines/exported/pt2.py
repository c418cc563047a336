"""Programs of torch.export, in PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import split_outputs
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.errors import CheckpointError


class Pt2Engine(nn.Module):
    """A .pt2 file as an engine."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            CheckpointError: it cannot be read.
        """
        super().__init__()
        self.path = path
        program, self.metadata = _load(path)
        self._module = program.module()
        self._batch = 1 if self.metadata.dynamic == "none" else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        parts = [self._run(part) for part in (torch.split(images, self._batch) if self._batch else [images])]
        boxes, scores = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self._module(images)
        return split_outputs([found] if isinstance(found, Tensor) else found, self.metadata, str(self.path))


def read_pt2_metadata(path: Path) -> Metadata:
    """Read the metadata of a .pt2 file.

    Raises:
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return _load(path)[1]


def _load(path: Path) -> tuple[torch.export.ExportedProgram, Metadata]:
    extra = {KEY: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # it raises whatever its parts raise
        reason = str(error).strip().splitlines()[-1:]
        raise CheckpointError(
            f"cannot be read by PyTorch ({''.join(reason)})", where=path, right="export it again"
        ) from error
    return program, parse_metadata(extra[KEY] or None, path)
