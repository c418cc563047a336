"""Put the γ of all layers on one scale without changing the network's outputs.

Leaky and rectified activations are homogeneous: if γ and β of a channel are halved, and the weights that read it
doubled, the outputs are the same. So the scale of a layer's γ is arbitrary. A threshold or a shrinkage for all layers
makes sense only if their scales agree.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from yolo_prune.darknet.layers import Conv, Gate, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import BoolArray, ChannelGraph, make_channel_graph

MEAN_GAMMA = 0.1
"""The mean |γ| of every balanced group."""

_HOMOGENEOUS = ("linear", "leaky", "relu")


@torch.no_grad()
def balance_gammas_(model: Detector, mean_gamma: float = MEAN_GAMMA) -> int:
    """Scale γ and β of every prunable group to a mean |γ| of `mean_gamma`, and the weights that read them inversely.

    The model is changed in place. A group is not scaled if it has a convolution without batch norm or an activation
    that is not homogeneous, or if all its γ are zero. The outputs change only by rounding errors. Return the number of
    groups scaled.
    """
    graph = make_channel_graph(model.network)
    scalable = _find_scalable(model.network, graph)
    scale = np.ones(graph.size)
    groups = 0
    for group in graph.groups:
        if group.frozen or not scalable[group.ids].all():
            continue
        gammas = [_get_gamma(model, layer)[np.isin(graph.writes[layer], group.ids)] for layer in group.writers]
        if (mean := float(torch.cat(gammas).abs().mean())) > 0:
            scale[group.ids] = mean_gamma / mean
            groups += 1
    for index in graph.conv_layers:
        module = model.get_conv(index)
        written = torch.from_numpy(scale[graph.writes[index]]).to(module.conv.weight)
        read = torch.from_numpy(scale[graph.reads[index]]).to(module.conv.weight)
        if module.bn is not None:
            module.bn.weight.mul_(written)
            module.bn.bias.mul_(written)
        per_filter = read.view(module.conv.groups, -1).repeat_interleave(len(written) // module.conv.groups, 0)
        module.conv.weight.div_(per_filter[:, :, None, None])
    return groups


def _find_scalable(network: Network, graph: ChannelGraph) -> BoolArray:
    """Return (N,) bool: the ids whose convolutions all have batch norm and whose activations are all homogeneous."""
    scalable = np.ones(graph.size, dtype=bool)
    for index, layer in enumerate(network.layers):
        odd_conv = isinstance(layer, Conv) and not (layer.batch_normalize and layer.activation in _HOMOGENEOUS)
        if odd_conv or (isinstance(layer, Shortcut | Gate) and layer.activation not in _HOMOGENEOUS):
            scalable[graph.writes[index]] = False
        if isinstance(layer, Gate):  # a product of two scaled values is scaled twice
            scalable[graph.writes[index]] = scalable[graph.reads[index]] = False
    return scalable


def _get_gamma(model: Detector, layer: int) -> Tensor:
    module = model.get_conv(layer)
    assert module.bn is not None
    return module.bn.weight
