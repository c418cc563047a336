"""The commands that prune: sensitivity, plan, prune, iterate."""

from __future__ import annotations

from yolo_prune.cli.options import Checkpoint, Config, DryRun, Resumed, with_settings
from yolo_prune.commands.config import PruneConfig, SensitivityConfig
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.results import Result
from yolo_prune.overlay import Given, overlay

_PLAN = PruneConfig(name="plan")
_NOT_OF_A_PLAN = ("one_shot", "effort", "max_minutes", "granularity", "pattern", "spare_ends", "fold", "recalibrate")


@with_settings(PruneConfig())
def prune(
    given: Given,
    checkpoint: Checkpoint = None,
    config: Config = None,
    dry_run: DryRun = False,
    resumed: Resumed = None,
) -> Result:
    """Prune a checkpoint, and print the path of the new one.

    By default it is trained on while its least important channels are brought to zero one after another and removed.

    ```
    yoloprune prune --ratio 0.8
    yoloprune prune runs/train/best.pt --target-macs 0.1
    yoloprune prune --granularity weight --ratio 0.9
    ```
    """
    from yolo_prune.commands import run_folders, runs

    if resumed:
        return runs.resume_prune(*resumed)
    source = run_folders.resolve_checkpoint(checkpoint, "train")
    if dry_run:
        return runs.run_plan(source, overlay(_PLAN, config, given))
    return runs.run_prune(source, overlay(runs.make_prune_defaults(source), config, given))


@with_settings(_PLAN, without=_NOT_OF_A_PLAN)
def plan(settings: PruneConfig, checkpoint: Checkpoint = None, config: Config = None) -> Result:
    """Write what prune would remove as JSON and as a plot, and print the JSON's path.

    ```
    yoloprune plan --target-params 0.05 --target-macs 0.1
    yoloprune plan runs/train/best.pt --criterion taylor --ratio 0.5
    ```
    """
    from yolo_prune.commands import run_folders, runs

    return runs.run_plan(run_folders.resolve_checkpoint(checkpoint, "train"), settings)


@with_settings(SensitivityConfig(), without=("normalize", "scope", "floor"))
def sensitivity(given: Given, checkpoint: Checkpoint = None, config: Config = None, resumed: Resumed = None) -> Result:
    """Measure what pruning each group alone costs, and print the path of the table that prune --from-sensitivity takes.

    ```
    yoloprune sensitivity runs/train/best.pt --metric loss
    yoloprune sensitivity --ratios 0.25,0.5,0.75
    ```
    """
    from yolo_prune.commands import run_folders, runs

    if resumed:
        return runs.resume_sensitivity_run(*resumed)
    settings = overlay(SensitivityConfig(), config, given)
    return runs.run_sensitivity(run_folders.resolve_checkpoint(checkpoint, "train"), settings)


@with_settings(IterateConfig(), without=("group_reduce", "normalize", "floor", "score_batches"))
def iterate(given: Given, checkpoint: Checkpoint = None, config: Config = None, resumed: Resumed = None) -> Result:
    """Prune a few channels, or weights, finetune, and again until the target; print the path of the last good checkpoint.

    ```
    yoloprune iterate runs/train/best.pt --step 0.05 --target-params 0.1
    yoloprune iterate --granularity weight --target-params 0.1
    yoloprune iterate --resume --name iterate
    ```
    """
    from yolo_prune.commands import run_folders, runs

    if resumed:
        return runs.resume_iterate_run(*resumed)
    settings = overlay(IterateConfig(), config, given)
    return runs.run_iterate(run_folders.resolve_checkpoint(checkpoint, "train"), settings)
