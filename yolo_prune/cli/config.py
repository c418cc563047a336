"""`yoloprune config`: say what there is to set."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Say what there is to set.", rich_markup_mode="markdown")


@app.command()
def schema(
    command: Annotated[str, typer.Argument(help="A command that takes a file of settings, such as run.")] = "run",
) -> None:
    """Print the JSON schema of a command's YAML file, for editors.

    yoloprune config schema run > run.schema.json
    """
    from yolo_prune.commands.config_files import format_schema

    print(format_schema(command))


@app.command()
def reference() -> None:
    """Print the page of all settings, docs/settings.md."""
    from yolo_prune.commands.config_files import make_reference

    print(make_reference(), end="")
