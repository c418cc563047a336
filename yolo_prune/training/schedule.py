"""How fast a run goes at each of its steps: the learning rate, and how far sparsity shrinks γ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import AUTO
from yolo_prune.pruning.gamma_sparsity import GammaSparsity
from yolo_prune.training.config import TrainConfig

AUTO_REST = 0.6
"""`sparsity_rest` of `auto`."""
SORTING = 0.1
"""Share of the run in which `auto` finds out what the task needs, before anything goes."""


@dataclass(frozen=True)
class StepRates:
    """What a step is told by the schedules."""

    learning_rate: float
    shrinkage: float = 0.0
    """How far γ moves towards zero."""
    zeroed: float = 0.0
    """How much of all that is to be silenced is silent after the step, those channels that are worth least."""
    keeps_zeros: bool = False
    """Whether channels at zero stay there."""


def measure_rates(config: TrainConfig, sparsity: float, step: int, steps: int) -> StepRates:
    """Return the rates of step 0 … steps − 1 at the λ that `config.sparsity` is, or that `find_sparsity` found for `auto`.

    `auto` has three parts. At first nothing goes. Then channels go one after another, the more slowly the fewer are left, until
    all that are to go are gone when the rest begins, in which the others recover.
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
    """Return how far a steady unit gradient moves a parameter per step: momentum lets SGD go 1 / (1 − μ) times as far.

    AdamW goes the learning rate whatever the gradient's size, so that λ is there a share of its full step.
    """
    return learning_rate / (1 - config.momentum) if config.optimizer == "sgd" else learning_rate


def find_sparsity(config: TrainConfig, sparsity: GammaSparsity, steps: int) -> float:
    """Return the λ of `auto` with which the steps before anything goes, all together, move γ just as far as it is to zero.

    The way is that of the strongest of the channels to go, the weakest `config.sparsity_ratio` of the prunable: what the task
    does not hold arrives. It is 0 with AdamW, to which all γ are alike: there squared gradients say what the task holds.

    Raises:
        ConfigError: no channel to go has a way left: they are at zero already.
    """
    gammas = sparsity.measure()
    way = float(np.quantile(gammas[np.isfinite(gammas)], config.sparsity_ratio))
    if way <= 0:
        what = f"{config.sparsity_ratio:g} of the channels are at zero already"
        raise ConfigError(what, where="sparsity", right="prune, or raise sparsity_ratio")
    if not config.pulls_gammas:
        return 0.0
    return way / sum(
        measure_step_size(config, measure_learning_rate(config, step, steps)) * _measure_level(config, step, steps)
        for step in range(math.ceil(SORTING * steps))
    )


def _find_rest(config: TrainConfig, steps: int) -> int:
    """Return the step from which λ is off and nothing more goes; of `auto` there is at least one before it in which channels go."""
    rest = (AUTO_REST if config.sparsity == AUTO else 0.0) if config.sparsity_rest is None else config.sparsity_rest
    end = math.ceil((1 - rest) * steps)
    return max(end, math.ceil(SORTING * steps) + 1) if config.sparsity == AUTO else end


def _measure_level(config: TrainConfig, step: int, steps: int) -> float:
    """Return the share of λ that is in force at a step before the rest."""
    ramp = config.sparsity_ramp * steps
    return min(1.0, (step + 1) / ramp) if ramp > 0 else 1.0
