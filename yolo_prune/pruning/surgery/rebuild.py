"""Remove channels, blocks or weights from a model; all functions return a new model and leave the old one unchanged."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_prune.darknet.layers import Conv, Yolo, get_sources
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import ConvLayer, Detector, run_layer
from yolo_prune.pruning.blocks import Block, drop_blocks, list_kept_layers
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan, check_plan, prune_network
from yolo_prune.pruning.plans.weight_plan import WeightPlan
from yolo_prune.pruning.surgery.constants import Constants


@torch.no_grad()
def mask(model: Detector, plan: Plan) -> Detector:
    """Return the model with every dropped channel set to zero (γ = β = 0), at its old widths.

    Convolution kernels are shared with `model`, which is unchanged. Serves as the reference for `rebuild`.

    Raises:
        PlanError: the plan does not fit the network.
    """
    graph = make_channel_graph(model.network)
    check_plan(graph, plan)
    return _zero_channels(
        model, {index: torch.from_numpy(plan.keep[graph.writes[index]]) for index in graph.conv_layers}
    )


def _zero_channels(model: Detector, keeps: Mapping[int, Tensor]) -> Detector:
    """Return the model with channels zeroed where `keeps`, (out,) bool by layer, is False; other tensors are shared."""
    masked = _share(model)
    for index, module in _convs(masked):
        if index not in keeps or keeps[index].all():
            continue
        keep = keeps[index]
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
def zero_weights(model: Detector, plan: WeightPlan) -> Detector:
    """Return the model with every pruned weight set to +0.

    Other tensors are shared with `model`, which is unchanged.
    """
    masked = _share(model)
    for index, module in _convs(masked):
        if index in plan.keep:
            module.conv = copy.deepcopy(module.conv)
            module.conv.weight.masked_fill_(~plan.keep[index].to(module.conv.weight.device), 0.0)
    return masked


@torch.no_grad()
def rebuild(model: Detector, plan: Plan, constants: Constants | None = None) -> Detector:
    """Return a slimmer model that has only the channels that the plan keeps.

    With `constants` (see `constants.py`), the constants of dropped channels are folded into the bias, or the batch
    norm's running mean, of every convolution that reads them. Without them dropped channels count as zero, and the
    outputs equal those of `mask`.

    Raises:
        PlanError: the plan does not fit the network.
    """
    graph = make_channel_graph(model.network)
    with torch.device("meta"):
        slim = Detector(prune_network(model.network, plan, graph))
    state = dict(model.state_dict())
    for index, module in _convs(model) if constants is not None else ():
        assert constants is not None
        shift = _measure_shift(model.network, index, module.conv.weight.detach(), module.conv.groups, constants)
        if module.bn is not None:
            state[f"layers.{index}.bn.running_mean"] = state[f"layers.{index}.bn.running_mean"] - shift
        else:
            state[f"layers.{index}.conv.bias"] = state[f"layers.{index}.conv.bias"] + shift
    slim.load_state_dict(slice_tensors(model.network, plan, state), assign=True)
    return _take_settings(slim, model).requires_grad_(True)


def slice_tensors(network: Network, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, sliced to the channels that the plan keeps.

    `tensors` have the names and shapes of a state dict's, such as an optimizer's moments. Scalars are copied as they
    are.
    """
    graph = make_channel_graph(network)
    sliced = {}
    for name, tensor in tensors.items():
        index = int(name.split(".")[1])
        writes, reads = (torch.from_numpy(plan.keep[ids[index]]) for ids in (graph.writes, graph.reads))
        if tensor.ndim == 0:
            sliced[name] = tensor.clone()
        elif tensor.ndim == 1:
            sliced[name] = tensor[writes]
        else:
            layer = network.layers[index]
            assert isinstance(layer, Conv)
            is_depthwise = layer.groups == len(reads)  # each kernel reads one channel, which has the same id
            sliced[name] = tensor[writes] if is_depthwise else tensor[writes][:, reads[: tensor.shape[1]]]
    return sliced


def _measure_shift(network: Network, index: int, weight: Tensor, groups: int, constants: Constants) -> Tensor:
    """Return (out,) what constant inputs add to each output channel of a convolution, except at the padded border."""
    inputs = constants.get(index - 1)
    if inputs is None:
        return weight.new_zeros(weight.shape[0])
    per_group = inputs.to(weight).view(groups, 1, -1)
    sums = weight.sum((2, 3)).view(groups, -1, weight.shape[1])
    return (sums * per_group).sum(2).flatten()


@torch.no_grad()
def zero_blocks(model: Detector, blocks: Collection[Block]) -> Detector:
    """Return the model with γ = β = 0 in every block's last convolution, so that its branch adds nothing.

    Other tensors are shared with `model`, which is unchanged. Serves as the reference for `cut_blocks`.
    """
    ends = {block.last_conv for block in blocks}
    return _zero_channels(
        model, {index: torch.zeros(len(module.conv.weight)) for index, module in _convs(model) if index in ends}
    )


@torch.no_grad()
def cut_blocks(model: Detector, blocks: Collection[Block]) -> Detector:
    """Return a model without the residual blocks; it shares the tensors of `model`, which is unchanged."""
    with torch.device("meta"):
        short = Detector(drop_blocks(model.network, blocks))
    kept = list_kept_layers(model.network, blocks)
    state = {
        f"layers.{new}.{name}": tensor
        for new, old in enumerate(kept)
        for name, tensor in model.layers[old].state_dict().items()
    }
    short.load_state_dict(state, assign=True)
    return _take_settings(short, model, kept)


class Comparison(NamedTuple):
    """The largest difference of two models' raw head outputs, and the largest range of the first's over an image."""

    difference: float
    response: float


@torch.no_grad()
def compare(one: Detector, other: Detector, img_size: int, seed: int = 0) -> Comparison:
    """Compare two models' raw head outputs on random images, computed in float64.

    Layers are converted to float64 one at a time, so that a large model is never copied as a whole. The response is the
    largest range of an output channel over its cells. A difference must be judged relative to it: outputs that hardly
    vary differ little even if something is wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(1, one.network.channels, img_size, img_size, generator=generator, dtype=torch.float64)
    pairs = list(zip(_run_in_double(one, images), _run_in_double(other, images), strict=True))
    gaps = torch.stack([(a - b).abs().max() for a, b in pairs])
    ranges = torch.stack([(a.amax((2, 3)) - a.amin((2, 3))).max() for a, _ in pairs])
    return Comparison(float(gaps.max()), float(ranges.max()))  # unlike Python's max(), this returns NaN if there is one


def _run_in_double(model: Detector, images: Tensor) -> list[Tensor]:
    outputs: dict[int, Tensor] = {-1: images}
    for index, layer in enumerate(model.network.layers):
        module = copy.deepcopy(model.layers[index]).double().eval()
        outputs[index] = run_layer(layer, module, [outputs[source] for source in get_sources(layer, index)])
    return [outputs[index] for index, layer in enumerate(model.network.layers) if isinstance(layer, Yolo)]


def _share(model: Detector) -> Detector:
    """Return a new model that shares the tensors of `model`."""
    with torch.device("meta"):
        shared = Detector(model.network)
    shared.load_state_dict(model.state_dict(), assign=True)
    return _take_settings(shared, model)


def _take_settings(twin: Detector, model: Detector, kept: Sequence[int] | None = None) -> Detector:
    """Copy settings that a state dict does not hold from `model` to `twin`, in place, and return it.

    `kept` are the numbers in `model` of the layers of `twin`; by default the layers are the same.
    """
    for index, module in _convs(twin):
        origin = model.layers[index if kept is None else kept[index]]
        assert isinstance(origin, ConvLayer)
        if module.bn is not None and origin.bn is not None:
            module.bn.eps, module.bn.momentum = origin.bn.eps, origin.bn.momentum
    return twin.train(model.training)


def _convs(model: Detector) -> list[tuple[int, ConvLayer]]:
    return [(index, module) for index, module in enumerate(model.layers) if isinstance(module, ConvLayer)]
