"""Settings of pruning step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from yolo_prune.commands.config import FINETUNE
from yolo_prune.commands.measure_config import DataOfCheckpoint
from yolo_prune.config import Setting, settings
from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import (
    AMOUNT,
    AUTO,
    CHOICE,
    KEPT,
    Criterion,
    Granularity,
    ScoreConfig,
    WeightConfig,
    make_weight_config,
)
from yolo_prune.shared_settings import Device, MaxMinutes, RunName, TableEngine, WholeNumbers
from yolo_prune.training.config import TrainConfig

STEPS = "Steps"


@settings
class IterateConfig(ScoreConfig):
    """How a network is pruned step by step, with finetuning between the steps."""

    granularity: Granularity = "channel"
    criterion: Annotated[
        Criterion,
        Setting(
            "What makes a channel or a weight matter, as for prune. taylor is measured once, and from then on kept while finetuning, where "
            "the optimizer is adamw.",
            default="taylor for channels, bn-gamma for weights",
            group=CHOICE,
        ),
    ] = "auto"
    step: Annotated[
        float,
        Setting(
            "Share of the original's prunable channels, or weights, removed at every step.", gt=0, lt=1, group=STEPS
        ),
    ] = 0.05
    target_ratio: Annotated[
        float, Setting("Share of them removed in the end, unless a target ends it before.", gt=0, lt=1, group=AMOUNT)
    ] = 0.8
    target_params: Annotated[
        float | None,
        Setting("End once this share of the original's parameters is left, or is not zero.", gt=0, lt=1, group=AMOUNT),
    ] = None
    target_macs: Annotated[
        float | None,
        Setting("End once this share of the multiply–accumulates is left.", gt=0, lt=1, of="channel", group=AMOUNT),
    ] = None
    target_latency_ms: Annotated[
        float | None,
        Setting(
            "End once an image takes no longer, measured on the device.", ge=0, unit="ms", of="channel", group=AMOUNT
        ),
    ] = None
    engine: Annotated[
        TableEngine,
        Setting("What that time is met in; onnxruntime and openvino on the CPU.", of="channel", group=AMOUNT),
    ] = "folded"
    min_channels: Annotated[int, Setting("Channels that every group keeps.", ge=1, group=KEPT)] = 2
    spare: Annotated[
        WholeNumbers, Setting("Layers to leave alone, as `cfg show` numbers them: 84,96.", group=KEPT)
    ] = ()
    epochs: Annotated[int, Setting("Most epochs of finetuning after a step.", ge=1, group=STEPS)] = 1
    recover: Annotated[
        float | None,
        Setting(
            "End a step's finetuning before that once AP50 on validation is within this of the original's.",
            ge=0,
            default="never",
            group=STEPS,
        ),
    ] = None
    score_every: Annotated[
        int, Setting("Validate after every so many steps, and after the last.", ge=1, unit="steps", group=STEPS)
    ] = 1
    max_drop: Annotated[
        float,
        Setting(
            "Once AP50 on validation is lower than the original's by more, the steps end, and the last good network is the result.",
            ge=0,
            group=AMOUNT,
        ),
    ] = 0.05
    settle_epochs: Annotated[
        int,
        Setting("Epochs of finetuning at the end, with a falling learning rate; 0: none.", ge=0, group=STEPS),
    ] = 4
    finetune: Annotated[
        TrainConfig,
        Setting("How to finetune; epochs, data, device, seed and what the steps need are set by the other settings."),
    ] = replace(FINETUNE, warmup_fraction=0.0)
    data: DataOfCheckpoint = None
    name: RunName = "iterate"
    device: Device = "auto"
    max_minutes: MaxMinutes = None

    def __post_init__(self) -> None:
        """Raise if two settings contradict each other.

        Raises:
            ConfigError: names one of them.
        """
        if self.scope == "floor":
            right = "use global or layer"
            raise ConfigError("floor holds for one cut, not for many small ones", where="scope", right=right)
        if self.granularity == "weight":
            for name in ("target_macs", "target_latency_ms"):
                if getattr(self, name) is not None:
                    right = "use target_ratio or target_params"
                    raise ConfigError("means nothing to granularity weight", where=name, right=right)
            _ = self.weights
        if self.finetune.is_sparse:
            right = "leave it out, or train with it before"
            raise ConfigError("does not go with steps", where="finetune.sparsity", right=right)

    @property
    def resolved(self) -> IterateConfig:
        """The same settings, with the criterion that auto stands for."""
        if self.criterion != AUTO:
            return self
        return replace(self, criterion="bn-gamma" if self.granularity == "weight" else "taylor")

    @property
    def weights(self) -> WeightConfig:
        """What a step of `granularity: weight` goes by, its ratio apart.

        Raises:
            ConfigError: the criterion ranks no single weights.
        """
        return make_weight_config(
            criterion="bn-gamma" if self.criterion == AUTO else self.criterion, scope=self.scope, spare=self.spare
        )
