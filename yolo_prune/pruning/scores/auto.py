"""Criterion `auto`: choose bn-gamma if γ sparsity has set enough γ to zero, else a criterion measured on images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolo_prune.arrays import Float64Array
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import ChannelGraph
from yolo_prune.pruning.config import Criterion, Normalization, PlanConfig, ScoreConfig
from yolo_prune.pruning.plans.budget import Budget
from yolo_prune.pruning.plans.plan import Plan, make_plan
from yolo_prune.pruning.scores.importance import normalize_groups, score_channels
from yolo_prune.pruning.sparsity.gamma_sparsity import ZERO_GAMMA, ZERO_SHARE


@dataclass(frozen=True)
class Choice:
    """A criterion, how to normalise its scores, the reason for both, and the scores if they are known already."""

    criterion: Criterion
    normalize: Normalization
    why: str
    scores: Float64Array | None = None


def choose_criterion(
    model: Detector, graph: ChannelGraph, config: PlanConfig, budgets: Sequence[Budget[Plan]], has_images: bool
) -> Choice:
    """Choose bn-gamma if all channels to remove have γ at zero, else obs if there are images, else l2.

    γ tells which channels are unused only after training with γ sparsity has set some γ to zero. For other channels,
    and for networks trained without γ sparsity, the order by γ is no better than chance.

    Raises:
        PlanError: the ratio or a budget cannot be reached.
    """
    gammas = measure_gammas(model, graph)
    at_zero = gammas <= ZERO_SHARE
    plan = make_plan(graph, gammas, config, budgets)
    dropped = ~plan.keep
    working, count = int((dropped & ~at_zero).sum()), int(dropped.sum())
    if not working:
        return Choice("bn-gamma", "max", f"all {count} channels to remove have a γ at zero", gammas)
    share = float((at_zero & graph.prunable).sum() / graph.prunable.sum())
    why = f"γ is at zero in {share:.0%} of the prunable channels, but {working} of the {count} to remove still matter"
    if has_images:
        return Choice("obs", "none", why)
    return Choice("l2", "mean", f"{why}; there are no images to look at")


def measure_gammas(model: Detector, graph: ChannelGraph) -> Float64Array:
    """Return (N,) the largest |γ| of every id's members, as a share of the largest in its group.

    A filter without batch norm counts with its L2 norm instead of |γ|.
    """
    config = ScoreConfig("bn-gamma", group_reduce="max")
    sizes = score_channels(model, graph, config)
    sizes[sizes <= ZERO_GAMMA] = 0
    return normalize_groups(graph, sizes, "max")
