"""The command that makes a checkpoint again, from what the checkpoint says of its origin."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from yolo_prune.commands.config import FINETUNE, PruneConfig
from yolo_prune.commands.iterate import STEPS
from yolo_prune.commands.lineage import adapt_finetune, adapt_prune, find_training
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.config import list_settings, parse_config
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.files import load_json
from yolo_prune.image_size import ImageSize
from yolo_prune.training.config import TrainConfig

Option: TypeAlias = tuple[str, ...]
"""A flag, and its value if it has one."""

OF_RUN = {"name", "device", "keep_zeros", "max_minutes"}
"""Settings that do not say what is made, or follow from the checkpoint."""
OF_START = {"weights", "cfg", "prefix", "auto_anchors", "parent_teacher"}
"""Settings that finetune does not take: it starts from a checkpoint, and names its teacher or has none."""


def format_command(path: Path, provenance: Mapping[str, Any]) -> str:
    """Return the command that made a checkpoint as text for a shell, an option on each line; empty if it cannot be said."""
    try:
        words, options = _find_command(path, provenance)
    except (YoloPruneError, KeyError, TypeError):
        return ""  # of another version
    lines = [("yoloprune", *words), *options] if words else []
    return " \\\n    ".join(" ".join(map(shlex.quote, line)) for line in lines)


def _find_command(path: Path, provenance: Mapping[str, Any]) -> tuple[list[str], list[Option]]:
    """Return the command's words and its options; no words if there is no command for it."""
    recipe = provenance.get("recipe") or {}
    source = str((provenance.get("parent") or {}).get("path", ""))
    match provenance.get("stage"):
        case "train" | "sparse" if recipe:
            return ["train"], _list_options(TrainConfig(), recipe, OF_RUN)
        case "finetune" if source:
            base = _adapt(source, FINETUNE, adapt_finetune)
            options = _list_options(base, recipe, OF_RUN | OF_START)
            return ["finetune", source], [*options, *([] if recipe.get("teacher") else [("--no-teacher",)])]
        case "prune" if source:
            return ["prune", source], _list_options(_adapt(source, PruneConfig(), adapt_prune), recipe, OF_RUN)
        case "iterate":
            journal = load_json(path.parent.parent / STEPS, ConfigError, "")
            return ["iterate", journal["source"]], _list_options(IterateConfig().resolved, journal["recipe"], OF_RUN)
        case "import" if "cfg" in recipe:
            return ["import", recipe["cfg"]], [("--weights", recipe["weights"])] if recipe.get("weights") else []
    return [], []


def _adapt(source: str, base: Any, adapt: Any) -> Any:
    """Return the defaults that the command has for a checkpoint, or those that it has for any if that is gone."""
    return adapt(find_training(Path(source))) if Path(source).is_file() else base


def _list_options(base: Any, recipe: Mapping[str, Any], without: set[str]) -> list[Option]:
    """Return an option for each setting of a recipe that differs from `base`.

    Raises:
        ConfigError: a setting is not known.
    """
    return list(_compare(base, parse_config(type(base)(), recipe, "recipe"), without))


def _compare(base: Any, config: Any, without: set[str], prefix: str = "") -> Iterator[Option]:
    """Yield an option for each setting in which two configs differ; nested ones by their path."""
    for entry in list_settings(type(config)):
        before, now = getattr(base, entry.name), getattr(config, entry.name)
        if entry.name in without or now is None or now == before:
            continue
        if entry.is_nested:
            yield from _compare(entry.kind() if before is None else before, now, set(), f"{prefix}{entry.name}.")
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
