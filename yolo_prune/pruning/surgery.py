"""Cut channels out of a model: a new model comes back, the one given stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from yolo_prune.darknet.layers import Network, Route, Shortcut, Yolo, get_sources
from yolo_prune.model.detector import ConvLayer, Detector, activate, run_layer
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plan import Plan, check_plan, prune_network

Constants = Mapping[int, Tensor]
"""constants[i][c]: the value that output channel c of layer i has everywhere; 0 for a channel that is kept."""


@torch.no_grad()
def mask(model: Detector, plan: Plan) -> Detector:
    """Return the model with every dropped channel silenced (γ = β = 0), at its old widths.

    Convolution kernels are shared with `model`, whose own tensors are left unchanged. What `rebuild` is held against.

    Raises:
        PlanError: the plan does not fit the network.
    """
    graph = make_channel_graph(model.network)
    check_plan(graph, plan)
    masked = _share(model)
    for index, module in _convs(masked):
        keep = torch.from_numpy(plan.keep[graph.writes[index]])
        if keep.all():
            continue
        if module.bn is not None:
            module.bn = copy.deepcopy(module.bn)
            module.bn.weight.mul_(keep.to(module.bn.weight))
            module.bn.bias.mul_(keep.to(module.bn.bias))
        else:
            module.conv = copy.deepcopy(module.conv)
            module.conv.weight.mul_(keep.to(module.conv.weight).view(-1, 1, 1, 1))
            assert module.conv.bias is not None
            module.conv.bias.mul_(keep.to(module.conv.bias))
    return masked


@torch.no_grad()
def rebuild(model: Detector, plan: Plan, constants: Constants | None = None) -> Detector:
    """Return a slimmer model that holds only the channels that the plan keeps, and no other.

    With `constants` (see `carry_constants`) every consumer takes up what its dropped inputs gave, in its bias or its
    batch norm's mean; without, dropped channels count as zero and the result equals `mask`.

    Raises:
        PlanError: the plan does not fit the network.
    """
    graph = make_channel_graph(model.network)
    with torch.device("meta"):
        slim = Detector(prune_network(model.network, plan, graph))
    state = {}
    for index, module in _convs(model):
        writes = torch.from_numpy(plan.keep[graph.writes[index]])
        reads = torch.from_numpy(plan.keep[graph.reads[index]])
        weight = module.conv.weight.detach()
        shift = (
            None if constants is None else _measure_shift(model.network, index, weight, module.conv.groups, constants)
        )
        for name, tensor in module.state_dict().items():
            if name == "conv.weight":
                is_depthwise = module.conv.groups == len(
                    reads
                )  # its kernels read one channel each, which goes with them
                kept = tensor[writes] if is_depthwise else tensor[writes][:, reads[: tensor.shape[1]]]
            elif name == "bn.num_batches_tracked":
                kept = tensor.clone()
            else:
                kept = _take_up(name, tensor, shift)[writes]
            state[f"layers.{index}.{name}"] = kept
    slim.load_state_dict(state, assign=True)
    return _take_settings(slim, model).requires_grad_(True)


def _take_up(name: str, tensor: Tensor, shift: Tensor | None) -> Tensor:
    if shift is None or name not in ("bn.running_mean", "conv.bias"):
        return tensor
    return tensor - shift if name == "bn.running_mean" else tensor + shift


def _measure_shift(network: Network, index: int, weight: Tensor, groups: int, constants: Constants) -> Tensor:
    """Return (out,) what constant inputs add to each output of a convolution, away from the padded border."""
    inputs = constants.get(index - 1)
    if inputs is None:
        return weight.new_zeros(weight.shape[0])
    per_group = inputs.to(weight).view(groups, 1, -1)
    sums = weight.sum((2, 3)).view(groups, -1, weight.shape[1])
    return (sums * per_group).sum(2).flatten()


@torch.no_grad()
def carry_constants(model: Detector, plan: Plan) -> Constants:
    """Return what every dropped channel gives once its γ is zero: act(β), followed through the graph.

    It adds up at shortcuts and passes through pooling, enlargement and routes. Kept channels are 0 here: what they
    give depends on the picture.
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
            constants[index] = activate(sources[0] + sources[1], layer.activation)
        elif isinstance(layer, Route):
            constants[index] = torch.cat([source.chunk(layer.groups)[layer.group_id] for source in sources])
        else:
            constants[index] = sources[0]
        kept = torch.from_numpy(plan.keep[graph.writes[index]])
        constants[index] = constants[index].masked_fill(kept.to(constants[index].device), 0)
    return constants


@torch.no_grad()
def measure_difference(one: Detector, other: Detector, img_size: int, seed: int = 0) -> float:
    """Return the largest difference between two models' raw head outputs on random pictures, computed in float64.

    Layers are widened one at a time, so that a large model is never held twice.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(1, one.network.channels, img_size, img_size, generator=generator, dtype=torch.float64)
    pairs = zip(_run_in_double(one, images), _run_in_double(other, images), strict=True)
    return float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())  # NaN wins here, as it would not in max()


def _run_in_double(model: Detector, images: Tensor) -> list[Tensor]:
    outputs: dict[int, Tensor] = {-1: images}
    for index, layer in enumerate(model.network.layers):
        module = copy.deepcopy(model.layers[index]).double().eval()
        outputs[index] = run_layer(layer, module, [outputs[source] for source in get_sources(layer, index)])
    return [outputs[index] for index, layer in enumerate(model.network.layers) if isinstance(layer, Yolo)]


def _share(model: Detector) -> Detector:
    """Return a model of its own modules whose tensors are those of `model`."""
    with torch.device("meta"):
        shared = Detector(model.network)
    shared.load_state_dict(model.state_dict(), assign=True)
    return _take_settings(shared, model)


def _take_settings(twin: Detector, model: Detector) -> Detector:
    """Give `twin` in place what a state dict does not hold, and return it."""
    for (_, before), (_, after) in zip(_convs(model), _convs(twin), strict=True):
        if before.bn is not None and after.bn is not None:
            after.bn.eps, after.bn.momentum = before.bn.eps, before.bn.momentum
    return twin.train(model.training)


def _convs(model: Detector) -> list[tuple[int, ConvLayer]]:
    return [(index, module) for index, module in enumerate(model.layers) if isinstance(module, ConvLayer)]
