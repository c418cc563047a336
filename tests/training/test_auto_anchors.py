"""`train --auto-anchors`: a fresh network whose anchors are found in the training boxes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from networks import copy_state, is_same_state
from tiny import DRAW_RESULTS, SIDE, TINY_CFG, Cli, Killed, before_step, is_same_run, make_config, read_json

from yolo_prune.commands.run import load_run
from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.darknet.anchors import get_anchors
from yolo_prune.darknet.architectures import TINY_ANCHORS, make_network
from yolo_prune.darknet.cfg import parse_cfg, save_cfg
from yolo_prune.darknet.layers import Anchors
from yolo_prune.datasets.anchors import find_anchors, load_sides, measure_fit, round_anchors
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.config import LossConfig
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import save_weights
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.initial_model import DEFAULT_IMG_SIZE, make_start

pytestmark = pytest.mark.usefixtures("undrawn")
STEPS = 9
"""Three epochs of three steps."""


@pytest.fixture
def config(hands: Path, tiny_cfg: Path) -> TrainConfig:
    return make_config(hands, tiny_cfg, auto_anchors=True)


@pytest.fixture(scope="module")
def finished(hands: Path, tiny_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing stopped; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAW_RESULTS, lambda path, rows: None)
        folder = tmp_path_factory.mktemp("auto") / "train"
        return start_training(make_config(hands, tiny_cfg, auto_anchors=True), folder).parent


def find(data: Path, count: int, img_size: int, seed: int = 0) -> Anchors:
    boxes = load_sides(load_spec(data).samples("train"), 1, img_size)
    return tuple((width, height) for width, height in round_anchors(find_anchors(boxes, count, seed)).tolist())


def kill() -> None:
    raise Killed


def test_a_run_keeps_the_anchors_it_found(finished: Path, trained: Path, hands: Path) -> None:
    anchors = find(hands, 2, SIDE)
    assert anchors != get_anchors(parse_cfg(TINY_CFG))
    for name in ("last.pt", "best.pt"):
        network = load_checkpoint(finished / name).network
        assert get_anchors(network) == anchors
        assert network.layers[:-1] == load_checkpoint(trained).network.layers[:-1]
    for recipe in (
        yaml.safe_load((finished / "config.yaml").read_text()),
        load_checkpoint(finished / "best.pt").provenance["recipe"],
    ):
        assert recipe["auto_anchors"] is True
    assert get_anchors(load_checkpoint(trained).network) == ((14, 14), (30, 30))
    assert load_checkpoint(trained).provenance["recipe"]["auto_anchors"] is False


@pytest.mark.parametrize("step", [1, 5, STEPS])
def test_a_killed_run_ends_in_the_same_bits(config: TrainConfig, finished: Path, tmp_path: Path, step: int) -> None:
    with before_step(step, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:  # they are not looked for again
        patch.setattr("yolo_prune.training.initial_model.find_anchors", None)
        resume_training(tmp_path / "run")
    assert is_same_run(tmp_path / "run", finished)


def test_a_stopped_run_is_resumed_from_the_command_line(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    words = ("train", "--data", hands, "--cfg", tiny_cfg, "--epochs", 2, "--batch-size", 6, "--device", "cpu")
    with before_step(3, lambda: signal.raise_signal(signal.SIGTERM)):
        stopped = cli(*words, "--auto-anchors")
    assert stopped.code == 128 + signal.SIGTERM
    rejected = cli("train", "--resume", "--auto-anchors")
    assert rejected.err == (
        "error: --auto-anchors: a resumed run keeps its settings; leave it out, or start a new run; --device, --workers, --save-minutes, --max-minutes, --tensorboard may change\n"
    )
    assert cli("train", "--resume").out == "runs/train/best.pt\n"
    assert cli(*words, "--auto-anchors").out == "runs/train-2/best.pt\n"
    assert is_same_run(Path("runs/train"), Path("runs/train-2"))


def test_more_boxes_have_an_anchor_that_suits_them(config: TrainConfig, hands: Path) -> None:
    samples, lines = load_spec(hands).samples("train"), list[str]()
    start = make_start(config, 1, lines.append, samples)
    boxes = load_sides(samples, 1, SIDE)
    new, old = (
        measure_fit(boxes, np.array(get_anchors(network)), config.loss.anchor_ratio)
        for network in (start.model.network, parse_cfg(TINY_CFG))
    )
    assert new.mean_iou > old.mean_iou
    assert new.recall_50 >= old.recall_50
    (line,) = lines
    assert line.startswith(f"anchors of {len(boxes)} training boxes at 64 px: ")
    assert f"recall {new.recall_50:.3f} at IoU 0.5 instead of {old.recall_50:.3f}" in line
    assert f"mean IoU {new.mean_iou:.3f} instead of {old.mean_iou:.3f}" in line


def test_they_are_what_data_anchors_prints(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    printed = read_json(cli("data", "anchors", hands, "--cfg", tiny_cfg, "--img-size", 96, "--seed", 5, "--json"))
    words = ("--img-size", 96, "--seed", 5, "--epochs", 1, "--batch-size", 12, "--device", "cpu")
    outcome = cli("train", "--data", hands, "--cfg", tiny_cfg, "--auto-anchors", *words)
    assert outcome.code == 0, outcome.err
    found = load_checkpoint(Path(outcome.out.strip()))
    assert (found.img_size, [list(anchor) for anchor in get_anchors(found.network)]) == ((96, 96), printed["anchors"])
    assert f"recall {printed['recall_50']:.3f} at IoU 0.5 instead of {printed['cfg']['recall_50']:.3f}" in outcome.err


def test_every_other_number_stays_as_it_was(config: TrainConfig, hands: Path, tiny_cfg: Path) -> None:
    samples = load_spec(hands).samples("train")
    plain = make_start(make_config(hands, tiny_cfg), 1, print, samples)
    assert is_same_state(make_start(config, 1, print, samples).model, copy_state(plain.model))


def test_the_network_that_needs_no_cfg_gets_anchors_too(hands: Path) -> None:
    config = TrainConfig(data=hands, auto_anchors=True, seed=1)
    network = make_start(config, 1, lambda line: None, load_spec(hands).samples("train")).model.network
    assert get_anchors(network) == find(hands, 9, DEFAULT_IMG_SIZE, seed=1) != find(hands, 9, DEFAULT_IMG_SIZE)
    assert [head.mask for _, head in network.heads] == [(6, 7, 8), (3, 4, 5), (0, 1, 2)]


def test_an_anchor_of_no_head_is_not_looked_for(hands: Path, tmp_path: Path) -> None:
    """YOLOv4-tiny's heads use the last five of six."""
    cfg = save_cfg(make_network("yolov4-tiny", width=0.1, img_size=416), tmp_path / "v4.cfg")
    config = make_config(hands, cfg, auto_anchors=True)
    network = make_start(config, 1, lambda line: None, load_spec(hands).samples("train")).model.network
    assert [head.anchors for _, head in network.heads] == [(TINY_ANCHORS[0], *find(hands, 5, 416))] * 2


def test_darknet_weights_may_fill_the_network(config: TrainConfig, hands: Path, tmp_path: Path) -> None:
    model = Detector(parse_cfg(TINY_CFG))
    path = save_weights(model, tmp_path / "tiny.weights")
    lines: list[str] = []
    config = make_config(hands, config.cfg or Path(), auto_anchors=True, weights=path)
    start = make_start(config, 1, lines.append, load_spec(hands).samples("train"))
    assert is_same_state(start.model, copy_state(model))
    assert get_anchors(start.model.network) == find(hands, 2, SIDE)
    assert lines[1:] == [f"{path}: took 6 of 6 convolutions"]


def test_a_checkpoint_keeps_its_anchors(cli: Cli, trained: Path, hands: Path) -> None:
    message = f"auto_anchors: a checkpoint's heads were trained with its own anchors; leave it out, or start from other weights than {trained}"
    with pytest.raises(ConfigError) as caught:
        TrainConfig(weights=trained, auto_anchors=True)
    assert str(caught.value) == message
    Path("settings.yaml").write_text("auto_anchors: true\n")
    Path("stages.yaml").write_text(f"train: {{auto_anchors: true, weights: {trained}}}\n")
    with pytest.raises(ConfigError, match=r"^stages\.yaml:1: train\.auto_anchors: a checkpoint's heads"):
        load_run(Path("stages.yaml"))
    flag = f"--{message.replace('_', '-', 1)}"
    for words, said in (
        (("train", "--weights", trained, "--auto-anchors", "--data", hands), flag),
        (("train", "--weights", trained, "--config", "settings.yaml"), message),
        (("finetune", trained, "--config", "settings.yaml"), message),
    ):
        outcome = cli(*words)
        assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {said}\n")
    assert "No such option: --auto-anchors" in cli("finetune", trained, "--auto-anchors").err
    assert not Path("runs").exists()


def test_a_flag_overrides_a_file(cli: Cli, trained: Path, hands: Path, tiny_cfg: Path) -> None:
    Path("settings.yaml").write_text("auto_anchors: true\nepochs: 1\nbatch_size: 12\ndevice: cpu\n")
    words = ("train", "--data", hands, "--cfg", tiny_cfg, "--config", "settings.yaml")
    paths = [cli(*words).out.strip(), cli(*words, "--no-auto-anchors").out.strip()]
    found, kept = (get_anchors(load_checkpoint(Path(path)).network) for path in paths)
    assert (found, kept) == (find(hands, 2, SIDE), ((14, 14), (30, 30)))
    Path("settings.yaml").write_text("auto_anchors: 1\n")
    assert cli(*words).err.startswith("error: settings.yaml:1: auto_anchors: 1 is of the wrong type; use true or false")


def test_the_run_command_trains_with_them_from_end_to_end(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    small = {"epochs": 1, "batch_size": 12}
    stages = {
        "data": str(hands),
        "device": "cpu",
        "train": {"cfg": str(tiny_cfg), "auto_anchors": True, **small},
        "prune": {"ratio": 0.5, "effort": 1},
        "finetune": small,
        "bench": {"runs": 1, "warmup": 0},
    }
    Path("stages.yaml").write_text(yaml.safe_dump(stages))
    outcome = cli("run", "stages.yaml")
    assert outcome.code == 0, outcome.err
    for path in ("train/best.pt", "prune/pruned.pt", "finetune/best.pt"):
        assert get_anchors(load_checkpoint(Path("runs/run", path)).network) == find(hands, 2, SIDE)
    again = cli("run", "stages.yaml")
    assert again.out == outcome.out
    assert "runs/run/train: up to date" in again.err


def test_too_few_boxes_leave_no_run(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    data = shutil.copytree(hands.parent, tmp_path / "hands") / "data.yaml"
    config = make_config(data, tiny_cfg, auto_anchors=True)
    for number, path in enumerate(sorted(data.parent.glob("labels/train/*.txt"))):
        path.write_text("0 0.5 0.5 0.25 0.5\n" * (number == 0))
    with pytest.raises(DatasetError, match=r"data\.yaml: train: boxes of 1 different sizes are too few for 2 anchors"):
        start_training(config, tmp_path / "run")
    shutil.rmtree(data.parent / "labels/train")
    with pytest.raises(DatasetError, match=r"data\.yaml: train: there are no boxes to find anchors for"):
        start_training(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_anchors_that_suit_few_boxes_are_reported(
    hands: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, lines = load_spec(hands).samples("train"), list[str]()
    boxes = load_sides(samples, 1, SIDE)
    cfg = tmp_path / "poor.cfg"
    cfg.write_text(TINY_CFG.replace("14,14, 30,30", "2,2, 3,3"))
    network = make_start(make_config(hands, cfg), 1, lines.append, samples).model.network
    assert get_anchors(network) == ((2, 2), (3, 3))
    (line,) = capsys.readouterr().err.splitlines()
    assert not lines
    within = measure_fit(boxes, np.array([[2.0, 2.0], [3.0, 3.0]]), 4.0).within_ratio
    assert line.startswith(
        f"warning: the network's anchors suit few boxes: {within:.0%} of the training boxes are within a factor"
    )
    assert line.endswith("--auto-anchors finds better ones")
    cfg.write_text(TINY_CFG)
    make_start(make_config(hands, cfg), 1, lines.append, samples)
    make_start(make_config(hands, cfg, auto_anchors=True), 1, lambda line: None, samples)
    make_start(TrainConfig(weights=trained), 1, lines.append, samples)
    assert not lines
    assert capsys.readouterr().err == ""


def test_only_some_images_are_looked_at_before_a_plain_run(
    hands: Path, tiny_cfg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(samples: list[Any], *arguments: Any) -> Any:
        seen.extend(samples)
        return load_sides(samples, *arguments)

    monkeypatch.setattr("yolo_prune.training.initial_model.CHECKED_IMAGES", 4)
    monkeypatch.setattr("yolo_prune.training.initial_model.load_sides", record)
    samples = load_spec(hands).samples("train")
    make_start(make_config(hands, tiny_cfg), 1, print, samples)
    assert seen == [samples[0], samples[3], samples[6], samples[9]]


def test_a_strict_ratio_of_the_loss_is_no_reason_to_warn(
    hands: Path, tiny_cfg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a ratio of 1 only the best anchor is assigned, and no box is within it."""
    spec = load_spec(hands)
    for loss in (LossConfig(), LossConfig(anchor_ratio=1.0)):
        make_start(TrainConfig(cfg=tiny_cfg, loss=loss), 1, print, spec.samples("train"))
    lines = capsys.readouterr().err.splitlines()
    assert len(set(lines)) <= 1
    assert not any("factor of 1 " in line for line in lines)
