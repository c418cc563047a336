"""The commands that train: train, finetune, run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from yolo_prune.cli.measure import print_bench
from yolo_prune.cli.options import (
    Checkpoint,
    Config,
    Given,
    Json,
    Markdown,
    Resume,
    overlay,
    print_json,
    take_changes,
    with_settings,
)
from yolo_prune.commands.config import FINETUNE, RunConfig
from yolo_prune.errors import ConfigError
from yolo_prune.training.config import TEACHER, TrainConfig


@with_settings(TrainConfig())
def train(given: Given, config: Config = None, resume: Resume = False, as_json: Json = False) -> None:
    """Train a detector, and print the path of its best checkpoint.

    yoloprune train --data hands/data.yaml --cfg yolov3-hand.cfg --img-size 416

    yoloprune train --resume --name train
    """
    _print_trained("train", _train("train", TrainConfig(), given, config, resume), as_json)


@with_settings(FINETUNE, without=("cfg", "weights", "auto_anchors", "parent_teacher"))
def finetune(
    given: Given,
    checkpoint: Checkpoint = None,
    no_teacher: Annotated[
        bool, typer.Option("--no-teacher", help="Learn from the labels alone.", rich_help_panel=TEACHER)
    ] = False,
    config: Config = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a pruned checkpoint further, and print the path of its best checkpoint.

    Without --epochs three quarters as many as its network had before it was pruned, which is its teacher.

    yoloprune finetune runs/prune/pruned.pt
    """
    from yolo_prune.commands.lineage import adapt_finetune, find_training
    from yolo_prune.commands.run_folders import resolve_checkpoint

    if no_teacher and "teacher" in given:
        raise ConfigError("contradicts --teacher", where="--no-teacher", right="leave one of them out")
    base = FINETUNE
    if not resume:
        given["weights"] = resolve_checkpoint(checkpoint, "prune")
        base = adapt_finetune(find_training(given["weights"]))
    given |= {"parent_teacher": False} if no_teacher else {}
    others = {"CHECKPOINT": checkpoint, "--no-teacher": no_teacher}
    _print_trained("finetune", _train("finetune", base, given, config, resume, others), as_json)


def _train(
    stage: str,
    base: TrainConfig,
    given: Given,
    file: Path | None,
    resume: bool,
    others: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    settings = None if resume else overlay(base, file, given)  # a mistake shows before PyTorch is imported
    changes = take_changes(TrainConfig, given, {"--config": file, **others}) if resume else {}
    from yolo_prune.commands.run_folders import RUNS
    from yolo_prune.commands.train import launch_training, resume_training

    if settings is not None:
        return launch_training(settings, base.name, stage)
    return resume_training(RUNS / given.get("name", base.name), changes)


def _print_trained(stage: str, path: Path, as_json: bool) -> None:
    from yolo_prune.commands.run_folders import remember_latest
    from yolo_prune.training.distributed import is_speaker

    if not is_speaker():
        return
    remember_latest(stage, path)
    if not as_json:
        print(path)
        return
    from yolo_prune.model.checkpoint import load_checkpoint

    print_json({"checkpoint": str(path), **load_checkpoint(path).provenance["metrics"]})


@with_settings(RunConfig())
def run(
    given: Given,
    config: Annotated[Path, typer.Argument(help="A YAML file with the settings of every stage.")],
    weights: Annotated[
        Path | None, typer.Option(help="What the first stage starts from.", show_default="the file's")
    ] = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Train, prune, finetune and bench; stages that are up to date are skipped, a stopped one goes on.

    yoloprune run configs/demo.yaml
    """
    from yolo_prune.commands.run import load_run, run_stages

    if weights is not None:
        train: dict[str, Any] = given.setdefault("train", {})
        train["weights"] = weights
    print_bench(run_stages(overlay(load_run(config), None, given)).bench, as_json, markdown)
