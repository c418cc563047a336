"""`plan` and `prune`: from a checkpoint to a plan on paper, or to a slimmer checkpoint, verified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_prune.config import format_config
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.errors import ConfigError, PlanError
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.constants import Constants, carry_constants, measure_constants
from yolo_prune.pruning.importance import score_channels
from yolo_prune.pruning.pictures import draw_plan
from yolo_prune.pruning.plan_file import save_plan
from yolo_prune.pruning.refit import count_images, refit
from yolo_prune.pruning.settings import ScoreConfig
from yolo_prune.pruning.surgery import compare, mask, rebuild, silence_blocks
from yolo_prune.stages.calibration import iterate_batches, iterate_images, pick_samples
from yolo_prune.stages.data import report
from yolo_prune.stages.planning import Planned, format_layers, make_planned
from yolo_prune.stages.settings import PruneConfig
from yolo_prune.stages.weight_pruning import WeightPruneResult, prune_weights
from yolo_prune.training.device import make_device
from yolo_prune.training.recalibrate import recalibrate_

VERIFY_IMG_SIZE = 64
MAX_DIFFERENCE = 1e-9
"""How far rebuilt and masked may be apart, in float64."""
MAX_SHARE = 1e-6
"""The same as a share of how much the masked network's answers move over a picture."""
ROUNDING = 1e-13
"""What float64 sums in another order may differ by, however little the answers move."""
AT_ZERO = 1e-6
"""A γ that is no larger is what a moving average leaves of one at zero."""
FAINT = 1e-6
"""Heads that move less than this over a picture are as good as dead: a network that was never trained, say."""


@dataclass(frozen=True)
class PlanResult:
    """What `plan` made: a file to look at, edit and apply, and a picture of it."""

    plan: Path
    picture: Path
    planned: Planned

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        return {"plan": str(self.plan), "picture": str(self.picture), **self.planned.as_dict()}


@dataclass(frozen=True)
class PruneResult:
    """What `prune` made, and how far rebuilt and masked were apart."""

    checkpoint: Path
    cfg: Path
    plan: Path
    planned: Planned
    max_abs_difference: float
    recalibrated_on: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        return {
            "checkpoint": str(self.checkpoint),
            "cfg": str(self.cfg),
            "plan": str(self.plan),
            **self.planned.as_dict(),
            "max_abs_difference": self.max_abs_difference,
            "recalibrated_on": self.recalibrated_on,
        }

    def format(self) -> str:
        """Return the plan's table, and how far rebuilt and masked were apart."""
        return (
            f"{format_layers(self.planned)}\n"
            f"rebuilt equals masked: largest difference {self.max_abs_difference:.2e} (float64)"
        )


def make_plan_files(source: Path, config: PruneConfig, folder: Path) -> PlanResult:
    """Write what `prune` would do to plan.json and plan.png in `folder`; nothing is pruned.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is not what it should be, or a budget cannot be met.
    """
    if config.granularity == "weight":
        right = "run prune without --dry-run, or leave it out"
        raise ConfigError("a plan of weights is no file", where="granularity", right=right)
    planned = make_planned(source, replace(config, fold="none", recalibrate=0))
    path = _save_plan(folder, planned, source)
    picture = draw_plan(folder / "plan.png", planned.model.network, planned.made)
    return PlanResult(path, picture, planned)


def prune(source: Path, config: PruneConfig, folder: Path) -> PruneResult | WeightPruneResult:
    """Prune a checkpoint and write pruned.pt, pruned.cfg and, of channels, plan.json to `folder`.

    Blocks and channels are cut out; single weights become zero.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is not what it should be, or a budget cannot be met.
        PlanError: what is to be written and the masked network disagree; nothing is written.
    """
    return (prune_weights if config.granularity == "weight" else _prune_channels)(source, config, folder)


def _prune_channels(source: Path, config: PruneConfig, folder: Path) -> PruneResult:
    planned = make_planned(source, config)
    checkpoint, short, plan = planned.checkpoint, planned.short, planned.made.plan
    slim = rebuild(short, plan)
    difference = verify(mask(short, plan), slim, source)
    if planned.made.blocks:
        difference = max(difference, verify(silence_blocks(planned.model, planned.made.blocks), short, source))
    if config.fold == "regress":
        slim = _refit(planned, config)
    elif config.fold != "none":
        slim = rebuild(short, plan, _find_constants(planned, config))
    seen = _recalibrate_(slim, planned, config) if config.recalibrate else 0
    metrics = {**planned.as_dict(), "max_abs_difference": difference}
    facts = {"metrics": metrics, "data": checkpoint.provenance.get("data")}
    facts |= {KEEPS_ZEROS: True} if checkpoint.keeps_zeros else {}
    provenance = make_provenance("prune", format_config(config), source, **facts)
    pruned = Checkpoint(slim.network, slim.state_dict(), checkpoint.names, checkpoint.img_size, provenance)
    return PruneResult(
        cfg=save_cfg(slim.network, folder / "pruned.cfg"),
        plan=_save_plan(folder, planned, source),
        checkpoint=save_checkpoint(folder / "pruned.pt", pruned),
        planned=planned,
        max_abs_difference=difference,
        recalibrated_on=seen,
    )


def _recalibrate_(slim: Detector, planned: Planned, config: PruneConfig) -> int:
    """Measure batch norm anew if anything that worked was cut, in place, and return on how many pictures."""
    if not planned.made.blocks and not _cuts_what_works(planned):
        report("nothing goes but channels at zero: batch norm keeps the statistics of training")
        return 0
    assert planned.spec is not None
    data = pick_samples(planned.spec, "train", config.recalibrate, planned.checkpoint.img_size)
    return recalibrate_(slim, iterate_batches(data), make_device(config.device))


def _cuts_what_works(planned: Planned) -> bool:
    sizes = ScoreConfig(criterion="bn-gamma", group_reduce="max", normalize="none")
    gammas = score_channels(planned.short, make_channel_graph(planned.short.network), sizes)
    return bool((gammas[~planned.made.plan.keep] > AT_ZERO).any())


def _save_plan(folder: Path, planned: Planned, source: Path) -> Path:
    facts = {"checkpoint": str(source), **planned.as_dict()}
    return save_plan(folder / "plan.json", planned.model.network, planned.made, facts)


def verify(expected: Detector, found: Detector, source: Path) -> float:
    """Return how far a rebuilt network's answers are from those of its masked or silenced twin at most, in float64.

    Raises:
        PlanError: further than rounding explains; `source` is where the network comes from.
    """
    difference, response = compare(expected, found, VERIFY_IMG_SIZE)
    if not difference <= min(MAX_DIFFERENCE, max(ROUNDING, MAX_SHARE * response)):
        raise PlanError(
            f"the rebuilt network differs from the masked one by {difference:.3g}, whose answers move by {response:.3g}",
            where=source,
            right="report this, it is a defect",
        )
    if response < FAINT:
        report(f"the heads hardly react to a picture (by {response:.1e}): that both answer alike shows little here")
    return difference


def _find_constants(planned: Planned, config: PruneConfig) -> Constants:
    if config.fold == "leaky":
        return carry_constants(planned.short, planned.made.plan)
    assert planned.spec is not None
    device = make_device(config.device)
    data = pick_samples(planned.spec, "train", config.pictures, planned.checkpoint.img_size)
    constants = measure_constants(planned.short.to(device), planned.made.plan, iterate_images(data, device))
    planned.short.cpu()
    return {index: values.cpu() for index, values in constants.items()}


def _refit(planned: Planned, config: PruneConfig) -> Detector:
    """Return the slim network with its weights fitted to the original's on training images."""
    assert planned.spec is not None
    device, img_size = make_device(config.device), planned.checkpoint.img_size
    data = pick_samples(planned.spec, "train", count_images(config.pictures, img_size), img_size)
    slim = refit(planned.short.to(device), planned.made.plan, [*iterate_images(data, device)])
    planned.short.cpu()
    return slim.cpu()
