"""Which criterion to prune by where nobody says: γ where training made it mean something, else what images tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolo_prune.model.detector import Detector
from yolo_prune.pruning.budget import Budget
from yolo_prune.pruning.channels import ChannelGraph
from yolo_prune.pruning.config import Criterion, Normalization, PlanConfig, ScoreConfig
from yolo_prune.pruning.importance import normalize_groups, score_channels
from yolo_prune.pruning.plan import FloatArray, Plan, make_plan

AT_ZERO = 0.01
"""A γ is at zero that is no larger than this share of the largest of its group."""
NOTHING = 1e-6
"""Where a whole group is no larger than this, all of it is at zero: it is what a moving average leaves."""


@dataclass(frozen=True)
class Choice:
    """A criterion, what its scores are divided by, why these, and the scores where they are known already."""

    criterion: Criterion
    normalize: Normalization
    why: str
    scores: FloatArray | None = None


def choose_criterion(
    model: Detector, graph: ChannelGraph, config: PlanConfig, budgets: Sequence[Budget[Plan]], has_images: bool
) -> Choice:
    """Choose bn-gamma if all that must go has its γ at zero, else obs on images, else l2.

    γ says which channels are idle, but only once sparsity training has brought some to zero; beyond those, and on networks that were never
    trained so, its order is no better than chance.

    Raises:
        PlanError: what is asked for cannot be had.
    """
    gammas = measure_gammas(model, graph)
    at_zero = gammas <= AT_ZERO
    plan = make_plan(graph, gammas, config, budgets)
    dropped = ~plan.keep
    working, count = int((dropped & ~at_zero).sum()), int(dropped.sum())
    if not working:
        return Choice("bn-gamma", "max", f"all {count} channels that go have a γ at zero", gammas)
    share = float((at_zero & graph.prunable).sum() / graph.prunable.sum())
    why = f"γ is at zero in {share:.0%} of the prunable channels, and of the {count} that go {working} would still work"
    if has_images:
        return Choice("obs", "none", why)
    return Choice("l2", "mean", f"{why}; there are no images to look at")


def measure_gammas(model: Detector, graph: ChannelGraph) -> FloatArray:
    """Return (N,) the largest |γ| of every id's members, as a share of the largest in its group; of a filter, its norm."""
    config = ScoreConfig("bn-gamma", group_reduce="max")
    sizes = score_channels(model, graph, config)
    sizes[sizes <= NOTHING] = 0
    return normalize_groups(graph, sizes, "max")
