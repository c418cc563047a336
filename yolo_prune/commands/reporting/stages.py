"""How the checkpoints of a report were made: settings, commands, and the course of their trainings."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yolo_prune.bounded import read_text
from yolo_prune.commands.reporting.commands import format_command
from yolo_prune.errors import YoloPruneError
from yolo_prune.evaluation.models import Model
from yolo_prune.files import measure_sha256
from yolo_prune.limits import MOST_RESULTS_BYTES
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.report.data import Stage

Epochs = tuple[Mapping[str, float | None], ...]
TRAINED = ("best.pt", "last.pt")
"""Files that a training leaves in its folder; beside them its results.csv."""
PRUNED = "pruned.pt"


def describe_stage(name: str, path: Path, model: Model) -> Stage:
    """Return how a model was made; of an exported file only that it is one."""
    sha256 = measure_sha256(path) if path.is_file() else ""
    if not isinstance(model, Checkpoint):
        return Stage(name, "exported", str(path), sha256, "", "", "", "")
    provenance = model.provenance
    recipe = provenance.get("recipe") or {}
    return Stage(
        name=name,
        kind=str(provenance.get("stage", "")),
        path=str(path),
        sha256=sha256,
        version=_format_version(provenance),
        data=str((provenance.get("data") or {}).get("path", "")),
        settings=yaml.safe_dump(_make_plain(recipe), sort_keys=False, allow_unicode=True) if recipe else "",
        command=format_command(path, provenance),
        epochs=_load_epochs(path, provenance),
        gammas=_load_gammas(path, provenance),
    )


def _format_version(provenance: Mapping[str, Any]) -> str:
    version, revision = provenance.get("version"), provenance.get("git_revision")
    if not version:
        return ""
    return f"yolo_prune {version}" + (f", revision {revision}" if revision else "")


def _make_plain(value: Any) -> Any:
    """Return nested data as YAML writes it, whatever a file of another version holds."""
    if isinstance(value, Mapping):
        return {str(key): _make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def has_training(path: Path, provenance: Mapping[str, Any]) -> bool:
    """Return whether results of a training in the checkpoint's folder are its own."""
    return path.name in TRAINED or (path.name == PRUNED and provenance.get("stage") == "prune")


def _load_epochs(path: Path, provenance: Mapping[str, Any]) -> Epochs:
    """Return the rows of results.csv beside a checkpoint, empty cells as None; none without such a file."""
    place = path.parent / "results.csv"
    if not has_training(path, provenance) or not place.is_file():
        return ()
    try:
        text = io.StringIO(read_text(place, MOST_RESULTS_BYTES))
        rows = [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(text)]
    except (OSError, ValueError, TypeError, csv.Error):
        return ()  # not ours, or damaged: the page says that there are none
    return tuple(row for row in rows if row.get("epoch") is not None)


def _load_gammas(path: Path, provenance: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return the histograms of |γ| that last.pt beside a checkpoint holds, one per epoch."""
    place = path.parent / "last.pt"
    if not has_training(path, provenance) or not place.is_file():
        return ()
    try:
        gammas = load_checkpoint(place).training.get("gammas") or ()
    except YoloPruneError:
        return ()
    return tuple(tuple(map(int, counts)) for counts in gammas)
