"""Zero channels one after another during training, in order of their worth.

    worth ──► plan: all channels to zero by the end ──► the share of them due by now, least worth first ──► γ = β = 0

A new plan is made at every step, because a channel's worth changes when others are zeroed. A zeroed channel stays zero,
and removing it changes no output. After a removal, the `GradualZeroing` of the slimmer network continues where the old
one stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.cfg import format_cfg, parse_cfg
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import BoolArray, ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import Plan, count_candidates, make_cost_budgets, make_plan
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity


@dataclass(frozen=True)
class Removal:
    """The network that a run began with, and which of its N channel ids have not been removed."""

    original: Network
    kept: BoolArray
    """(N,) the ids that have not been removed."""
    target: BoolArray | None = None
    """(N,) the ids to keep in the end; None if they are chosen during training."""
    difference: float = 0.0
    """The largest difference so far between the outputs before and after a removal, in float64."""

    def after(self, plan: Plan, difference: float) -> Removal:
        """Return the removal after a plan for the present network has been applied."""
        kept = self.kept.copy()
        kept[np.flatnonzero(kept)[~plan.keep]] = False
        return replace(self, kept=kept, difference=max(difference, self.difference))

    def format_state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint, which `parse_removal` reads."""
        target = None if self.target is None else torch.from_numpy(self.target.copy())
        kept = torch.from_numpy(self.kept.copy())
        return {"cfg": format_cfg(self.original), "kept": kept, "target": target, "difference": self.difference}


def begin_removal(network: Network, target: Plan | None = None) -> Removal:
    """Return the removal of a run that has not begun; `target` is the plan to reach, if it is chosen already."""
    graph = make_channel_graph(network)
    return Removal(network, np.ones(graph.size, dtype=bool), None if target is None else target.keep)


def parse_removal(state: Mapping[str, Any]) -> Removal:
    """Make a removal from what `Removal.format_state` returned."""
    target = None if state["target"] is None else state["target"].numpy()
    return Removal(parse_cfg(state["cfg"], "last.pt"), state["kept"].numpy(), target, state["difference"])


class GradualZeroing:
    """Zeroes channels of a model, in place, until those are zero that a `PlanConfig` for the original network drops.

    Channels of layers that have no batch norm, or are not trained, are kept.

    Raises:
        PlanError: the network has no batch normalisation, `min_channels` leaves too few channels to drop, or a target
            is out of reach.
    """

    def __init__(self, model: Detector, removal: Removal, config: PlanConfig) -> None:
        self.removal = removal
        self._graph = make_channel_graph(model.network)
        self._gammas = GammaSparsity(model, self._graph)
        self._config = replace(config, spare=tuple(sorted({*config.spare, *_find_fixed(model)})))
        self._network = model.network
        original = make_channel_graph(removal.original)
        self._original_cost = measure_cost(removal.original, model.network.img_size)
        self._wanted = round(config.least_ratio * count_candidates(original, self._config))
        self._removed = int((~removal.kept).sum())
        self._unit_costs = measure_unit_costs(self._network, self._graph, config, self._original_cost)
        self._budgets = make_cost_budgets(config, self._network, self._graph, self._original_cost)

    def make_plan(self, worth: Tensor | None = None) -> Plan:
        """Return the plan to reach in the end, by the channels' present worth: (N,) `worth`, by default their |γ|.

        Raises:
            PlanError: see the class.
        """
        return self._plan(self._rank(worth))

    @torch.no_grad()
    def zero_channels_(self, way: float, worth: Tensor | None = None) -> None:
        """Set γ and β of further channels to zero, until a share of all channels that the run drops is reached.

        Args:
            way: that share, 0 … 1.
            worth: (N,) the worth of each channel; its |γ| by default.
        """
        importance = self._rank(worth)
        dropped = ~self._plan(importance).keep
        due = round(way * (self._removed + int(dropped.sum()))) - self._removed
        order = np.flatnonzero(dropped)[np.argsort(importance[dropped], kind="stable")]
        chosen = torch.zeros(self._graph.size, dtype=torch.bool)
        chosen[torch.from_numpy(order[: max(0, due)])] = True
        self._gammas.clear_(chosen.to(self._gammas.trained.device))

    def find_zeroed(self) -> Plan:
        """Return the plan that removes the channels that are zero now.

        With `round_to`, every group keeps a multiple of it, or all of its channels, some of them zeroed ones if needed.
        So a later plan, which may keep more of a group than this one, starts from a whole multiple as well.
        """
        keep = ~self._gammas.find_zeroed().cpu().numpy()
        if (multiple := self._config.multiple) > 1:
            for group in self._graph.groups:
                needed = max(int(keep[group.ids].sum()), self._config.min_channels)
                width = min(len(group.ids), math.ceil(needed / multiple) * multiple)
                zeroed = group.ids[~keep[group.ids]]
                keep[zeroed[len(group.ids) - width :]] = True
        return Plan(keep)

    def _rank(self, worth: Tensor | None) -> Float64Array:
        """Return (N,) the importance for the drop order: zeroed channels first, then by worth per saved cost."""
        gammas = self._gammas.measure()
        values = gammas if worth is None else worth.double().cpu().numpy()
        return np.where(gammas == 0, -1.0, values / self._unit_costs)

    def _plan(self, importance: Float64Array) -> Plan:
        if self.removal.target is not None:
            return Plan(self.removal.target[self.removal.kept])
        ratio = self._config.least_ratio
        if self._removed:
            ratio = max(0, self._wanted - self._removed) / max(1, count_candidates(self._graph, self._config))
        return make_plan(self._graph, importance, replace(self._config, ratio=ratio), self._budgets)


def measure_unit_costs(network: Network, graph: ChannelGraph, config: PlanConfig, original: Cost) -> Float64Array:
    """Return (N,) the parameters or MACs, whichever `config` has a target for, that dropping each channel alone saves.

    They are shares of the original's; with both targets they are added. Without such a target every channel has cost 1.
    Source: the greedy solution of a knapsack, Dantzig, "Discrete-Variable Extremum Problems" (1957).
    """
    costs = np.zeros(graph.size)
    layers = measure_cost(network).layers
    for index in graph.conv_layers:
        share = layers[index].macs / original.macs if config.target_macs is not None else 0.0
        share += layers[index].params / original.params if config.target_params is not None else 0.0
        for ids in (graph.reads[index], graph.writes[index]):
            np.add.at(costs, ids, share / len(ids))
    return np.where(costs > 0, costs, 1.0)


def _find_fixed(model: Detector) -> list[int]:
    """Return the convolutions that have no γ or are not trained."""
    return [
        index
        for index, module in enumerate(model.layers)
        if isinstance(module, ConvLayer) and (module.bn is None or not module.conv.weight.requires_grad)
    ]
