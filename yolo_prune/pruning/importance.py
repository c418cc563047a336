"""How much a channel matters: one float per channel id."""

from __future__ import annotations

import numpy as np

from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import ChannelGraph
from yolo_prune.pruning.plan import FloatArray


def score_bn_gamma(model: Detector, graph: ChannelGraph) -> FloatArray:
    """Score channels by |γ| of their batch normalisation: (N,) float64.

    A channel that shortcuts tie over several convolutions scores the mean of its members. A convolution without batch
    normalisation answers with the L2 norm of its filter. Frozen ids that nobody normalises score infinity.
    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017), §3.

    Raises:
        PlanError: a γ is NaN or infinite; names the layer.
    """
    total, count = np.zeros(graph.size), np.zeros(graph.size)
    for layer in graph.conv_layers:
        module = model.layers[layer]
        assert isinstance(module, ConvLayer)
        values = module.conv.weight.flatten(1).norm(dim=1) if module.bn is None else module.bn.weight.abs()
        scores = values.detach().double().cpu().numpy()
        if not np.isfinite(scores).all():
            raise PlanError(
                "γ holds NaN or infinity", where=f"layer {layer}", right="train again from a sound checkpoint"
            )
        np.add.at(total, graph.writes[layer], scores)
        np.add.at(count, graph.writes[layer], 1)
    scores = np.full(graph.size, np.inf)
    np.divide(total, count, out=scores, where=count > 0)
    return scores
