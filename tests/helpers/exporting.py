"""Checkpoints to export, and the formats whose packages are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import randomise_

from yolo_prune.darknet.network import Network
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.export.formats import FORMATS
from yolo_prune.export.verify import NMS, TOLERANCES, measure_parity
from yolo_prune.export.writers import describe, write_model
from yolo_prune.image_size import ImageSize
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.detector import Detector

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "pnnx"),
    "pt2": (),
    "litert": ("litert_torch", "ai_edge_litert"),
    "executorch": ("executorch",),
}
"""What each format that is run here needs."""


def _explain_absent(name: str) -> str | None:
    absent = [package for package in PACKAGES[name] if find_spec(package) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def skip_without_packages(name: str) -> None:
    """Skip the test, aloud, if what a format needs is not installed."""
    if (reason := _explain_absent(name)) is not None:
        pytest.skip(reason)


def _make_parameter(name: str) -> Any:
    reason = _explain_absent(name)
    return pytest.param(name, marks=[] if reason is None else [pytest.mark.skip(reason=reason)])


def list_formats(*names: str) -> list[Any]:
    """Return pytest parameters of formats, skipped where a package is not installed."""
    return [_make_parameter(name) for name in names]


formats = pytest.mark.parametrize("format", list_formats(*PACKAGES))


def make_checkpoint(network: Network, seed: int = 0) -> Checkpoint:
    """Return a checkpoint of random weights."""
    model = randomise_(Detector(network), seed, double=False)
    names = tuple(f"class {number}" for number in range(network.classes))
    return Checkpoint(network, model.state_dict(), names)


def check(checkpoint: Checkpoint, format: str, folder: Path, images: int = 1, **facts: Any) -> Path:
    """Write a checkpoint, compare the outputs on noise, and return the file."""
    metadata = describe(checkpoint, "", **facts)
    path = write_model(checkpoint, metadata, folder / f"model{FORMATS[format].suffix}")
    exported = load_exported(path)
    assert exported.metadata == metadata
    sizes = [checkpoint.img_size]
    if metadata.dynamic == "size":
        sizes = [ImageSize(64, 128) if format == "pt2" else ImageSize(32, 96)]
    engine = exported.make_engine()
    model = checkpoint.make_model().eval()
    for one in sizes:
        noise = torch.rand(images, 3, one.height, one.width, generator=torch.Generator().manual_seed(1))
        parity = measure_parity(model, engine, torch.split(noise, 1), metadata)
        if metadata.nms is None:
            limit, found = TOLERANCES[metadata.precision], (parity.score, parity.box)
            assert len(engine(noise)[0]) == images
        else:
            limit, found = NMS, (parity.mean_score, parity.mean_box)
        assert found[0] <= limit.score
        assert found[1] <= limit.box
        assert parity.compared_boxes > 0
    return path
