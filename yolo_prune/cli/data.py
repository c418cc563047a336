"""`yoloprune data`: make data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.datasets.settings import SyntheticConfig

app = typer.Typer(help="Make data sets.", no_args_is_help=True, rich_markup_mode=None)
_DEFAULTS = SyntheticConfig()


@app.callback()
def _group() -> None:
    """Keep `data` a group while it has one command."""


@app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/synthetic-hands"),
    train: Annotated[int, typer.Option(help="Training pictures.")] = _DEFAULTS.train,
    val: Annotated[int, typer.Option(help="Validation pictures.")] = _DEFAULTS.val,
    test: Annotated[int, typer.Option(help="Test pictures.")] = _DEFAULTS.test,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = _DEFAULTS.size_px,
    max_hands: Annotated[int, typer.Option(help="Most hands in one picture.")] = _DEFAULTS.max_hands,
    seed: Annotated[int, typer.Option(help="Every picture follows from this number.")] = _DEFAULTS.seed,
) -> None:
    """Draw synthetic hands with exact labels, and print the path of their data.yaml."""
    from yolo_prune.datasets.synthetic import make_dataset
    from yolo_prune.stages.data import report_progress

    config = SyntheticConfig(train=train, val=val, test=test, size_px=size, max_hands=max_hands, seed=seed)
    print(make_dataset(out, config, progress=report_progress("drawing synthetic hands")))
