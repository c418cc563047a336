"""Settings of a pruning plan; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import PlanError


@dataclass(frozen=True)
class PlanConfig:
    """How much to drop, and what must stay. A setting's default stands here and nowhere else."""

    ratio: float = 0.8
    """Fraction of the prunable channels to drop, in [0, 1)."""
    shortcuts: bool = True
    """Prune the channels that shortcuts tie together as well; without, those groups are left alone."""
    min_channels: int = 2
    """Channels that every group keeps, whatever their importance (a smaller group keeps all)."""
    round_to: int = 1
    """Keep a multiple of this many channels in every group, rounding up; 8 suits AVX and tensor cores."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise PlanError(
                f"{self.ratio:g} is no fraction of channels to drop",
                where="ratio",
                right="use a number from 0 up to, not including, 1",
            )
        if self.min_channels < 1:
            raise PlanError(
                f"{self.min_channels} would let a layer vanish", where="min_channels", right="use at least 1"
            )
        if self.round_to < 1:
            raise PlanError(f"{self.round_to} is no multiple", where="round_to", right="use at least 1")
