"""`yoloprune config`: what there is to set, and the configs that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.streams import print_result

app = typer.Typer(help="Say what there is to set; copy shipped configs.", rich_markup_mode="markdown")
_COMMAND = typer.Argument(help="A command that takes a file of settings, such as run.")


@app.command()
def schema(command: Annotated[str, _COMMAND] = "run") -> None:
    """Print the JSON schema of a command's YAML file, for editors.

    ```
    yoloprune config schema run > run.schema.json
    yoloprune config schema train
    ```
    """
    from yolo_prune.commands.config_files import format_schema

    print_result(format_schema(command))


@app.command()
def reference() -> None:
    """Print the page of all settings, docs/settings.md.

    ```
    yoloprune config reference | less
    yoloprune config reference > settings.md
    ```
    """
    from yolo_prune.commands.config_files import make_reference

    print_result(make_reference().rstrip("\n"))


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="Its name, such as demo; all are listed without one.")] = "",
    out: Annotated[Path, typer.Option(help="Folder to copy it to.")] = Path(),
) -> None:
    """Copy a shipped config, to be edited, and print the copy's path.

    ```
    yoloprune config copy
    yoloprune config copy demo --out my
    ```
    """
    from yolo_prune.shipped_configs import copy_config

    print_result(str(copy_config(name, out)))
