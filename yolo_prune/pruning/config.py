"""Settings of importance and of pruning plans."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, get_args

from yolo_prune.config import Setting, settings
from yolo_prune.errors import ConfigError
from yolo_prune.shared_settings import Seed, TableEngine, WholeNumbers

AUTO: Literal["auto"] = "auto"
"""The criterion that chooses one of the others; see `auto.py`."""
Criterion: TypeAlias = Literal["bn-gamma", "l1", "l2", "fpgm", "taylor", "obs", "random", "auto"]
CRITERIA: tuple[Criterion, ...] = tuple(name for name in get_args(Criterion) if name != AUTO)
WeightCriterion: TypeAlias = Literal["bn-gamma", "l1", "l2"]
ON_IMAGES = ("taylor", "obs")
"""Criteria that are measured on training images."""
Normalization: TypeAlias = Literal["none", "mean", "max"]
Metric: TypeAlias = Literal["map50", "loss"]
Granularity = Annotated[
    Literal["channel", "weight"],
    Setting(
        "channel: remove whole channels, which makes the network slimmer; weight: set single weights to zero, which keeps its shape.",
        group="What to prune",
    ),
]

DEFAULT_RATIO = 0.8
"""The share of the prunable channels, or weights, to prune if no ratio, target or pattern is given."""
AMOUNT, CHOICE, KEPT = "How much", "What to prune", "What to keep"


@settings
class ScoreConfig:
    """How much a channel matters. Formulas and sources stand in `importance.py`."""

    criterion: Annotated[
        Criterion,
        Setting(
            "bn-gamma: |γ|; l1, l2: the norm of the channel's filter; fpgm: its distance to the layer's other filters; taylor: "
            "the first-order change of the loss without it; obs: the second-order change once the other channels have been fitted anew; "
            "auto: bn-gamma where channels with γ at zero are enough, else obs, or l2 without images.",
            group=CHOICE,
        ),
    ] = "bn-gamma"
    group_reduce: Annotated[
        Literal["mean", "max", "sum"],
        Setting("How scores of channels that shortcuts tie become one.", of="channel", group=CHOICE),
    ] = "mean"
    normalize: Annotated[
        Normalization,
        Setting("What a group's scores are divided by before groups are compared.", of="channel", group=CHOICE),
    ] = "none"
    scope: Annotated[
        Literal["global", "layer", "floor"],
        Setting(
            "global: rank all channels together; layer: remove the same share of every group; floor: rank all together, but no "
            "group loses much more than others.",
            group=CHOICE,
        ),
    ] = "global"
    floor: Annotated[
        float,
        Setting(
            "Of scope floor: where a share r of all channels is removed, every group keeps at least this times 1 − r of its own.",
            ge=0,
            le=1,
            of="channel",
            group=CHOICE,
        ),
    ] = 0.25
    score_batches: Annotated[
        int, Setting("Batches of training images that taylor and obs average over.", ge=1, of="channel", group=CHOICE)
    ] = 16
    seed: Seed = 0


@settings
class PlanConfig:
    """How much to remove, and what to keep. A plan removes as little as meets everything that is given here."""

    ratio: Annotated[
        float | None,
        Setting(
            "Share of the prunable channels, or weights, to remove, before rounding.",
            ge=0,
            lt=1,
            default=f"{DEFAULT_RATIO}, or what the targets need",
            group=AMOUNT,
        ),
    ] = None
    shortcuts: Annotated[
        bool,
        Setting(
            "Prune channels that shortcuts tie together as well; else those groups keep all.", of="channel", group=KEPT
        ),
    ] = True
    min_channels: Annotated[
        int,
        Setting("Channels that every group keeps; a smaller group keeps all.", ge=1, of="channel", group=KEPT),
    ] = 2
    round_to: Annotated[
        int | None,
        Setting(
            "Keep a multiple of so many channels in every group, the nearest, at least one; a group with fewer keeps all.",
            ge=1,
            of="channel",
            group=KEPT,
        ),
    ] = 1
    target_params: Annotated[
        float | None,
        Setting("Share of the original's parameters that may stay.", gt=0, le=1, of="channel", group=AMOUNT),
    ] = None
    target_macs: Annotated[
        float | None,
        Setting("Share of the original's multiply–accumulates that may stay.", gt=0, le=1, of="channel", group=AMOUNT),
    ] = None
    target_latency_ms: Annotated[
        float | None,
        Setting("Longest time for one image, measured on the device.", gt=0, unit="ms", of="channel", group=AMOUNT),
    ] = None
    target_speedup: Annotated[
        float | None,
        Setting(
            "How many times as fast as the original one image must be, measured beside it on the device.",
            ge=1,
            of="channel",
            group=AMOUNT,
        ),
    ] = None
    engine: Annotated[
        TableEngine,
        Setting(
            "What the targets in time are met in; onnxruntime and openvino on the CPU.", of="channel", group=AMOUNT
        ),
    ] = "folded"
    spare: Annotated[
        WholeNumbers,
        Setting("Layers to leave alone, with all that is tied to them, as `cfg show` numbers them: 84,96.", group=KEPT),
    ] = ()

    @property
    def multiple(self) -> int:
        """`round_to`, or 1 if it is None."""
        return self.round_to or 1

    @property
    def is_timed(self) -> bool:
        """Whether a target is a time, so that candidate networks must be rebuilt and timed."""
        return self.target_latency_ms is not None or self.target_speedup is not None

    @property
    def least_ratio(self) -> float:
        """The share to remove at least, even if the targets need less."""
        has_target = self.is_timed or self.target_params is not None or self.target_macs is not None
        return (0.0 if has_target else DEFAULT_RATIO) if self.ratio is None else self.ratio


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Return N and M of an N:M pattern.

    Raises:
        ConfigError: the text is not such a pattern.
    """
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern, re.ASCII)
    if match is None or not 1 <= int(match[1]) < int(match[2]):
        right = "use N:M with N from 1 and below M, such as 2:4"
        raise ConfigError(f"{pattern!r} is no pattern", where="pattern", right=right)
    return int(match[1]), int(match[2])


Pattern = Annotated[
    str | None,
    Setting(
        'N:M, such as "2:4", in quotes in a file, instead of a ratio: of every M consecutive input channels at most N weights stay.',
        of="weight",
        group=AMOUNT,
    ),
]
SpareEnds = Annotated[
    bool, Setting("Leave the first convolution and those before detection heads whole.", of="weight", group=KEPT)
]


def make_weight_config(**values: Any) -> WeightConfig:
    """Return the settings of weight pruning from those of a command, which may have choices for channels alone.

    Raises:
        ConfigError: a value means nothing to single weights.
    """
    try:
        return WeightConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{error.what} for granularity weight", where=error.where, right=error.right) from None


@settings
class WeightConfig:
    """Which single weights of the convolutions' kernels become zero."""

    criterion: Annotated[
        WeightCriterion,
        Setting("bn-gamma: |w · γ / √(σ² + ε)|, the weight's size with batch norm folded in; l1 and l2: |w|."),
    ] = "bn-gamma"
    ratio: Annotated[float, Setting("Share of the prunable convolutions' weights to zero.", ge=0, lt=1)] = DEFAULT_RATIO
    scope: Annotated[
        Literal["global", "layer"],
        Setting("global: rank all weights together; layer: zero the same share of every convolution."),
    ] = "global"
    pattern: Pattern = None
    spare_ends: SpareEnds = True
    spare: Annotated[WholeNumbers, Setting("Further convolutions to leave whole.")] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError if the pattern is invalid."""
        _ = self.kept_of

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of the pattern, if there is one."""
        return None if self.pattern is None else parse_pattern(self.pattern)
