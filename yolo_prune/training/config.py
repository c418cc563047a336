"""The settings of a training run; each default stands here once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.errors import ConfigError
from yolo_prune.model.config import DistillConfig, LossConfig, check_img_size
from yolo_prune.pruning.config import PlanConfig

RUNTIME = ("device", "workers", "save_minutes", "max_minutes", "tensorboard")
"""Settings that say how a run is carried out and not what comes out of it: a resumed run may change them."""
AUTO = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """What `train` and `finetune` are told; `finetune` has defaults of its own for some."""

    data: Path | None = None
    """A data.yaml; without one the synthetic hands are used, and made first if need be."""
    cfg: Path | None = None
    """A Darknet cfg file for a fresh network; without one and without a checkpoint, configs' quarter-width YOLOv3."""
    weights: Path | None = None
    """Where to start from: a checkpoint (.pt), or a Darknet .weights file or prefix of one for the network of `cfg`."""
    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 16
    """Pictures per step, over all processes."""
    accumulate: int = 1
    """Passes in which a step's pictures go through the network, so that a large step fits in memory: Darknet's subdivisions."""
    img_size: int | None = None
    """Side of the network's square input in pixels; without it the checkpoint's or the cfg's own."""
    multi_scale: float = 0.0
    """Every step takes a side of its own, a multiple of 32 px up to this share of `img_size` smaller or larger."""
    auto_anchors: bool = False
    """Find the fresh network's anchors in the training boxes, as `data anchors` does, instead of taking the cfg's."""
    freeze: int = 0
    """The first layers of the cfg, so many, stay as they are, batch-norm statistics included."""
    sparsity: float | str = 0.0
    """λ of the penalty λ‖γ‖₁: after each step γ moves towards zero by λ times the step size. 0 trains without; auto
    needs none, and takes just the channels of `sparsity_ratio` to zero in the run's time."""
    sparsity_ratio: float = 0.6
    """The share of the prunable channels that `sparsity: auto` is to bring to zero."""
    sparsity_plan: PlanConfig | None = None
    """What `auto` silences, where there is more to say than `sparsity_ratio`: targets, floors, rounding."""
    remove: bool = False
    """Channels that `auto` has silenced are cut out while training goes on, which the fewer left make faster."""
    sparsity_ramp: float = 0.0
    """Share of the run over which λ rises from zero."""
    sparsity_rest: float | None = None
    """Share of the run, at its end, without λ: channels at zero stay there, the others recover. Without it 0.6 for auto, else 0."""
    keep_zeros: bool | None = None
    """Weights of convolution kernels that are exactly zero stay so. Without it: if the checkpoint's were pruned away."""
    teacher: Path | None = None
    """A checkpoint with the same heads, whose answers the network learns beside the labels."""
    parent_teacher: bool = False
    """Without a `teacher`, the network that the checkpoint was cut from is it, if it is still there as it was."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """How much the teacher counts."""
    name: str = "train"
    """The run's folder below runs/."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = AUTO
    """fp32; bf16 or fp16: mixed precision, the latter with a scaled loss; auto: bf16 on CUDA (fp16 where it knows none), else fp32."""
    compile: bool = False
    """Have torch.compile make the network's kernels."""
    seed: int = 0
    """Every random number of the run follows from this one."""
    optimizer: str = "adamw"
    """adamw or sgd (Nesterov)."""
    learning_rate: float = 2e-3
    """The highest learning rate, reached after the warm-up."""
    schedule: str = "cosine"
    """cosine: after the warm-up half a cosine leads to `final_learning_rate`; constant: the rate stays."""
    final_learning_rate: float = 0.01
    """The cosine's last learning rate as a fraction of the highest."""
    momentum: float = 0.9
    """SGD's momentum, AdamW's β₁."""
    weight_decay: float | None = None
    """Decay of convolution kernels; γ, β and biases have none. Without it 0.02 for AdamW and 0.0005 for SGD."""
    warmup_fraction: float = 0.03
    """Share of the run over which the learning rate rises from zero."""
    ema_fraction: float = 0.02
    """Length of the weights' moving average as a share of the run; 0 keeps the weights themselves."""
    clip_norm: float = 10.0
    """The gradient's largest L2 norm; 0 leaves it as it is."""
    close_mosaic_fraction: float = 0.2
    """Share of the run, at its end, without mosaic pictures."""
    patience: int = 0
    """The run ends after so many validations without a better AP50, the mean of three; 0 lets it go to its end."""
    rectangular: bool = False
    """Validate on pictures padded to the nearest multiples of 32 px instead of to a square."""
    workers: int | None = None
    """Processes that load pictures; 0 loads in the training process. Without it one for each core on CUDA, up to 16, else 0."""
    val_interval: int = 1
    """Epochs from one validation to the next; the last epoch always ends with one. 0 validates never and keeps the last epoch."""
    goal: float | None = None
    """The run ends once a validation reaches this AP50."""
    save_minutes: float = 10.0
    """last.pt is written after every epoch, and within one after so many minutes."""
    max_minutes: float | None = None
    """After so many minutes the run is saved and stops, to be resumed."""
    tensorboard: bool = False
    """Write what results.csv holds, and the pictures, for TensorBoard too."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How pictures are varied."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How answers are judged."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a value is out of range, or two contradict each other.
        """
        self._check_ranges()
        self._check_choices()
        self._check_sparsity()
        check_img_size(self.img_size)
        if self.auto_anchors and self.weights is not None and self.weights.suffix == ".pt":
            raise ConfigError(
                "a checkpoint's heads were taught with its own anchors",
                where="auto_anchors",
                right=f"leave it out, or start from other weights than {self.weights}",
            )
        check_run_name(self.name)

    @property
    def is_sparse(self) -> bool:
        """Whether channels are to end at zero."""
        return self.sparsity == AUTO or self.sparsity > 0  # type: ignore[operator]  # checked: auto is the only text

    @property
    def pulls_gammas(self) -> bool:
        """Whether λ pulls γ towards zero: `auto` with AdamW does without, its squared gradients say what goes."""
        return self.is_sparse and not (self.sparsity == AUTO and self.optimizer == "adamw")

    @property
    def removal_plan(self) -> PlanConfig:
        """What `auto` silences."""
        return self.sparsity_plan or PlanConfig(ratio=self.sparsity_ratio)

    def _check_ranges(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)} is out of range", where=name, right="use at least 1")
        for name in (
            "weight_decay",
            "clip_norm",
            "workers",
            "freeze",
            "patience",
            "val_interval",
            "save_minutes",
            "max_minutes",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{value} is out of range", where=name, right="use at least 0")
        if self.goal is not None and not 0 <= self.goal <= 1:
            raise ConfigError(f"{self.goal} is out of range", where="goal", right="use a number from 0 to 1")
        for name in ("final_learning_rate", "warmup_fraction", "ema_fraction", "close_mosaic_fraction"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number from 0 to 1")
        for name in ("momentum", "multi_scale"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number from 0 to below 1")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"{self.learning_rate} is out of range", where="learning_rate", right="use a number above 0"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(
                f"{self.seed} is out of range", where="seed", right="use a whole number from 0 to 2^63 − 1"
            )
        if self.batch_size % self.accumulate:
            right = f"use a divisor of {self.batch_size}, the batch size"
            raise ConfigError(f"{self.accumulate} equal parts cannot be made", where="accumulate", right=right)

    def _check_choices(self) -> None:
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("cosine", "constant"),
            "precision": (AUTO, "fp32", "bf16", "fp16"),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                right = f"use {', '.join(known[:-1])} or {known[-1]}"
                raise ConfigError(f"unknown {name} {value}", where=name, right=right)

    def _check_sparsity(self) -> None:
        if isinstance(self.sparsity, str) and self.sparsity != AUTO:
            raise ConfigError(f"{self.sparsity!r} is no number", where="sparsity", right="use a number from 0, or auto")
        if not isinstance(self.sparsity, str) and not 0 <= self.sparsity < math.inf:
            raise ConfigError(
                f"{self.sparsity} is out of range", where="sparsity", right="use a number from 0, or auto"
            )
        if not 0 < self.sparsity_ratio < 1:
            right = "use a number between 0 and 1"
            raise ConfigError(f"{self.sparsity_ratio} is out of range", where="sparsity_ratio", right=right)
        for name in ("sparsity_ramp", "sparsity_rest"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number from 0 to 1")
        for name in ("sparsity_plan", "remove"):
            if getattr(self, name) and self.sparsity != AUTO:
                raise ConfigError("says something of sparsity: auto alone", where=name, right="leave it out")
        if self.sparsity_rest == 1 and self.is_sparse:
            raise ConfigError("leaves λ no time", where="sparsity_rest", right="use a smaller share")
        if self.is_sparse and self.goal is not None:
            right = "leave it out: a sparse run ends with its last epoch, its sparsest"
            raise ConfigError("does not go with sparsity", where="goal", right=right)
        if self.is_sparse and self.patience:
            right = "leave it out: a sparse run ends with its last epoch, its sparsest"
            raise ConfigError("does not go with sparsity", where="patience", right=right)


def check_run_name(name: str) -> None:
    """Refuse a name that is not one folder's.

    Raises:
        ConfigError: it is empty, or a path.
    """
    if name == ".." or Path(name).name != name or not name:
        raise ConfigError(f"{name!r} is no folder name", where="name", right="use a plain name without slashes")
