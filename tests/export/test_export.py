"""Exported files give the checkpoint's outputs, and say what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import corrupt
from exporting import check, formats, make_checkpoint, skip_without_packages
from networks import make_small_network
from paths import ROOT

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import AvgPool, Conv, Gate, Layer, MaxPool, Reorg, Shortcut
from yolo_prune.engines.exported.base import ExportedEngine
from yolo_prune.engines.exported.layout import split_outputs
from yolo_prune.engines.exported.metadata import INPUT, KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.engines.exported.ncnn import FACTS as FACTS_OF_NCNN
from yolo_prune.engines.exported.ncnn import PARAM, WEIGHTS, NcnnEngine, format_facts
from yolo_prune.engines.exported.open_vino import WEIGHTS_KEY
from yolo_prune.errors import CheckpointError, ConfigError, OutputError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.export.config import ExportConfig
from yolo_prune.export.formats import FORMATS
from yolo_prune.export.writers import describe, write_model
from yolo_prune.image_size import ImageSize


@formats
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_exported(tmp_path: Path, arch: str, format: str) -> None:
    check(make_checkpoint(make_network(arch, classes=3, width=0.0625, img_size=64)), format, tmp_path)


OTHERS: dict[str, tuple[Layer, ...]] = {
    "gates": (Conv(8, 3, 2, 1), AvgPool(), Conv(8, 1, activation="logistic"), Gate(0, "channels")),
    "reorg": (Conv(8, 3, 2, 1), Reorg(2), Conv(8, 1), Reorg(2, is_mixed=True)),
    "partial shortcuts": (Conv(8, 3, 2, 1, activation="mish"), Conv(4, 1), Shortcut(0, "swish"), MaxPool(3, 1, 2)),
}


@formats
@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_exported(tmp_path: Path, name: str, format: str) -> None:
    checkpoint = make_checkpoint(make_small_network(*OTHERS[name], side=32))
    if (name, format) == ("reorg", "ncnn"):
        with pytest.raises(OutputError, match=r"model\.ncnn\.param: ncnn has no layer for Tensor\.reshape, which"):
            check(checkpoint, format, tmp_path)
    else:
        check(checkpoint, format, tmp_path)


WANTED: list[tuple[dict[str, Any], int]] = [
    ({"dynamic": "batch"}, 3),
    ({"dynamic": "size", "layout": "ultralytics"}, 2),
    ({"precision": "fp16"}, 1),
    ({}, 3),  # a file of one image at a time runs several
    ({"nms": DetectConfig()}, 1),
    ({"nms": DetectConfig(confidence=0.3, nms_iou=0.3, max_detections=5), "layout": "ultralytics"}, 1),
    ({"nms": DetectConfig(), "dynamic": "size"}, 2),
    ({"nms": DetectConfig(confidence=0.3, nms_iou=0.3, agnostic_nms=True), "dynamic": "batch"}, 2),
]


def is_allowed(format: str, facts: dict[str, Any]) -> bool:
    form = FORMATS[format]
    fields = {"layout": form.layouts, "dynamic": form.dynamic, "precision": form.precisions}
    return all(form.has_nms if key == "nms" else value in fields[key] for key, value in facts.items())


@formats
@pytest.mark.parametrize(("facts", "images"), WANTED)
def test_what_may_be_asked_for(tmp_path: Path, facts: dict[str, Any], images: int, format: str) -> None:
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64))
    if is_allowed(format, facts):
        check(checkpoint, format, tmp_path, images, **facts)
    else:
        with pytest.raises(ConfigError, match=r" has no meaning for |^--?nms: has no meaning"):
            make_config(format, facts)


def make_config(format: str, facts: dict[str, Any]) -> ExportConfig:
    return ExportConfig(format=(format,), **{**facts, **({"nms": True} if "nms" in facts else {})})


@formats
def test_rectangles_and_grey_networks_are_exported(tmp_path: Path, format: str) -> None:
    network = make_network("yolov3-tiny", 1, 0.0625, ImageSize(96, 64))
    check(make_checkpoint(network), format, tmp_path)
    check(make_checkpoint(replace(network, channels=1)), format, tmp_path)


@formats
def test_a_file_says_nothing_of_this_machine(tmp_path: Path, format: str) -> None:
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64))
    write_model(checkpoint, describe(checkpoint, "abc"), tmp_path / f"a{FORMATS[format].suffix}")
    for path in tmp_path.glob("a.*"):
        content = path.read_bytes()
        for part in (str(ROOT), str(tmp_path), "site-packages", "decode.py"):
            assert part.encode() not in content, (path, part)


@formats
def test_a_file_says_how_to_use_it(tmp_path: Path, format: str) -> None:
    layout = "ultralytics" if format in ("onnx", "openvino") else "yoloprune"
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64))
    path = write_model(checkpoint, describe(checkpoint, "abc", layout=layout), tmp_path / f"a{FORMATS[format].suffix}")
    metadata = load_exported(path).metadata
    assert (metadata.names, metadata.img_size) == (("class 0", "class 1"), ImageSize(64, 64))
    assert metadata.anchors == tuple(head.own_anchors for _, head in checkpoint.network.heads)
    assert metadata.checkpoint_sha256 == "abc"
    if format == "onnx":
        import onnx

        own = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert INPUT in own[KEY]
        assert own["names"] == "{0: 'class 0', 1: 'class 1'}"
        assert (own["task"], own["stride"], own["imgsz"]) == ("detect", "32", "[64, 64]")
        assert [output.name for output in onnx.load(path).graph.output] == ["output0"]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"names": 3}', "not json"])
def test_damaged_metadata_is_named(text: str | None) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx: (metadata: |does not say what)"):
        parse_metadata(text, Path("a.onnx"))


FACTS = Metadata(
    names=("a", "b"),
    img_size=ImageSize(64, 64),
    layout="yoloprune",
    precision="fp32",
    dynamic="none",
    params=1,
    macs=1,
    size_bytes=4,
    anchors=(((4.0, 4.0), (8.0, 6.0)),),
    checkpoint_sha256="a" * 64,
    stage="train",
    data_fingerprint=None,
    version="0.1.0",
)


def test_single_corruptions_of_metadata_are_errors_of_this_package() -> None:
    whole = json.loads(FACTS.format())
    assert parse_metadata(FACTS.format(), Path("a.onnx")) == FACTS
    tried, refused = corrupt(whole, lambda value: parse_metadata(json.dumps(value), Path("a.onnx")))
    assert refused > tried / 3


@pytest.mark.parametrize(
    ("facts", "shapes", "said"),
    [
        (FACTS, [(1, 6, 4)], "has 1 outputs"),
        (FACTS, [(1, 6, 4), (1, 6, 3)], r"has an output of shape \(1, 6, 3\), not \(images, 6, 2\)"),
        (FACTS, [(1, 6, 5), (1, 6, 2)], r"has an output of shape \(1, 6, 5\), not \(images, any, 4\)"),
        (FACTS, [(1, 6, 4), (1, 5, 2)], r"has an output of shape \(1, 5, 2\)"),
        (
            replace(FACTS, layout="ultralytics"),
            [(1, 7, 9)],
            r"has an output of shape \(1, 7, 9\), not \(images, 6, any\)",
        ),
        (replace(FACTS, nms={"iou": 0.5}), [(1, 9, 4)], r"has an output of shape \(1, 9, 4\), not \(images, any, 6\)"),
        (replace(FACTS, nms={"iou": 0.5}), [(6,)], r"has an output of shape \(6,\)"),
    ],
)
def test_outputs_that_are_none_of_the_metadata_are_named(
    facts: Metadata, shapes: list[tuple[int, ...]], said: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^a\.onnx: {said}.*; export it again"):
        split_outputs([torch.zeros(shape) for shape in shapes], facts, "a.onnx")


@pytest.mark.parametrize("kind", [-1, 2, float("nan")])
def test_a_class_that_is_none_is_named(kind: float) -> None:
    rows = torch.tensor([[[0, 0, 1, 1, 0.5, kind]]])
    with pytest.raises(CheckpointError, match="finds classes that are none of its 2"):
        split_outputs([rows], replace(FACTS, nms={"iou": 0.5}), "a.onnx")


@pytest.mark.parametrize("suffix", [PARAM, WEIGHTS])
def test_damaged_files_of_ncnn_are_named(tmp_path: Path, suffix: str) -> None:
    """It would crash: it trusts the numbers in them."""
    skip_without_packages("ncnn")
    parts = {PARAM: b"7767517\n0 0\n", WEIGHTS: b"abc"}
    for name, content in {**parts, FACTS_OF_NCNN: format_facts(FACTS, parts)}.items():
        (tmp_path / f"a{name}").write_bytes(content)
    (tmp_path / f"a{suffix}").write_bytes(parts[suffix] + b"1")
    with pytest.raises(CheckpointError, match=rf"a{suffix}: is damaged: it is not what was exported; export it again"):
        NcnnEngine(tmp_path / f"a{PARAM}")


def test_damaged_weights_of_openvino_are_named(tmp_path: Path) -> None:
    """It would crash, or compute something else."""
    skip_without_packages("openvino")
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64))
    path = write_model(checkpoint, describe(checkpoint, ""), tmp_path / "a.xml")
    weights = tmp_path / "a.bin"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole + b"1", bytes([whole[0] ^ 1]) + whole[1:]):
        weights.write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=r"(is damaged: it is not what was exported|Incorrect weights).*; export it again"
        ):
            load_exported(path)
    path.write_text(path.read_text().replace(WEIGHTS_KEY, "other"))  # as of a version that stored none
    weights.write_bytes(whole)
    assert load_exported(path).metadata.names == checkpoint.names


class Broken(ExportedEngine):
    """An engine whose runtime fails."""

    def run(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Raise what a runtime may raise."""
        raise SystemError("first\nthe last line")


def test_what_a_runtime_raises_is_said_of_the_file() -> None:
    engine = Broken(Path("a.onnx"), FACTS, None)
    with pytest.raises(CheckpointError, match=r"^a\.onnx: is damaged, and cannot be run \(the last line\); export it"):
        engine(torch.zeros(1, 3, 64, 64))


def test_an_interrupt_after_openvino_is_an_interrupt(tmp_path: Path) -> None:
    """Its cores leave a freed signal stack behind, where they do not end in the opposite order of their making."""
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64))
    path = write_model(checkpoint, describe(checkpoint, ""), tmp_path / "model.xml")
    code = f"""
import gc, signal, sys
from pathlib import Path
from yolo_prune.engines.exported.open_vino import OpenVinoEngine
from yolo_prune.engines.exported.signal_stack import keeping_signal_stack
import openvino
first, second = OpenVinoEngine(Path({str(path)!r})), OpenVinoEngine(Path({str(path)!r}))
with keeping_signal_stack():
    cores = [openvino.Core() for _ in range(2)]
    [core.get_property("CPU", "FULL_DEVICE_NAME") for core in cores]
    while cores:
        cores.pop(0)
        gc.collect()
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run in the background
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stdout) == (0, "interrupted\n"), outcome.stderr
