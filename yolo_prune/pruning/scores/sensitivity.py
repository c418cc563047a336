"""Sensitivity: how much a network's score drops if one group alone is pruned, and the drop order that follows.

{"format": "yolo_prune sensitivity", "format_version": 1,
 "network": "<sha256 of the cfg text>", "metric": "map50", "criterion": "bn-gamma", "group_reduce": "mean",
 "ratios": [0.25, 0.5, 0.75], "base": 0.72,                         the score of the whole network
 "groups": [{"layers": [0], "channels": 32, "scores": [0.72, 0.7, 0.4]}, …]}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from yolo_prune.arrays import Float64Array
from yolo_prune.errors import PlanError
from yolo_prune.files import replace_nan
from yolo_prune.pruning.channels import ChannelGraph, Group
from yolo_prune.pruning.config import CRITERIA, Criterion, Metric
from yolo_prune.pruning.plans.plan import Plan, name_group
from yolo_prune.records import load_plain_json, parse_record, shorten

FORMAT = "yolo_prune sensitivity"
FORMAT_VERSION = 1

WORST_LOSS = 1e6
"""The largest loss increase: a loss that is NaN or infinite, or rises by more, counts as this."""

_HAIR = 1e-6
"""Added to a group's damage, times the share dropped, so that channels keep their order where the curve is flat."""


@dataclass(frozen=True)
class GroupCurve:
    """The network's scores with each of the ratios of one group dropped and all other groups whole."""

    layers: tuple[int, ...]
    channels: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """The scores of a network, whole and with each group pruned alone."""

    network: str
    """SHA-256 of the cfg text."""
    metric: str
    """map50 (higher is better) or loss (lower is better)."""
    criterion: Criterion
    group_reduce: str
    ratios: tuple[float, ...]
    base: float
    groups: tuple[GroupCurve, ...]

    def measure_damages(self, curve: GroupCurve) -> Float64Array:
        """Return (R,) the damage at every ratio: AP50 lost, or loss gained; at least 0, and it never falls.

        A score that is NaN counts as the worst possible.
        """
        change = np.array(curve.scores) - self.base
        worst = WORST_LOSS if self.metric == "loss" else self.base
        damages = np.nan_to_num(change if self.metric == "loss" else -change, nan=worst)
        return np.maximum.accumulate(np.clip(damages, 0, worst)) + 0.0  # no -0.0, which prints a sign

    @property
    def total(self) -> float:
        """The damage of removing a whole group: the whole AP50, or the largest loss increase of any group."""
        if self.metric == "map50":
            return self.base
        return max((float(self.measure_damages(curve)[-1]) for curve in self.groups), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain data, with NaN scores as None; `parse_sensitivity` reads it."""
        content: dict[str, Any] = replace_nan({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})
        return content


def plan_group(graph: ChannelGraph, importance: Float64Array, group: Group, ratio: float) -> Plan:
    """Return the plan that drops the least important `ratio` of one group, but keeps at least one channel of it."""
    keep = np.ones(graph.size, dtype=bool)
    order = np.argsort(importance[group.ids], kind="stable")
    keep[group.ids[order[: _count(ratio, len(group.ids))]]] = False
    return Plan(keep)


def _count(ratio: float, channels: int) -> int:
    return min(round(ratio * channels), channels - 1)


def rank_by_damage(graph: ChannelGraph, importance: Float64Array, sensitivity: Sensitivity) -> Float64Array:
    """Return (N,) the damage to each id's group once the id is dropped; within a group, ids drop by `importance`.

    Dropping ids in order of this damage prunes every group up to the same damage, so that each gets a ratio of its own.
    Damage is interpolated linearly between measured ratios. Beyond the last one it rises to `Sensitivity.total` for the
    whole group, because ratios that were not measured must not look free.

    Raises:
        PlanError: a group was not measured.
    """
    curves = {curve.layers: curve for curve in sensitivity.groups}
    ranks = np.full(graph.size, np.inf)
    for group in graph.groups:
        if group.frozen:
            continue
        curve = curves.get(group.writers)
        if curve is None or curve.channels != len(group.ids):
            raise PlanError(
                f"the group of {name_group(group)} was not measured",
                where="from_sensitivity",
                right="finish the measurement with yoloprune sensitivity --resume",
            )
        points = {0.0: 0.0} | {
            _count(ratio, curve.channels) / curve.channels: damage
            for ratio, damage in zip(sensitivity.ratios, sensitivity.measure_damages(curve), strict=True)
        }
        points[1.0] = max(sensitivity.total, *points.values())
        removed = np.arange(1, curve.channels + 1) / curve.channels
        order = np.argsort(importance[group.ids], kind="stable")
        ranks[group.ids[order]] = np.interp(removed, list(points), list(points.values())) + _HAIR * removed
    return ranks


def load_sensitivity(path: Path) -> Sensitivity:
    """Load a table that `yoloprune sensitivity` wrote; it may be unfinished.

    Raises:
        PlanError: the file does not exist, or is not such a table.
    """
    right = "name a file that yoloprune sensitivity wrote"
    content = load_plain_json(path, PlanError, right)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError("is no sensitivity table", where=path, right=right)
    if content.get("format_version") != FORMAT_VERSION:
        right = f"this version reads format {FORMAT_VERSION}"
        raise PlanError(f"has format version {shorten(content.get('format_version'))}", where=path, right=right)
    return parse_sensitivity(content, path)


def parse_sensitivity(content: Any, where: str | Path) -> Sensitivity:
    """Make a table from plain data.

    Raises:
        PlanError: a key is missing or wrong; names it.
    """
    stored = parse_record(_Stored, content, where, PlanError, "measure it again")
    ratios = stored.ratios
    if stored.criterion not in CRITERIA:
        raise PlanError(f"unknown criterion {stored.criterion}", where=where, right="measure it again")
    if not ratios or list(ratios) != sorted(set(ratios)):
        raise PlanError("ratios are no rising fractions", where=where, right="measure it again")
    for number, curve in enumerate(stored.groups):
        if len(curve.scores) != len(ratios):
            what = f"groups[{number}].scores has {len(curve.scores)} scores of {len(ratios)} ratios"
            raise PlanError(what, where=where, right="measure it again")
    groups = tuple(
        GroupCurve(one.layers, one.channels, tuple(nan if score is None else score for score in one.scores))
        for one in stored.groups
    )
    return Sensitivity(
        network=stored.network,
        metric=stored.metric,
        criterion=stored.criterion,
        group_reduce=stored.group_reduce,
        ratios=ratios,
        base=stored.base,
        groups=groups,
    )


@dataclass(frozen=True)
class _StoredCurve:
    """`GroupCurve` in JSON, where null is NaN."""

    layers: tuple[NonNegativeInt, ...]
    channels: PositiveInt
    scores: tuple[FiniteFloat | None, ...]


@dataclass(frozen=True)
class _Stored:
    """`Sensitivity` in JSON."""

    network: str
    metric: Metric
    criterion: Criterion
    group_reduce: str
    ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    base: FiniteFloat
    groups: tuple[_StoredCurve, ...]
