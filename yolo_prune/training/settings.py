"""The settings of a training run; each default stands here once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from yolo_prune.datasets.settings import AugmentConfig
from yolo_prune.errors import ConfigError
from yolo_prune.model.settings import LossConfig, check_img_size


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
    """Pictures per step."""
    img_size: int | None = None
    """Side of the network's square input in pixels; without it the checkpoint's or the cfg's own."""
    auto_anchors: bool = False
    """Find the fresh network's anchors in the training boxes, as `data anchors` does, instead of taking the cfg's."""
    sparsity: float = 0.0
    """λ of the penalty λ‖γ‖₁: after each step γ moves towards zero by λ times the step size. 0 trains without."""
    name: str = "train"
    """The run's folder below runs/."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
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
    """Length of the weights' moving average as a share of the run."""
    clip_norm: float = 10.0
    """The gradient's largest L2 norm."""
    close_mosaic_fraction: float = 0.2
    """Share of the run, at its end, without mosaic pictures."""
    workers: int = 0
    """Processes that load pictures; 0 loads in the training process."""
    val_interval: int = 1
    """Epochs from one validation to the next; the last epoch always ends with one."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How pictures are varied."""
    loss: LossConfig = field(default_factory=LossConfig)
    """How answers are judged."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "val_interval"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)} is out of range", where=name, right="use at least 1")
        for name in ("sparsity", "weight_decay", "clip_norm", "workers"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{getattr(self, name)} is out of range", where=name, right="use at least 0")
        for name in ("final_learning_rate", "warmup_fraction", "ema_fraction", "close_mosaic_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{getattr(self, name)} is out of range", where=name, right="use a number from 0 to 1"
                )
        if not 0 <= self.momentum < 1:
            raise ConfigError(
                f"{self.momentum} is out of range", where="momentum", right="use a number from 0 to below 1"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"{self.learning_rate} is out of range", where="learning_rate", right="use a number above 0"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(
                f"{self.seed} is out of range", where="seed", right="use a whole number from 0 to 2^63 − 1"
            )
        check_img_size(self.img_size)
        if self.auto_anchors and self.weights is not None and self.weights.suffix == ".pt":
            raise ConfigError(
                "a checkpoint's heads were taught with its own anchors",
                where="auto_anchors",
                right=f"leave it out, or start from other weights than {self.weights}",
            )
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"unknown schedule {self.schedule}", where="schedule", right="use cosine or constant")
        if self.optimizer not in ("adamw", "sgd"):
            raise ConfigError(f"unknown optimizer {self.optimizer}", where="optimizer", right="use adamw or sgd")
        check_run_name(self.name)


def check_run_name(name: str) -> None:
    """Refuse a name that is not one folder's.

    Raises:
        ConfigError: it is empty, or a path.
    """
    if name == ".." or Path(name).name != name or not name:
        raise ConfigError(f"{name!r} is no folder name", where="name", right="use a plain name without slashes")
