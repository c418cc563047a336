"""Inputs that are wider than high, through every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny import TINY_CFG, Cli, read_json

import yolo_prune as yp
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.image_size import ImageSize
from yolo_prune.model.checkpoint import load_checkpoint

SIZE = ImageSize(96, 64)


@pytest.fixture
def net(workplace: Path) -> Path:
    (workplace / "net.cfg").write_text(TINY_CFG)
    return workplace / "net.cfg"


def test_every_command_keeps_the_size(cli: Cli, hands: Path, net: Path) -> None:
    words = ("--data", hands, "--batch-size", 6, "--device", "cpu")
    trained = cli("train", "--cfg", net, "--img-size", "96x64", *words, "--epochs", 2, "--set", "augment.mosaic=0.5")
    assert trained.code == 0, trained.err
    assert "at 96x64 px" in trained.err
    assert yaml.safe_load(Path("runs/train/config.yaml").read_text())["img_size"] == "96x64"
    assert load_checkpoint(Path(trained.out.strip())).img_size == SIZE
    sensitive = cli("sensitivity", "--ratios", "0.5", "--images", 4, "--device", "cpu")
    assert sensitive.code == 0, sensitive.err
    for more in ((), ("--one-shot",), ("--one-shot", "--from-sensitivity", sensitive.out.strip())):
        pruned = cli(
            "prune", trained.out.strip(), "--ratio", 0.4, "--effort", 2, "--round-to", 1, "--device", "cpu", *more
        )
        assert pruned.code == 0, pruned.err
    slim = load_cfg(Path("runs/prune-3/pruned.cfg"))
    assert slim.img_size == SIZE
    tuned = cli("finetune", *words, "--epochs", 1, "--multi-scale", 0.4)
    assert tuned.code == 0, tuned.err
    assert load_checkpoint(Path(tuned.out.strip())).img_size == SIZE
    assert cli("evaluate", "--device", "cpu").code == 0
    rows = read_json(cli("bench", trained.out.strip(), tuned.out.strip(), "--device", "cpu", "--runs", 1, "--json"))
    assert [row["img_size"] for row in rows["rows"]] == ["96x64", "96x64"]
    assert cli("detect", tuned.out.strip(), hands.parent / "images/val", "--device", "cpu").code == 0
    assert cli("export", "--out", "slim").code == 0
    assert load_cfg(Path("slim.cfg")) == load_checkpoint(Path(tuned.out.strip())).network
    iterated = cli(
        "iterate",
        trained.out.strip(),
        "--step",
        0.3,
        "--target-ratio",
        0.3,
        "--device",
        "cpu",
        "--set",
        "finetune.epochs=1",
    )
    assert iterated.code == 0, iterated.err


def test_a_cfg_of_another_shape_trains_as_it_says(cli: Cli, hands: Path, net: Path) -> None:
    net.write_text(TINY_CFG.replace("height=64", "height=32"))
    outcome = cli("train", "--cfg", net, "--data", hands, "--batch-size", 6, "--epochs", 1, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(Path(outcome.out.strip())).img_size == ImageSize(64, 32)
    assert cli("import", net, "--out", "net.pt").code == 0
    assert load_checkpoint(Path("net.pt")).img_size == ImageSize(64, 32)


def test_a_network_of_squares_is_used_at_another_shape(cli: Cli, hands: Path, net: Path) -> None:
    assert cli("import", net, "--names", "hand", "--out", "net.pt").code == 0
    for command in ("evaluate", "bench"):
        outcome = cli(command, "net.pt", "--data", hands, "--img-size", "128x64", "--device", "cpu", "--json")
        assert outcome.code == 0, outcome.err
    assert read_json(outcome)["rows"][0]["img_size"] == "128x64"
    assert read_json(outcome)["rows"][0]["macs"] == 2 * read_json(cli("cfg", "show", net, "--json"))["macs"]
    assert cli("detect", "net.pt", hands.parent / "images/val", "--img-size", "128x64", "--device", "cpu").code == 0
    assert cli("export", "net.pt", "--img-size", "128x64", "--out", "wide").code == 0
    assert load_cfg(Path("wide.cfg")).img_size == ImageSize(128, 64)
    assert "128x64 px" in cli("cfg", "show", "wide.cfg").out


def test_the_detector_of_python_takes_a_shape(cli: Cli, hands: Path, net: Path) -> None:
    assert cli("import", net, "--names", "hand", "--out", "net.pt").code == 0
    image = next((hands.parent / "images/val").glob("*.jpg"))
    square, wide = (
        yp.load("net.pt", confidence=0, device="cpu"),
        yp.load("net.pt", confidence=0, device="cpu", img_size="128x64"),
    )
    assert (square.img_size, wide.img_size) == (ImageSize(64, 64), ImageSize(128, 64))
    assert len(wide(image).boxes_xyxy) > 0
    boxes, _ = wide.engine(torch.zeros(1, 3, 64, 128))
    assert boxes.shape[1] == 2 * wide.network.shapes[-1].height * wide.network.shapes[-1].width


@pytest.mark.parametrize("size", ["640x380", "100", "wide", "64x", "0x64"])
def test_another_size_is_one_line(cli: Cli, hands: Path, net: Path, size: str) -> None:
    for words in (("train", "--cfg", net, "--data", hands), ("cfg", "make"), ("detect", "net.pt", "a.jpg")):
        outcome = cli(*words, "--img-size", size)
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith("error: --img-size: ")
