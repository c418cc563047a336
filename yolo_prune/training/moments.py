"""What an optimizer knows of each parameter, by the parameter's name, so that it can be carried through surgery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from yolo_prune.darknet.layers import Network
from yolo_prune.pruning.plan import Plan
from yolo_prune.pruning.surgery import slice_tensors

Moments: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""moments["exp_avg"]["layers.3.bn.weight"]: of each kind that the optimizer keeps, one tensor per parameter."""

MEAN_SQUARE = "exp_avg_sq"
"""AdamW's moving average of squared gradients."""


def get_moments(optimizer_state: Mapping[str, Any], model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the moments in an optimizer's state dict, as `make_optimizer` orders the model's parameters."""
    names = name_parameters(model)
    moments: dict[str, dict[str, Tensor]] = {}
    for number, kept in optimizer_state["state"].items():
        for kind, value in kept.items():
            if isinstance(value, Tensor):
                moments.setdefault(kind, {})[names[number]] = value
    return moments


def put_moments_(optimizer: Optimizer, model: nn.Module, moments: Moments) -> None:
    """Give an optimizer what another knew of the same parameters, in place; of kinds that it does not keep it takes none."""
    state = optimizer.state_dict()
    for number, name in enumerate(name_parameters(model)):
        kept = {kind: tensors[name].clone() for kind, tensors in moments.items() if name in tensors}
        if kept:
            state["state"][number] = kept
    optimizer.load_state_dict(state)


def slice_moments(network: Network, plan: Plan, moments: Moments) -> dict[str, dict[str, Tensor]]:
    """Return the moments of the parameters that a plan keeps."""
    return {kind: slice_tensors(network, plan, tensors) for kind, tensors in moments.items()}


def name_parameters(model: nn.Module) -> list[str]:
    """Return the names of a model's parameters in the order in which `make_optimizer` numbers them: kernels first."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for is_kernel in (True, False) for name, parameter in trained if (parameter.ndim > 1) == is_kernel]
