"""Settings of the commands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field, replace
from typing import Annotated, Literal

from yolo_prune.commands.measure_config import BenchConfig, DataOfCheckpoint, OwnImgSize
from yolo_prune.config import Setting, list_changed, list_settings, settings
from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import (
    AUTO,
    CHOICE,
    KEPT,
    ON_IMAGES,
    Criterion,
    Granularity,
    Metric,
    Pattern,
    PlanConfig,
    ScoreConfig,
    SpareEnds,
    WeightConfig,
    make_weight_config,
    parse_pattern,
)
from yolo_prune.shared_settings import MAX_MINUTES, Device, Numbers, PathSetting, RunName, Seed
from yolo_prune.training.config import TrainConfig

FINETUNE = TrainConfig(epochs=15, learning_rate=2e-3, parent_teacher=True, name="finetune")
"""What `finetune` does differently from `train` unless told otherwise."""
PRUNE_TRAINING = TrainConfig(sparsity=AUTO, remove=True, sparsity_rest=0.4, val_interval=0, name="prune")
"""How `prune` trains while channels are removed."""
LEAST_EFFORT = 4
DEFAULT_EFFORT = 10
"""Epochs of `prune` for a checkpoint that does not say how long it was trained."""
FOLDS_ON_IMAGES = ("mean", "regress")
TRAINING, AFTER, SCORED = "While it trains", "After the cut", "What is scored"


@settings
class PruneConfig(ScoreConfig, PlanConfig):
    """What to remove, and what happens around it."""

    criterion: Annotated[
        Criterion,
        Setting(
            "What makes a channel or weight matter. auto: what a channel's removal would cost by the squared gradients that the optimizer "
            "keeps while prune trains; with --one-shot, bn-gamma where channels with γ at zero are enough, else obs, or l2 without images. "
            "bn-gamma: |γ|; l1, l2: the norm of the channel's filter; fpgm: its distance to the layer's other filters; taylor, obs: the first- "
            "or second-order change of the loss without it.",
            group=CHOICE,
        ),
    ] = "auto"
    round_to: Annotated[
        int | None,
        Setting(
            "Keep a multiple of so many channels in every group, the nearest, at least one; a group with fewer keeps all.",
            ge=1,
            default="16, or 8, 4, 1 where layers are narrow; 1 for --one-shot by a named criterion or of γ at zero",
            of="channel",
            group=KEPT,
        ),
    ] = None
    one_shot: Annotated[bool, Setting("Cut at once, without training.", group=TRAINING)] = False
    effort: Annotated[
        int | None,
        Setting(
            "Training in which channels are brought to zero one after another and removed.",
            ge=1,
            unit="epochs",
            default="half the checkpoint's own",
            of="channel",
            group=TRAINING,
        ),
    ] = None
    training: Annotated[
        TrainConfig,
        Setting(
            "How to train while channels are removed; data, weights, epochs, seed, device and name are the command's own."
        ),
    ] = PRUNE_TRAINING
    max_minutes: Annotated[float | None, replace(MAX_MINUTES, of="channel")] = None
    granularity: Granularity = "channel"
    pattern: Pattern = None
    spare_ends: SpareEnds = True
    drop_blocks: Annotated[
        int,
        Setting(
            "Residual blocks to remove first: those whose branch contributes least to the sum, measured on images.",
            ge=0,
            unit="blocks",
            of="channel",
            group=CHOICE,
        ),
    ] = 0
    from_sensitivity: Annotated[
        PathSetting | None,
        Setting("A sensitivity.json: prune every group up to the same damage.", of="channel", group=CHOICE),
    ] = None
    plan: Annotated[
        PathSetting | None,
        Setting(
            "A plan.json to apply as it stands; no other setting then says what to remove.", of="channel", group=CHOICE
        ),
    ] = None
    force: Annotated[
        bool,
        Setting(
            "Use a plan, or a table of sensitivity, that was made for another checkpoint.", of="channel", group=CHOICE
        ),
    ] = False
    fold: Annotated[
        Literal["auto", "leaky", "mean", "regress", "none"],
        Setting(
            "What the layers that read a removed channel take up for it. auto: regress where criterion auto removes channels that "
            "still matter, else leaky; leaky: act(β), its value once γ is 0; mean: its measured mean activation; regress: what the kept channels "
            "can say of it, all later weights fitted by least squares; none: nothing.",
            of="channel",
            group=AFTER,
        ),
    ] = "auto"
    recalibrate: Annotated[
        int,
        Setting(
            "Training images on which batch-norm statistics are measured anew after a cut of channels that still matter; 0: none.",
            ge=0,
            unit="images",
            group=AFTER,
        ),
    ] = 256
    images: Annotated[
        int,
        Setting(
            "Training images on which fold's means, or weights, and the blocks' contributions are measured.",
            ge=1,
            unit="images",
            of="channel",
            group=AFTER,
            was="pictures",
        ),
    ] = 256
    data: DataOfCheckpoint = None
    name: RunName = "prune"
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Raise if two settings contradict each other.

        Raises:
            ConfigError: names one of them.
        """
        self._check_granularity()
        if self.plan is not None:
            choices = {one.name for base in (PlanConfig, ScoreConfig) for one in list_settings(base)}
            choices = choices - {"seed"} | {"drop_blocks", "from_sensitivity"}  # a run's seed is no choice of channels
            self._reject(choices, "a plan already says what to remove", "leave it out, or the plan")
        if self.from_sensitivity is not None and (
            self.drop_blocks or self.scope != "global" or self.criterion == "random"
        ):
            raise ConfigError(
                "the table knows neither removed blocks, nor other orders than its own",
                where="from_sensitivity",
                right="leave out drop_blocks, scope and criterion random",
            )

    def _check_granularity(self) -> None:
        others = {one.name for one in list_settings(PruneConfig) if one.setting.of not in ("", self.granularity)}
        self._reject(others, f"means nothing to granularity {self.granularity}", "leave it out")
        if self.granularity == "weight":
            if self.pattern is not None:
                parse_pattern(self.pattern)
                self._reject(
                    ("ratio", "scope"), "does not go with a pattern, which says what stays everywhere", "leave it out"
                )
            _ = self.weights

    def _reject(self, names: Collection[str], what: str, right: str) -> None:
        for name in list_changed(self):
            if name in names:
                raise ConfigError(what, where=name, right=right)

    @property
    def fixes_plan(self) -> bool:
        """Whether the settings say which channels to remove before any training."""
        is_ordered = not {"scope", "normalize", "group_reduce"}.isdisjoint(list_changed(self))
        is_told = self.plan is not None or self.from_sensitivity is not None
        return is_told or is_ordered or self.is_timed or self.criterion != AUTO

    @property
    def weights(self) -> WeightConfig:
        """What `granularity: weight` zeroes.

        Raises:
            ConfigError: a setting has no meaning for weights.
        """
        return make_weight_config(
            criterion="bn-gamma" if self.criterion == AUTO else self.criterion,
            ratio=self.least_ratio,
            scope=self.scope,
            pattern=self.pattern,
            spare_ends=self.spare_ends,
            spare=self.spare,
        )

    @property
    def ways_without_data(self) -> list[str]:
        """What to write, all of it, so that no training images are needed; empty where none are anyway."""
        ways = (
            ("another --criterion", self.criterion in ON_IMAGES),
            ("--drop-blocks 0", self.drop_blocks > 0),
            ("--fold leaky", self.fold in FOLDS_ON_IMAGES),
            ("--recalibrate 0", self.recalibrate > 0),
        )
        return [way for way, is_needed in ways if is_needed]


@settings
class SensitivityConfig(ScoreConfig):
    """How the damage of pruning one group after another is measured."""

    ratios: Annotated[
        Numbers, Setting("Shares of a group to remove, each measured by itself: 0.25,0.5,0.75.", group=SCORED)
    ] = (0.25, 0.5, 0.75, 0.9)
    metric: Annotated[
        Metric, Setting("map50: AP at IoU 0.5; loss: the training loss, finer and a little faster.", group=SCORED)
    ] = "map50"
    images: Annotated[
        int,
        Setting("Validation images to measure on, spread evenly.", ge=1, unit="images", group=SCORED, was="pictures"),
    ] = 200
    data: DataOfCheckpoint = None
    img_size: OwnImgSize = None
    name: RunName = "sensitivity"
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError if the ratios are no rising shares; criterion auto is obs, as there are always images here."""
        if self.criterion == AUTO:
            object.__setattr__(self, "criterion", "obs")
        is_rising = bool(self.ratios) and list(self.ratios) == sorted(set(self.ratios))
        if not is_rising or not all(0 < ratio < 1 for ratio in self.ratios):
            raise ConfigError(
                f"{', '.join(f'{ratio:g}' for ratio in self.ratios) or 'none'} are no rising shares",
                where="ratios",
                right="use numbers between 0 and 1, such as 0.25,0.5,0.75",
            )


@settings
class RunConfig:
    """A whole case study: train, train with γ sparsity, prune, finetune, bench; null leaves a stage out."""

    name: RunName = "run"
    data: Annotated[
        PathSetting | None, Setting("A data.yaml for every stage.", default="synthetic hands, drawn on first use")
    ] = None
    weights: Annotated[
        PathSetting | None, Setting("What the first stage starts from.", default="its own", group="Data")
    ] = None
    device: Device = "auto"
    seed: Seed = 0
    train: Annotated[TrainConfig, Setting("Plain training, the table's Original row.")] = field(
        default_factory=TrainConfig
    )
    sparse: Annotated[TrainConfig | None, Setting("Training with γ sparsity from the original.")] = None
    prune: Annotated[PruneConfig, Setting("Pruning.")] = field(default_factory=PruneConfig)
    finetune: Annotated[TrainConfig | None, Setting("Training of the pruned network.")] = FINETUNE
    bench: Annotated[BenchConfig, Setting("The table.")] = field(default_factory=BenchConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError if a later stage is to find anchors."""
        for stage in ("sparse", "finetune"):
            own: TrainConfig | None = getattr(self, stage)
            if own is not None and own.auto_anchors:
                raise ConfigError(
                    "starts from a checkpoint, whose heads were trained with its own anchors",
                    where=f"{stage}.auto_anchors",
                    right="set it for train, or leave it out",
                )
