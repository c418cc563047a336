"""How fast a run goes at each of its steps: the learning rate, and how far sparsity shrinks γ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from yolo_prune.errors import ConfigError
from yolo_prune.pruning.sparse import GammaSparsity
from yolo_prune.training.settings import AUTO, TrainConfig

PULL = 5.0
"""How many times its way to zero `sparsity: auto` pulls a channel: the task pulls back, and the more the later."""
SORTING = 0.5
"""Share of the run in which `auto` pulls all channels alike; from then on only the weakest, which are to go."""


@dataclass(frozen=True)
class Pace:
    """What a step is told by the schedules."""

    learning_rate: float
    shrinkage: float = 0.0
    """How far γ moves towards zero."""
    pulled: float = 1.0
    """The share of the prunable channels that is shrunk, the weakest first."""
    keeps_zeros: bool = False
    """Whether channels at zero stay there."""


def measure_pace(config: TrainConfig, sparsity: float, step: int, steps: int) -> Pace:
    """Return the pace of step 0 … steps − 1 at the λ that `config.sparsity` is, or that `find_sparsity` found for `auto`."""
    rate = measure_learning_rate(config, step, steps)
    if not config.is_sparse:
        return Pace(rate)
    level = _measure_level(config, step, steps)
    is_sorted = config.sparsity == AUTO and step >= SORTING * steps
    return Pace(
        rate,
        measure_step_size(config, rate) * sparsity * level,
        config.sparsity_ratio if is_sorted else 1.0,
        keeps_zeros=level == 0 and step > 0,
    )


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
    """Return the λ with which a run's steps, all together, move γ `PULL` times as far as it is to zero.

    The way is that of the strongest of the channels to go, the weakest `config.sparsity_ratio` of the prunable.

    Raises:
        ConfigError: no channel to go has a way left: they are at zero already.
    """
    gammas = sparsity.measure()
    way = float(np.quantile(gammas[np.isfinite(gammas)], config.sparsity_ratio))
    reach = sum(
        measure_step_size(config, measure_learning_rate(config, step, steps)) * _measure_level(config, step, steps)
        for step in range(steps)
    )
    if way <= 0 or reach <= 0:
        what = f"{config.sparsity_ratio:g} of the channels are at zero already"
        raise ConfigError(what, where="sparsity", right="prune, or raise sparsity_ratio")
    return PULL * way / reach


def _measure_level(config: TrainConfig, step: int, steps: int) -> float:
    """Return the share of λ that is in force at a step."""
    if step >= (1 - config.sparsity_rest) * steps:
        return 0.0
    ramp = config.sparsity_ramp * steps
    return min(1.0, (step + 1) / ramp) if ramp > 0 else 1.0
