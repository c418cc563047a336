"""A plan is one bool per channel id: keep it or drop it. Everything else follows from the channel graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from yolo_prune.darknet.layers import Conv, Layer, Network, change_layers
from yolo_prune.errors import PlanError
from yolo_prune.pruning.channels import BoolArray, ChannelGraph, make_channel_graph
from yolo_prune.pruning.settings import PlanConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """Which channel ids of a graph stay: keep is (N,) bool."""

    keep: BoolArray

    def measure_ratio(self, graph: ChannelGraph) -> float:
        """Return the share of all unfrozen channels that the plan drops."""
        return float((~self.keep).sum() / max(1, graph.prunable.sum()))


def make_plan(graph: ChannelGraph, importance: FloatArray, config: PlanConfig) -> Plan:
    """Drop the least important prunable channels until `ratio` of them are gone.

    `importance` is (N,). Ties fall by id, so that equal scores never drop more than was asked, and a larger ratio drops
    a superset of what a smaller one drops (rounding aside).

    Raises:
        PlanError: a score is NaN, or the floors of the groups leave too few channels to drop.
    """
    candidates, floor = _find_candidates(graph, importance, config)
    prunable = int(candidates.sum())
    wanted = round(config.ratio * prunable)
    free = candidates & ~floor
    if wanted > free.sum():
        raise PlanError(
            f"{config.ratio:g} of {prunable} channels cannot go: {config.min_channels} stay in every group",
            where="ratio",
            right=f"use at most {math.floor(1000 * free.sum() / prunable) / 1000:g}, or a smaller min_channels",
        )
    order = np.flatnonzero(free)[np.argsort(importance[free], kind="stable")]
    keep = np.ones(graph.size, dtype=bool)
    keep[order[:wanted]] = False
    if config.round_to > 1:
        _round_up(graph, importance, keep, config.round_to)
    return Plan(keep)


def _find_candidates(graph: ChannelGraph, importance: FloatArray, config: PlanConfig) -> tuple[BoolArray, BoolArray]:
    """Return the ids that may be dropped at all, and among them those that their group's floor holds."""
    candidates = np.zeros(graph.size, dtype=bool)
    floor = np.zeros(graph.size, dtype=bool)
    for group in graph.groups:
        if group.frozen or (group.is_tied and not config.shortcuts):
            continue
        if np.isnan(scores := importance[group.ids]).any():
            layers = ", ".join(map(str, group.writers))
            raise PlanError(
                "the importance of a channel is NaN",
                where=f"layer {layers}",
                right="train again from a sound checkpoint",
            )
        candidates[group.ids] = True
        floor[group.ids[np.argsort(-scores, kind="stable")[: config.min_channels]]] = True
    return candidates, floor


def _round_up(graph: ChannelGraph, importance: FloatArray, keep: BoolArray, multiple: int) -> None:
    for group in graph.groups:
        kept = int(keep[group.ids].sum())
        dropped = group.ids[~keep[group.ids]]
        revive = min(-kept % multiple, len(dropped))
        keep[dropped[np.argsort(-importance[dropped], kind="stable")[:revive]]] = True


def check_plan(graph: ChannelGraph, plan: Plan) -> None:
    """Raise a PlanError where the plan does not fit the graph: wrong size, a frozen channel dropped, an empty layer."""
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
    """Return the slimmer network: every convolution with as many filters as the plan keeps.

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
