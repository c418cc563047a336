"""What writes the formats that run by themselves, and what an exported file says of itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.engines.exported.model import RUNTIMES
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.export.formats import FORMATS, find_format
from yolo_prune.export.request import Request, Writer
from yolo_prune.export.tracing import make_example, make_module
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.version import __version__

_WRITERS = {
    "onnx": ("onnx_file", "export_onnx"),
    "openvino": ("open_vino_file", "export_openvino"),
    "ncnn": ("ncnn_file", "export_ncnn"),
    "litert": ("litert_file", "export_litert"),
    "executorch": ("executorch_file", "export_executorch"),
    "pt2": ("pt2_file", "export_pt2"),
    "coreml": ("coreml_file", "export_coreml"),
}
"""Module and function of each format."""
ENGINE_SUFFIXES = {runtime.name: suffix for suffix, runtime in RUNTIMES.items()}
"""The suffix of the files that each engine runs."""


def describe(
    checkpoint: Checkpoint,
    sha256: str,
    *,
    precision: str = "fp32",
    layout: str = "yoloprune",
    dynamic: str = "none",
    nms: DetectConfig | None = None,
) -> Metadata:
    """Return what an exported file says of the checkpoint that it is made from; `sha256` is that of the checkpoint's file."""
    cost = measure_cost(checkpoint.network)
    data = checkpoint.provenance.get("data") or {}
    return Metadata(
        names=checkpoint.names,
        img_size=checkpoint.img_size,
        layout=layout,
        precision=precision,
        dynamic=dynamic,
        params=cost.params,
        macs=cost.macs,
        size_bytes=cost.size_bytes,
        anchors=tuple(head.own_anchors for _, head in checkpoint.network.heads),
        checkpoint_sha256=sha256,
        stage=str(checkpoint.provenance.get("stage", "")),
        data_fingerprint=data.get("fingerprint"),
        version=__version__,
        nms=None if nms is None else asdict(nms),
    )


def write_model(
    checkpoint: Checkpoint, metadata: Metadata, path: Path, batch_size: int = 1, calibration: Iterable[Tensor] = ()
) -> Path:
    """Write a checkpoint as the file that the end of `path` stands for, and return `path`.

    Args:
        calibration: training images (1, 3, H, W) in 0 … 1 that the ranges of int8 are measured on.

    Raises:
        ConfigError: a package is not installed.
        OutputError: the file cannot be written.
    """
    format = find_format(path.name)
    assert format is not None
    assert FORMATS[format].holds_network
    model = checkpoint.make_model().eval()
    is_half = format == "onnx" and metadata.precision == "fp16"  # the others store a float32 network in float16
    layout = "yoloprune" if metadata.nms else metadata.layout
    module: nn.Module = make_module(model, layout, is_half)
    images = make_example(checkpoint.img_size, metadata.dynamic, batch_size)
    with redirect_stdout(io.StringIO()):  # converters print there what they do
        return _find_writer(format)(Request(module, images, metadata, tuple(calibration)), path)


def _find_writer(format: str) -> Writer:
    module, function = _WRITERS[format]
    found: Callable[[Request, Path], Path] = getattr(import_module(f"{__package__}.{module}"), function)
    return found
