"""Settings of importance and of a pruning plan; importing them costs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from yolo_prune.errors import ConfigError, PlanError

CRITERIA = ("bn-gamma", "l1", "l2", "fpgm", "taylor", "obs", "random")
ON_IMAGES = ("taylor", "obs")
"""Criteria that look at training images."""
AUTO = "auto"
"""The criterion that chooses one of the others."""
GROUP_REDUCTIONS = ("mean", "max", "sum")
NORMALIZATIONS = ("none", "mean", "max")
SCOPES = ("global", "layer", "floor")
GRANULARITIES = ("channel", "weight")
WEIGHT_SCOPES = ("global", "layer")
WEIGHT_CRITERIA = ("bn-gamma", "l1", "l2")
METRICS = ("map50", "loss")

DEFAULT_RATIO = 0.8
"""The fraction of the prunable channels, or weights, that go when neither a ratio nor a target or a pattern is named."""


@dataclass(frozen=True)
class ScoreConfig:
    """How much a channel matters. Formulas and sources stand in `importance.py`."""

    criterion: str = "bn-gamma"
    """bn-gamma: |γ|; l1, l2: the norm of the channel's filter; fpgm: its distance to the layer's other filters; taylor:
    the loss's first-order change without it; obs: its second-order change once the other channels have taken over what they
    can; random; auto: bn-gamma where γ at zero cover what goes, else obs, or l2 where there are no images."""
    group_reduce: str = "mean"
    """How the scores of a channel's members are combined where shortcuts tie several convolutions: mean, max or sum."""
    normalize: str = "none"
    """What a group's scores are divided by before groups are compared: none, the group's mean or its max."""
    scope: str = "global"
    """global: all channels are ranked together; layer: every group loses the same share; floor: all together, but no group
    loses much more than the others (`floor`)."""
    floor: float = 0.25
    """Of scope floor: where a share r of all channels goes, every group keeps at least this times 1 − r of its own."""
    score_batches: int = 16
    """Batches of training pictures over which taylor and obs average."""
    seed: int = 0
    """What random draws from."""

    def __post_init__(self) -> None:
        for name, known in (
            ("criterion", (*CRITERIA, AUTO)),
            ("group_reduce", GROUP_REDUCTIONS),
            ("normalize", NORMALIZATIONS),
            ("scope", SCOPES),
        ):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"unknown {name} {value}", where=name, right=f"use one of {', '.join(known)}")
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"{self.floor:g} is out of range", where="floor", right="use a number from 0 to 1")
        if self.score_batches < 1:
            raise ConfigError(f"{self.score_batches} is out of range", where="score_batches", right="use at least 1")
        if self.seed < 0:
            raise ConfigError(f"{self.seed} is out of range", where="seed", right="use a whole number from 0 on")


@dataclass(frozen=True)
class PlanConfig:
    """How much to drop, and what must stay. A plan drops as little as meets everything that is named here."""

    ratio: float | None = None
    """Fraction of the prunable channels to drop, in [0, 1), before rounding; 0.8 where no target is named."""
    shortcuts: bool = True
    """Prune the channels that shortcuts tie together as well; without, those groups are left alone."""
    min_channels: int = 2
    """Channels that every group keeps, whatever their importance (a smaller group keeps all)."""
    round_to: int | None = 1
    """Keep a multiple of this many channels in every group, the nearest, at least one; a group with fewer keeps all."""
    target_params: float | None = None
    """Share of the original's parameters that may stay, in (0, 1]."""
    target_macs: float | None = None
    """Share of the original's multiply–accumulates that may stay, in (0, 1]."""
    target_latency_ms: float | None = None
    """Milliseconds that one picture may take, measured on the device."""
    target_speedup: float | None = None
    """How many times as fast as the original one picture must be, measured on the device, run by run beside it."""
    spare: tuple[int, ...] = ()
    """Layers whose convolutions, and whatever is tied to them, keep all their channels."""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise PlanError(
                f"{self.ratio:g} is no fraction of channels to drop",
                where="ratio",
                right="use a number from 0 up to, not including, 1",
            )
        for name in ("target_params", "target_macs"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                what = "is above the original's cost" if share > 1 else "is no share that could stay"
                raise PlanError(
                    f"{share:g} {what}", where=name, right="use a share of the original, above 0 and up to 1"
                )
        if self.target_latency_ms is not None and not self.target_latency_ms > 0:
            raise PlanError(
                f"{self.target_latency_ms:g} ms is no time", where="target_latency_ms", right="use more than 0"
            )
        if self.target_speedup is not None and not self.target_speedup >= 1:
            right = "use at least 1, which is the original's own speed"
            raise PlanError(f"{self.target_speedup:g} is slower than the original", where="target_speedup", right=right)
        if self.min_channels < 1:
            raise PlanError(
                f"{self.min_channels} would let a layer vanish", where="min_channels", right="use at least 1"
            )
        if self.round_to is not None and self.round_to < 1:
            raise PlanError(f"{self.round_to} is no multiple", where="round_to", right="use at least 1")

    @property
    def multiple(self) -> int:
        """`round_to`, 1 without it."""
        return self.round_to or 1

    @property
    def is_timed(self) -> bool:
        """Whether candidates must be rebuilt and timed."""
        return self.target_latency_ms is not None or self.target_speedup is not None

    @property
    def least_ratio(self) -> float:
        """The fraction to drop whatever the targets say."""
        has_target = self.is_timed or self.target_params is not None or self.target_macs is not None
        return (0.0 if has_target else DEFAULT_RATIO) if self.ratio is None else self.ratio


@dataclass(frozen=True)
class WeightConfig:
    """Which single weights of the convolutions' kernels become zero."""

    criterion: str = "bn-gamma"
    """bn-gamma: |w · γ / √(σ² + ε)|, the weight's size once batch norm is folded into it; l1 and l2: |w| alone."""
    ratio: float = DEFAULT_RATIO
    """Fraction of the prunable convolutions' weights to zero, in [0, 1)."""
    scope: str = "global"
    """global: all weights are ranked together; layer: every prunable convolution loses the same share."""
    pattern: str | None = None
    """N:M, such as 2:4: of every M consecutive input channels at most N weights stay; ratio and scope then say nothing."""
    spare_ends: bool = True
    """Leave the first convolution and those before detection heads whole."""
    spare: tuple[int, ...] = ()
    """Further convolutions to leave whole."""

    def __post_init__(self) -> None:
        if self.criterion not in WEIGHT_CRITERIA:
            right = f"use one of {', '.join(WEIGHT_CRITERIA)}"
            raise ConfigError(f"{self.criterion} cannot rank single weights", where="criterion", right=right)
        if self.scope not in WEIGHT_SCOPES:
            right = f"use one of {', '.join(WEIGHT_SCOPES)}"
            raise ConfigError(f"unknown scope {self.scope}", where="scope", right=right)
        if not 0 <= self.ratio < 1:
            right = "use a number from 0 up to, not including, 1"
            raise ConfigError(f"{self.ratio:g} is no fraction of weights to zero", where="ratio", right=right)
        _ = self.kept_of

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of the pattern, if there is one.

        Raises:
            ConfigError: it is no pattern.
        """
        if self.pattern is None:
            return None
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", self.pattern, re.ASCII)
        if match is None or not 1 <= int(match[1]) < int(match[2]):
            right = "use N:M with N from 1 and below M, such as 2:4"
            raise ConfigError(f"{self.pattern!r} is no pattern", where="pattern", right=right)
        return int(match[1]), int(match[2])
