"""Torch-Pruning on our detectors, with what it returns turned into a detector of ours again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch_pruning as tp
from torch import nn

from yolo_prune.darknet.layers import Conv, Layer, change_layers
from yolo_prune.model.detector import ConvLayer, Detector

IMPORTANCES: dict[str, Callable[[], object]] = {
    "bn-gamma": lambda: tp.importance.BNScaleImportance(group_reduction="mean", normalizer=None),
    "l1": lambda: tp.importance.MagnitudeImportance(p=1),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2),
}
"""Torch-Pruning's importance by the name of our criterion; its l1 and l2 count the weights that read a channel as well."""


def prune_with_torch_pruning(model: Detector, ratio: float, criterion: str = "l2") -> Detector:
    """Return what Torch-Pruning's BasePruner leaves of a model at its defaults: every layer loses the share `ratio`.

    Head convolutions keep their outputs. `model` is left as it was.
    """
    twin = copy.deepcopy(model).train(False).requires_grad_(True)
    side = 2 * model.network.stride
    pruner = tp.pruner.BasePruner(
        twin,
        torch.zeros(1, model.network.channels, side, side),
        importance=IMPORTANCES[criterion](),
        pruning_ratio=ratio,
        ignored_layers=[_get_conv(twin, index) for index in model.network.head_convs],
    )
    pruner.step()

    def slim(index: int, layer: Layer) -> Layer:
        return replace(layer, filters=_get_conv(twin, index).out_channels) if isinstance(layer, Conv) else layer

    with torch.device("meta"):
        pruned = Detector(change_layers(model.network, slim))
    pruned.load_state_dict(twin.state_dict(), assign=True)
    return pruned.train(model.training)


def _get_conv(model: Detector, index: int) -> nn.Conv2d:
    module = model.layers[index]
    assert isinstance(module, ConvLayer)
    return module.conv
