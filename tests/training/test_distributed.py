"""Several processes make the run of one: law 9, and what happens when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_program import take_steps
from paths import ROOT
from tiny import is_same_run, make_config

from yolo_prune.commands.config import RunConfig
from yolo_prune.commands.run import run_stages
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.distributed import Processes, join_processes
from yolo_prune.training.initial_model import make_start
from yolo_prune.training.run import make_run, train

HELPERS = ROOT / "tests/helpers"


def launch(what: str, out: Path, hands: Path, cfg: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run distributed_program.py in two processes."""
    out.mkdir(exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.run(
        [*torchrun, str(HELPERS / "distributed_program.py"), what, str(out), str(hands), str(cfg)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
        check=False,
    )


@pytest.mark.parametrize("what", ["steps", "unused", "zeros"], ids=["whole", "unused branch", "kept zeros"])
def test_two_processes_make_the_steps_of_one(hands: Path, tiny_cfg: Path, tmp_path: Path, what: str) -> None:
    done = launch(what, tmp_path, hands, tiny_cfg)
    assert done.returncode == 0, done.stderr
    for accumulate in (1, 3):
        alone = take_steps(Processes(), hands, 1, what)
        together = torch.load(tmp_path / f"{accumulate}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


def test_a_killed_process_is_started_again_and_the_run_is_resumed(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    whole = launch("whole", tmp_path / "whole", hands, tiny_cfg)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == "runs/run/best.pt\n" * 2
    assert whole.stderr.count("epoch 3/3") == 1  # one of the two speaks
    killed = launch("killed", tmp_path / "killed", hands, tiny_cfg, "--max-restarts", "1")
    assert killed.returncode == 0, killed.stderr
    assert "resuming runs/run after epoch 1 of 3" in killed.stderr
    assert is_same_run(tmp_path / "whole/runs/run", tmp_path / "killed/runs/run")
    rows = load_checkpoint(tmp_path / "killed/runs/run/last.pt").training["rows"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_one_process_needs_no_others() -> None:
    with join_processes("cpu") as (processes, device):
        assert (processes.is_first, processes.count, device) == (True, 1, torch.device("cpu"))
        assert processes.add_up([1, 2.5]) == [1, 2.5]
        assert processes.gather("a") == ["a"]
        assert processes.share("b") == "b"


def test_more_processes_than_images_in_a_batch_train_nothing(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    config = make_config(hands, tiny_cfg, batch_size=2)
    spec = load_spec(hands)
    start = make_start(config, 1, print)
    run = make_run(
        config,
        spec,
        start,
        stage="train",
        folder=tmp_path / "run",
        device=torch.device("cpu"),
        processes=Processes(0, 3),
    )
    with pytest.raises(
        ConfigError, match="batch_size: 2 images a batch, 12 in all, are too few for 3 processes; use at"
    ):
        train(run, start.model)
    assert not (tmp_path / "run").exists()


def test_a_numbered_gpu_cannot_serve_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="device: cuda:1 cannot serve 2 processes; use cuda"),
        join_processes("cuda:1"),
    ):
        pass


def test_the_run_command_needs_a_single_process(hands: Path, tiny_cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = RunConfig(data=hands, train=make_config(hands, tiny_cfg))
    with pytest.raises(ConfigError, match="torchrun: all stages run in one process; run train and finetune under"):
        run_stages(config)
