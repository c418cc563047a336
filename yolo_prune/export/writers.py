"""What writes the formats that run by themselves, and runs a network in their engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.engines.exported.model import RUNTIMES
from yolo_prune.export.onnx_file import export_onnx
from yolo_prune.export.open_vino_file import export_openvino
from yolo_prune.export.tracing import make_example, make_module
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.version import __version__

Writer = Callable[[nn.Module, Tensor, Metadata, Path, str], Path]
WRITERS: dict[str, Writer] = {".onnx": export_onnx, ".xml": export_openvino}
"""By the suffix of the file that is written."""
SUFFIXES = {runtime.name: suffix for suffix, runtime in RUNTIMES.items()}
"""The suffix of the files that each engine runs."""


def describe(
    checkpoint: Checkpoint, sha256: str, *, precision: str = "fp32", layout: str = "yoloprune", dynamic: str = "none"
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
    )


def write_model(checkpoint: Checkpoint, metadata: Metadata, path: Path, batch_size: int = 1) -> Path:
    """Write a checkpoint as the file that the suffix of `path` stands for, and return `path`.

    Raises:
        ConfigError: a package is not installed.
        OutputError: the file cannot be written.
    """
    model = checkpoint.make_model().eval()
    is_half = path.suffix == ".onnx" and metadata.precision == "fp16"  # OpenVINO stores a float32 network in float16
    module = make_module(model, metadata.layout, is_half)
    example = make_example(checkpoint.img_size, metadata.dynamic, batch_size)
    return WRITERS[path.suffix](module, example, metadata, path, metadata.dynamic)
