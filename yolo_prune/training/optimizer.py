"""Optimizer, learning-rate schedule and the moving average of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from yolo_prune.training.settings import TrainConfig

DECAYS = {"adamw": 0.02, "sgd": 5e-4}
"""AdamW multiplies its decay by the learning rate alone; SGD's is part of the gradient, which momentum makes larger."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Make SGD or AdamW with weight decay on convolution kernels alone."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    decay = DECAYS[config.optimizer] if config.weight_decay is None else config.weight_decay
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return SGD(groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=True)
    return AdamW(groups, config.learning_rate, (config.momentum, 0.999), fused=True)


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


class WeightAverage:
    """An exponential moving average of a model's state, short at first and `horizon` steps long in the end."""

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self.horizon = max(1.0, horizon)
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present state."""
        self.updates += 1
        decay = min(1 - 1 / self.horizon, self.updates / (10 + self.updates))
        averaged: list[Tensor] = []
        present: list[Tensor] = []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(self.state[name])
                present.append(tensor.detach())
            else:
                self.state[name].copy_(tensor)
        torch._foreach_lerp_(averaged, present, 1 - decay)
