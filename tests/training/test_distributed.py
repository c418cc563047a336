"""Several processes make the run of one: law 9, and what happens when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed_program import KINDS, PASSES, take_steps, zero_half_
from paths import ROOT
from tiny import is_same, is_same_run, make_config

from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import KEEPS_ZEROS, load_checkpoint, save_checkpoint
from yolo_prune.training.distributed import Processes, join_processes
from yolo_prune.training.initial_model import make_start
from yolo_prune.training.run import make_run, train

HELPERS = ROOT / "tests/helpers"


def launch(
    what: str, out: Path, hands: Path, cfg: Path, *words: str, more: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run distributed_program.py in two processes."""
    out.mkdir(exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.run(
        [*torchrun, str(HELPERS / "distributed_program.py"), what, str(out), str(hands), str(cfg), *more],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])},
        check=False,
    )


@pytest.fixture(scope="module")
def steps(hands: Path, tiny_cfg: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes have left the states of all steps, and of a run."""
    out = tmp_path_factory.mktemp("steps")
    torch.manual_seed(0)
    whole = load_checkpoint(trained)
    zero_half_(model := whole.make_model())
    provenance = {**whole.provenance, KEEPS_ZEROS: True}
    weights = save_checkpoint(out / "zeros.pt", replace(whole, state=model.state_dict(), provenance=provenance))
    done = launch("steps", out, hands, tiny_cfg, more=(str(weights),))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("accumulate", PASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_steps_of_one(hands: Path, steps: Path, kind: str, accumulate: int) -> None:
    alone = take_steps(Processes(), hands, accumulate, kind)
    one, other = torch.load(steps / f"{kind}-{accumulate}.pt", weights_only=True)
    torch.testing.assert_close(one, alone, rtol=1e-9, atol=1e-12)
    assert is_same(one, other)
    zeros = count_zeros(alone)
    assert (zeros["conv.weight"] > 300) == (kind in ("zeros", "all"))
    assert (zeros["bn.weight"] > 3) == (kind in ("auto", "all"))


def count_zeros(state: dict[str, torch.Tensor]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, tensor in state.items():
        counts[".".join(name.split(".")[-2:])] += int((tensor == 0).sum())
    return counts


def test_all_processes_end_with_the_same_network(steps: Path) -> None:
    for epoch in range(3):
        one, other = torch.load(steps / f"epoch-{epoch}.pt", weights_only=True)
        assert is_same(one, other)
        assert count_zeros(one)["conv.weight"] > 100
    first = torch.load(steps / "epoch-0.pt", weights_only=True)[0]
    assert sum(map(torch.numel, one.values())) < sum(map(torch.numel, first.values()))  # channels were removed


def test_a_killed_process_is_started_again_and_the_run_is_resumed(
    hands: Path, tiny_cfg: Path, steps: Path, tmp_path: Path
) -> None:
    killed = launch("killed", tmp_path / "killed", hands, tiny_cfg, "--max-restarts", "1")
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout == "runs/run/best.pt\n" * 2
    assert killed.stderr.count("epoch 3/3") == 1  # one of the two speaks
    assert "resuming runs/run after epoch 1 of 3" in killed.stderr
    assert is_same_run(steps / "whole/runs/run", tmp_path / "killed/runs/run")
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


def pretend(monkeypatch: pytest.MonkeyPatch, rank: int = 0, count: int = 2, **changes: str | None) -> None:
    """Set the variables that torchrun sets; None leaves one out."""
    values = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**values, "MASTER_PORT": "29500", **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_a_numbered_gpu_cannot_serve_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with (
        pytest.raises(ConfigError, match="device: cuda:1 cannot serve 2 processes; use cuda"),
        join_processes("cuda:1"),
    ):
        pass
