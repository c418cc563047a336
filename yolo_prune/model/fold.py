"""Fold batch normalisation into the convolutions: the same outputs with fewer operations."""

from __future__ import annotations

from dataclasses import replace

import torch

from yolo_prune.darknet.layers import Conv, Layer
from yolo_prune.darknet.network import change_layers
from yolo_prune.model.detector import ConvLayer, Detector


def _without_bn(_: int, layer: Layer) -> Layer:
    return replace(layer, batch_normalize=False) if isinstance(layer, Conv) else layer


@torch.no_grad()
def fold_batchnorm(model: Detector) -> Detector:
    """Return an inference model with batch norm folded into its convolutions; `model` is unchanged.

    The new weights are computed in float64 and stored in the model's dtype.
    """
    with torch.device("meta"):
        folded = Detector(change_layers(model.network, _without_bn))
    state = {}
    for index, module in enumerate(model.layers):
        if not isinstance(module, ConvLayer):
            continue
        weight = module.conv.weight.double()
        if module.bn is None:
            assert module.conv.bias is not None
            bias = module.conv.bias.double()
        else:
            mean, variance = module.bn.running_mean, module.bn.running_var
            assert mean is not None
            assert variance is not None
            scale = module.bn.weight.double() / (variance.double() + module.bn.eps).sqrt()
            weight = weight * scale.view(-1, 1, 1, 1)
            bias = module.bn.bias.double() - mean.double() * scale
        state[f"layers.{index}.conv.weight"] = weight.to(module.conv.weight.dtype)
        state[f"layers.{index}.conv.bias"] = bias.to(module.conv.weight.dtype)
    folded.load_state_dict(state, assign=True)
    return folded.eval().requires_grad_(False)
