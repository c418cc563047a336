"""Settings of the commands that are more than one function's; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from yolo_prune.errors import ConfigError
from yolo_prune.model.settings import check_img_size
from yolo_prune.pruning.settings import PlanConfig
from yolo_prune.training.settings import TrainConfig, check_run_name

FINETUNE = replace(TrainConfig(), epochs=15, learning_rate=1e-3, name="finetune")
"""What `finetune` does differently from `train` unless told otherwise."""


@dataclass(frozen=True)
class PruneConfig(PlanConfig):
    """A plan's settings, and what happens around it."""

    fold: bool = True
    """Carry the constants that dropped channels emit into their consumers."""
    recalibrate: int = 256
    """Training pictures on which batch-norm statistics are measured anew after the cut; 0 leaves them."""
    data: Path | None = None
    """The data.yaml to recalibrate on; without it the one that the checkpoint was trained on."""
    name: str = "prune"
    """The run's folder below runs/."""
    device: str = "auto"
    """Where to recalibrate: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_run_name(self.name)
        if self.recalibrate < 0:
            raise ConfigError(
                f"{self.recalibrate} is out of range", where="recalibrate", right="use 0 or more pictures"
            )


@dataclass(frozen=True)
class BenchConfig:
    """How checkpoints are timed and scored."""

    data: Path | None = None
    """The data.yaml to score on; without it the one that the first checkpoint was trained on."""
    split: str = "test"
    """The part of the data set to score on."""
    score: bool = True
    """Measure mAP; without, only cost and speed."""
    img_size: int | None = None
    """Side of the square input in pixels; without it each checkpoint's own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    engine: str = "folded"
    """eager: the network as trained; folded: batch norm folded into the convolutions."""
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


ENGINES = ("eager", "folded")


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
