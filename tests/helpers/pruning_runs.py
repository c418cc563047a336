"""Pruning at once by the command line, and what it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import Cli, read_json
from torch import Tensor

from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint

AT_ONCE = ("--one-shot", "--criterion", "bn-gamma")
"""How the cut itself is tried; tests/commands/pruning/test_gradual.py has pruning while training."""


def prune(cli: Cli, checkpoint: Path, *words: object) -> Any:
    """Prune without a look at images and return the JSON."""
    how = AT_ONCE[:1] if "--plan" in words else AT_ONCE
    return read_json(cli("prune", *how, checkpoint, "--recalibrate", 0, "--json", *words))


def read_drops(result: Any) -> dict[tuple[int, ...], list[int]]:
    """Return what the plan drops by the layers of the group."""
    groups = json.loads(Path(result["plan"]).read_text())["groups"]
    return {tuple(group["layers"]): group["drop"] for group in groups}


def change_state(checkpoint: Path, change: Callable[[dict[str, Tensor]], None], path: str = "changed.pt") -> Path:
    """Write a copy of a checkpoint with other numbers in it."""
    loaded = load_checkpoint(checkpoint)
    state = {name: tensor.clone() for name, tensor in loaded.state.items()}
    change(state)
    return save_checkpoint(Path(path), replace(loaded, state=state))
