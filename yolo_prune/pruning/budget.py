"""Budgets: what a pruned network may cost, and the least pruning that meets one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from yolo_prune.errors import PlanError

P = TypeVar("P")


@dataclass(frozen=True)
class Budget(Generic[P]):
    """A limit on something that a plan costs, and how that is measured."""

    where: str
    """The setting that asks for it."""
    limit: float
    """The most that the plan may cost, in the setting's own terms."""
    measure: Callable[[P], float]
    """What a plan costs; it must not rise as more is dropped."""
    say: Callable[[float], str]
    """A cost in words, such as `0.2 of the original`."""
    nearest: Callable[[float], str]
    """What to write in the setting for a cost that can be had."""
    steps: int | None = None
    """Evenly spaced prefix lengths to consider where measuring is slow and noisy; None considers every one."""

    def is_met(self, cost: float) -> bool:
        """Say whether a cost is within the limit."""
        return cost <= self.limit


def find_shortest(budget: Budget[P], cut: Callable[[int], P], least: int, most: int, floors: Mapping[str, int]) -> int:
    """Return the smallest number of dropped channels from `least` to `most` that meets the budget.

    With `steps` the answer is one of that many lengths, and it was measured to meet the budget twice.

    Raises:
        PlanError: dropping all `most` is not enough; `floors` are the settings that hold the rest.
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
