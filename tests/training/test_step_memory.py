"""A step that does not fit into memory: refused before it is computed, or named when memory runs out."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Cli, make_config

from yolo_prune.commands.train import start_training
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.memory import estimate_evaluation_bytes, estimate_training_bytes
from yolo_prune.errors import InsufficientMemoryError
from yolo_prune.image_size import ImageSize
from yolo_prune.model import free_memory
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training import step_memory
from yolo_prune.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("undrawn")


SIZE = ImageSize(320, 320)


def set_free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    """Let so many bytes be available everywhere."""
    monkeypatch.setattr(free_memory, "find_available_bytes", lambda: count)
    monkeypatch.setattr(step_memory, "find_available_bytes", lambda: count)


@pytest.fixture
def config(hands: Path, tiny_cfg: Path) -> TrainConfig:
    return make_config(hands, tiny_cfg, batch_size=8, epochs=1, img_size=SIZE)


def estimate(tiny_cfg: Path, images: int, size: ImageSize = SIZE) -> int:
    return estimate_training_bytes(load_cfg(tiny_cfg), images, size)


def test_a_step_that_cannot_fit_is_refused_with_what_would(
    config: TrainConfig, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, estimate(tiny_cfg, 3))
    with pytest.raises(InsufficientMemoryError) as caught:
        start_training(config, tmp_path / "run")
    line = str(caught.value)
    assert line.startswith("batch_size: a step with 8 images of 320 px at once needs about ")
    assert "set accumulate to 4 (the step stays the same), or batch_size to 3" in line
    assert not list((tmp_path / "run").glob("*"))
    for number, settings in enumerate((replace(config, accumulate=4), replace(config, batch_size=3))):
        assert start_training(settings, tmp_path / str(number)).exists()


def test_where_not_even_one_image_fits_a_size_is_named(
    config: TrainConfig, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = replace(config, batch_size=2, img_size=ImageSize(640, 320))
    set_free(monkeypatch, estimate(tiny_cfg, 1, ImageSize(320, 160)))
    with pytest.raises(InsufficientMemoryError, match=r"set img_size to 320x160, and batch_size to 1$"):
        start_training(large, tmp_path / "run")
    set_free(monkeypatch, 100_000)
    with pytest.raises(InsufficientMemoryError, match=r"use a smaller network, or a machine with more memory$"):
        start_training(large, tmp_path / "run")


def test_a_step_that_barely_fits_is_warned_of(
    config: TrainConfig, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    set_free(monkeypatch, round(0.9 * estimate(tiny_cfg, 8)))
    start_training(config, tmp_path / "run")
    assert "warning: a step with 8 images of 320 px at once needs about " in capsys.readouterr().err
    set_free(monkeypatch, None)
    start_training(config, tmp_path / "other")
    assert "warning: a step" not in capsys.readouterr().err


def test_memory_that_runs_out_in_a_step_names_the_step(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        torch.empty(1 << 55, dtype=torch.uint8)

    monkeypatch.setattr(epoch_module, "train_step", fail)
    set_free(monkeypatch, 50_000_000)
    with pytest.raises(InsufficientMemoryError) as caught:
        start_training(config, tmp_path / "run")
    line = str(caught.value)
    assert line.startswith("a step with 8 images of 320 px at once: out of memory (36,029 TB asked for, ")
    assert "set accumulate to " in line
    assert load_checkpoint(tmp_path / "run/last.pt").training


def test_evaluation_that_cannot_fit_is_refused(
    cli: Cli, trained: Path, hands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_checkpoint(trained).network
    set_free(monkeypatch, estimate_evaluation_bytes(network, 3, SIZE))
    for words in (["evaluate", trained, "--data", hands], ["bench", trained, "--no-score", "--batch-size", "32"]):
        outcome = cli(*words, "--img-size", "320")
        assert (outcome.code, outcome.out) == (2, ""), outcome
        assert "at once need about" in outcome.err
        assert "use a batch size of " in outcome.err
    set_free(monkeypatch, 10)
    assert "use a smaller network, or a machine with more memory" in cli("evaluate", trained, "--data", hands).err


def test_a_process_with_too_little_memory_ends_in_one_line(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30))

    words = ["train", "--data", str(hands), "--cfg", str(tiny_cfg), "--img-size", "2048", "--batch-size", "512"]
    done = subprocess.run(
        [sys.executable, "-m", "yolo_prune", *words, "--epochs", "1", "--device", "cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: --batch-size: a step with 512 images of 2048 px at once needs about "), last
    assert not Path("runs/train").exists()
