"""Importance: how much a channel matters to the network, one float per channel id.

    filters ── criterion ──► a score per output channel of a convolution
            ── reduce ─────► a score per id: the members that shortcuts tie, combined by mean, max or sum
            ── normalize ──► the same, divided by the group's mean or max, so that layers of different scales compare

The convolution of channel c has the kernel w_c (in, h, w), the bias b_c and the batch norm's γ_c and β_c; L is the loss.

criterion   score of channel c                                source
─────────   ───────────────────────────────────────────────   ──────────────────────────────────────────────────────────
bn-gamma    |γ_c|, or ‖w_c‖₂ without batch norm               Liu et al., "Network Slimming" (2017), §3
l1          Σ |w_c|                                           Li et al., "Pruning Filters for Efficient ConvNets" (2017), §3.1
l2          ‖w_c‖₂, the norm of a neuron's weight column      He et al., "Soft Filter Pruning" (2018), §3.2
fpgm        Σ_k ‖w_c − w_k‖₂ over the layer's filters k       He et al., "Filter Pruning via Geometric Median" (2019), §3.3
taylor      root mean square over batches of                  Molchanov et al., "Importance Estimation for Neural Network
            γ ∂L/∂γ + β ∂L/∂β, or of Σ w ∂L/∂w + b ∂L/∂b      Pruning" (2019), eq. 8, of which it is the root: the order
            without batch norm: the first-order change of L   is the same, but a group's mean depends less on its
            if c is zeroed                                    largest score
obs         the second-order change of L if c is removed      Hassibi and Stork, "Optimal Brain Surgeon" (1993), and
            and the layers that read c are refitted           others, see `obs.py`; scores are per id, not reduced
random      a random number from 0 to 1                       the baseline that a criterion must beat
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.arrays import Float64Array
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector, evaluating
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.blocks import Block
from yolo_prune.pruning.channels import ChannelGraph
from yolo_prune.pruning.config import ScoreConfig
from yolo_prune.pruning.scores.obs import score_by_reconstruction
from yolo_prune.pruning.sparsity.gamma_sparsity import sum_squared_changes

Example = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) in 0 … 1 and targets (M, 7): image, class, cx, cy, w, h in 0 … 1, and whether it is ignored."""


def score_channels(
    model: Detector, graph: ChannelGraph, config: ScoreConfig, examples: Iterable[Example] = ()
) -> Float64Array:
    """Score every channel by `config.criterion`, reduced over members and normalised: (N,) float64.

    Ids that no convolution writes score infinity. taylor and obs need `examples`, on the model's device.

    Raises:
        PlanError: a weight or a γ is NaN or infinite (names the layer), or taylor or obs has no examples.
    """
    if config.criterion == "random":
        return np.random.default_rng(config.seed).random(graph.size)
    check_finite(model)
    if config.criterion == "obs":
        return normalize_groups(graph, score_by_reconstruction(model, graph, examples), config.normalize)
    if config.criterion == "taylor":
        by_layer = _score_taylor(model, graph, examples)
    else:
        by_layer = {layer: _score_filters(model.get_conv(layer), config.criterion) for layer in graph.conv_layers}
    scores = reduce_members(graph, {layer: part.cpu().numpy() for layer, part in by_layer.items()}, config.group_reduce)
    return normalize_groups(graph, scores, config.normalize)


def score_by_squares(
    model: Detector, graph: ChannelGraph, config: ScoreConfig, squares: Mapping[str, Tensor]
) -> Float64Array:
    """Approximate the taylor scores without images, from squared gradients that training has kept: (N,) float64.

    `squares` are moving averages of squared gradients, named and shaped as the model's parameters. The score is the
    root of `gamma_sparsity.sum_squared_changes` over the parameters that `mask` sets to zero for the channel.

    Raises:
        PlanError: a weight or a γ is NaN or infinite (names the layer).
    """
    check_finite(model)
    by_layer = {}
    for layer in graph.conv_layers:
        module = model.get_conv(layer)
        names = ("bn.weight", "bn.bias") if module.bn is not None else ("conv.weight", "conv.bias")
        pairs = [
            (module.get_parameter(name).detach().double(), squares[f"layers.{layer}.{name}"].double()) for name in names
        ]
        by_layer[layer] = sum_squared_changes(pairs).sqrt()
    scores = reduce_members(graph, {layer: part.cpu().numpy() for layer, part in by_layer.items()}, config.group_reduce)
    return normalize_groups(graph, scores, config.normalize)


def check_finite(model: Detector) -> None:
    """Check that all parameters and running statistics of a model are finite.

    Raises:
        PlanError: one is NaN or infinite; names the layer and the tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            _, layer, part = name.split(".", 2)
            what = "γ" if part == "bn.weight" else part
            raise PlanError(
                f"{what} holds NaN or infinity", where=f"layer {layer}", right="train again from a sound checkpoint"
            )


@torch.no_grad()
def _score_filters(module: ConvLayer, criterion: str) -> Tensor:
    """Return (out,) float64 scores of a convolution's filters by a criterion that needs no data."""
    filters = module.conv.weight.detach().flatten(1).double()
    match criterion:
        case "bn-gamma" if module.bn is not None:
            return module.bn.weight.detach().double().abs()
        case "l1":
            return filters.abs().sum(1)
        case "fpgm":
            return torch.cdist(filters, filters).sum(1)
        case _:
            return filters.square().sum(1).sqrt()


def _score_taylor(model: Detector, graph: ChannelGraph, examples: Iterable[Example]) -> dict[int, Tensor]:
    """Return (out,) float64 per convolution: the root mean square over examples of the first-order loss changes."""
    parameters = {layer: _get_gate(model.get_conv(layer)) for layer in graph.conv_layers}
    flat = [parameter for gate in parameters.values() for parameter in gate]
    loss, totals, count = DetectionLoss(model.network).to(flat[0].device), dict[int, Any](), 0
    with evaluating(model), torch.enable_grad():
        for images, targets in examples:
            total = loss.measure(model(images), targets, *images.shape[-2:]).total
            gradients = iter(torch.autograd.grad(total, flat, materialize_grads=True))  # zeros if no head uses a layer
            for layer, gate in parameters.items():
                products = [(parameter * next(gradients)).detach().double() for parameter in gate]
                change = torch.stack([product.reshape(len(product), -1).sum(1) for product in products]).sum(0)
                totals[layer] = totals.get(layer, 0) + change.square()
            count += 1
    if not count:
        raise PlanError("taylor has no images to look at", where="criterion", right="name a data set")
    return {layer: (total / count).sqrt() for layer, total in totals.items()}


def _get_gate(module: ConvLayer) -> tuple[Tensor, ...]:
    """Return the parameters that `mask` would set to zero, channel by channel."""
    parts = (module.conv.weight, module.conv.bias) if module.bn is None else (module.bn.weight, module.bn.bias)
    return tuple(part for part in parts if part is not None)


def reduce_members(graph: ChannelGraph, by_layer: dict[int, Float64Array], how: str) -> Float64Array:
    """Combine the scores (out,) of every convolution into one per id, (N,), by mean, max or sum over the id's members."""
    total, count, largest = np.zeros(graph.size), np.zeros(graph.size), np.full(graph.size, -np.inf)
    for layer, scores in by_layer.items():
        ids = graph.writes[layer]
        np.add.at(total, ids, scores)
        np.add.at(count, ids, 1)
        np.maximum.at(largest, ids, scores)
    match how:
        case "mean":
            total /= np.maximum(count, 1)
        case "max":
            total = largest
    total[count == 0] = np.inf
    return total


def normalize_groups(graph: ChannelGraph, scores: Float64Array, by: str) -> Float64Array:
    """Divide the scores (N,) of every group by their mean or max; `none`, or a group of zeros, changes nothing."""
    if by == "none":
        return scores
    units = np.ones(graph.size)
    for group in graph.groups:
        own = scores[group.ids]
        unit = float(own.mean() if by == "mean" else own.max())
        if np.isfinite(unit) and unit > 0:
            units[group.ids] = unit
    return scores / units


@torch.no_grad()
def score_blocks(model: Detector, blocks: Sequence[Block], images: Iterable[Tensor]) -> list[float]:
    """Score residual blocks by the share of their branch in the sum: ‖F(x)‖₂ / ‖x + F(x)‖₂, with 0 / 0 taken as 0.

    The norms are over all images. `images` are batches (B, 3, H, W) in 0 … 1 on the model's device; the model runs in
    evaluation mode.
    Source: after Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks" (2016), §4: a
    block whose branch is small beside its input can be removed with little harm.

    Raises:
        PlanError: a weight is NaN or infinite, or there are no images.
    """
    check_finite(model)
    places = {block.shortcut: number for number, block in enumerate(blocks)}
    branches, sums, count = np.zeros(len(blocks)), np.zeros(len(blocks)), 0

    def add(index: int, inputs: list[Tensor], output: Tensor) -> None:
        if index in places:
            branches[places[index]] += float(inputs[0].double().square().sum())
            sums[places[index]] += float(output.double().square().sum())

    with evaluating(model):
        for batch in images:
            model(batch, add)
            count += len(batch)
    if not count:
        raise PlanError("there are no images to score blocks on", where="drop_blocks", right="name a data set")
    return [float(value) for value in np.sqrt(branches / np.where(sums > 0, sums, 1))]
