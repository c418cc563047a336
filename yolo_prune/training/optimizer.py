"""The optimizer and the moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from yolo_prune.training.config import TrainConfig

DECAYS = {"adamw": 0.02, "sgd": 5e-4}
"""AdamW multiplies its decay by the learning rate alone; SGD's is part of the gradient, which momentum makes larger."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Make SGD or AdamW with weight decay on convolution kernels alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kernels = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    decay = DECAYS[config.optimizer] if config.weight_decay is None else config.weight_decay
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return SGD(groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=True)
    return AdamW(groups, config.learning_rate, (config.momentum, 0.999), fused=True)


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
