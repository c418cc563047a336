"""`export` as a command: its files are models for every other command, and a wrong file is not written."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import PACKAGES, formats, list_formats, make_checkpoint, skip_without_packages
from tiny import TINY_CFG, Cli, read_json
from torch import Tensor, nn

import yolo_prune as yp
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.images import read_image
from yolo_prune.engines.exported.model import find_runtime
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.export import tracing, writers
from yolo_prune.export.formats import FORMATS, measure_bytes
from yolo_prune.export.writers import describe, write_model
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("openvino", reason="the extra `export` is not installed")


@formats
def test_a_file_is_a_model_for_every_command(cli: Cli, trained: Path, hands: Path, format: str) -> None:
    outcome = cli("export", trained, "--out", "hand", "--format", format, "--precision", "fp32", "--json")
    assert outcome.code == 0, outcome.err
    path = Path(f"hand{FORMATS[format].suffix}")
    result = read_json(outcome)
    assert result["files"] == {format: str(path)}
    assert result["parity"][format]["images"] == 6  # all of the test split
    assert "outputs equal the checkpoint's to" in outcome.err
    words = ("--data", hands, "--device", "cpu")
    scored = read_json(cli("evaluate", trained, path, *words, "--json"))
    (other,) = scored["compared"]
    assert scored["map50"] == pytest.approx(other["map50"], abs=1e-3)
    rows = read_json(cli("bench", trained, path, *words, "--runs", 1, "--json"))["rows"]
    assert [row["engine"] for row in rows] == ["folded", find_runtime(path).name]
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
    assert {path.name for path in Path().glob("a.*")} == {*("a.onnx", "a.xml", "a.bin", "a.weights", "a.cfg"), "a.md"}
    assert cli("export", trained, "--out", "b.onnx", "--data", hands).out == "b.onnx\n"


def test_every_engine_runs_every_checkpoint(cli: Cli, trained: Path) -> None:
    engines = ("folded", "onnxruntime", "openvino")
    words = ("--no-score", "--device", "cpu", "--runs", 1, "--batch-size", 2)
    outcome = cli("bench", trained, "--engine", "folded", "--engine", "onnxruntime,openvino", *words, "--json")
    assert outcome.code == 0, outcome.err
    assert [row["engine"] for row in read_json(outcome)["rows"]] == list(engines)
    table = cli("bench", trained, "--engine", ",".join(engines), *words).out
    assert [line.split()[1] for line in table.splitlines()[:1] + table.splitlines()[2:5]] == ["engine", *engines]


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


@pytest.mark.parametrize(
    ("name", "format"), [*((name, "onnx") for name in WRONG), ("BGR", "openvino"), ("heads swapped", "pt2")]
)
def test_a_wrong_file_is_not_written(
    cli: Cli, hands: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: str
) -> None:
    checkpoint = Path("random.pt")
    save_checkpoint(checkpoint, make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64)))
    make = tracing.make_module
    monkeypatch.setattr(writers, "make_module", lambda *parts: Wrong(make(*parts), **WRONG[name]).eval())
    path = Path(f"a{FORMATS[format].suffix}")
    path.write_text("before")
    words = ("export", checkpoint, "--out", path, "--data", hands, "--precision", "fp32", "--force")
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
    suffix = FORMATS[format].suffix
    Path(f"bad{suffix}").write_bytes(b"no model")
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64))
    write_model(checkpoint, describe(checkpoint, ""), tmp_path / f"good{suffix}")
    unread = "needs bad.ncnn.json beside it" if format == "ncnn" else "cannot be read by "
    for name, what in ((f"bad{suffix}", unread), (f"absent{suffix}", "there is no such file")):
        outcome = cli("evaluate", name, "--data", hands)
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith(f"error: {name}: {what}")
    outcome = cli("evaluate", tmp_path / f"good{suffix}", "--data", hands, "--img-size", 96)
    assert outcome.err.splitlines()[-1] == (
        f"error: --img-size: {tmp_path / f'good{suffix}'} takes images of 64 px alone; export it with that size, or with "
        "--dynamic size"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "tflite"), "--format: unknown format tflite; use one of darknet"),
        (("--out", "a.tfl"), "--out: .tfl is the suffix of no format; use .weights"),
        (("--dynamic", "batch"), "--dynamic: batch has no meaning for darknet; leave it out, or use --format onnx or"),
        (
            ("--format", "onnx,ncnn", "--nms"),
            "--nms: has no meaning for ncnn; leave it out, or use --format onnx or openvino",
        ),
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
        with pytest.raises(ConfigError, match="engine: names one twice, or none"):
            yp.bench("a.pt", engine=engine)


@pytest.fixture
def random_checkpoint(workplace: Path) -> Path:
    """Return a checkpoint whose outputs depend on its input, which those of one that was hardly trained do not."""
    save_checkpoint(Path("random.pt"), make_checkpoint(make_network("yolov3-tiny", 2, 0.125, 64)))
    return Path("random.pt")


WORDS: dict[str, tuple[str, ...]] = {"plain": (), "nms": ("--nms",), "ultralytics": ("--layout", "ultralytics")}
WITH_NMS = [name for name, form in FORMATS.items() if form.has_nms]
JOINED = [name for name in PACKAGES if "ultralytics" in FORMATS[name].layouts]


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        *((name, "plain") for name in PACKAGES),
        *((name, "nms") for name in WITH_NMS),
        *((name, "ultralytics") for name in JOINED),
    ],
)
def test_the_example_finds_what_detect_finds(
    cli: Cli, random_checkpoint: Path, hands: Path, format: str, kind: str
) -> None:
    skip_without_packages(format)
    words = WORDS[kind]
    precision = ("--precision", "fp32")
    outcome = cli("export", random_checkpoint, "--format", format, "--out", "net", "--data", hands, *words, *precision)
    assert outcome.code == 0, outcome.err
    photo = next((hands.parent / "images/val").iterdir())
    images = {"small": read_image(photo)[:40, :30], "large": np.tile(read_image(photo), (2, 3, 1))}
    for name, pixels in list(images.items())[: 1 if words else 2]:
        np.save(f"{name}.npy", pixels)
        wanted = yp.load(random_checkpoint, confidence=0.25, device="cpu")(pixels)
        assert len(wanted)
        found = subprocess.run(
            [sys.executable, f"net_{format}.py", f"{name}.npy"], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        rows = [line.rsplit(maxsplit=5) for line in found.stdout.splitlines()]
        assert len(rows) == len(wanted)
        values = np.array([[float(value) for value in row[1:]] for row in rows])
        numbers = np.array([int(row[0].split()[1]) for row in rows])
        for number, score, box in zip(wanted.classes, wanted.scores, wanted.boxes_xyxy, strict=True):
            off = np.abs(values[numbers == number] - [score, *box]).max(1)
            assert off.min() < 0.2


def test_the_card_says_what_the_files_are(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("--format", "onnx,openvino,darknet", "--out", "net")
    result = read_json(cli("export", trained, *words, "--data", hands, "--json"))
    card = Path(result["card"]).read_text()
    for word in (
        "net.onnx",
        "net.xml",
        "net_onnx.py",
        "net_openvino.py",
        "fp32",
        "fp16",
        "RGB",
        "114",
        "SHA-256",
        "hand",
    ):
        assert word in card
    assert cli("export", trained, "--out", "other.onnx", "--data", hands, "--no-card").code == 0
    assert {path.name for path in Path().glob("other*")} == {"other.onnx"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("net.onnx", {"net.onnx": 3, "net.bin": 5}),
        ("net.xml", {"net.xml": 3, "net.bin": 5}),
        ("net.ncnn.param", {"net.ncnn.param": 3, "net.ncnn.bin": 5, "net.ncnn.json": 7, "net.bin": 9}),
        ("net.mlpackage", {"net.mlpackage/Manifest.json": 3, "net.mlpackage/Data/weights.bin": 5}),
        ("best.pt", {"best.pt": 3}),
    ],
)
def test_the_size_of_a_file_is_that_of_all_its_parts(tmp_path: Path, name: str, parts: dict[str, int]) -> None:
    for part, size in parts.items():
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_bytes(bytes(size))
    sizes = {"net.onnx": 3, "net.xml": 8, "net.ncnn.param": 15, "net.mlpackage": 8, "best.pt": 3}
    assert measure_bytes(tmp_path / name) == sizes[name]


@pytest.mark.parametrize("format", list_formats("onnx", "openvino", "litert"))
def test_int8_keeps_the_score(cli: Cli, workplace: Path, hands: Path, format: str) -> None:
    source = Path("random.pt")
    save_checkpoint(source, make_checkpoint(make_network("yolov3-tiny", 1, 0.125, 64)).with_names(("hand",)))
    if format == "openvino":
        pytest.importorskip("nncf", reason="the extra `export` is not installed")
    words = ("--format", format, "--data", hands, "--calibration-images", 8)
    result = read_json(cli("export", source, *words, "--precision", "int8", "--verify-map", "--out", "net", "--json"))
    read_json(cli("export", source, *words, "--precision", "fp32", "--out", "full", "--json"))
    assert result["parity"][format]["mean_score"] < 0.05
    assert set(result["scores"][format]) == {"split", "images", "checkpoint", "exported", "difference", "interval"}
    weights = {"openvino": ".bin"}.get(format, FORMATS[format].suffix)
    assert Path(f"net{weights}").stat().st_size < 0.5 * Path(f"full{weights}").stat().st_size
    assert yp.load(Path(result["files"][format]), device="cpu")(np.zeros((64, 64, 3), np.uint8)) is not None


def test_int8_needs_images(cli: Cli, workplace: Path) -> None:
    save_checkpoint(Path("a.pt"), make_checkpoint(parse_cfg(TINY_CFG)))
    outcome = cli("export", "a.pt", "--format", "onnx", "--precision", "int8")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: --precision int8: needs a data set, and the one that the checkpoint was trained on is not there; name one with "
        "--data\n"
    )
