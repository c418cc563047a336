"""Flags that several commands share, and how they lie over a YAML file and the defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer

C = TypeVar("C")

Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        help="A checkpoint; - reads its path from stdin. Without one, what the command before left.", show_default=False
    ),
]
Data: TypeAlias = Annotated[Path | None, typer.Option(help="A data.yaml.", show_default="the checkpoint's")]
Device: TypeAlias = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Config: TypeAlias = Annotated[
    Path | None, typer.Option(help="A YAML file of settings; flags go over it.", show_default=False)
]


def overlay(base: C, file: Path | None, flags: Mapping[str, Any]) -> C:
    """Return the settings `base` with a YAML file over them, and the flags that were given over that.

    Raises:
        ConfigError: the file holds an unknown key or a value of the wrong type.
    """
    from yolo_prune.config import load_yaml, parse_config

    if file is not None:
        base = parse_config(base, load_yaml(file), file)
    return parse_config(base, {key: value for key, value in flags.items() if value is not None}, "command line")


def print_json(value: Any) -> None:
    """Print one JSON object; a number that is none becomes null."""
    from yolo_prune.files import replace_nan

    print(json.dumps(replace_nan(value)))
