"""Run folders, and how a command finds the checkpoint of the command before it.

runs/NAME/          one run: config.yaml, results.csv, results.png, last.pt, best.pt, plots, previews
runs/latest.json    the newest checkpoint of every stage; the newest of all comes last
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from yolo_prune.errors import ConfigError
from yolo_prune.files import save_json

RUNS = Path("runs")
_LATEST = RUNS / "latest.json"
TRAINED = ("finetune", "prune", "train")
"""Stages whose checkpoints can be measured, and exported."""
RESULTS = ("best.pt", "pruned.pt")
"""What a run leaves in its folder."""


def make_run_folder(name: str, default: str) -> Path:
    """Return a folder for a new run. The default name gets the next free number; a chosen name must be unused.

    Raises:
        ConfigError: the chosen name already holds a run.
    """
    folder = RUNS / name
    if not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        return folder  # hidden files were left by a run that was killed before it started
    if name != default:
        raise ConfigError(f"{folder} already holds a run", where="--name", right="use another name, or train --resume")
    return next(free for number in count(2) if not (free := RUNS / f"{name}-{number}").exists())


def find_run_folder(name: str, default: str) -> Path | None:
    """Return the folder that `make_run_folder` returned last for a name, if it exists."""
    numbers = count(2) if name == default else iter(())
    newest = RUNS / name
    for folder in (RUNS / f"{name}-{number}" for number in numbers):
        if not folder.exists():
            break
        newest = folder
    return newest if newest.exists() else None


def remember_latest(stage: str, checkpoint: Path) -> None:
    """Record a stage's newest checkpoint for later commands."""
    others = {other: path for other, path in _load_latest().items() if other != stage}
    save_json(_LATEST, {**others, stage: str(checkpoint)})


def find_latest(*stages: str) -> Path:
    """Return the newest checkpoint of any of `stages` that is still on disk.

    Raises:
        ConfigError: there is none.
    """
    for stage, path in reversed(_load_latest().items()):
        if stage in stages and Path(path).is_file():
            return Path(path)
    raise ConfigError(
        f"no checkpoint of {' or '.join(stages)} below {RUNS}",
        where="CHECKPOINT",
        right=f"name one, or run yoloprune {stages[-1]} first",
    )


def resolve_checkpoint(argument: Path | None, *stages: str) -> Path:
    """Return the checkpoint for a command: a given path, the path on stdin for `-`, or the newest of `stages`.

    The folder of a run stands for its checkpoint.

    Raises:
        ConfigError: stdin does not name one, or no earlier command has left one.
    """
    if argument is None:
        return find_latest(*stages)
    if str(argument) != "-":
        return find_in_folder(argument)
    line = sys.stdin.readline().strip()
    if not line:
        raise ConfigError(
            "stdin names no checkpoint", where="-", right="pipe a command in that prints a checkpoint's path"
        )
    return find_in_folder(Path(line))


def find_in_folder(path: Path) -> Path:
    """Return the checkpoint that a run left in a folder; another path, and a folder without one, as it is."""
    return next((path / name for name in RESULTS if (path / name).is_file()), path)


def resolve_checkpoints(arguments: Sequence[Path] | None) -> list[Path]:
    """Return the checkpoints for a command that takes several: each as `resolve_checkpoint`, the newest without any.

    Raises:
        ConfigError: as for `resolve_checkpoint`.
    """
    return [resolve_checkpoint(argument, *TRAINED) for argument in arguments or (None,)]


def _load_latest() -> dict[str, str]:
    try:
        latest = json.loads(_LATEST.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # without the file, a command needs a path
    return latest if isinstance(latest, dict) else {}
