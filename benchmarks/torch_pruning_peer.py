"""Torch-Pruning on our detectors, with what it returns turned into a detector of ours again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
import torch_pruning as tp
from torch import Tensor

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Layer
from yolo_prune.darknet.network import change_layers
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.scores.importance import Example

IMPORTANCES: dict[str, Callable[[], object]] = {
    "bn-gamma": lambda: tp.importance.BNScaleImportance(group_reduction="mean", normalizer=None),
    "l1": lambda: tp.importance.MagnitudeImportance(p=1),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
}
"""Torch-Pruning's importance by the name of our criterion; its l1 and l2 count the weights that read a channel as well."""
RATIO_STEPS = 12
"""Bisections of the ratio, as Torch-Pruning knows no budget."""


def prune_to_macs(
    model: Detector, share: float, criterion: str = "l2", examples: Iterable[Example] = ()
) -> tuple[Detector, float]:
    """Return what Torch-Pruning leaves at the smallest ratio that meets a share of the MACs, and that ratio."""
    gradients, full = measure_gradients(model, examples), measure_cost(model.network)
    low, high = 0.0, 1.0
    for _ in range(RATIO_STEPS):
        middle = (low + high) / 2
        slim = prune_with_torch_pruning(model, middle, criterion, gradients).network
        fits = measure_cost(slim).macs <= share * full.macs
        low, high = (low, middle) if fits else (middle, high)
    return prune_with_torch_pruning(model, high, criterion, gradients), high


def measure_gradients(model: Detector, examples: Iterable[Example]) -> dict[str, Tensor]:
    """Return the gradients of our loss by each parameter's name, added up over the examples; none without examples."""
    twin, loss = copy.deepcopy(model).train(False).requires_grad_(True), DetectionLoss(model.network)
    for images, targets in examples:
        torch.autograd.backward(loss.measure(twin(images), targets, *images.shape[-2:]).total)
    return {name: weight.grad for name, weight in twin.named_parameters() if weight.grad is not None}


def prune_with_torch_pruning(
    model: Detector, ratio: float, criterion: str = "l2", gradients: Mapping[str, Tensor] = MappingProxyType({})
) -> Detector:
    """Return what Torch-Pruning's BasePruner leaves of a model at its defaults: every layer loses the share `ratio`.

    Head convolutions keep their outputs. `model` is left as it was. Taylor needs `gradients`.
    """
    twin = copy.deepcopy(model).train(False).requires_grad_(True)
    for name, weight in twin.named_parameters():
        weight.grad = gradients[name].clone() if name in gradients else None
    side = 2 * model.network.stride
    pruner = tp.pruner.BasePruner(
        twin,
        torch.zeros(1, model.network.channels, side, side),
        importance=IMPORTANCES[criterion](),
        pruning_ratio=ratio,
        ignored_layers=[twin.get_conv(index).conv for index in model.network.head_convs],
    )
    pruner.step()

    def slim(index: int, layer: Layer) -> Layer:
        return replace(layer, filters=twin.get_conv(index).conv.out_channels) if isinstance(layer, Conv) else layer

    with torch.device("meta"):
        pruned = Detector(change_layers(model.network, slim))
    pruned.load_state_dict(twin.state_dict(), assign=True)
    return pruned.train(model.training)
