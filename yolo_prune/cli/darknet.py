"""The commands that read and write Darknet's files: import, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import Checkpoint, Json, print_json


def import_(
    cfg: Annotated[Path, typer.Argument(help="A Darknet cfg file.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="Darknet .weights, whole or a prefix.", show_default="random numbers"),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="The classes' names: hand,foot.", show_default="their numbers")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="runs/import/CFG.pt")] = None,
    seed: Annotated[int, typer.Option(help="What random numbers follow from.")] = 0,
) -> None:
    """Make a checkpoint of a Darknet cfg and its weights, and print its path."""
    from yolo_prune.commands.import_export import import_darknet
    from yolo_prune.commands.run_folders import RUNS, remember_latest

    classes = None if names is None else names.split(",")
    path = import_darknet(cfg, weights, classes, out or RUNS / "import" / f"{cfg.stem}.pt", seed)
    remember_latest("train", path)
    print(path)


def export(
    checkpoint: Checkpoint = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write, without suffix: A makes A.cfg and A.weights.", show_default="beside the checkpoint"
        ),
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold batch norm, so that OpenCV and every Darknet give the same outputs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as Darknet cfg and .weights, and print the .weights' path."""
    from yolo_prune.commands.import_export import export_darknet
    from yolo_prune.commands.run_folders import resolve_checkpoint

    source = resolve_checkpoint(checkpoint, "finetune", "prune", "train")
    result = export_darknet(source, out or source.with_suffix(""), fold)
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.weights)
