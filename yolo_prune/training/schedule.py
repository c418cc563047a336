"""The schedules of a run: the learning rate and γ sparsity at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import AUTO
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity
from yolo_prune.text_tables import pluralize
from yolo_prune.training.config import TrainConfig

AUTO_REST = 0.6
"""`sparsity_rest` of `auto`."""
SORTING = 0.1
"""Share of the run, at its start, in which `auto` zeroes no channel but finds out which ones the task needs."""
FEWEST_STEPS = 200
"""A run of `auto` with fewer steps has too few to rank its channels by their gradients, zero them and recover."""
FEW = 0.05
"""A λ that can bring a smaller share of the channels to zero does hardly anything."""


@dataclass(frozen=True)
class StepRates:
    """The scheduled rates of one step."""

    learning_rate: float
    shrinkage: float = 0.0
    """How far γ moves towards zero."""
    zeroed: float = 0.0
    """The share of all channels to zero that are zero after the step; those of least worth come first."""
    keeps_zeros: bool = False
    """Whether channels at zero stay at zero."""


def measure_rates(config: TrainConfig, sparsity: float, step: int, steps: int) -> StepRates:
    """Return the rates of step 0 … steps − 1. `sparsity` is λ, for `auto` the one that `find_sparsity` returned.

    `auto` has three parts. In the first, no channel is zeroed. In the second, channels are zeroed one after another,
    more and more slowly, until all that are to be zeroed are at zero. In the third, the rest, the other channels
    recover.
    Source of the second part's curve: Zhu and Gupta, "To prune, or not to prune" (2017), eq. 1.
    """
    rate = measure_learning_rate(config, step, steps)
    if not config.is_sparse:
        return StepRates(rate)
    end = _find_rest(config, steps)
    if step >= end:
        return StepRates(rate, keeps_zeros=True)
    if config.sparsity != AUTO or step < SORTING * steps:
        return StepRates(rate, measure_step_size(config, rate) * sparsity * _measure_level(config, step, steps))
    left = (end - 1 - step) / (end - math.ceil(SORTING * steps))
    return StepRates(rate, zeroed=1 - left**3, keeps_zeros=True)


def measure_learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of step 0 … steps − 1: a linear warm-up, then half a cosine, or a constant."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def measure_step_size(config: TrainConfig, learning_rate: float) -> float:
    """Return how far a constant gradient of 1 moves a parameter per step: with SGD, learning rate / (1 − momentum).

    AdamW's step is the learning rate whatever the size of the gradient, so there λ is a share of a full step.
    """
    return learning_rate / (1 - config.momentum) if config.optimizer == "sgd" else learning_rate


def find_sparsity(config: TrainConfig, sparsity: GammaSparsity, steps: int) -> float:
    """Return the λ of `auto`, which just moves a γ to zero in the first part of the run, before channels are zeroed.

    That γ is the largest among the `config.sparsity_ratio` of the prunable channels with the smallest γ. Channels that
    the task does not need reach zero; for the others the loss's gradient works against λ. With AdamW the result is 0:
    it moves every γ alike, and its squared gradients tell which channels the task needs.

    Raises:
        ConfigError: all of these γ are zero already.
    """
    gammas = sparsity.measure()
    distance = float(np.quantile(gammas[np.isfinite(gammas)], config.sparsity_ratio))
    if distance <= 0:
        what = f"{config.sparsity_ratio:g} of the channels are at zero already"
        raise ConfigError(what, where="sparsity", right="prune, or raise sparsity_ratio")
    if not config.pulls_gammas:
        return 0.0
    return distance / sum(
        measure_step_size(config, measure_learning_rate(config, step, steps)) * _measure_level(config, step, steps)
        for step in range(math.ceil(SORTING * steps))
    )


def explain_weak_sparsity(config: TrainConfig, sparsity: GammaSparsity, steps: int) -> str | None:
    """Return a line about a λ that moves hardly any γ as far as zero in all steps together, or None."""
    pull, reach = float(config.sparsity), 0.0
    gammas = sparsity.measure()
    gammas = gammas[np.isfinite(gammas)]
    enough = float(np.quantile(gammas, FEW))
    for step in range(steps):
        reach += measure_rates(config, pull, step, steps).shrinkage
        if reach >= enough:
            return None
    return (
        f"sparsity: λ = {pull:g} moves a γ by at most {reach:.2g} in this run, and {(gammas <= reach).mean():.0%} of the channels have a γ "
        "that small: hardly any will end at zero; use a larger λ, or --sparsity auto"
    )


def explain_short_run(config: TrainConfig, steps: int) -> str | None:
    """Return a line about a run of `auto` that has too few steps to zero channels and recover, or None."""
    if steps >= FEWEST_STEPS:
        return None
    end = _find_rest(config, steps)
    epochs = math.ceil(config.epochs * FEWEST_STEPS / steps)
    return (
        f"sparsity auto: channels come to zero in {end - math.ceil(SORTING * steps)} steps, and {steps - end} are left to recover in, which is "
        f"short; use {pluralize(epochs, 'epoch')} or more"
    )


def _find_rest(config: TrainConfig, steps: int) -> int:
    """Return the step from which λ is off and no more channels are zeroed; `auto` zeroes some in at least one step."""
    rest = (AUTO_REST if config.sparsity == AUTO else 0.0) if config.sparsity_rest is None else config.sparsity_rest
    end = math.ceil((1 - rest) * steps)
    return max(end, math.ceil(SORTING * steps) + 1) if config.sparsity == AUTO else end


def _measure_level(config: TrainConfig, step: int, steps: int) -> float:
    """Return the share of λ at a step before the rest: below 1 during the ramp."""
    ramp = config.sparsity_ramp * steps
    return min(1.0, (step + 1) / ramp) if ramp > 0 else 1.0
