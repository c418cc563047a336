"""Which single weights stay: one bool per element of a convolution's kernel, by size or by an N:M pattern.

A weight's score is |w|, or for `bn-gamma` |w · γ / √(σ² + ε)|: its size in the folded network, which does not depend on the
scale that batch norm takes out of a filter, so that layers compare. The weights with the lowest scores go, of equal ones
the first; every prunable convolution keeps its highest one, so that none falls silent altogether.

With a pattern N:M, of every M consecutive input channels (of one filter, at one place of the kernel) the N highest stay.
Those M stand side by side in the rows of the matrix that a 1×1 kernel is, and that a larger one is in channels-last order:
what PyTorch's semi-structured sparsity wants of 2:4. Where M does not divide the channels, the last few count as one group.
Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (2015), §3; Mishra et al.,
"Accelerating Sparse Deep Neural Networks" (2021), §3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from yolo_prune.darknet.layers import Network, infer_shapes
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.importance import check_finite
from yolo_prune.pruning.plan import check_spare


@dataclass(frozen=True)
class WeightPlan:
    """By the layer of every prunable convolution: (out, in / groups, k, k) which of its weights stay."""

    keep: Mapping[int, Tensor]

    @property
    def ratio(self) -> float:
        """The share of the prunable convolutions' weights that go."""
        return 1 - sum(int(keep.sum()) for keep in self.keep.values()) / sum(
            keep.numel() for keep in self.keep.values()
        )


@dataclass(frozen=True)
class NonZeros:
    """What of a model is not zero: learnable parameters, and multiply–accumulates of one image with such weights."""

    params: int
    macs: int


def find_prunable_layers(network: Network, config: WeightConfig) -> tuple[int, ...]:
    """Return the convolutions whose weights may go.

    Raises:
        PlanError: `spare` names a layer that is no convolution, or nothing is left to prune.
    """
    convs = [index for index, _ in network.convs]
    check_spare(convs, config.spare)
    ends = {convs[0], *network.head_convs} if config.spare_ends else set[int]()
    prunable = tuple(index for index in convs if index not in ends and index not in config.spare)
    if not prunable:
        right = "spare fewer" if config.spare else "let its ends be pruned too, by --no-spare-ends"
        raise PlanError("every convolution is spared", where="spare", right=right)
    return prunable


@torch.no_grad()
def make_weight_plan(model: Detector, config: WeightConfig) -> WeightPlan:
    """Choose the weights that stay; of two ratios the larger drops all that the smaller does.

    Raises:
        PlanError: a weight is NaN or infinite, or there is nothing to prune.
    """
    check_finite(model)
    prunable = find_prunable_layers(model.network, config)
    scores = {index: score_weights(_get_conv(model, index), config.criterion) for index in prunable}
    if config.kept_of is not None:
        return WeightPlan({index: keep_pattern(score, *config.kept_of) for index, score in scores.items()})
    if config.scope == "layer":
        return WeightPlan({index: _keep_highest([score], config.ratio)[0] for index, score in scores.items()})
    return WeightPlan(dict(zip(prunable, _keep_highest(list(scores.values()), config.ratio), strict=True)))


def score_weights(module: ConvLayer, criterion: str) -> Tensor:
    """Return (out, in / groups, k, k) how much a convolution's weights matter; see the module's head."""
    scores = module.conv.weight.detach().abs()
    if criterion == "bn-gamma" and module.bn is not None:
        assert module.bn.running_var is not None
        scale = module.bn.weight.detach().abs() / (module.bn.running_var + module.bn.eps).sqrt()
        scores = scores * scale.view(-1, 1, 1, 1)
    return scores


def keep_pattern(scores: Tensor, kept: int, of: int) -> Tensor:
    """Keep the `kept` highest of every `of` consecutive scores along the second dimension; return what stays."""
    out, channels, *sides = scores.shape
    filler = scores.new_full((out, -channels % of, *sides), -1.0)  # below any score, so that it goes first
    groups = torch.cat((scores, filler), 1).view(out, -1, of, *sides)
    lowest = groups.argsort(dim=2, stable=True)[:, :, : of - kept]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(2, lowest, value=False)
    return keep.view(out, -1, *sides)[:, :channels].contiguous()


def _keep_highest(scores: list[Tensor], ratio: float) -> list[Tensor]:
    """Drop the share `ratio` of all scores, the lowest and of equal ones the first, but the highest of every tensor."""
    flat = torch.cat([score.flatten() for score in scores]).cpu().numpy()
    ends = np.cumsum([score.numel() for score in scores])
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        flat[end - 1 - flat[start:end][::-1].argmax()] = np.inf  # of equal ones the last, which goes last
    count = min(round(ratio * flat.size), flat.size - len(scores))
    keep = np.ones(flat.size, dtype=bool)
    if count:
        limit = np.partition(flat, count - 1)[count - 1]
        keep[flat < limit] = False
        keep[np.flatnonzero(flat == limit)[: count - int((~keep).sum())]] = False
    parts = np.split(keep, ends[:-1])
    return [torch.from_numpy(part).view(score.shape) for part, score in zip(parts, scores, strict=True)]


@torch.no_grad()
def count_by_layer(model: Detector) -> tuple[tuple[int, int, int], ...]:
    """Return of every convolution its layer, the weights of its kernel, and how many of them are not zero."""
    kernels = ((index, _get_conv(model, index).conv.weight) for index, _ in model.network.convs)
    return tuple((index, kernel.numel(), int(kernel.count_nonzero())) for index, kernel in kernels)


@torch.no_grad()
def count_nonzeros(model: Detector, img_size: int) -> NonZeros:
    """Count what of a model is not zero, its MACs for a square input of `img_size` pixels."""
    shapes = infer_shapes(model.network, img_size, img_size)
    return NonZeros(
        sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        sum(left * prod(shapes[index][1:]) for index, _, left in count_by_layer(model)),
    )


def _get_conv(model: Detector, layer: int) -> ConvLayer:
    module = model.layers[layer]
    assert isinstance(module, ConvLayer)
    return module
