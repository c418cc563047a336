"""Silence channels one after another while a network is trained, those first whose silence costs least.

    worth ──► plan: what is to go in the end ──► as much of it as is due by now, the least worth first ──► γ = β = 0

The plan is made anew at every step, because what a channel is worth changes as others go. A channel that is silent stays so and
can be cut out exactly; the silencer of the slimmer network then goes on where this one stood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.darknet.cfg import format_cfg, parse_cfg
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.layers import Network
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import BoolArray, ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.gamma_sparsity import GammaSparsity
from yolo_prune.pruning.plan import FloatArray, Plan, count_candidates, make_cost_budgets, make_plan


@dataclass(frozen=True)
class Removal:
    """The network that a run began with, and which of its N channel ids are left."""

    original: Network
    kept: BoolArray
    """(N,) the ids that have not been cut out."""
    target: BoolArray | None = None
    """(N,) the ids to keep in the end; None where that is chosen as training goes."""
    difference: float = 0.0
    """How far a cut network's outputs were from those of the network with its channels at zero at most, in float64."""

    def after(self, plan: Plan, difference: float) -> Removal:
        """Return the removal once a plan for the present network has been carried out."""
        kept = self.kept.copy()
        kept[np.flatnonzero(kept)[~plan.keep]] = False
        return replace(self, kept=kept, difference=max(difference, self.difference))

    def format_state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint; `parse_removal` takes them back."""
        target = None if self.target is None else torch.from_numpy(self.target.copy())
        kept = torch.from_numpy(self.kept.copy())
        return {"cfg": format_cfg(self.original), "kept": kept, "target": target, "difference": self.difference}


def begin_removal(network: Network, target: Plan | None = None) -> Removal:
    """Return the removal of a run that has not begun, towards a plan for its network if there is one."""
    graph = make_channel_graph(network)
    return Removal(network, np.ones(graph.size, dtype=bool), None if target is None else target.keep)


def parse_removal(state: Mapping[str, Any]) -> Removal:
    """Return what `Removal.format_state` wrote."""
    target = None if state["target"] is None else state["target"].numpy()
    return Removal(parse_cfg(state["cfg"], "last.pt"), state["kept"].numpy(), target, state["difference"])


class GradualZeroing:
    """Silences the channels of a model, in place, on the way to what a `PlanConfig` asks of the original.

    Channels of layers without batch norm, or that are not trained, stay.

    Raises:
        PlanError: the network has no batch normalisation, the floors of the groups leave too few channels, or a target is
            out of reach.
    """

    def __init__(self, model: Detector, removal: Removal, config: PlanConfig, img_size: int) -> None:
        self.removal = removal
        self._graph = make_channel_graph(model.network)
        self._gammas = GammaSparsity(model, self._graph)
        self._config = replace(config, spare=tuple(sorted({*config.spare, *_find_fixed(model)})))
        self._network, self._img_size = model.network, img_size
        original = make_channel_graph(removal.original)
        self._original_cost = measure_cost(removal.original, img_size)
        self._wanted = round(config.least_ratio * count_candidates(original, self._config))
        self._removed = int((~removal.kept).sum())
        self._unit_costs = measure_unit_costs(self._network, self._graph, config, img_size, self._original_cost)
        self._budgets = make_cost_budgets(config, self._network, self._graph, self._original_cost, img_size)

    def make_plan(self, worth: Tensor | None = None) -> Plan:
        """Return what is to be left in the end by what channels are worth now: (N,) `worth`, or else their |γ|.

        Raises:
            PlanError: as of the class.
        """
        return self._plan(self._rank(worth))

    @torch.no_grad()
    def zero_channels_(self, way: float, worth: Tensor | None = None) -> None:
        """Set γ and β of further channels to zero, until `way` (0 … 1) of all that go are gone.

        Args:
            worth: (N,) what each channel is worth; its |γ| unless told otherwise.
        """
        importance = self._rank(worth)
        going = ~self._plan(importance).keep
        due = round(way * (self._removed + int(going.sum()))) - self._removed
        order = np.flatnonzero(going)[np.argsort(importance[going], kind="stable")]
        chosen = torch.zeros(self._graph.size, dtype=torch.bool)
        chosen[torch.from_numpy(order[: max(0, due)])] = True
        self._gammas.clear_(chosen.to(self._gammas.trained.device))

    def find_zeroed(self) -> Plan:
        """Return the plan that cuts out the channels which are silent now.

        With `round_to` every group keeps a multiple, or all of its channels; silent ones stay where that needs them. So the
        next plan, which may want to keep more of a group than this one, begins with whole multiples as well.
        """
        keep = ~self._gammas.find_zeroed().cpu().numpy()
        if (multiple := self._config.multiple) > 1:
            for group in self._graph.groups:
                needed = max(int(keep[group.ids].sum()), self._config.min_channels)
                width = min(len(group.ids), math.ceil(needed / multiple) * multiple)
                silent = group.ids[~keep[group.ids]]
                keep[silent[len(group.ids) - width :]] = True
        return Plan(keep)

    def _rank(self, worth: Tensor | None) -> FloatArray:
        """Return (N,) by which channels go: those that are silent first, then by worth for what their absence saves."""
        gammas = self._gammas.measure()
        values = gammas if worth is None else worth.double().cpu().numpy()
        return np.where(gammas == 0, -1.0, values / self._unit_costs)

    def _plan(self, importance: FloatArray) -> Plan:
        if self.removal.target is not None:
            return Plan(self.removal.target[self.removal.kept])
        ratio = self._config.least_ratio
        if self._removed:
            ratio = max(0, self._wanted - self._removed) / max(1, count_candidates(self._graph, self._config))
        return make_plan(self._graph, importance, replace(self._config, ratio=ratio), self._budgets)


def measure_unit_costs(
    network: Network, graph: ChannelGraph, config: PlanConfig, img_size: int, original: Cost
) -> FloatArray:
    """Return (N,) what dropping each channel alone saves of what `config` has a target for, as a share of the original.

    Without a target in parameters or MACs every channel counts alike. Source: the greedy solution of a knapsack, Dantzig,
    "Discrete-Variable Extremum Problems" (1957).
    """
    costs = np.zeros(graph.size)
    layers = measure_cost(network, img_size).layers
    for index in graph.conv_layers:
        share = layers[index].macs / original.macs if config.target_macs is not None else 0.0
        share += layers[index].params / original.params if config.target_params is not None else 0.0
        for ids in (graph.reads[index], graph.writes[index]):
            np.add.at(costs, ids, share / len(ids))
    return np.where(costs > 0, costs, 1.0)


def _find_fixed(model: Detector) -> list[int]:
    """Return the convolutions whose γ do not exist or are not trained."""
    return [
        index
        for index, module in enumerate(model.layers)
        if isinstance(module, ConvLayer) and (module.bn is None or not module.conv.weight.requires_grad)
    ]
