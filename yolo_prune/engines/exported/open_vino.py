"""OpenVINO files, on the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import list_output_names, split_outputs
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.engines.exported.signal_stack import keeping_signal_stack
from yolo_prune.errors import CheckpointError


class OpenVinoEngine(nn.Module):
    """An OpenVINO file as an engine, with as many threads as PyTorch has now.

    It computes in float32, also where the weights are stored in float16: OpenVINO itself would take bfloat16 where the CPU has it.
    """

    def __init__(self, path: Path) -> None:
        """Load and compile a file.

        Raises:
            ConfigError: OpenVINO is not installed.
            CheckpointError: the file cannot be read.
        """
        super().__init__()
        self.path = path
        model = _read(path)
        self.metadata: Metadata = _take_metadata(model, path)
        shape = model.inputs[0].partial_shape
        self._batch = None if shape[0].is_dynamic else shape[0].get_length()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._request = get_core().compile_model(model, "CPU", settings).create_infer_request()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        parts = [self._run(part) for part in (torch.split(images, self._batch) if self._batch else [images])]
        boxes, scores = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self._request.infer([images.contiguous().numpy()], share_inputs=True)
        outputs = [torch.from_numpy(found[name]) for name in list_output_names(self.metadata)]
        return split_outputs(outputs, self.metadata, str(self.path))


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
    try:
        return get_core().read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"cannot be read by OpenVINO ({reason})", where=path, right="export it again") from error


def _take_metadata(model: Any, path: Path) -> Metadata:
    text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    return parse_metadata(text, path)
