"""Programs of torch.export, in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from yolo_prune.engines.exported.base import ExportedEngine, reading
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata


class Pt2Engine(ExportedEngine):
    """A .pt2 file as an engine."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            CheckpointError: it cannot be read.
        """
        program, metadata = _load(path)
        super().__init__(path, metadata, 1 if metadata.dynamic == "none" else None)
        with reading(path):
            self._module = program.module()

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Run the program."""
        found = self._module(images)
        return [found] if isinstance(found, Tensor) else list(found)


def read_pt2_metadata(path: Path) -> Metadata:
    """Read the metadata of a .pt2 file.

    Raises:
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return _load(path)[1]


def _load(path: Path) -> tuple[torch.export.ExportedProgram, Metadata]:
    extra = {KEY: ""}
    with reading(path, "cannot be read by PyTorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path, extra_files=extra)
    return program, parse_metadata(extra[KEY] or None, path)
