"""Budgets: limits on the cost of a pruned network, and the least pruning that meets one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from yolo_prune.errors import PlanError

P = TypeVar("P")


@dataclass(frozen=True)
class Budget(Generic[P]):
    """A limit on a cost of a plan, and how to measure that cost."""

    where: str
    """The setting that the limit comes from."""
    limit: float
    """The highest allowed cost, in the unit of the setting."""
    measure: Callable[[P], float]
    """Return a plan's cost. It must not rise when more channels are dropped."""
    say: Callable[[float], str]
    """Format a cost for a message, such as `0.2 of the original`."""
    nearest: Callable[[float], str]
    """Format the value of the setting for a cost that can be reached."""
    steps: int | None = None
    """How many evenly spaced counts of dropped channels to consider if measuring is slow and noisy; None: all."""

    def is_met(self, cost: float) -> bool:
        """Return whether a cost is within the limit."""
        return cost <= self.limit


def find_shortest(budget: Budget[P], cut: Callable[[int], P], least: int, most: int, floors: Mapping[str, int]) -> int:
    """Return the smallest number of dropped channels from `least` to `most` that meets the budget.

    With `budget.steps`, only that many numbers are considered, and the one returned met the budget in two measurements.

    Raises:
        PlanError: dropping `most` channels is not enough. The message names `floors`, the settings that keep the
            others.
    """

    def measure(count: int) -> float:
        return budget.measure(cut(count))

    if budget.is_met(measure(least)):
        return least
    if not budget.is_met(lowest := measure(most)):
        held = " with ".join(f"{name}={value}" for name, value in floors.items())
        raise PlanError(
            f"{budget.say(budget.limit)} cannot be reached: {held} leaves {budget.say(lowest)}",
            where=budget.where,
            right=f"use {budget.nearest(lowest)}, or a smaller {' or '.join(floors)}",
        )
    steps = most - least if budget.steps is None else min(budget.steps, most - least)
    counts = [least + (most - least) * step // steps for step in range(steps + 1)]
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.is_met(measure(counts[middle])) else (middle, high)
    while budget.steps is not None and high < steps and not budget.is_met(measure(counts[high])):
        high += 1
    return counts[high]
