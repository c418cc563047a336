"""OpenVINO files, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_prune.engines.exported.base import ExportedEngine, check_part, reading
from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.engines.exported.signal_stack import keeping_signal_stack

WEIGHTS_KEY = "yolo_prune_weights_sha256"
"""The name under which an .xml holds the SHA-256 of its .bin; those of versions before 0.2 hold none."""


class OpenVinoEngine(ExportedEngine):
    """An OpenVINO file as an engine, with as many threads as PyTorch has now.

    It computes in float32, also where the weights are stored in float16: OpenVINO itself would take bfloat16 where the CPU has it.
    """

    def __init__(self, path: Path) -> None:
        """Load and compile a file.

        Raises:
            ConfigError: OpenVINO is not installed.
            CheckpointError: the file cannot be read.
        """
        model = _read(path)
        with reading(path):
            (source,) = model.inputs
            count = source.partial_shape[0]
        super().__init__(path, _take_metadata(model, path), None if count.is_dynamic else count.get_length())
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with reading(path):
            self._request = get_core().compile_model(model, "CPU", settings).create_infer_request()

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Run the request."""
        found = self._request.infer([images.numpy()], share_inputs=True)
        return [torch.from_numpy(found[name]) for name in list_output_names(self.metadata)]


def read_openvino_metadata(path: Path) -> Metadata:
    """Read the metadata of an OpenVINO file.

    Raises:
        ConfigError: OpenVINO is not installed.
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return _take_metadata(_read(path), path)


@cache
def get_core() -> Any:
    """Return OpenVINO's core, one for the whole process; OpenVINO must be installed."""
    with keeping_signal_stack():
        core = import_package("openvino", "").Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the CPU's part, which sets the signal stack
    return core


def _read(path: Path) -> Any:
    import_package("openvino", str(path))
    with reading(path, "cannot be read by OpenVINO"):
        model = get_core().read_model(path)
    if (sha256 := _take_info(model, WEIGHTS_KEY, path)) is not None:
        check_part(path.with_suffix(".bin"), sha256)
    return model


def _take_metadata(model: Any, path: Path) -> Metadata:
    return parse_metadata(_take_info(model, KEY, path), path)


def _take_info(model: Any, key: str, path: Path) -> str | None:
    with reading(path):
        return str(model.get_rt_info([key]).astype(str)) if model.has_rt_info([key]) else None
