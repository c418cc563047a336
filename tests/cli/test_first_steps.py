"""What a new user types: run folders for checkpoints, weights without a cfg, a checkpoint of other classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import Cli, read_json
from torch import nn

import yolo_prune as yp
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.network import change_classes
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector

SMALL = ("--epochs", 1, "--batch-size", 6, "--device", "cpu")


@pytest.fixture
def two_classes(hands: Path) -> Path:
    """The hands as two classes: those of even and of odd images."""
    folder = shutil.copytree(hands.parent, Path("two"))
    for number, label in enumerate(sorted(folder.rglob("labels/*/*.txt"))):
        rows = [line.split() for line in label.read_text().splitlines()]
        label.write_text("".join(f"{number % 2} {' '.join(row[1:])}\n" for row in rows))
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), "names": ["left", "right"]}))
    return data


def test_the_folder_of_a_run_stands_for_its_checkpoint(cli: Cli, trained: Path, hands: Path) -> None:
    shutil.copytree(trained.parent, "runs/base")
    pruned = cli("prune", "--one-shot", "runs/base", "--ratio", 0.5, "--recalibrate", 0, "--device", "cpu")
    assert (pruned.code, pruned.out) == (0, "runs/prune/pruned.pt\n")
    assert yp.load("runs/prune").path == Path("runs/prune/pruned.pt")
    rows = read_json(cli("bench", "runs/base", "runs/prune", "--no-score", "--runs", 1, "--json"))["rows"]
    assert [row["checkpoint"] for row in rows] == ["runs/base/best.pt", "runs/prune/pruned.pt"]
    tuned = cli("finetune", "runs/prune", "--data", hands, "--teacher", "runs/base", *SMALL)
    assert (tuned.code, tuned.out) == (0, "runs/finetune/best.pt\n")
    recipe = load_checkpoint(Path("runs/finetune/best.pt")).provenance["recipe"]
    assert (recipe["weights"], recipe["teacher"]) == ("runs/prune/pruned.pt", "runs/base/best.pt")


@pytest.mark.parametrize("name", ["yolov3.weights", "darknet53.conv.74"])
def test_darknet_weights_need_a_cfg(cli: Cli, name: str) -> None:
    outcome = cli("train", "--weights", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"error: --weights: {name} does not say of which network it is; name its cfg as well, such as --cfg yolov3-tiny-hand\n"
    )


def test_a_checkpoint_of_other_classes_gets_new_heads(cli: Cli, trained: Path, two_classes: Path) -> None:
    outcome = cli("train", "--data", two_classes, "--weights", trained, *SMALL)
    assert outcome.code == 0, outcome.err
    assert f"{trained}: trained on 1 class, the data set has 2: the head, layer 7, is new\n" in outcome.err
    made = load_checkpoint(Path("runs/train/best.pt"))
    assert (made.names, made.network.classes) == (("left", "right"), 2)
    assert made.provenance["parent"]["path"] == str(trained.resolve())
    rejected = cli("finetune", trained, "--data", two_classes, *SMALL)
    assert rejected.code == 2
    assert "the network has the classes hand, the data set left, right" in rejected.err


def test_all_layers_but_the_heads_keep_their_shapes() -> None:
    one = make_network("yolov3", 1, 0.125, 64)
    many = change_classes(one, 80)
    assert many == make_network("yolov3", 80, 0.125, 64)
    assert change_classes(many, 1) == one


def test_a_lambda_that_does_nothing_is_told(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("train", "--data", hands, "--weights", trained, *SMALL, "--sparsity")
    said = "sparsity: λ = 0.01 moves a γ by at most "
    assert said in cli(*words, 0.01).err
    assert "sparsity: λ" not in cli(*words, 1e4).err
    assert "sparsity: λ" not in cli(*words, "auto").err


def test_convolutions_are_plain_ones() -> None:
    with torch.device("meta"):
        unset = Detector(make_network("yolov3-tiny", 1, 0.125, 64))
    for model in (unset, Detector(make_network("yolov3-tiny", 1, 0.125, 64))):
        kinds = {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)}
        assert kinds == {nn.Conv2d}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cfg", "none.cfg"), "none.cfg"),
        (("--cfg", "yolov3-tiny-hand", "--weights", "none.weights"), "none.weights"),
        (("--weights", "none.pt"), "none.pt"),
        (("--teacher", "none.pt"), "none.pt"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_what_is_missing_is_told_before_hands_are_drawn(cli: Cli, words: tuple[str, ...], said: str) -> None:
    outcome = cli("train", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert not Path("data").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {cfg: none.cfg}", "none.cfg"),
        ("weights: none.pt", "none.pt"),
        ("finetune: {teacher: none.pt}", "none.pt"),
        ("prune: {plan: none.json}", "none.json"),
        ("bench: {engine: [half]}", "half runs on CUDA"),
    ],
)
def test_a_run_checks_all_stages_before_hands_are_drawn(cli: Cli, text: str, said: str) -> None:
    Path("run.yaml").write_text(f"device: cpu\n{text}\n")
    outcome = cli("run", "run.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert not Path("data").exists()


def test_without_validation_images_a_run_trains_prunes_and_finetunes(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    data = Path(shutil.copytree(hands.parent, "hands"), "data.yaml")
    values = {key: value for key, value in yaml.safe_load(data.read_text()).items() if key not in ("val", "test")}
    data.write_text(yaml.safe_dump(values))
    words = ("train", "--data", data, "--cfg", tiny_cfg, *SMALL)
    outcome = cli(*words)
    assert outcome.code == 2
    assert "leave validation out with --val-interval 0" in outcome.err
    outcome = cli(*words, "--val-interval", 0)
    assert (outcome.code, outcome.out) == (0, "runs/train/best.pt\n"), outcome.err
    assert not Path("runs/train/val_detections.png").exists()
    pruned = cli("prune", "--ratio", 0.5, "--effort", 1, "--device", "cpu")
    assert (pruned.code, pruned.out) == (0, "runs/prune/pruned.pt\n"), pruned.err
    assert "no validation images to score on" in pruned.err
    tuned = cli("finetune", "--epochs", 1, "--device", "cpu")
    assert (tuned.code, tuned.out) == (0, "runs/finetune/best.pt\n"), tuned.err


def test_a_run_of_auto_that_is_too_short_is_told(cli: Cli, hands: Path, trained: Path) -> None:
    outcome = cli("train", "--data", hands, "--weights", trained, "--sparsity", "auto", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "warning: sparsity auto: channels come to zero in 1 step" in outcome.err.replace("1 steps", "1 step")
    assert "which is short; use 100 epochs or more" in outcome.err


def test_rows_of_the_same_folder_name_can_be_told_apart(cli: Cli, trained: Path) -> None:
    for folder in ("a/prune", "b/prune", "other"):
        Path(folder).mkdir(parents=True)
        shutil.copy(trained, f"{folder}/pruned.pt")
    paths = ("a/prune/pruned.pt", "b/prune/pruned.pt", "other/pruned.pt")
    rows = read_json(cli("bench", *paths, "--no-score", "--runs", 1, "--json"))["rows"]
    assert [row["name"] for row in rows] == ["a/prune/pruned", "b/prune/pruned", "other/pruned"]
