"""`prune` with training: channels are set to zero one after another and removed, while training adapts the others.

    checkpoint ─► train ─► zero the least important ─► remove ─► train on ─► … ─► pruned.pt
                    ▲            │
                    └── squared gradients of the optimizer

runs/NAME/prune.json holds the checkpoint and the settings. The rest is the folder of a training run, which can be
resumed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from yolo_prune.commands.config import DEFAULT_EFFORT, LEAST_EFFORT, PruneConfig
from yolo_prune.commands.plan import Planned, choose_blocks_of, make_planned
from yolo_prune.commands.pruning.time_budgets import Stopwatch, measure_used_share, name_target
from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.config import format_config, parse_config
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.errors import CheckpointError, ConfigError, PlanError
from yolo_prune.files import measure_sha256, save_json
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.device import make_device
from yolo_prune.pruning.blocks import Block, number_kept_layers, pick_blocks
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import Plan, check_spare
from yolo_prune.pruning.plans.plan_file import BlockPlan
from yolo_prune.pruning.sparsity.zeroing import begin_removal
from yolo_prune.pruning.surgery.rebuild import cut_blocks
from yolo_prune.records import PathText, load_record
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.saved_state import load_saved_state, read_removal

JOURNAL = "prune.json"
CHANGEABLE = ("device", "max_minutes")
"""Settings that may be changed when a run is resumed."""
DRIFT = 0.1
"""Share by which a pruned network may be slower after training than the target allows: the machine's times drift."""
MOST_EPOCHS = 10**9
VALIDATIONS = 4
"""How many times, evenly spaced, a run measures AP50."""


@dataclass(frozen=True)
class Journal:
    """What prune.json holds: the checkpoint that a run started from, its settings, and the blocks removed first."""

    source: PathText
    sha256: str
    recipe: dict[str, Any]
    blocks: list[NonNegativeInt]
    given: PathText | None = None
    """The checkpoint's path as it was given, which results quote."""


def train_pruned(source: Path, config: PruneConfig, folder: Path, spec: DataSpec) -> tuple[Planned, float]:
    """Train the network of a checkpoint while its channels are pruned, or continue a stopped run.

    Return the result, and the largest difference, in float64, of a pruned network's outputs from those before.

    If the settings fix the channels to prune (any criterion but auto, a plan, a table of sensitivity, a time), these
    are pruned; else the channels that are least important at the time.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid, or a budget cannot be met.
        TrainingError: the loss is NaN or infinite.
        Interrupted, TimeUp: the run was stopped; `resume_pruned` continues it.
    """
    checkpoint = load_checkpoint(source)
    check_spare((index for index, _ in checkpoint.network.convs), config.spare)
    config = replace(config, data=spec.source, effort=config.effort or choose_effort(checkpoint))
    about = {"source": str(source.resolve()), "sha256": measure_sha256(source), "recipe": format_config(config)}
    last = folder / "last.pt"
    if last.is_file() and _is_about(folder, about):
        if not load_saved_state(last)["is_done"]:
            resume_training(folder, {name: getattr(config, name) for name in CHANGEABLE})
        return _read(source, config, folder, spec)
    blocks, target = _choose(source, config)
    save_json(folder / JOURNAL, {**about, "blocks": [block.shortcut for block in blocks], "given": str(source)})
    start, network, plan = source, checkpoint.network, make_plan_config(config)
    if blocks:
        short = cut_blocks(checkpoint.make_model(), blocks)
        network = short.network
        start = save_checkpoint(folder / "short.pt", replace(checkpoint, network=network, state=short.state_dict()))
        numbers = number_kept_layers(checkpoint.network, blocks)
        plan = replace(plan, spare=tuple(numbers[layer] for layer in plan.spare))
    settings = make_settings(config, source, start, plan, has_validation=bool(spec.splits.get("val")))
    removal = None if target is None else begin_removal(network, target)
    start_training(settings, folder, "prune", removal=removal)
    return _read(source, config, folder, spec)


def load_journal(folder: Path) -> tuple[Path, PruneConfig]:
    """Return the checkpoint and the settings of the stopped run in a folder.

    Raises:
        ConfigError: there is nothing to resume, or the checkpoint that the run started from has changed.
    """
    path = folder / JOURNAL
    right = "name a run folder that prune left"
    if not path.is_file() or not (folder / "last.pt").is_file():
        raise ConfigError("there is nothing to resume", where=path, right=right)
    journal = load_record(Journal, path, ConfigError, right)
    source = Path(journal.source)
    if not source.is_file() or measure_sha256(source) != journal.sha256:
        raise ConfigError("has changed since the run began", where=source, right="restore it, or start anew")
    given = Path(journal.given or source)
    return given if given.resolve() == source else source, parse_config(PruneConfig(), journal.recipe, path)


def choose_effort(checkpoint: Checkpoint) -> int:
    """Return the number of epochs to train while channels are pruned: half of the checkpoint's epochs."""
    epochs = checkpoint.provenance.get("recipe", {}).get("epochs")
    is_count = type(epochs) is int and 0 < epochs < MOST_EPOCHS
    return max(LEAST_EFFORT, math.ceil(epochs / 2)) if is_count else DEFAULT_EFFORT


def make_plan_config(config: PruneConfig) -> PlanConfig:
    """Return the settings of the plan, without targets in time."""
    names = ("ratio", "shortcuts", "min_channels", "round_to", "target_params", "target_macs", "spare")
    plan = PlanConfig(**{name: getattr(config, name) for name in names})
    return replace(plan, ratio=config.least_ratio)


def make_settings(
    config: PruneConfig, teacher: Path, start: Path, plan: PlanConfig, has_validation: bool = True
) -> TrainConfig:
    """Return the training settings: start from `start`, with the checkpoint `teacher` as teacher."""
    assert config.effort is not None
    interval = config.training.val_interval or math.ceil(config.effort / VALIDATIONS)
    return replace(
        config.training,
        data=config.data,
        weights=start,
        teacher=config.training.teacher or teacher,
        epochs=config.effort,
        sparsity_plan=plan,
        seed=config.seed,
        device=config.device,
        name=config.name,
        val_interval=interval if has_validation else 0,
        max_minutes=config.max_minutes,
    )


def _choose(source: Path, config: PruneConfig) -> tuple[tuple[Block, ...], Plan | None]:
    """Return the blocks that are removed first, and the plan for the rest if the settings fix one."""
    if not config.fixes_plan:
        return choose_blocks_of(source, config), None
    made = make_planned(source, replace(config, recalibrate=0, fold="none")).made
    return made.blocks, made.plan


def _is_about(folder: Path, about: dict[str, Any]) -> bool:
    if not (folder / JOURNAL).is_file():
        return False
    journal = asdict(load_record(Journal, folder / JOURNAL, ConfigError, "delete it"))
    for recipe in (journal["recipe"], about["recipe"]):
        for name in CHANGEABLE:
            recipe.pop(name, None)
    return all(journal[key] == value for key, value in about.items())


def _read(source: Path, config: PruneConfig, folder: Path, spec: DataSpec) -> tuple[Planned, float]:
    """Return the result of a finished run, as `train_pruned` does."""
    checkpoint, last = load_checkpoint(source), load_checkpoint(folder / "last.pt")
    removal = read_removal(last, folder / "last.pt")
    if removal is None:
        raise CheckpointError("lacks removal", where=f"{folder / 'last.pt'}: training", right="start anew")
    model = checkpoint.make_model().eval()
    blocks = pick_blocks(model.network, load_record(Journal, folder / JOURNAL, ConfigError, "start anew").blocks)
    latency_ms = None
    if config.is_timed:
        slim = load_checkpoint(folder / "best.pt").make_model().eval()
        before_ms, after_ms = Stopwatch(model, make_device(config.device), config.engine).measure(slim)
        latency_ms = (before_ms, after_ms)
        if (used := measure_used_share(config, before_ms, after_ms)) > 1 + DRIFT:
            what = (
                f"the pruned network takes {after_ms:.2f} ms, and the original {before_ms:.2f} ms, which is {used:.2f} times what the "
                "target allows; when its channels were chosen it met the target"
            )
            right = f"stop other processes, and time it again with prune --resume --name {folder.name}"
            raise PlanError(what, where=name_target(config), right=right)
    planned = Planned(
        checkpoint=checkpoint,
        model=model,
        short=cut_blocks(model, blocks),
        made=BlockPlan(blocks, Plan(removal.kept)),
        slim=last.network,
        before=measure_cost(model.network),
        after=measure_cost(last.network),
        latency_ms=latency_ms,
        spec=spec,
    )
    return planned, removal.difference
