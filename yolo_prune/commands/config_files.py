"""`config`: what there is to set, as a JSON schema for editors and as a page to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from yolo_prune.commands.config import FINETUNE, PruneConfig, RunConfig, SensitivityConfig
from yolo_prune.commands.measure_config import BenchConfig, DetectRunConfig, EvaluateConfig, ProfileConfig, ReportConfig
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.config import Entry, format_config, list_settings
from yolo_prune.darknet.config import CfgConfig, ImportConfig, ShowConfig
from yolo_prune.datasets.config import AnchorsConfig, CheckConfig, ConvertConfig, SyntheticConfig, VggHandConfig
from yolo_prune.errors import ConfigError
from yolo_prune.export.config import ExportConfig
from yolo_prune.training.config import TrainConfig

OF_FILES: dict[str, Any] = {
    "run": RunConfig(),
    "train": TrainConfig(),
    "finetune": FINETUNE,
    "prune": PruneConfig(),
    "plan": PruneConfig(name="plan"),
    "sensitivity": SensitivityConfig(),
    "iterate": IterateConfig(),
    "bench": BenchConfig(),
    "report": ReportConfig(),
}
"""The settings of each command that takes a file of them."""
OF_OPTIONS: dict[str, Any] = {
    "evaluate": EvaluateConfig(),
    "detect": DetectRunConfig(),
    "profile": ProfileConfig(),
    "import": ImportConfig(),
    "export": ExportConfig(),
    "cfg make": CfgConfig(),
    "cfg show": ShowConfig(),
    "data synthetic": SyntheticConfig(),
    "data check": CheckConfig(),
    "data anchors": AnchorsConfig(),
    "data convert": ConvertConfig,
    "data vgg-hand": VggHandConfig(),
}
"""Those of the others."""


def format_schema(command: str) -> str:
    """Return the JSON schema of a command's file as text.

    Raises:
        ConfigError: the command takes no file.
    """
    if command not in OF_FILES:
        raise ConfigError(f"{command} takes no file", where="COMMAND", right=f"use one of {', '.join(OF_FILES)}")
    return json.dumps(make_schema(command), indent=2, ensure_ascii=False)


def make_schema(command: str) -> dict[str, Any]:
    """Return the JSON schema of a command's file, its defaults those of the command."""
    base = OF_FILES[command]
    schema = TypeAdapter(type(base)).json_schema()
    parts: dict[str, Any] = {**schema.get("$defs", {}), type(base).__name__: schema}
    for cls in _list_classes(type(base)):
        for entry in list_settings(cls):
            own = parts[cls.__name__]["properties"][entry.name]
            own |= {"description": _describe(entry)}
            own.pop("default", None)
    for entry in list_settings(type(base)):
        if not entry.is_nested:
            schema["properties"][entry.name]["default"] = format_config(base)[entry.name]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"yoloprune {command}"}


def make_reference() -> str:
    """Return the reference page of all settings, in Markdown."""
    lines = ["# Settings", "", *_INTRODUCTION.strip().splitlines()]
    for command, base in {**OF_FILES, **OF_OPTIONS}.items():
        entries = list_settings(base if isinstance(base, type) else type(base))
        lines += ["", f"## yoloprune {command}", ""]
        if (other := _SAME_AS.get(command)) is not None:
            lines += [f"The same as for `{other}`, but for these defaults:", ""]
            entries = tuple(one for one in entries if getattr(base, one.name) != getattr(OF_FILES[other], one.name))
        lines += _make_table(base, entries)
    own = {type(base) for base in OF_FILES.values()}
    nested = dict.fromkeys(cls for base in OF_FILES.values() for cls in _list_classes(type(base)) if cls not in own)
    for cls in nested:
        lines += ["", f"## {_name(cls)} settings", "", (cls.__doc__ or "").strip().splitlines()[0], ""]
        lines += _make_table(cls(), list_settings(cls))
    return "\n".join(lines) + "\n"


_SAME_AS = {"finetune": "train", "plan": "prune"}
_INTRODUCTION = """
What each command takes, in a YAML file (`--config FILE`, or below the stage's name in a file of `yoloprune run`) and on the command
line. An option is `--` and the key, with dashes; a nested key is given as `--set loss.box=2.0`. This page is the output of
`yoloprune config reference`.
"""


def _make_table(base: Any, entries: Any) -> list[str]:
    lines = ["| key | values | default | what it does |", "| --- | --- | --- | --- |"]
    for entry in entries:
        value = None if isinstance(base, type) else getattr(base, entry.name)
        default = entry.describe_default(value) or ("no" if value is False else "–")
        unit = f" ({entry.setting.unit})" if entry.setting.unit else ""
        kind = (
            f"see {entry.kind.__name__.removesuffix('Config').lower()}" if entry.is_nested else f"{entry.range}{unit}"
        )
        cells = (f"`{entry.name}`", kind, default, entry.setting.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _name(cls: type) -> str:
    return cls.__name__.removesuffix("Config").lower()


def _describe(entry: Entry) -> str:
    default = f" Default: {entry.setting.default}." if entry.setting.default else ""
    unit = f" ({entry.setting.unit})" if entry.setting.unit else ""
    return f"{entry.setting.help}{unit}{default}"


def _list_classes(cls: Any) -> Iterator[Any]:
    """Yield a config class and those nested in it."""
    yield cls
    for entry in list_settings(cls):
        if entry.is_nested:
            yield from _list_classes(entry.kind)
