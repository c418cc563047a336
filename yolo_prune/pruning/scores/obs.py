"""Optimal brain surgeon: the order to remove channels in, if all layers that read them are refitted to the others.

    loss ─ backward ─► G of every convolution: ∂L/∂y ∂L/∂yᵀ summed over positions; y is its output before batch norm
    images ─ forward ─► Σ of every convolution: the covariance of the channels that it reads

A convolution W reads the channels x. If channel c is removed, x_c is predicted from the other channels by
−Σ_k (Σ⁻¹)_ck / (Σ⁻¹)_cc x_k, and the weights of those change accordingly. The error has the variance 1 / (Σ⁻¹)_cc.
To second order, the loss rises by

    M_cc / (Σ⁻¹)_cc,   M = Σ over the kernel's positions of Wᵀ G W

summed over all convolutions that read c. The channels with the lowest cost are removed, Σ⁻¹ and M are updated, and so
on until none is left. A channel becomes expensive once the others like it are removed, so no layer is emptied while
others still have redundant channels.

Sources: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1993), §2; Wang et al.,
"EigenDamage: Structured Pruning in the Kronecker-Factored Eigenbasis" (2019), §3 (G and Σ in place of the Hessian); Kurtic
et al., "ZipLM" (2023), §3 (one structure after another).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.arrays import Float64Array
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector, evaluating
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import BoolArray, ChannelGraph, Group, IntArray

RIDGE = 1e-2
"""The share of every channel's variance that counts as noise, which no other channel can predict."""
CONSTANT = 1e-9
"""A share of the mean variance that is added to the variance of every channel, so that Σ has an inverse."""
STEPS = 64
"""Each step removes 1 / STEPS of the channels that are left in a group, at least one."""
POSITIONS = 2048
"""At most so many positions per batch, evenly spaced, are used for a covariance."""


@dataclass
class _Reader:
    """One convolution that reads a group's channels, with two (C, C) matrices over the C channels that are left."""

    precision: Float64Array
    """Σ⁻¹."""
    weight: Float64Array
    """M."""

    def measure_costs(self) -> Float64Array:
        """Return (C,) how much the loss rises if each channel is removed."""
        return np.diag(self.weight) / np.diag(self.precision)

    def remove(self, removed: BoolArray) -> None:
        """Update both matrices for the removal of channels `removed` (C,) bool."""
        kept = ~removed
        precision, weight = self.precision, self.weight
        takeover = -np.linalg.solve(precision[np.ix_(removed, removed)], precision[np.ix_(removed, kept)])
        crossed = weight[np.ix_(kept, removed)] @ takeover
        own = takeover.T @ (weight[np.ix_(removed, removed)] @ takeover)
        self.weight = weight[np.ix_(kept, kept)] + crossed + crossed.T + own
        self.precision = precision[np.ix_(kept, kept)] + precision[np.ix_(kept, removed)] @ takeover


@dataclass(frozen=True)
class Statistics:
    """Statistics of one convolution's inputs, and of the gradients of its outputs."""

    covariance: Float64Array
    """(in, in) covariance of the input channels over images and positions."""
    gradients: Float64Array
    """(out, out) sum over positions of ∂L/∂y ∂L/∂yᵀ, averaged over batches."""


def score_by_reconstruction(
    model: Detector, graph: ChannelGraph, examples: Iterable[tuple[Tensor, Tensor]]
) -> Float64Array:
    """Score every channel by the cost of its removal after all cheaper ones: (N,) float64, infinity if frozen.

    Raises:
        PlanError: there are no examples.
    """
    statistics = measure_statistics(model, graph, examples)
    scores = np.full(graph.size, np.inf)
    for group in graph.groups:
        if not group.frozen:
            scores[group.ids] = _order(list(_find_readers(model, graph, statistics, group)), len(group.ids))
    return scores


def measure_statistics(
    model: Detector, graph: ChannelGraph, examples: Iterable[tuple[Tensor, Tensor]]
) -> dict[int, Statistics]:
    """Measure the statistics of every convolution, with the model in evaluation mode.

    Raises:
        PlanError: there are no examples.
    """
    sums: dict[int, list[Tensor]] = {}
    device = next(model.parameters()).device
    loss, batches = DetectionLoss(model.network).to(device), 0
    with evaluating(model), torch.enable_grad(), _Watch(model, graph.conv_layers) as seen:
        for images, targets in examples:
            total = loss.measure(model(images), targets, *images.shape[-2:]).total
            outputs = [output for _, output in seen.values()]
            gradients = torch.autograd.grad(total, outputs, materialize_grads=True)  # zeros if no head uses a layer
            for (layer, (inputs, _)), gradient in zip(seen.items(), gradients, strict=True):
                rows = inputs.permute(1, 0, 2, 3).flatten(1)
                rows = rows[
                    :, :: -(-rows.shape[1] // POSITIONS) | 1
                ].double()  # an odd stride, so that all columns of an image are sampled
                slopes = gradient.detach().permute(1, 0, 2, 3).flatten(1)  # the zeros require gradients in PyTorch 2.9
                parts = [rows @ rows.T, rows.sum(1), rows.new_tensor(rows.shape[1]), (slopes @ slopes.T).double()]
                sums[layer] = [a + b for a, b in zip(sums[layer], parts, strict=True)] if layer in sums else parts
            batches += 1
    if not batches:
        raise PlanError("obs has no images to look at", where="criterion", right="name a data set")
    made = {}
    for layer, (squares, total, count, slopes) in sums.items():
        covariance = squares / count - torch.outer(total, total) / count**2
        made[layer] = Statistics(covariance.cpu().numpy(), (slopes / batches).cpu().numpy())
    return made


class _Watch:
    """A context with forward hooks that collect the input and output of convolutions, before batch norm, by layer."""

    def __init__(self, model: Detector, layers: Sequence[int]) -> None:
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._kernels = {layer: _get_kernel(model, layer) for layer in layers}

    def __enter__(self) -> dict[int, tuple[Tensor, Tensor]]:
        self._handles = [
            kernel.register_forward_hook(self._make_hook(layer)) for layer, kernel in self._kernels.items()
        ]
        return self._seen

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _make_hook(self, layer: int):  # type: ignore[no-untyped-def]
        def hook(kernel: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._seen[layer] = (inputs[0].detach(), output)
            return output.clone()  # later layers may change it in place

        return hook


def _find_readers(
    model: Detector, graph: ChannelGraph, statistics: Mapping[int, Statistics], group: Group
) -> Iterator[_Reader]:
    """Yield a reader per convolution that reads the group's channels, n readers if it reads a channel n times."""
    for layer in graph.conv_layers:
        kernel = _get_kernel(model, layer)
        reads = graph.reads[layer]
        if len(reads) == kernel.groups > 1:
            continue  # depthwise: its output has the same id, and other convolutions read that
        places = np.searchsorted(group.ids, reads).clip(max=len(group.ids) - 1)
        columns = np.flatnonzero(group.ids[places] == reads)
        while len(columns):
            _, first = np.unique(places[columns], return_index=True)
            own = columns[np.sort(first)]
            yield _make_reader(statistics[layer], _widen(kernel), own, places[own], len(group.ids))
            columns = np.setdiff1d(columns, own)


def _widen(kernel: nn.Conv2d) -> Float64Array:
    """Return a convolution's weights (out, in, h, w) with zeros for the channels of other groups."""
    weight = kernel.weight.detach().double().cpu().numpy()
    if kernel.groups == 1:
        return weight
    out, width = len(weight) // kernel.groups, weight.shape[1]
    wide = np.zeros((len(weight), kernel.groups * width, *weight.shape[2:]))
    for number in range(kernel.groups):
        rows = slice(number * out, (number + 1) * out)
        wide[rows, number * width : (number + 1) * width] = weight[rows]
    return wide


def _make_reader(seen: Statistics, weight: Float64Array, columns: IntArray, places: IntArray, count: int) -> _Reader:
    """Make a reader of a group of `count` channels; input `columns` of the convolution are the group's `places`."""
    covariance, importance = np.zeros((count, count)), np.zeros((count, count))
    covariance[np.ix_(places, places)] = seen.covariance[np.ix_(columns, columns)]
    own = weight[:, columns].transpose(1, 0, 2, 3)  # (in, out, h, w)
    weighted = np.einsum("op,cphw->cohw", seen.gradients, own, optimize=True)
    importance[np.ix_(places, places)] = own.reshape(len(own), -1) @ weighted.reshape(len(own), -1).T
    variances = np.diag(covariance)
    if not (mean := variances.mean()) > 0:
        return _Reader(np.eye(count), np.zeros((count, count)))
    precision = np.linalg.inv(covariance + np.diag(RIDGE * variances + CONSTANT * mean))
    return _Reader(precision.astype(np.float64, copy=False), importance)


def _order(readers: Sequence[_Reader], count: int) -> Float64Array:
    """Return (count,) the cost of each channel at the step that removes it; scores rise in the order of removal."""
    scores, left, worst = np.zeros(count), np.arange(count), 0.0
    while len(left):
        costs = sum((reader.measure_costs() for reader in readers), np.zeros(len(left)))
        chosen = np.argsort(costs, kind="stable")[: max(1, len(left) // STEPS)]
        for channel in chosen:
            worst = max(np.nextafter(worst, np.inf), float(costs[channel]))
            scores[left[channel]] = worst
        removed = np.zeros(len(left), dtype=bool)
        removed[chosen] = True
        if not removed.all():
            for reader in readers:
                reader.remove(removed)
        left = left[~removed]
    return scores


def _get_kernel(model: Detector, layer: int) -> nn.Conv2d:
    module = model.get_conv(layer)
    return module.conv
