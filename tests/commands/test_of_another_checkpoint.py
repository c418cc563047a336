"""A plan and a table of sensitivity belong to the checkpoint that they were made for, even where shapes are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import Cli

from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint

MADE = {
    "plan": (("plan", "--ratio", 0.3, "--criterion", "l2"), "--plan", "runs/plan/plan.json"),
    "sensitivity": (
        ("sensitivity", "--metric", "loss", "--images", 4, "--criterion", "l2", "--device", "cpu"),
        "--from-sensitivity",
        "runs/sensitivity/sensitivity.json",
    ),
}


@pytest.fixture
def twin(trained: Path, workplace: Path) -> Path:
    """Return a checkpoint of the same network with other weights."""
    checkpoint = load_checkpoint(trained)
    state = {name: tensor * 1.5 if tensor.ndim == 4 else tensor.clone() for name, tensor in checkpoint.state.items()}
    return save_checkpoint(workplace / "twin.pt", replace(checkpoint, state=state))


@pytest.mark.parametrize("kind", MADE)
def test_what_was_made_for_another_checkpoint_is_not_used_unless_forced(
    cli: Cli, trained: Path, twin: Path, kind: str
) -> None:
    words, option, path = MADE[kind]
    made = cli(words[0], trained, *words[1:])
    assert made.code == 0, made.err
    rest = ("--criterion", "l2", "--ratio", 0.3) if kind == "sensitivity" else ()
    prune = ("--one-shot", "--recalibrate", 0, "--fold", "leaky", "--device", "cpu", option, path, *rest)
    assert cli("prune", trained, *prune).code == 0
    other = cli("prune", twin, *prune)
    assert (other.code, other.out) == (2, "")
    assert other.err.splitlines()[-1] == (
        f"error: {path}: was made for another checkpoint than {twin}; make one for this checkpoint, or use it all the same "
        "with --force"
    )
    forced = cli("prune", twin, *prune, "--force")
    assert forced.code == 0, forced.err
