from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import Killed, before_step, make_config

from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.callbacks import open_log

pytestmark = pytest.mark.usefixtures("undrawn")


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_resumed_run_s_log_holds_every_row_once(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    def kill() -> None:
        raise Killed

    with before_step(5, kill), pytest.raises(Killed):
        start_training(make_config(hands, tiny_cfg, tensorboard=True), tmp_path / "run")
    resume_training(tmp_path / "run")
    events = read_events(tmp_path / "run")
    rows = load_checkpoint(tmp_path / "run/last.pt").training["rows"]
    for name in ("loss", "val_map50", "learning_rate"):
        points = [(point.step, point.value) for point in events.Scalars(name)]
        assert points == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert set(events.Tags()["images"]) == {"train_batch", "val_detections"}


def test_without_the_flag_nothing_is_written(trained: Path) -> None:
    assert not list(trained.parent.glob("events*"))


def test_tensorboard_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    expected = pytest.raises(ConfigError, match=r"tensorboard: TensorBoard is not installed; pip install 'yolo-prune\[")
    with expected, open_log(tmp_path, True, 0):
        pass
