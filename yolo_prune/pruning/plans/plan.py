"""Pruning plans: one bool per channel id, keep or drop. Everything else follows from the channel graph.

    importance ──► drop order ──► the shortest prefix that, after rounding, meets every budget ──► Plan

Each group's most important channels, up to `min_channels`, are left out of the drop order, so that no group is emptied.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.layers import Conv, Layer
from yolo_prune.darknet.network import Network, change_layers
from yolo_prune.errors import PlanError
from yolo_prune.pruning.channels import BoolArray, ChannelGraph, Group, IntArray, make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.budget import Budget, find_shortest

ROUNDING = 1e-9
MULTIPLES = (16, 8, 4)
"""Engines are fast at multiples of these widths, the fastest first: those of vector registers and blocks of weights."""


@dataclass(frozen=True)
class Plan:
    """Which channel ids of a graph to keep: `keep` is (N,) bool."""

    keep: BoolArray

    def measure_ratio(self, graph: ChannelGraph) -> float:
        """Return the share of all prunable channels that the plan drops."""
        return float((~self.keep).sum() / max(1, graph.prunable.sum()))


def make_plan(
    graph: ChannelGraph, importance: Float64Array, config: PlanConfig, budgets: Sequence[Budget[Plan]] = ()
) -> Plan:
    """Drop the least important prunable channels until `config.least_ratio` is reached and every budget is met.

    `importance` is (N,). Equal scores are ordered by id, so that a plan never drops more than was asked for, and a
    larger ratio drops a superset of what a smaller one drops. With `config.round_to`, every group then keeps the
    nearest width that is a multiple of it, or all of its channels. The ratio is met before this rounding, budgets after
    it.

    Raises:
        PlanError: a score is NaN, `spare` names a layer that is not a convolution, or `min_channels` and `round_to`
            leave too few channels to drop; names the nearest value that can be reached.
    """
    candidates, floor = _find_candidates(graph, importance, config)
    free = candidates & ~floor
    order = np.flatnonzero(free)[np.argsort(importance[free], kind="stable")]
    shares = _split_order(graph, order) if config.multiple > 1 else []

    def cut(count: int) -> Plan:
        keep = np.ones(graph.size, dtype=bool)
        keep[order[:count]] = False
        for ids, share in shares:
            width = _round_width(len(ids), int(keep[ids].sum()), config)
            keep[share] = np.arange(len(share)) >= len(ids) - width
        return Plan(keep)

    count = _count_for_ratio(config, int(candidates.sum()), len(order))
    floors = {"min_channels": config.min_channels} | ({"round_to": config.multiple} if config.multiple > 1 else {})
    for budget in budgets:
        count = find_shortest(budget, cut, count, len(order), floors)
    return cut(count)


def choose_multiple(graph: ChannelGraph) -> int:
    """Return the multiple to round widths to, 16, 8, 4 or 1: fast for engines but fine enough for the network.

    Pruned networks whose widths are multiples of 16 took 0.87 times as long as others with as many multiply–accumulates
    (benchmarks/widths.py, docs/experiments.md). The multiple is at most a sixteenth of the median width, so that a
    ratio of 0.8 is met within 0.03.
    """
    widths = [len(group.ids) for group in graph.groups if not group.frozen]
    most = float(np.median(widths)) / 16 if widths else 0
    return next((multiple for multiple in MULTIPLES if multiple <= most), 1)


def make_threshold_plan(graph: ChannelGraph, importance: Float64Array, threshold: float, config: PlanConfig) -> Plan:
    """Drop every prunable channel with an importance below `threshold`, but keep `min_channels` of each group.

    Raises:
        PlanError: a score is NaN, or `spare` names a layer that is not a convolution.
    """
    candidates, floor = _find_candidates(graph, importance, config)
    return Plan(~(candidates & ~floor & (importance < threshold)))


def make_cost_budgets(config: PlanConfig, network: Network, graph: ChannelGraph, original: Cost) -> list[Budget[Plan]]:
    """Return the budgets of `target_params` and `target_macs` for plans of `network`, as shares of `original`."""

    def make_budget(where: str, share: float, count: Callable[[Cost], int]) -> Budget[Plan]:
        return Budget(
            where=where,
            limit=share,
            measure=lambda plan: count(measure_cost(prune_network(network, plan, graph))) / count(original),
            say=lambda cost: f"{cost:.4g} of the original",
            nearest=lambda cost: f"at least {math.ceil(1e5 * cost) / 1e5:g}",
        )

    wanted = (
        ("target_params", config.target_params, lambda cost: cost.params),
        ("target_macs", config.target_macs, lambda cost: cost.macs),
    )
    return [make_budget(where, share, count) for where, share, count in wanted if share is not None]


def rank_within_groups(graph: ChannelGraph, importance: Float64Array) -> Float64Array:
    """Return (N,) the rank by importance within the group, in (0, 1). In this order all groups lose equal shares."""
    shares = np.empty(graph.size)
    for group in graph.groups:
        shares[group.ids[np.argsort(importance[group.ids], kind="stable")]] = (np.arange(len(group.ids)) + 0.5) / len(
            group.ids
        )
    return shares


def rank_with_floor(graph: ChannelGraph, importance: Float64Array, config: PlanConfig, floor: float) -> Float64Array:
    """Return (N,) positions in a drop order by importance that limits how much more a group loses than the others.

    When a share r of the candidates is dropped, a group of n channels has lost at most n · (1 − floor · (1 − r)). With
    a floor of 0 the order is that of `importance`, with 1 every group loses the same share. A channel that would break
    the limit is put back until r is large enough; if that holds for all, the one that needs the smallest r is next. Ids
    that may not be dropped come last.

    Raises:
        PlanError: a score is NaN, or `spare` names a layer that is not a convolution.
    """
    candidates, held = _find_candidates(graph, importance, config)
    total = int(candidates.sum())
    ready: list[tuple[float, int, int]] = []
    waiting: list[tuple[float, int, int]] = []
    queues: dict[int, tuple[list[int], int]] = {}

    def push(number: int) -> None:
        ids, size = queues[number]
        if ids:
            after = (
                len(ids) - 1 + int(held[graph.groups[number].ids].sum())
            )  # what the group keeps when this one is dropped
            due = total * (1 - after / (floor * size)) if floor * size > 0 else 0.0
            heapq.heappush(waiting, (due, number, ids[-1]))

    for number, group in enumerate(graph.groups):
        free = group.ids[(candidates & ~held)[group.ids]]
        queues[number] = (free[np.argsort(importance[free], kind="stable")][::-1].tolist(), len(group.ids))
        push(number)
    places = np.full(graph.size, float(graph.size))
    for place in range(int((candidates & ~held).sum())):
        while waiting and waiting[0][0] <= place + 1 + ROUNDING:
            _, number, channel = heapq.heappop(waiting)
            heapq.heappush(ready, (float(importance[channel]), channel, number))
        if ready:
            _, channel, number = heapq.heappop(ready)
        else:
            _, number, channel = heapq.heappop(waiting)
        places[channel] = place
        queues[number][0].pop()
        push(number)
    return places


def _count_for_ratio(config: PlanConfig, candidates: int, free: int) -> int:
    wanted = round(config.least_ratio * candidates)
    if wanted > free:
        raise PlanError(
            f"{config.least_ratio:g} of {candidates} channels cannot be removed: {config.min_channels} stay in every group",
            where="ratio",
            right=f"use at most {math.floor(1000 * free / candidates) / 1000:g}, or a smaller min_channels",
        )
    return wanted


def _find_candidates(graph: ChannelGraph, importance: Float64Array, config: PlanConfig) -> tuple[BoolArray, BoolArray]:
    """Return two (N,) masks: the ids that may be dropped, and those among them that `min_channels` keeps."""
    candidates = np.zeros(graph.size, dtype=bool)
    floor = np.zeros(graph.size, dtype=bool)
    for group in _list_prunable_groups(graph, config):
        if np.isnan(scores := importance[group.ids]).any():
            raise PlanError(
                "the importance of a channel is NaN",
                where=name_group(group),
                right="train again from a sound checkpoint",
            )
        candidates[group.ids] = True
        floor[group.ids[np.argsort(-scores, kind="stable")[: config.min_channels]]] = True
    return candidates, floor


def count_candidates(graph: ChannelGraph, config: PlanConfig) -> int:
    """Return the number of channels of which `config.ratio` is a share: all that may be dropped, before `min_channels`.

    Raises:
        PlanError: `spare` names a layer that is not a convolution.
    """
    return sum(len(group.ids) for group in _list_prunable_groups(graph, config))


def _list_prunable_groups(graph: ChannelGraph, config: PlanConfig) -> list[Group]:
    check_spare(graph.conv_layers, config.spare)
    return [
        group
        for group in graph.groups
        if not (group.frozen or (group.is_tied and not config.shortcuts) or set(group.writers) & set(config.spare))
    ]


def check_spare(convs: Iterable[int], spare: Iterable[int]) -> None:
    """Raise a PlanError if a spared layer is not one of a network's convolutions."""
    if unknown := set(spare) - set(convs):
        right = "name convolutions as cfg show numbers them"
        raise PlanError(f"layer {min(unknown)} is no convolution", where="spare", right=right)


def name_group(group: Group) -> str:
    """Return a group's name for messages: the layers that write it."""
    return f"layer {', '.join(map(str, group.writers))}"


def _split_order(graph: ChannelGraph, order: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Return every group's ids, and those among them that are in the drop order, in that order."""
    member = np.empty(graph.size, dtype=np.int64)
    for number, group in enumerate(graph.groups):
        member[group.ids] = number
    return [(group.ids, order[member[order] == number]) for number, group in enumerate(graph.groups)]


def _round_width(size: int, kept: int, config: PlanConfig) -> int:
    """Return the allowed width of a group of `size` channels that is nearest to `kept`, the larger one of two.

    Allowed are positive multiples of `config.round_to` that are at least `config.min_channels`, and `size` itself.
    """
    multiple = config.multiple
    below = kept // multiple * multiple
    above = min(below + multiple, size)
    least = max(1, math.ceil(config.min_channels / multiple)) * multiple
    return min(size, max(below if kept - below < above - kept else above, least))


def check_plan(graph: ChannelGraph, plan: Plan) -> None:
    """Raise a PlanError if the plan does not fit the graph: wrong size, a frozen channel dropped, or an empty layer."""
    if plan.keep.shape != graph.frozen.shape:
        raise PlanError(
            f"the plan is for {len(plan.keep)} channels, the network has {graph.size}",
            right="make a plan for this network",
        )
    if not plan.keep[graph.frozen].all():
        raise PlanError(
            "the plan drops a channel that a detection head or the image needs", right="keep frozen channels"
        )
    for layer in graph.conv_layers:
        if not plan.keep[graph.writes[layer]].any():
            raise PlanError("the plan leaves no channel", where=f"layer {layer}", right="keep at least one")


def prune_network(network: Network, plan: Plan, graph: ChannelGraph | None = None) -> Network:
    """Return the slimmer network, in which every convolution has the filters that the plan keeps.

    Raises:
        PlanError: the plan does not fit the network.
    """
    graph = graph or make_channel_graph(network)
    check_plan(graph, plan)

    def slim(index: int, layer: Layer) -> Layer:
        if not isinstance(layer, Conv):
            return layer
        filters = int(plan.keep[graph.writes[index]].sum())
        if len(graph.reads[index]) == layer.groups > 1:  # depthwise: one group per input channel
            return replace(layer, filters=filters, groups=int(plan.keep[graph.reads[index]].sum()))
        return replace(layer, filters=filters)

    return change_layers(network, slim)
