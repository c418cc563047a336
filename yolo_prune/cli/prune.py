"""The commands that prune: sensitivity, plan, prune, iterate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import (
    Checkpoint,
    Config,
    Given,
    Json,
    Resume,
    overlay,
    print_json,
    take_changes,
    with_settings,
)
from yolo_prune.commands.config import PruneConfig, SensitivityConfig
from yolo_prune.commands.iterate_config import IterateConfig

_PLAN = PruneConfig(name="plan")
_NOT_OF_A_PLAN = ("one_shot", "effort", "max_minutes", "granularity", "pattern", "spare_ends", "fold", "recalibrate")


@with_settings(PruneConfig())
def prune(
    given: Given,
    checkpoint: Checkpoint = None,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the plan, prune nothing.", rich_help_panel="Results")
    ] = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Prune a checkpoint, and print the path of the new one.

    By default it is trained on while its least important channels are brought to zero one after another and removed.

    yoloprune prune --ratio 0.8

    yoloprune prune runs/train/best.pt --target-macs 0.1

    yoloprune prune --granularity weight --ratio 0.9
    """
    from yolo_prune.commands.lineage import adapt_prune, find_training
    from yolo_prune.commands.prune import prune as make_pruned
    from yolo_prune.commands.prune_gradually import load_journal
    from yolo_prune.commands.run_folders import RUNS, make_run_folder, remember_latest, resolve_checkpoint
    from yolo_prune.console import report

    if resume:
        others = {"CHECKPOINT": checkpoint, "--config": config, "--dry-run": dry_run}
        changes = take_changes(PruneConfig, given, others)
        folder = RUNS / given.get("name", PruneConfig().name)
        source, settings = load_journal(folder)
        settings = overlay(settings, None, changes)
    elif dry_run:
        return _plan(checkpoint, config, given, as_json)
    else:
        source = resolve_checkpoint(checkpoint, "train")
        settings = overlay(adapt_prune(find_training(source)), config, given)
        folder = make_run_folder(settings.name, PruneConfig().name)
    result = make_pruned(source, settings, folder)
    report(result.format())
    remember_latest("prune", result.checkpoint)
    return print_json(result.as_dict()) if as_json else print(result.checkpoint)


@with_settings(_PLAN, without=_NOT_OF_A_PLAN)
def plan(given: Given, checkpoint: Checkpoint = None, config: Config = None, as_json: Json = False) -> None:
    """Write what prune would remove as JSON and as a plot, and print the JSON's path.

    yoloprune plan --target-params 0.05 --target-macs 0.1
    """
    _plan(checkpoint, config, given, as_json)


def _plan(checkpoint: Path | None, config: Path | None, given: Given, as_json: bool) -> None:
    from yolo_prune.commands.plan import format_layers
    from yolo_prune.commands.prune import make_plan_files
    from yolo_prune.commands.run_folders import make_run_folder, resolve_checkpoint
    from yolo_prune.console import report

    source = resolve_checkpoint(checkpoint, "train")
    settings = overlay(_PLAN, config, given)
    made = make_plan_files(source, settings, make_run_folder(settings.name, _PLAN.name))
    report(format_layers(made.planned))
    print_json(made.as_dict()) if as_json else print(made.plan)


@with_settings(SensitivityConfig(), without=("normalize", "scope", "floor"))
def sensitivity(
    given: Given, checkpoint: Checkpoint = None, config: Config = None, resume: Resume = False, as_json: Json = False
) -> None:
    """Measure what pruning each group alone costs, and print the path of the table that prune --from-sensitivity takes.

    yoloprune sensitivity runs/train/best.pt --metric loss
    """
    from yolo_prune.commands.run_folders import RUNS, make_run_folder, resolve_checkpoint
    from yolo_prune.commands.sensitivity import resume_sensitivity, start_sensitivity
    from yolo_prune.console import report

    default = SensitivityConfig().name
    if resume:
        changes = take_changes(SensitivityConfig, given, {"CHECKPOINT": checkpoint, "--config": config})
        result = resume_sensitivity(RUNS / given.get("name", default), changes.get("device"))
    else:
        settings = overlay(SensitivityConfig(), config, given)
        folder = make_run_folder(settings.name, default)
        result = start_sensitivity(resolve_checkpoint(checkpoint, "train"), settings, folder)
    report(result.format())
    print_json(result.as_dict()) if as_json else print(result.path)


@with_settings(IterateConfig(), without=("group_reduce", "normalize", "floor", "score_batches"))
def iterate(
    given: Given, checkpoint: Checkpoint = None, config: Config = None, resume: Resume = False, as_json: Json = False
) -> None:
    """Prune a few channels, or weights, finetune, and again until the target; print the path of the last good checkpoint.

    yoloprune iterate runs/train/best.pt --step 0.05 --target-params 0.1
    """
    from yolo_prune.commands.iterate import resume_iterate, start_iterate
    from yolo_prune.commands.run_folders import RUNS, make_run_folder, remember_latest, resolve_checkpoint
    from yolo_prune.console import report

    default = IterateConfig().name
    if resume:
        changes = take_changes(IterateConfig, given, {"CHECKPOINT": checkpoint, "--config": config})
        result = resume_iterate(RUNS / given.get("name", default), changes)
    else:
        settings = overlay(IterateConfig(), config, given)
        folder = make_run_folder(settings.name, default)
        result = start_iterate(resolve_checkpoint(checkpoint, "train"), settings, folder)
    report(result.format())
    remember_latest("finetune", result.checkpoint)
    print_json(result.as_dict()) if as_json else print(result.checkpoint)
