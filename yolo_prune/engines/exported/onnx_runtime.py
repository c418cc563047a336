"""ONNX files in ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import list_output_names, split_outputs
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import CheckpointError

QUIET = 3
"""ONNX Runtime's severity from which messages are shown: errors."""


class OnnxRuntimeEngine(nn.Module):
    """An ONNX file as an engine, with as many threads as PyTorch has now."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            ConfigError: ONNX Runtime is not installed.
            CheckpointError: the file cannot be read.
        """
        super().__init__()
        self.path = path
        self._session = _open(path)
        self.metadata: Metadata = parse_metadata(self._session.get_modelmeta().custom_metadata_map.get(KEY), path)
        batch = self._session.get_inputs()[0].shape[0]
        self._batch = batch if isinstance(batch, int) else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        parts = [self._run(part) for part in (torch.split(images, self._batch) if self._batch else [images])]
        boxes, scores = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        feed = {self._session.get_inputs()[0].name: images.contiguous().numpy()}
        outputs = self._session.run(list(list_output_names(self.metadata)), feed)
        return split_outputs([torch.from_numpy(output) for output in outputs], self.metadata, str(self.path))


def read_onnx_metadata(path: Path) -> Metadata:
    """Read the metadata of an ONNX file.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return parse_metadata(_open(path).get_modelmeta().custom_metadata_map.get(KEY), path)


def _open(path: Path):  # type: ignore[no-untyped-def]  # the package ships no types
    runtime = import_package("onnxruntime", str(path))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = QUIET
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions derive from Exception alone
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"cannot be read by ONNX Runtime ({reason})", where=path, right="export it again"
        ) from error
