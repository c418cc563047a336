"""The optimizer, the moving average of the weights, and the optimizer's moments by parameter name.

With names, the moments can be pruned together with the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from yolo_prune.darknet.network import Network
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.rebuild import slice_tensors
from yolo_prune.training.config import TrainConfig

DECAYS = {"adamw": 0.02, "sgd": 5e-4}
"""Default weight decay. AdamW multiplies it by the learning rate; SGD adds it to the gradient, before momentum."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Make SGD or AdamW with weight decay on the convolution kernels only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kernels = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    decay = DECAYS[config.optimizer] if config.weight_decay is None else config.weight_decay
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return SGD(groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=True)
    return AdamW(groups, config.learning_rate, (config.momentum, 0.999), fused=True)


class WeightAverage:
    """An exponential moving average of a model's state, whose length grows up to `horizon` steps."""

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self.horizon = max(1.0, horizon)
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's present state to the average."""
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


Moments: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""moments["exp_avg"]["layers.3.bn.weight"]: a tensor per parameter for each kind of moment that the optimizer keeps."""

MEAN_SQUARE = "exp_avg_sq"
"""AdamW's moving average of squared gradients."""


def get_moments(optimizer_state: Mapping[str, Any], model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the moments in the state dict of an optimizer that `make_optimizer` made for the model."""
    names = name_parameters(model)
    moments: dict[str, dict[str, Tensor]] = {}
    for number, kept in optimizer_state["state"].items():
        for kind, value in kept.items():
            if isinstance(value, Tensor):
                moments.setdefault(kind, {})[names[number]] = value
    return moments


def put_moments_(optimizer: Optimizer, model: nn.Module, moments: Moments) -> None:
    """Set an optimizer's moments in place, by parameter name; kinds that it does not use have no effect."""
    state = optimizer.state_dict()
    for number, name in enumerate(name_parameters(model)):
        kept = {kind: tensors[name].clone() for kind, tensors in moments.items() if name in tensors}
        if kept:
            state["state"][number] = kept
    optimizer.load_state_dict(state)


def slice_moments(network: Network, plan: Plan, moments: Moments) -> dict[str, dict[str, Tensor]]:
    """Return the moments for the network that a plan leaves."""
    return {kind: slice_tensors(network, plan, tensors) for kind, tensors in moments.items()}


def name_parameters(model: nn.Module) -> list[str]:
    """Return the names of a model's parameters in the order in which `make_optimizer` numbers them: kernels first."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for is_kernel in (True, False) for name, parameter in trained if (parameter.ndim > 1) == is_kernel]
