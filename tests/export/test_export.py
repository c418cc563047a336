"""Exported files give the checkpoint's outputs, say what they are, and are models for every command."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import make_small_network, randomise_
from paths import ROOT
from tiny import TINY_CFG, Cli, read_json
from torch import Tensor, nn

import yolo_prune as yp
from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.layers import AvgPool, Conv, Gate, Layer, MaxPool, Reorg, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.engines.exported.metadata import INPUT, KEY, parse_metadata
from yolo_prune.engines.exported.model import RUNTIMES, load_exported
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.export import tracing, writers
from yolo_prune.export.verify import TOLERANCES, measure_parity
from yolo_prune.export.writers import describe, write_model
from yolo_prune.image_size import ImageSize
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("openvino", reason="the extra `export` is not installed")

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
formats = pytest.mark.parametrize("format", FORMATS)


def make_checkpoint(network: Network, seed: int = 0) -> Checkpoint:
    model = randomise_(Detector(network), seed, double=False)
    names = tuple(f"class {number}" for number in range(network.classes))
    return Checkpoint(network, model.state_dict(), names)


def check(checkpoint: Checkpoint, suffix: str, folder: Path, images: int = 1, **facts: str) -> None:
    """Write a checkpoint, and compare the outputs on noise."""
    metadata = describe(checkpoint, "", **facts)
    path = write_model(checkpoint, metadata, folder / f"model{suffix}")
    exported = load_exported(path)
    assert exported.metadata == metadata
    size = checkpoint.img_size
    sizes = [size] if metadata.dynamic != "size" else [size, ImageSize(64, 32), ImageSize(32, 96)]
    engine = exported.make_engine()
    model = checkpoint.make_model().eval()
    for one in sizes:
        noise = torch.rand(images, 3, one.height, one.width, generator=torch.Generator().manual_seed(1))
        parity = measure_parity(model, engine, [noise])
        limit = TOLERANCES[metadata.precision]
        assert parity.score <= limit.score
        assert parity.box <= limit.box
        assert parity.compared_boxes > 0


@formats
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_exported(tmp_path: Path, arch: str, format: str) -> None:
    check(make_checkpoint(make_network(arch, classes=3, width=0.0625, img_size=64)), FORMATS[format], tmp_path)


OTHERS: dict[str, tuple[Layer, ...]] = {
    "gates": (Conv(8, 3, 2, 1), AvgPool(), Conv(8, 1, activation="logistic"), Gate(0, "channels")),
    "reorg": (Conv(8, 3, 2, 1), Reorg(2), Conv(8, 1), Reorg(2, is_mixed=True)),
    "partial shortcuts": (Conv(8, 3, 2, 1, activation="mish"), Conv(4, 1), Shortcut(0, "swish"), MaxPool(3, 1, 2)),
}


@formats
@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_exported(tmp_path: Path, name: str, format: str) -> None:
    check(make_checkpoint(make_small_network(*OTHERS[name], side=32)), FORMATS[format], tmp_path)


@formats
@pytest.mark.parametrize(
    ("facts", "images"),
    [
        ({"layout": "ultralytics"}, 1),
        ({"dynamic": "batch"}, 3),
        ({"dynamic": "size"}, 2),
        ({"dynamic": "size", "layout": "ultralytics"}, 1),
        ({"precision": "fp16"}, 1),
        ({"precision": "fp16", "dynamic": "batch"}, 2),
        ({}, 3),  # a file of one image at a time runs several
    ],
)
def test_what_may_be_asked_for(tmp_path: Path, facts: dict[str, str], images: int, format: str) -> None:
    check(make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64)), FORMATS[format], tmp_path, images, **facts)


@formats
def test_rectangles_and_grey_networks_are_exported(tmp_path: Path, format: str) -> None:
    network = make_network("yolov3-tiny", 1, 0.0625, ImageSize(96, 64))
    check(make_checkpoint(network), FORMATS[format], tmp_path)
    check(make_checkpoint(replace(network, channels=1)), FORMATS[format], tmp_path)


@formats
def test_a_file_is_a_model_for_every_command(cli: Cli, trained: Path, hands: Path, format: str) -> None:
    outcome = cli("export", trained, "--out", "hand", "--format", format, "--precision", "fp32", "--json")
    assert outcome.code == 0, outcome.err
    path = Path(f"hand{FORMATS[format]}")
    result = read_json(outcome)
    assert result["files"] == {format: str(path)}
    assert result["parity"][format]["images"] == 6  # all of the test split
    assert "outputs equal the checkpoint's on 6 images" in outcome.err
    words = ("--data", hands, "--device", "cpu")
    scored = read_json(cli("evaluate", trained, path, *words, "--json"))
    (other,) = scored["compared"]
    assert scored["map50"] == pytest.approx(other["map50"], abs=1e-3)
    rows = read_json(cli("bench", trained, path, *words, "--runs", 1, "--json"))["rows"]
    assert [row["engine"] for row in rows] == ["folded", RUNTIMES[path.suffix].name]
    assert [rows[0][key] for key in ("params", "macs")] == [rows[1][key] for key in ("params", "macs")]
    photo = next((hands.parent / "images/val").iterdir())
    assert cli("detect", path, photo, "--device", "cpu").code == 0
    one, same = (yp.load(file, confidence=0.01, device="cpu")(photo) for file in (trained, path))
    np.testing.assert_allclose(one.boxes_xyxy, same.boxes_xyxy, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(one.scores, same.scores, atol=1e-4)
    with pytest.raises(CheckpointError, match="holds no network as data"):
        _ = yp.load(path).network


def test_several_formats_at_once_and_by_suffix(cli: Cli, trained: Path, hands: Path) -> None:
    outcome = cli("export", trained, "--out", "a", "--format", "onnx", "--format", "openvino,darknet", "--data", hands)
    assert outcome.out == "a.onnx\na.xml\na.weights\n", outcome.err
    assert {path.name for path in Path().glob("a.*")} == {"a.onnx", "a.xml", "a.bin", "a.weights", "a.cfg"}
    assert cli("export", trained, "--out", "b.onnx", "--data", hands).out == "b.onnx\n"


def test_every_engine_runs_every_checkpoint(cli: Cli, trained: Path) -> None:
    engines = ("folded", "onnxruntime", "openvino")
    words = ("--no-score", "--device", "cpu", "--runs", 1, "--batch-size", 2)
    outcome = cli("bench", trained, "--engine", "folded", "--engine", "onnxruntime,openvino", *words, "--json")
    assert outcome.code == 0, outcome.err
    assert [row["engine"] for row in read_json(outcome)["rows"]] == list(engines)
    table = cli("bench", trained, "--engine", ",".join(engines), *words).out
    assert [line.split()[1] for line in table.splitlines()[:1] + table.splitlines()[2:5]] == ["engine", *engines]


def test_a_file_says_nothing_of_this_machine(tmp_path: Path, workplace: Path) -> None:
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64))
    for suffix in FORMATS.values():
        write_model(checkpoint, describe(checkpoint, "abc"), tmp_path / f"a{suffix}")
    for path in tmp_path.glob("a.*"):
        content = path.read_bytes()
        for part in (str(ROOT), str(tmp_path), "site-packages", "decode.py"):
            assert part.encode() not in content, (path, part)


@formats
def test_a_file_says_how_to_use_it(tmp_path: Path, format: str) -> None:
    import onnx

    checkpoint = make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64))
    path = write_model(checkpoint, describe(checkpoint, "abc", layout="ultralytics"), tmp_path / f"a{FORMATS[format]}")
    metadata = load_exported(path).metadata
    assert (metadata.names, metadata.img_size) == (("class 0", "class 1"), ImageSize(64, 64))
    assert metadata.anchors == tuple(head.own_anchors for _, head in checkpoint.network.heads)
    assert metadata.checkpoint_sha256 == "abc"
    if format == "onnx":
        own = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert INPUT in own[KEY]
        assert own["names"] == "{0: 'class 0', 1: 'class 1'}"
        assert (own["task"], own["stride"], own["imgsz"]) == ("detect", "32", "[64, 64]")
        assert [output.name for output in onnx.load(path).graph.output] == ["output0"]


class Wrong(nn.Module):
    """An engine that reads or gives something else than it should."""

    def __init__(self, engine: nn.Module, change: Callable[[Tensor], Tensor], swaps: bool = False) -> None:
        super().__init__()
        self.engine, self.change, self.swaps = engine, change, swaps

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = self.engine(self.change(images))
        half = boxes.shape[1] // 3
        order = torch.cat((torch.arange(half, boxes.shape[1]), torch.arange(half)))
        return (boxes[:, order], scores[:, order]) if self.swaps else (boxes, scores)


def shrink(images: Tensor) -> Tensor:
    small = nn.functional.interpolate(images, scale_factor=0.5, mode="nearest")
    return nn.functional.interpolate(small, scale_factor=2, mode="nearest")


WRONG: dict[str, dict[str, Any]] = {
    "BGR": {"change": lambda images: images.flip(1)},
    "another resize": {"change": shrink},
    "0 to 255": {"change": lambda images: images * 255},
    "heads swapped": {"change": lambda images: images * 1, "swaps": True},
}


@formats
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_not_written(
    cli: Cli, hands: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: str
) -> None:
    checkpoint = Path("random.pt")
    save_checkpoint(checkpoint, make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64)))
    make = tracing.make_module
    monkeypatch.setattr(writers, "make_module", lambda *parts: Wrong(make(*parts), **WRONG[name]).eval())
    path = Path(f"a{FORMATS[format]}")
    path.write_text("before")
    words = ("export", checkpoint, "--out", path, "--data", hands, "--precision", "fp32")
    outcome = cli(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(f"error: {path}: its outputs differ from the checkpoint's by ")
    assert path.read_text() == "before"
    assert {one.name for one in Path().glob("a*")} == {path.name}
    assert not list(Path().glob("tmp*"))
    assert cli(*words, "--no-verify").code == 0
    assert path.read_bytes() != b"before"


def test_without_a_data_set_noise_is_compared_on(cli: Cli, workplace: Path) -> None:
    checkpoint = make_checkpoint(parse_cfg(TINY_CFG))
    save_checkpoint(Path("a.pt"), checkpoint)
    outcome = cli("export", "a.pt", "--format", "onnx")
    assert outcome.code == 0, outcome.err
    assert "outputs are compared on noise; --data names one" in outcome.err


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "openvino"])
def test_a_missing_package_is_one_line(
    cli: Cli, trained: Path, hands: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def import_module(name: str) -> object:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return builtins.__import__(name)

    monkeypatch.setattr("yolo_prune.engines.exported.packages.import_module", import_module)
    format = "openvino" if package == "openvino" else "onnx"
    outcome = cli("export", trained, "--out", "a", "--format", format, "--data", hands)
    assert (outcome.code, outcome.out) == (2, "")
    line = outcome.err.splitlines()[-1]
    assert f"needs the package {package} " in line
    assert line.endswith("python -m pip install 'yolo-prune[export]'")


@formats
def test_a_file_that_is_none_of_ours_is_named(cli: Cli, hands: Path, tmp_path: Path, format: str) -> None:
    suffix = FORMATS[format]
    Path(f"bad{suffix}").write_bytes(b"no model")
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64))
    write_model(checkpoint, describe(checkpoint, ""), tmp_path / f"good{suffix}")
    for name, what in ((f"bad{suffix}", "cannot be read by "), (f"absent{suffix}", "there is no such file")):
        outcome = cli("evaluate", name, "--data", hands)
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith(f"error: {name}: {what}")
    outcome = cli("evaluate", tmp_path / f"good{suffix}", "--data", hands, "--img-size", 96)
    assert outcome.err.splitlines()[-1] == (
        f"error: --img-size: {tmp_path / f'good{suffix}'} takes images of 64 px alone; export it with that size, or with "
        "--dynamic size"
    )


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"names": 3}', "not json"])
def test_damaged_metadata_is_named(text: str | None) -> None:
    with pytest.raises(CheckpointError, match=r"^a\.onnx: (holds damaged metadata|does not say what)"):
        parse_metadata(text, Path("a.onnx"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "tflite"), "--format: unknown format tflite; use one of darknet"),
        (("--out", "a.tflite"), "--out: .tflite is the suffix of no format; use .weights"),
        (("--dynamic", "batch"), "--dynamic: has no meaning for darknet; leave it out, or use --format onnx"),
        (("--format", "onnx,onnx"), "--format: names a format twice"),
        (("--format", "onnx", "--img-size", "50"), "--img-size: 50 is no multiple of 32"),
    ],
)
def test_settings_without_a_meaning_are_errors(cli: Cli, trained: Path, words: tuple[str, ...], message: str) -> None:
    outcome = cli("export", trained, *words)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: {message}")


def test_weights_pruned_to_zero_are_exported(cli: Cli, trained: Path, hands: Path) -> None:
    pruned = cli("prune", trained, "--granularity", "weight", "--ratio", 0.5, "--recalibrate", 0, "--device", "cpu")
    assert pruned.code == 0, pruned.err
    outcome = cli("export", pruned.out.strip(), "--format", "onnx,openvino", "--data", hands)
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(Path(pruned.out.strip())).keeps_zeros


def test_engines_are_named_once() -> None:
    for engine in (("folded", "folded"), ()):
        with pytest.raises(ConfigError, match="engine: names an engine twice, or none"):
            yp.bench("a.pt", engine=engine)
