"""ExecuTorch programs, in its own runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import split_outputs
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import CheckpointError


class ExecutorchEngine(nn.Module):
    """A .pte file as an engine, one image at a time, with as many threads as its runtime takes."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            ConfigError: ExecuTorch is not installed.
            CheckpointError: it cannot be read.
        """
        super().__init__()
        self.path = path
        self._program = _load(path)
        self.metadata = _take_metadata(self._program, path)
        self._method = self._program.load_method("forward")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        parts = [self._run(image) for image in torch.split(images, 1)]
        boxes, scores = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores)

    def _run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = [output.clone() for output in self._method.execute([image.contiguous()])]
        return split_outputs(outputs, self.metadata, str(self.path))


def read_executorch_metadata(path: Path) -> Metadata:
    """Read the metadata of a .pte file.

    Raises:
        ConfigError: ExecuTorch is not installed.
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return _take_metadata(_load(path), path)


def _load(path: Path) -> Any:
    runtime = import_package("executorch.runtime", str(path), "executorch")
    try:
        return runtime.Runtime.get().load_program(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"cannot be read by ExecuTorch ({reason})", where=path, right="export it again"
        ) from error


def _take_metadata(program: Any, path: Path) -> Metadata:
    found = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
    return parse_metadata(found, path)
