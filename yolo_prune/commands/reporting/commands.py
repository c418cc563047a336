"""The command that makes a checkpoint again, from what the checkpoint says of its origin."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yolo_prune.commands.config import FINETUNE, PruneConfig
from yolo_prune.commands.lineage import adapt_finetune, adapt_prune, find_training
from yolo_prune.config import list_settings, parse_config
from yolo_prune.errors import YoloPruneError
from yolo_prune.image_size import ImageSize
from yolo_prune.training.config import TrainConfig

OF_RUN = {"name", "device", "keep_zeros", "max_minutes"}
"""Settings that do not say what is made, or follow from the checkpoint."""
OF_START = {"weights", "cfg", "prefix", "auto_anchors", "parent_teacher"}
"""Settings that finetune does not take: it starts from a checkpoint, and names its teacher or has none."""


def format_command(provenance: Mapping[str, Any]) -> str:
    """Return the command as text for a shell, an option on each line; empty if it cannot be said."""
    stage, recipe = provenance.get("stage"), provenance.get("recipe") or {}
    source = str((provenance.get("parent") or {}).get("path", ""))
    try:
        match stage:
            case "train" | "sparse" if recipe:
                words = ["train"], _list_options(TrainConfig(), _parse(TrainConfig(), recipe), OF_RUN)
            case "finetune" if source:
                base = _adapt(source, FINETUNE, adapt_finetune)
                options = _list_options(base, _parse(base, recipe), OF_RUN | OF_START)
                words = ["finetune", source], [*options, *([] if recipe.get("teacher") else [("--no-teacher",)])]
            case "prune" if source:
                base = _adapt(source, PruneConfig(), adapt_prune)
                words = ["prune", source], _list_options(base, _parse(base, recipe), OF_RUN)
            case "import" if "cfg" in recipe:
                weights = [("--weights", str(recipe["weights"]))] if recipe.get("weights") else []
                words = ["import", str(recipe["cfg"])], weights
            case _:
                return ""
    except YoloPruneError:
        return ""  # settings of another version
    start, options = words
    lines = [" ".join(map(shlex.quote, ["yoloprune", *start])), *(" ".join(map(shlex.quote, one)) for one in options)]
    return " \\\n    ".join(lines)


def _adapt(source: str, base: Any, adapt: Any) -> Any:
    """Return the defaults that the command has for a checkpoint, or those that it has for any if that is gone."""
    return adapt(find_training(Path(source))) if Path(source).is_file() else base


def _parse(base: Any, recipe: Mapping[str, Any]) -> Any:
    return parse_config(type(base)(), recipe, "recipe")


def _list_options(base: Any, config: Any, without: set[str], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield an option for each setting in which two configs differ; nested ones by their path."""
    for entry in list_settings(type(config)):
        before, now = getattr(base, entry.name), getattr(config, entry.name)
        if entry.name in without or now is None or now == before:
            continue
        if entry.is_nested:
            yield from _list_options(entry.kind() if before is None else before, now, set(), f"{prefix}{entry.name}.")
        elif prefix:
            yield "--set", f"{prefix}{entry.name}={_format(now)}"
        elif isinstance(now, bool):
            yield (entry.flag if now else f"--no-{entry.flag.removeprefix('--')}",)
        else:
            yield entry.flag, _format(now)


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) and not isinstance(value, ImageSize) else str(value)
