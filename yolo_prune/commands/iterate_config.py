"""Settings of pruning step by step; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from yolo_prune.commands.config import FINETUNE
from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import GRANULARITIES, ScoreConfig, WeightConfig
from yolo_prune.training.config import AUTO, TrainConfig, check_run_name


@dataclass(frozen=True)
class IterateConfig(ScoreConfig):
    """How a network is pruned step by step, with finetuning between the steps."""

    granularity: str = "channel"
    """channel: whole channels go, and the network gets slimmer; weight: single weights become zero, and it keeps its shape."""
    criterion: str = AUTO
    """What makes a channel or a weight matter; auto is taylor for channels, bn-gamma for weights. taylor is measured once, and
    from then on kept while finetuning, where AdamW does that."""
    scope: str = "global"
    """global or layer: rank all channels, or weights, together, or take the same share of every group, or layer."""
    step: float = 0.05
    """The share of the original's prunable channels, or weights, that go at every step."""
    target_ratio: float = 0.8
    """The share of them that is gone in the end, unless a target ends it before."""
    target_params: float | None = None
    """The steps end once so small a share of the original's parameters is left, or is not zero."""
    target_macs: float | None = None
    """The same for the multiply–accumulates."""
    target_latency_ms: float | None = None
    """The same for the milliseconds that a picture takes, measured on `device`."""
    min_channels: int = 2
    """Channels that every group keeps."""
    spare: tuple[int, ...] = ()
    """Layers to leave alone, as `cfg show` numbers them."""
    epochs: int = 1
    """The most epochs of finetuning after a step."""
    recover: float | None = None
    """A step's finetuning ends before that once AP50 on validation is within this of the original's; without it never."""
    score_every: int = 1
    """Steps from one validation to the next; the last step always ends with one."""
    max_drop: float = 0.05
    """Once AP50 on validation is lower than the original's by more, the steps end, and the last good network is the result."""
    settle_epochs: int = 4
    """Epochs of finetuning at the end, with a falling learning rate; 0 leaves them out."""
    finetune: TrainConfig = field(default_factory=lambda: replace(FINETUNE, warmup_fraction=0.0))
    """How to finetune; epochs, data, device, seed and what the steps need are set by the other settings."""
    data: Path | None = None
    """The data.yaml; without it the one that the checkpoint was trained on."""
    name: str = "iterate"
    """The run's folder below runs/."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_minutes: float | None = None
    """After so many minutes the run is saved and stops, to be resumed."""

    def __post_init__(self) -> None:
        if self.criterion == AUTO:
            object.__setattr__(self, "criterion", "bn-gamma" if self.granularity == "weight" else "taylor")
        super().__post_init__()
        check_run_name(self.name)
        self._check_granularity()
        if self.scope == "floor":
            right = "use global or layer"
            raise ConfigError("floor holds for one cut, not for many small ones", where="scope", right=right)
        for name in ("step", "target_ratio"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number between 0 and 1")
        for name in ("target_params", "target_macs"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number between 0 and 1")
        for name, low in (
            ("epochs", 1),
            ("score_every", 1),
            ("settle_epochs", 0),
            ("min_channels", 1),
            ("max_drop", 0),
            ("recover", 0),
            ("target_latency_ms", 0),
            ("max_minutes", 0),
        ):
            if (value := getattr(self, name)) is not None and not value >= low:
                raise ConfigError(f"{value} is out of range", where=name, right=f"use {low} or more")
        if self.finetune.is_sparse:
            right = "leave it out, or train sparse before"
            raise ConfigError("does not go with steps", where="finetune: sparsity", right=right)

    def _check_granularity(self) -> None:
        if self.granularity not in GRANULARITIES:
            right = f"use {' or '.join(GRANULARITIES)}"
            raise ConfigError(f"unknown granularity {self.granularity}", where="granularity", right=right)
        if self.granularity == "channel":
            return
        for name in ("target_macs", "target_latency_ms"):
            if getattr(self, name) is not None:
                right = "use target_ratio or target_params"
                raise ConfigError("means nothing to granularity weight", where=name, right=right)
        WeightConfig(self.criterion)
