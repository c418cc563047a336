"""Whatever ends a run leaves a last.pt that resumes to the same bits, and says why in one line."""

from __future__ import annotations

import importlib
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Cli, Killed, before_step, is_same, is_same_run, make_config

from yolo_prune.commands.run_folders import find_run_folder, take_run_folder
from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.config import parse_config
from yolo_prune.errors import DatasetError, Interrupted, OutputError, TimeUp, TrainingError
from yolo_prune.files import open_atomically
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.signals import watch_signals

pytestmark = pytest.mark.usefixtures("undrawn")
STEPS = 9
"""Three epochs of three steps."""


def kill() -> None:
    raise Killed


@pytest.fixture
def config(hands: Path, tiny_cfg: Path) -> TrainConfig:
    return make_config(hands, tiny_cfg, save_minutes=0.0)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_killed_at_any_step_loses_none(config: TrainConfig, trained: Path, tmp_path: Path, step: int) -> None:
    with before_step(step, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt").training
    assert (last["epoch"], last["stats"]["steps"]) == divmod(step - 1, 3)
    resume_training(tmp_path / "run")
    one, two = (load_checkpoint(place / "last.pt") for place in (tmp_path / "run", trained.parent))
    assert is_same(one.state, two.state)
    assert is_same(one.training, two.training)
    assert is_same(load_checkpoint(tmp_path / "run/best.pt").state, load_checkpoint(trained).state)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_resumes_to_the_same_bits(config: TrainConfig, tmp_path: Path, precision: str) -> None:
    config = parse_config(config, {"precision": precision, "accumulate": 2, "multi_scale": 0.5}, "test")
    start_training(config, tmp_path / "whole")
    with before_step(5, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    resume_training(tmp_path / "run")
    assert is_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("sparsity", [0.5, "auto"])
def test_a_sparse_run_resumes_to_the_same_bits(config: TrainConfig, tmp_path: Path, sparsity: float | str) -> None:
    config = parse_config(config, {"sparsity": sparsity, "sparsity_ramp": 0.3, "sparsity_rest": 0.3}, "test")
    start_training(config, tmp_path / "whole")
    for step in (2, 5, 8):
        with before_step(step, kill), pytest.raises(Killed):
            start_training(config, tmp_path / str(step))
        resume_training(tmp_path / str(step))
        assert is_same_run(tmp_path / str(step), tmp_path / "whole")


def test_patience_survives_a_stop(config: TrainConfig, tmp_path: Path) -> None:
    config = parse_config(config, {"epochs": 6, "patience": 1, "learning_rate": 1e-9}, "test")
    start_training(config, tmp_path / "whole")
    whole = load_checkpoint(tmp_path / "whole/last.pt").training
    with before_step(4, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    resume_training(tmp_path / "run")
    assert is_same_run(tmp_path / "run", tmp_path / "whole")
    assert whole["epoch"] < 6
    with pytest.raises(TrainingError, match=rf"the run's {whole['epoch']} epochs are done"):
        resume_training(tmp_path / "run")


def test_time_that_is_up_ends_a_run_between_two_steps(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(TimeUp) as stop:
        start_training(parse_config(config, {"max_minutes": 0.0}, "test"), tmp_path / "run")
    assert stop.value.exit_code == 124
    assert load_checkpoint(tmp_path / "run/last.pt").training["epoch"] == 0
    resume_training(tmp_path / "run", {"max_minutes": 60.0})
    assert is_same(load_checkpoint(tmp_path / "run/last.pt").state, load_checkpoint(trained.parent / "last.pt").state)


def test_time_up_on_the_command_line(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    words = ("--data", hands, "--cfg", tiny_cfg, "--epochs", 2, "--batch-size", 6, "--device", "cpu")
    stopped = cli("train", *words, "--max-minutes", 0)
    assert (stopped.code, stopped.out) == (124, "")
    assert stopped.err.splitlines()[-1] == (
        "the time is up; what was finished is on disk, and the run can be resumed: yoloprune train --resume --name train"
    )
    again = cli("train", "--resume", "--max-minutes", 0)
    assert again.code == 124
    resumed = cli("train", "--resume", "--max-minutes", 5)
    assert (resumed.code, resumed.out) == (0, "runs/train/best.pt\n")


def test_a_signal_within_an_epoch_loses_no_step(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    config = parse_config(config, {"save_minutes": 60.0}, "test")
    with before_step(5, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Interrupted):
        start_training(config, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt").training
    assert (last["epoch"], last["stats"]["steps"]) == (1, 2)


def test_non_finite_weights_are_never_saved(config: TrainConfig, tmp_path: Path) -> None:
    """A last step can spoil weights whose loss was still a number."""
    train_step = epoch_module.train_step
    steps = 0

    def spoil(training: Any, *arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        losses = train_step(training, *arguments)
        if steps == 5:
            with torch.no_grad():
                training.model.layers[0].bn.weight[0] = math.nan
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_module, "train_step", spoil)
        with pytest.raises(TrainingError, match="a weight is NaN or infinite; start again with a lower learning_rate"):
            start_training(config, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt")
    assert last.training["stats"]["steps"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in last.state.values())


def test_a_full_disk_leaves_the_last_good_checkpoint(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    saves = 0
    write = torch.save

    def fill_up(content: Any, file: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 7:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(content, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", fill_up)
        with pytest.raises(OutputError, match=r"run/.*\.pt: cannot be written \(No space left on device\)"):
            start_training(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.tmp"))
    resume_training(tmp_path / "run")
    assert is_same(load_checkpoint(tmp_path / "run/last.pt").state, load_checkpoint(trained.parent / "last.pt").state)


def test_an_image_that_vanishes_ends_the_run_in_one_line(config: TrainConfig, hands: Path, tmp_path: Path) -> None:
    own = shutil.copytree(hands.parent, tmp_path / "hands") / "data.yaml"
    config = parse_config(config, {"data": own}, "test")
    images = sorted((own.parent / "images/train").iterdir())

    def lose() -> None:
        for path in images:
            path.rename(path.with_suffix(".zeroed"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.training.step_memory.CACHE_BYTES", 0)
        with before_step(4, lose), pytest.raises(DatasetError, match="there is no such image; name an image that"):
            start_training(config, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt").training
    assert (last["epoch"], last["stats"]["steps"]) == (1, 0)
    for path in images:
        path.with_suffix(".zeroed").rename(path)
    resume_training(tmp_path / "run")


@pytest.mark.parametrize("moment", ["training.epoch_end.save_results", "training.run.save_detections_image"])
def test_a_run_killed_after_its_last_epoch_is_finished(
    config: TrainConfig, trained: Path, tmp_path: Path, moment: str
) -> None:
    module_name, _, name = f"yolo_prune.{moment}".rpartition(".")
    module = importlib.import_module(module_name)
    act = getattr(module, name)

    def act_or_kill(folder: Path, *arguments: Any, **named: Any) -> Any:
        is_last = name != "save_results" or len(arguments[0]) == config.epochs
        return kill() if is_last else act(folder, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, act_or_kill)
        with pytest.raises(Killed):
            start_training(config, tmp_path / "run")
    resume_training(tmp_path / "run")
    one, two = (load_checkpoint(place / "last.pt") for place in (tmp_path / "run", trained.parent))
    assert is_same(one.state, two.state)
    assert is_same(one.training, two.training)
    assert is_same(load_checkpoint(tmp_path / "run/best.pt").state, load_checkpoint(trained).state)
    for product in ("results.csv", "val_detections.png"):
        assert (tmp_path / "run" / product).is_file()
    assert (tmp_path / "run/results.csv").read_text().count("\n") == config.epochs + 1
    with pytest.raises(TrainingError, match="the run's 3 epochs are done"):
        resume_training(tmp_path / "run")


def test_what_killed_writes_left_is_cleared_away(config: TrainConfig, tmp_path: Path) -> None:
    with before_step(2, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    (tmp_path / "run/.last.pt.4194999.tmp").write_bytes(b"half")
    resume_training(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))
    with open_atomically(tmp_path / "run/other"):
        assert list((tmp_path / "run").glob(".*.tmp"))


def test_a_run_killed_before_it_began_leaves_its_name_free(workplace: Path) -> None:
    folder = workplace / "runs/mine"
    folder.mkdir(parents=True)
    (folder / ".last.pt.4194999.tmp").write_bytes(b"half")
    with take_run_folder("mine", "train") as taken:
        assert taken == Path("runs/mine")


def test_the_newest_of_numbered_folders_is_found(workplace: Path) -> None:
    assert find_run_folder("train", "train") is None
    for name in ("train", "train-2", "train-3", "train-5", "own", "own-2"):
        (workplace / "runs" / name).mkdir(parents=True)
    assert find_run_folder("train", "train") == Path("runs/train-3")
    assert find_run_folder("own", "train") == Path("runs/own")


def test_a_signal_that_comes_too_late_for_the_inner_context_stops_the_outer() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with watch_signals() as outer:
        with watch_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.signum == outer.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler  # a second one acts as it would have without us
    assert signal.getsignal(signal.SIGTERM) is handler
    with watch_signals() as outer:
        with watch_signals():
            pass
        signal.raise_signal(signal.SIGINT)
        assert outer.signum == signal.SIGINT


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watch_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signum is None
            signal.raise_signal(signal.SIGTERM)
            assert stop.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
