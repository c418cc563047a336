"""The commands that train: train, finetune, run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import Checkpoint, Config, Markdown, Resumed, with_settings
from yolo_prune.commands.config import FINETUNE, RunConfig
from yolo_prune.commands.results import Result
from yolo_prune.errors import ConfigError
from yolo_prune.overlay import Given, overlay
from yolo_prune.training.config import TEACHER, TrainConfig

_NO_TEACHER = typer.Option("--no-teacher", help="Learn from the labels alone.", rich_help_panel=TEACHER)


@with_settings(TrainConfig())
def train(given: Given, config: Config = None, resumed: Resumed = None) -> Result:
    """Train a detector, and print the path of its best checkpoint.

    ```
    yoloprune train --data hands/data.yaml --cfg yolov3-hand --img-size 416
    yoloprune train --data hands/data.yaml --weights yolov3-tiny.conv.15
    yoloprune train --resume --name train
    ```
    """
    settings = overlay(TrainConfig(), config, given)  # a mistake shows before PyTorch is imported
    from yolo_prune.commands import runs

    return runs.resume_train(*resumed) if resumed else runs.run_train(settings)


@with_settings(FINETUNE, without=("cfg", "weights", "prefix", "auto_anchors", "parent_teacher"))
def finetune(
    given: Given,
    checkpoint: Checkpoint = None,
    no_teacher: Annotated[bool, _NO_TEACHER] = False,
    config: Config = None,
    resumed: Resumed = None,
) -> Result:
    """Train a pruned checkpoint further, and print the path of its best checkpoint.

    Without --epochs three quarters as many as its network had before it was pruned, which is its teacher.

    ```
    yoloprune finetune
    yoloprune finetune runs/prune/pruned.pt --epochs 30
    yoloprune finetune --no-teacher --learning-rate 0.001
    ```
    """
    if no_teacher and "teacher" in given:
        raise ConfigError("contradicts --teacher", where="--no-teacher", right="leave one of them out")
    from yolo_prune.commands import run_folders, runs

    if resumed:
        return runs.resume_train(*resumed, stage="finetune")
    given["weights"] = run_folders.resolve_checkpoint(checkpoint, "prune")
    given |= {"parent_teacher": False} if no_teacher else {}
    settings = overlay(runs.make_finetune_defaults(given["weights"]), config, given)
    return runs.run_train(settings, "finetune")


@with_settings(RunConfig())
def run(
    given: Given,
    config: Annotated[Path, typer.Argument(help="A YAML file with the settings of every stage, or demo.")],
    markdown: Markdown = False,
) -> Result:
    """Train, prune, finetune and bench; stages that are up to date are skipped, a stopped one goes on.

    ```
    yoloprune run demo
    yoloprune config copy demo --out my
    yoloprune run my/demo.yaml --name mine
    ```
    """
    from yolo_prune.commands.resuming import naming_resume
    from yolo_prune.commands.run import load_run, run_stages

    with naming_resume("run", str(config)):
        result = run_stages(overlay(load_run(config), None, given))
    return replace(result.bench, form="markdown" if markdown else "text")
