"""Settings of the commands that are more than one function's; importing them costs nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from yolo_prune.errors import ConfigError
from yolo_prune.model.config import check_img_size
from yolo_prune.pruning.config import (
    AUTO,
    GRANULARITIES,
    METRICS,
    ON_IMAGES,
    PlanConfig,
    ScoreConfig,
    WeightConfig,
)
from yolo_prune.training.config import TrainConfig, check_run_name

FINETUNE = replace(TrainConfig(), epochs=15, learning_rate=2e-3, parent_teacher=True, name="finetune")
"""What `finetune` does differently from `train` unless told otherwise."""


PRUNE_TRAINING = replace(TrainConfig(), sparsity=AUTO, remove=True, sparsity_rest=0.4, val_interval=0, name="prune")
"""How `prune` trains while channels go."""
LEAST_EFFORT = 4
DEFAULT_EFFORT = 10
"""Epochs of `prune` for a checkpoint that does not say how long it was trained."""

FOLDS = (AUTO, "leaky", "mean", "regress", "none")
FOLDS_ON_IMAGES = ("mean", "regress")
FOR_CHANNELS = (
    *(
        "group_reduce",
        "normalize",
        "floor",
        "score_batches",
        "shortcuts",
        "min_channels",
        "round_to",
        "target_params",
        "target_macs",
    ),
    *("target_latency_ms", "target_speedup", "drop_blocks", "from_sensitivity", "plan", "fold", "pictures"),
    *("effort", "max_minutes"),
)
"""Settings of pruning that say nothing about single weights."""
FOR_WEIGHTS = ("pattern", "spare_ends")
"""Settings that say nothing about channels."""


@dataclass(frozen=True)
class PruneConfig(ScoreConfig, PlanConfig):
    """What to drop, and what happens around it."""

    criterion: str = "auto"
    """auto: while training, what a channel's silence would cost by the squared gradients that the optimizer keeps; others: see
    `ScoreConfig`."""
    round_to: int | None = None
    """Keep a multiple of this many channels in every group, the nearest, at least one; a group with fewer keeps all. Without it
    16, 8, 4 or 1, at most a sixteenth of the median width, and 1 where channels go at once by a named criterion or because they are at zero."""
    one_shot: bool = False
    """Cut at once, without training."""
    effort: int | None = None
    """Epochs of training in which channels fall silent one after another and are cut out; half the checkpoint's own by default."""
    training: TrainConfig = PRUNE_TRAINING
    """How to train while channels go; data, weights, epochs, seed, device and name are the command's own."""
    max_minutes: float | None = None
    """After so many minutes of training the run is saved and stops, to be resumed."""
    granularity: str = "channel"
    """channel: whole channels go, and the network gets slimmer; weight: single weights become zero, and it keeps its shape."""
    pattern: str | None = None
    """Of weights: N:M, such as "2:4" (in quotes in a file): of every M consecutive input channels at most N stay."""
    spare_ends: bool = True
    """Of weights: leave the first convolution and those before detection heads whole."""
    drop_blocks: int = 0
    """Residual blocks to cut out first: those whose branch contributes least to the sum, measured on pictures."""
    from_sensitivity: Path | None = None
    """A table of `yoloprune sensitivity`: every group is pruned up to the same damage instead of the same importance."""
    plan: Path | None = None
    """A plan of `yoloprune plan` to apply as it stands; nothing else says then what to drop."""
    fold: str = AUTO
    """What consumers take up for a dropped channel. auto: regress where criterion auto cuts what still works, else leaky; leaky: act(β), what it gives once its γ is 0; mean: its measured mean
    activation; regress: what the kept channels can say of it, all weights after a cut fitted by least squares; none: nothing."""
    recalibrate: int = 256
    """Training pictures on which batch-norm statistics are measured anew after a cut that took channels which still worked; 0 leaves them."""
    pictures: int = 256
    """Training pictures on which fold's means, or weights, and the blocks' contributions are measured."""
    data: Path | None = None
    """The data.yaml to measure and recalibrate on; without it the one that the checkpoint was trained on."""
    name: str = "prune"
    """The run's folder below runs/."""
    device: str = "auto"
    """Where to measure, time and recalibrate: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        PlanConfig.__post_init__(self)
        ScoreConfig.__post_init__(self)
        check_run_name(self.name)
        if self.fold not in FOLDS:
            raise ConfigError(f"unknown fold {self.fold}", where="fold", right=f"use one of {', '.join(FOLDS)}")
        for name, low, unit in (
            ("recalibrate", 0, "pictures"),
            ("pictures", 1, "pictures"),
            ("drop_blocks", 0, "blocks"),
            ("effort", 1, "epochs"),
            ("max_minutes", 0, "minutes"),
        ):
            if (value := getattr(self, name)) is not None and value < low:
                raise ConfigError(f"{value} is out of range", where=name, right=f"use {low} or more {unit}")
        self._check_granularity()
        if self.plan is not None:
            choices = {one.name for base in (PlanConfig, ScoreConfig) for one in fields(base)}
            choices = choices - {"seed"} | {"drop_blocks", "from_sensitivity"}  # a chain's seed is nobody's choice here
            given = [one.name for one in fields(self) if one.name in choices and getattr(self, one.name) != one.default]
            if given:
                raise ConfigError("a plan already says what to drop", where=given[0], right="leave it out, or the plan")
        if self.from_sensitivity is not None and (
            self.drop_blocks or self.scope != "global" or self.criterion == "random"
        ):
            raise ConfigError(
                "the table knows neither cut blocks, nor other orders than its own",
                where="from_sensitivity",
                right="leave out drop_blocks, scope and criterion random",
            )

    def _check_granularity(self) -> None:
        if self.granularity not in GRANULARITIES:
            right = f"use {' or '.join(GRANULARITIES)}"
            raise ConfigError(f"unknown granularity {self.granularity}", where="granularity", right=right)
        is_weight = self.granularity == "weight"
        self._refuse(FOR_CHANNELS if is_weight else FOR_WEIGHTS, f"means nothing to granularity {self.granularity}")
        if is_weight and self.pattern is not None:
            self._refuse(("ratio", "scope"), "does not go with a pattern, which says what stays everywhere")
        if is_weight:
            _ = self.weights

    def _refuse(self, names: Collection[str], what: str) -> None:
        for one in fields(self):
            if one.name in names and getattr(self, one.name) != one.default:
                raise ConfigError(what, where=one.name, right="leave it out")

    @property
    def fixes_plan(self) -> bool:
        """Whether the settings say which channels go before any training."""
        orders = ("scope", "normalize", "group_reduce")
        is_ordered = any(getattr(self, one.name) != one.default for one in fields(self) if one.name in orders)
        is_told = self.plan is not None or self.from_sensitivity is not None
        return is_told or is_ordered or self.is_timed or self.criterion != AUTO

    @property
    def weights(self) -> WeightConfig:
        """What `granularity: weight` zeroes.

        Raises:
            ConfigError: a setting has no meaning for weights.
        """
        criterion = "bn-gamma" if self.criterion == AUTO else self.criterion
        return WeightConfig(criterion, self.least_ratio, self.scope, self.pattern, self.spare_ends, self.spare)

    @property
    def ways_without_data(self) -> list[str]:
        """What to write, all of it, so that no training pictures are looked at; empty where none are anyway."""
        ways = (
            ("another --criterion", self.criterion in ON_IMAGES),
            ("--drop-blocks 0", self.drop_blocks > 0),
            ("--fold leaky", self.fold in FOLDS_ON_IMAGES),
            ("--recalibrate 0", self.recalibrate > 0),
        )
        return [way for way, is_needed in ways if is_needed]


@dataclass(frozen=True)
class SensitivityConfig(ScoreConfig):
    """How the damage of pruning one group after another is measured."""

    ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """The fractions of a group to drop, each measured by itself."""
    metric: str = "map50"
    """map50: AP at IoU 0.5; loss: the training loss, finer and a little faster."""
    pictures: int = 200
    """Pictures of the validation split to measure on, spread evenly over it."""
    data: Path | None = None
    """The data.yaml; without it the one that the checkpoint was trained on."""
    name: str = "sensitivity"
    """The run's folder below runs/."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.criterion == AUTO:
            object.__setattr__(self, "criterion", "obs")  # there are always images here
        super().__post_init__()
        check_run_name(self.name)
        if (
            not self.ratios
            or list(self.ratios) != sorted(set(self.ratios))
            or not all(0 < ratio < 1 for ratio in self.ratios)
        ):
            raise ConfigError(
                f"{', '.join(f'{ratio:g}' for ratio in self.ratios)} are no rising fractions",
                where="ratios",
                right="use numbers between 0 and 1, such as 0.25,0.5,0.75",
            )
        if self.metric not in METRICS:
            raise ConfigError(f"unknown metric {self.metric}", where="metric", right=f"use one of {', '.join(METRICS)}")
        if self.pictures < 1:
            raise ConfigError(f"{self.pictures} is out of range", where="pictures", right="use 1 or more pictures")


@dataclass(frozen=True)
class EvaluateConfig:
    """What checkpoints and files of detections are scored on, and what is left beside the scores."""

    data: Path | None = None
    """The data.yaml to score on; without it the one that the first checkpoint was trained on."""
    split: str = "val"
    """The part of the data set to score on."""
    subset: Path | None = None
    """A text file of pictures to score on instead of a split."""
    annotations: Path | None = None
    """A COCO annotations file whose ids detections are written and read with; without it pictures' paths are ids."""
    img_size: int | None = None
    """Side of the square input in pixels; without it each checkpoint's own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    save_detections: Path | None = None
    """Where to write the detections of the one checkpoint, as COCO results."""
    curves: Path | None = None
    """Where to draw precision and recall, as PNG."""

    def __post_init__(self) -> None:
        check_img_size(self.img_size)
        if self.curves is not None and self.curves.suffix.lower() != ".png":
            raise ConfigError(f"{self.curves} is no PNG file", where="curves", right="name a file that ends in .png")


@dataclass(frozen=True)
class BenchConfig:
    """How checkpoints are timed and scored."""

    data: Path | None = None
    """The data.yaml to score on; without it the one that the first checkpoint was trained on."""
    split: str | None = None
    """The part of the data set to score on; without it test where the data set has one, else val."""
    score: bool = True
    """Measure mAP; without, only cost and speed."""
    img_size: int | None = None
    """Side of the square input in pixels; without it each checkpoint's own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    engine: str = "folded"
    """eager: the network as trained; folded: batch norm folded into the convolutions; sparse: folded, and zero weights
    skipped, on the CPU; half: folded, in float16, on CUDA; half-2:4: the same, and what is pruned 2:4 skipped in 1×1 convolutions."""
    batch_size: int = 1
    """Pictures per timed call."""
    runs: int = 30
    """Timed calls of each checkpoint, interleaved with the others'."""
    warmup: int = 5
    """Calls of each checkpoint before the timed ones."""
    threads: int | None = None
    """CPU threads; without it PyTorch's own choice."""

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("runs", 1), ("warmup", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{value} is out of range", where=name, right=f"use at least {low}")
        check_img_size(self.img_size)
        if self.engine not in ENGINES:
            raise ConfigError(f"unknown engine {self.engine}", where="engine", right=f"use one of {', '.join(ENGINES)}")


ENGINES = ("eager", "folded", "sparse", "half", "half-2:4")


@dataclass(frozen=True)
class ChainConfig:
    """A whole case study: train, train sparse, prune, finetune, bench; `None` leaves a stage out."""

    name: str = "run"
    """The run's folder below runs/; every stage has a folder of its own in it."""
    data: Path | None = None
    """A data.yaml for every stage; without one the synthetic hands."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, for every stage."""
    seed: int = 0
    """Every random number of every stage follows from this one."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Plain training, the table's Original row."""
    sparse: TrainConfig | None = None
    """Sparsity training from the original."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    """Channel pruning."""
    finetune: TrainConfig | None = FINETUNE
    """Training of the pruned network."""
    bench: BenchConfig = field(default_factory=BenchConfig)
    """The table."""

    def __post_init__(self) -> None:
        check_run_name(self.name)
        for stage in ("sparse", "finetune"):
            settings: TrainConfig | None = getattr(self, stage)
            if settings is not None and settings.auto_anchors:
                raise ConfigError(
                    "starts from a checkpoint, whose heads were taught with its own anchors",
                    where=f"{stage}: auto_anchors",
                    right="set it for train, or leave it out",
                )
