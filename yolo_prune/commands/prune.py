"""`plan` and `prune`: write a plan, or a pruned checkpoint, which is verified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_prune.commands.config import PruneConfig
from yolo_prune.commands.data import find_data_of
from yolo_prune.commands.plan import CHECKPOINT_SHA256, Planned, fill_round_to, format_layers, make_planned
from yolo_prune.commands.pruning.calibration import iterate_images, pick_samples
from yolo_prune.commands.pruning.damage import Damage, explain_high_ratio, format_damage, measure_damage
from yolo_prune.commands.pruning.gradual import make_plan_config, train_pruned
from yolo_prune.commands.pruning.weights import WeightPruneResult, prune_weights
from yolo_prune.commands.results import Summary
from yolo_prune.config import format_config
from yolo_prune.console import report, warn
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.errors import ConfigError
from yolo_prune.files import measure_sha256
from yolo_prune.launch import check_alone
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.device import make_device
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import AUTO, ScoreConfig
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.plans.plan_file import save_plan
from yolo_prune.pruning.plots import draw_plan
from yolo_prune.pruning.scores.importance import check_finite, score_channels
from yolo_prune.pruning.sparsity.gamma_sparsity import ZERO_GAMMA
from yolo_prune.pruning.sparsity.zeroing import GradualZeroing, begin_removal
from yolo_prune.pruning.surgery.constants import Constants, carry_constants, measure_constants
from yolo_prune.pruning.surgery.rebuild import mask, rebuild, zero_blocks
from yolo_prune.pruning.surgery.recalibrate import recalibrate_
from yolo_prune.pruning.surgery.refit import count_images, refit
from yolo_prune.pruning.surgery.verify import verify_response

FAINT = 1e-6
"""If an image changes the heads' outputs by less than this (an untrained network, say), comparing them shows little."""


@dataclass(frozen=True)
class PlanResult:
    """The result of `plan`: a file to view, edit and apply, and a plot of it."""

    plan: Path
    plot: Path
    planned: Planned
    source: Path
    """The checkpoint that it is for."""

    @property
    def summary(self) -> Summary:
        """What would be left, and the command that applies the plan."""
        line = f"{self.planned.describe_left()}; {self.plot} shows it"
        return Summary(line, ("prune", str(self.source), "--plan", str(self.plan)))

    @property
    def stdout(self) -> str:
        """The plan's path."""
        return str(self.plan)

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        return {"plan": str(self.plan), "plot": str(self.plot), **self.planned.as_dict()}


@dataclass(frozen=True)
class PruneResult:
    """The result of `prune`, and the largest difference between rebuilt and masked network."""

    checkpoint: Path
    cfg: Path
    plan: Path
    planned: Planned
    max_abs_difference: float
    recalibrated_on: int
    damage: Damage | None
    """None without validation images."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        return {
            "checkpoint": str(self.checkpoint),
            "cfg": str(self.cfg),
            "plan": str(self.plan),
            **self.planned.as_dict(),
            "max_abs_difference": self.max_abs_difference,
            "recalibrated_on": self.recalibrated_on,
            **format_damage(self.damage),
        }

    @property
    def stdout(self) -> str:
        """The checkpoint's path."""
        return str(self.checkpoint)

    @property
    def summary(self) -> Summary:
        """What is left, and the command that may follow."""
        scored = "" if self.damage is None else f", AP50 {self.damage.before:.4f} → {self.damage.after:.4f} on val"
        line = f"{self.planned.describe_left()}{scored}"
        return Summary(line, ("finetune", str(self.checkpoint)))

    def format(self) -> str:
        """Return the plan's table, and the largest difference between rebuilt and masked network."""
        return (
            f"{format_layers(self.planned)}\n"
            f"rebuilt equals masked: largest difference {self.max_abs_difference:.2e} (float64)\n"
            f"{'no validation images to score on' if self.damage is None else self.damage.format()}"
        )


def make_plan_files(source: Path, config: PruneConfig, folder: Path) -> PlanResult:
    """Write the plan that `prune` would apply to plan.json and plan.png in `folder`; prune nothing.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid, or a budget cannot be met.
    """
    if config.granularity == "weight":
        right = "run prune without --dry-run, or leave it out"
        raise ConfigError("a plan of weights cannot be written as a file", where="granularity", right=right)
    planned = make_planned(source, replace(config, fold="none", recalibrate=0))
    path = _save_plan(folder, planned, source)
    plot = draw_plan(folder / "plan.png", planned.model.network, planned.made)
    return PlanResult(path, plot, planned, source)


def prune(source: Path, config: PruneConfig, folder: Path) -> PruneResult | WeightPruneResult:
    """Prune a checkpoint and write pruned.pt, pruned.cfg and, for channels, plan.json to `folder`.

    Blocks are removed first. By default the network is trained while channels are set to zero one after another and
    then removed. With `one_shot`, or without the data set, all channels are removed at once. With granularity `weight`,
    single weights become zero. A stopped run in `folder` is continued.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid, or a budget cannot be met.
        PlanError: the outputs of the network to write differ from those of the masked network; nothing is written.
        Interrupted, TimeUp: training was stopped.
    """
    check_alone("prune")
    if config.granularity == "weight":
        return prune_weights(source, config, folder)
    if advice := explain_high_ratio(config.least_ratio):
        warn(advice)
    checkpoint = load_checkpoint(source)
    check_finite(checkpoint.make_model())
    spec = _find_data(checkpoint, config)
    if not config.one_shot and config.criterion == AUTO and _are_at_zero(checkpoint, config):
        report("the channels to prune are at zero: they are removed at once, without training")
        config = replace(config, one_shot=True, criterion="bn-gamma")
    if config.one_shot:
        return _prune_at_once(source, config, folder, spec)
    if spec is None:
        return _prune_at_once(source, replace(config, one_shot=True, recalibrate=0), folder, spec)
    config = fill_round_to(config, make_channel_graph(checkpoint.network))
    planned, difference = train_pruned(source, config, folder, spec)
    best = load_checkpoint(folder / "best.pt")
    return _finish(
        _Pruned(planned, best.make_model().eval(), difference, 0, best.provenance["data"]), source, config, folder
    )


@dataclass(frozen=True)
class _Pruned:
    """A plan, the network that is left, and how it was made."""

    planned: Planned
    slim: Detector
    max_abs_difference: float
    recalibrated_on: int
    data: dict[str, Any] | None
    """Path and fingerprint of the data set that the network was trained on."""


def _find_data(checkpoint: Checkpoint, config: PruneConfig) -> DataSpec | None:
    """Return the data set; None, which is reported, if none was given and the checkpoint's does not exist."""
    spec = find_data_of(config.data, checkpoint.provenance)
    if spec is None and not config.one_shot:
        warn(
            "the data set that the checkpoint was trained on is not there: channels are pruned at once, without "
            "training; --data names one"
        )
    return spec


def _are_at_zero(checkpoint: Checkpoint, config: PruneConfig) -> bool:
    """Return whether γ sparsity training has brought all channels to prune to zero, judged by |γ|."""
    if config.fixes_plan or config.drop_blocks:
        return False
    model = checkpoint.make_model()
    if not any(layer.batch_normalize for _, layer in model.network.convs):
        return False
    plan = GradualZeroing(model, begin_removal(model.network), make_plan_config(config)).make_plan()
    return not _cuts_what_works(model, plan)


def _prune_at_once(source: Path, config: PruneConfig, folder: Path, spec: DataSpec | None) -> PruneResult:
    planned = make_planned(source, config)
    short, plan = planned.short, planned.made.plan
    if config.fold == AUTO:
        is_fitted = config.criterion == AUTO and planned.spec is not None and _cuts_what_works(short, plan)
        config = replace(config, fold="regress" if is_fitted else "leaky")
    slim = rebuild(short, plan)
    difference = verify(mask(short, plan), slim, source)
    if planned.made.blocks:
        difference = max(difference, verify(zero_blocks(planned.model, planned.made.blocks), short, source))
    if config.fold == "regress":
        slim = _refit(planned, config)
    elif config.fold != "none":
        slim = rebuild(short, plan, _find_constants(planned, config))
    seen = _recalibrate_(slim, planned, config) if config.recalibrate else 0
    data = planned.checkpoint.provenance.get("data")
    pruned = _Pruned(replace(planned, spec=planned.spec or spec), slim, difference, seen, data)
    return _finish(pruned, source, config, folder)


def _finish(pruned: _Pruned, source: Path, config: PruneConfig, folder: Path) -> PruneResult:
    """Score the network that is left and the original, and write the result."""
    planned, slim = pruned.planned, pruned.slim
    checkpoint = planned.checkpoint
    damage = measure_damage(planned.model, slim, planned.spec, make_device(config.device))
    if not explain_high_ratio(config.least_ratio) and (advice := explain_high_ratio(planned.prune_ratio)):
        warn(advice)
    details: dict[str, Any] = {
        "metrics": {**planned.as_dict(), "max_abs_difference": pruned.max_abs_difference, **format_damage(damage)},
        "data": pruned.data,
    }
    details |= {KEEPS_ZEROS: True} if checkpoint.keeps_zeros else {}
    provenance = make_provenance("prune", format_config(config), source, **details)
    left = Checkpoint(slim.network, slim.state_dict(), checkpoint.names, provenance)
    return PruneResult(
        cfg=save_cfg(slim.network, folder / "pruned.cfg"),
        plan=_save_plan(folder, planned, source),
        checkpoint=save_checkpoint(folder / "pruned.pt", left),
        planned=planned,
        max_abs_difference=pruned.max_abs_difference,
        recalibrated_on=pruned.recalibrated_on,
        damage=damage,
    )


def _recalibrate_(slim: Detector, planned: Planned, config: PruneConfig) -> int:
    """Measure batch norm statistics again, in place, unless only zero channels were pruned; return how many images."""
    if not planned.made.blocks and not _cuts_what_works(planned.short, planned.made.plan):
        report("only channels at zero are pruned: batch norm keeps the statistics of training")
        return 0
    assert planned.spec is not None
    data = pick_samples(planned.spec, "train", config.recalibrate, planned.checkpoint.img_size)
    device = make_device(config.device)
    return recalibrate_(slim, iterate_images(data, device), device)


def _cuts_what_works(model: Detector, plan: Plan) -> bool:
    sizes = ScoreConfig(criterion="bn-gamma", group_reduce="max", normalize="none")
    gammas = score_channels(model, make_channel_graph(model.network), sizes)
    return bool((gammas[~plan.keep] > ZERO_GAMMA).any())


def _save_plan(folder: Path, planned: Planned, source: Path) -> Path:
    details = {"checkpoint": str(source), CHECKPOINT_SHA256: measure_sha256(source), **planned.as_dict()}
    return save_plan(folder / "plan.json", planned.model.network, planned.made, details)


def verify(expected: Detector, found: Detector, source: Path) -> float:
    """Return the largest difference, in float64, between the outputs of a rebuilt network and of its masked twin.

    Raises:
        PlanError: the difference is larger than rounding explains; `source` names the network.
    """
    difference, response = verify_response(expected, found, source)
    if response < FAINT:
        warn(f"the heads hardly react to an image (by {response:.1e}): equal outputs prove little here")
    return difference


def _find_constants(planned: Planned, config: PruneConfig) -> Constants:
    if config.fold == "leaky":
        return carry_constants(planned.short, planned.made.plan)
    assert planned.spec is not None
    device = make_device(config.device)
    data = pick_samples(planned.spec, "train", config.images, planned.checkpoint.img_size)
    constants = measure_constants(planned.short.to(device), planned.made.plan, iterate_images(data, device))
    planned.short.cpu()
    return {index: values.cpu() for index, values in constants.items()}


def _refit(planned: Planned, config: PruneConfig) -> Detector:
    """Return the slim network with its weights fitted to the original's outputs on training images."""
    assert planned.spec is not None
    device, img_size = make_device(config.device), planned.checkpoint.img_size
    data = pick_samples(planned.spec, "train", count_images(config.images, img_size), img_size)
    slim = refit(planned.short.to(device), planned.made.plan, [*iterate_images(data, device)])
    planned.short.cpu()
    return slim.cpu()
