"""`yoloprune config`: what there is to set."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from yolo_prune.errors import ConfigError

app = typer.Typer(help="Say what there is to set.", rich_markup_mode="markdown")


@app.command()
def schema(
    command: Annotated[str, typer.Argument(help="A command that takes a file of settings, such as run.")] = "run",
) -> None:
    """Print the JSON schema of a command's YAML file, for editors.

    yoloprune config schema run > run.schema.json
    """
    from yolo_prune.commands.config_files import OF_FILES, make_schema

    if command not in OF_FILES:
        raise ConfigError(f"{command} takes no file", where="COMMAND", right=f"use one of {', '.join(OF_FILES)}")
    print(json.dumps(make_schema(command), indent=2, ensure_ascii=False))


@app.command()
def reference() -> None:
    """Print the page of all settings, docs/settings.md."""
    from yolo_prune.commands.config_files import make_reference

    print(make_reference(), end="")
