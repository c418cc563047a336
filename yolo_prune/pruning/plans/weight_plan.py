"""Weight plans: one bool per element of a convolution's kernel, keep or prune, by size or by an N:M pattern.

A weight's score is |w|, or for `bn-gamma` |w · γ / √(σ² + ε)|, its size after batch norm is folded in. The latter does
not depend on the scale of a filter, which batch norm undoes, so that layers can be compared. The weights with the
lowest scores are pruned, of equal ones the first. Every prunable convolution keeps its highest one, so that none is all
zero.

With a pattern N:M, the N highest scores of every M consecutive input channels (of one filter, at one position of the
kernel) are kept. Those M weights are adjacent in the rows of a 1×1 kernel as a matrix, and of a larger kernel in
channels-last order, as PyTorch's semi-structured sparsity needs it for 2:4. If M does not divide the channels, the last
ones are a smaller group.

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

from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.plans.plan import check_spare
from yolo_prune.pruning.scores.importance import check_finite


@dataclass(frozen=True)
class WeightPlan:
    """Which weights to keep: for every prunable convolution, by its layer, a bool tensor (out, in / groups, k, k)."""

    keep: Mapping[int, Tensor]

    @property
    def ratio(self) -> float:
        """The share of the prunable convolutions' weights that the plan prunes."""
        return 1 - sum(int(keep.sum()) for keep in self.keep.values()) / sum(
            keep.numel() for keep in self.keep.values()
        )


@dataclass(frozen=True)
class NonZeros:
    """Number of a model's non-zero parameters, and of the multiply–accumulates with non-zero weights for one image."""

    params: int
    macs: int


def find_prunable_layers(network: Network, config: WeightConfig) -> tuple[int, ...]:
    """Return the convolutions whose weights may be pruned.

    Raises:
        PlanError: `spare` names a layer that is not a convolution, or nothing is left to prune.
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
    """Choose the weights to keep. A larger ratio prunes all weights that a smaller one prunes.

    Raises:
        PlanError: a weight is NaN or infinite, or there is nothing to prune.
    """
    check_finite(model)
    prunable = find_prunable_layers(model.network, config)
    scores = {index: score_weights(model.get_conv(index), config.criterion) for index in prunable}
    if config.kept_of is not None:
        return WeightPlan({index: keep_pattern(score, *config.kept_of) for index, score in scores.items()})
    if config.scope == "layer":
        return WeightPlan({index: _keep_highest([score], config.ratio)[0] for index, score in scores.items()})
    return WeightPlan(dict(zip(prunable, _keep_highest(list(scores.values()), config.ratio), strict=True)))


def score_weights(module: ConvLayer, criterion: str) -> Tensor:
    """Return (out, in / groups, k, k) the scores of a convolution's weights; see the module's docstring."""
    scores = module.conv.weight.detach().abs()
    if criterion == "bn-gamma" and module.bn is not None:
        assert module.bn.running_var is not None
        scale = module.bn.weight.detach().abs() / (module.bn.running_var + module.bn.eps).sqrt()
        scores = scores * scale.view(-1, 1, 1, 1)
    return scores


def keep_pattern(scores: Tensor, kept: int, of: int) -> Tensor:
    """Return a mask of the `kept` highest of every `of` consecutive scores along the second dimension."""
    out, channels, *sides = scores.shape
    filler = scores.new_full((out, -channels % of, *sides), -1.0)  # below any score, so that it is pruned first
    groups = torch.cat((scores, filler), 1).view(out, -1, of, *sides)
    lowest = groups.argsort(dim=2, stable=True)[:, :, : of - kept]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(2, lowest, value=False)
    return keep.view(out, -1, *sides)[:, :channels].contiguous()


def _keep_highest(scores: list[Tensor], ratio: float) -> list[Tensor]:
    """Return masks that drop the share `ratio` of all scores, the lowest ones, but never the highest of a tensor.

    Of equal scores, the first are dropped.
    """
    flat = torch.cat([score.flatten() for score in scores]).cpu().numpy()
    ends = np.cumsum([score.numel() for score in scores])
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        flat[end - 1 - flat[start:end][::-1].argmax()] = (
            np.inf
        )  # the last one of equal scores, because the first are dropped
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
    """Return for every convolution its layer, the number of weights in its kernel, and the number of non-zero ones."""
    kernels = ((index, model.get_conv(index).conv.weight) for index, _ in model.network.convs)
    return tuple((index, kernel.numel(), int(kernel.count_nonzero())) for index, kernel in kernels)


@torch.no_grad()
def count_nonzeros(model: Detector) -> NonZeros:
    """Count a model's non-zero parameters, and its MACs with non-zero weights."""
    shapes = model.network.shapes
    return NonZeros(
        sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        sum(left * prod(shapes[index][1:]) for index, _, left in count_by_layer(model)),
    )
