"""Replace dropped channels by constants, one per channel, which are folded into the convolutions that read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from yolo_prune.darknet.layers import Gate, Reorg, Route, Shortcut, get_sources
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector, activate, add_first, evaluating
from yolo_prune.pruning.channels import IntArray, make_channel_graph
from yolo_prune.pruning.plans.plan import Plan

Constants = Mapping[int, Tensor]
"""constants[i][c]: the constant that replaces output channel c of layer i; 0 for a channel that is kept."""


@torch.no_grad()
def carry_constants(model: Detector, plan: Plan) -> Constants:
    """Return the output of every dropped channel with γ = 0, which is act(β), propagated through the network.

    Constants are added at shortcuts and pass through pooling, upsampling and routes. Kept channels have 0 here, because
    their outputs depend on the image.
    """
    graph = make_channel_graph(model.network)
    constants: dict[int, Tensor] = {-1: next(model.parameters()).new_zeros(model.network.channels)}
    for index, layer in enumerate(model.network.layers):
        sources = [constants[source] for source in get_sources(layer, index)]
        module = model.layers[index]
        if isinstance(module, ConvLayer):
            offset = module.conv.bias if module.bn is None else module.bn.bias
            assert offset is not None
            constants[index] = activate(offset.detach().clone(), module.activation)
        elif isinstance(layer, Shortcut):
            constants[index] = activate(add_first(sources[0], sources[1]), layer.activation)
        elif isinstance(layer, Gate):  # a constant times a factor that depends on the image
            constants[index] = torch.zeros_like(sources[1])
        elif isinstance(layer, Route):
            constants[index] = torch.cat([source.chunk(layer.groups)[layer.group_id] for source in sources])
        elif isinstance(layer, Reorg):
            constants[index] = sources[0].repeat(layer.stride**2)
        else:
            constants[index] = sources[0]
        constants[index] = _clear_kept(constants[index], plan, graph.writes[index])
    return constants


@torch.no_grad()
def measure_constants(model: Detector, plan: Plan, images: Iterable[Tensor]) -> Constants:
    """Return the mean of every dropped channel over images and pixels, by the unpruned model in evaluation mode.

    `images` are batches (B, 3, H, W) in 0 … 1 on the model's device.

    Raises:
        PlanError: there are no images.
    """
    graph = make_channel_graph(model.network)
    totals: dict[int, Tensor] = {}
    count = 0

    def add(index: int, _: list[Tensor], output: Tensor) -> None:
        means = output.double().mean((2, 3)).sum(0)
        totals[index] = totals[index] + means if index in totals else means

    with evaluating(model):
        for batch in images:
            model(batch, add)
            count += len(batch)
    if not count:
        raise PlanError("there are no images to take the mean of", where="fold", right="name a data set, or use leaky")
    dtype = next(model.parameters()).dtype
    return {index: _clear_kept(total / count, plan, graph.writes[index]).to(dtype) for index, total in totals.items()}


def _clear_kept(values: Tensor, plan: Plan, ids: IntArray) -> Tensor:
    return values.masked_fill(torch.from_numpy(plan.keep[ids]).to(values.device), 0)
