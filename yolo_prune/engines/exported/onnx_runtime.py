"""ONNX files in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_prune.engines.exported.base import ExportedEngine, reading
from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package

QUIET = 3
"""ONNX Runtime's severity from which messages are shown: errors."""


class OnnxRuntimeEngine(ExportedEngine):
    """An ONNX file as an engine, with as many threads as PyTorch has now."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            ConfigError: ONNX Runtime is not installed.
            CheckpointError: the file cannot be read.
        """
        session = _open(path)
        with reading(path):
            (source,) = session.get_inputs()
            count = source.shape[0]
        super().__init__(path, _take_metadata(session, path), count if isinstance(count, int) else None)
        self._session, self._input = session, source.name

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Run the session."""
        outputs = self._session.run(list(list_output_names(self.metadata)), {self._input: images.numpy()})
        return [torch.from_numpy(output) for output in outputs]


def read_onnx_metadata(path: Path) -> Metadata:
    """Read the metadata of an ONNX file.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return _take_metadata(_open(path, optimises=False), path)


def _take_metadata(session: Any, path: Path) -> Metadata:
    with reading(path):
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return parse_metadata(text, path)


def _open(path: Path, optimises: bool = True) -> Any:
    runtime = import_package("onnxruntime", str(path))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = QUIET
    if not optimises:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with reading(path, "cannot be read by ONNX Runtime"):
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
