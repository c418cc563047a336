"""One step of `iterate`: prune a few channels, or zero a few weights, of a finetuned network, and its moments too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveInt

from yolo_prune.arrays import Float64Array
from yolo_prune.commands.plan import score
from yolo_prune.commands.prune import verify
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.pruning.time_budgets import Stopwatch, TimeTargets
from yolo_prune.config import format_config
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.errors import CheckpointError, PlanError
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import PlanConfig, WeightConfig
from yolo_prune.pruning.plans.plan import Plan, make_cost_budgets, make_plan, rank_within_groups
from yolo_prune.pruning.plans.weight_plan import count_nonzeros, find_prunable_layers, make_weight_plan
from yolo_prune.pruning.scores.importance import score_by_squares
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import mask, rebuild, zero_weights
from yolo_prune.records import parse_record
from yolo_prune.training.optimizer import MEAN_SQUARE, Moments, get_moments, name_parameters, slice_moments
from yolo_prune.training.saved_state import check_moments, check_numbers, read_moments, read_saved_state


@dataclass(frozen=True)
class Limits:
    """The limit of a step, relative to the network that the run started from."""

    original: Network
    cost: Cost
    """The original's cost."""
    ratio: float
    """The share of the original's prunable channels that are pruned after the step."""


@dataclass(frozen=True)
class Cut:
    """The result of pruning in a step."""

    ratio: Annotated[float, Field(ge=0, le=1)]
    params: PositiveInt
    macs: PositiveInt
    meets_target: bool
    """Whether a target in parameters, MACs or milliseconds is met."""


def load_cut(path: Path) -> Cut:
    """Return what `cut` or `cut_weights` left in a pruned network.

    Raises:
        CheckpointError: it is not there; names the key.
    """
    metrics = load_checkpoint(path).provenance.get("metrics")
    return parse_record(Cut, metrics, f"{path}: metrics", CheckpointError, "delete it and resume")


def cut(previous: Path, out: Path, config: IterateConfig, limits: Limits, spec: DataSpec, device: torch.device) -> Cut:
    """Prune the network of a checkpoint to the limits, and write it to `out` with the moments of what is left.

    The weights pruned are those of the last step, not the averaged ones of a last.pt: the moments belong to them.

    Raises:
        PlanError: the groups' lower limits leave too few channels to prune, or a target is out of reach.
    """
    checkpoint = load_checkpoint(previous)
    model = checkpoint.make_last_step_model().eval()
    moments = load_moments(checkpoint, previous)
    graph = make_channel_graph(model.network)
    importance = _score(model, graph, moments, config, spec, device)
    plan, meets_target = _plan(model, graph, importance, config, limits, device)
    verify(mask(model, plan), rebuild(model, plan), previous)
    slim = rebuild(model, plan, carry_constants(model, plan))
    ratio = 1 - int(make_channel_graph(slim.network).prunable.sum()) / _count_prunable(limits.original)
    cost = measure_cost(slim.network)
    made = Cut(ratio, cost.params, cost.macs, meets_target)
    details = {"data": checkpoint.provenance.get("data"), "metrics": asdict(made)}
    provenance = make_provenance("iterate", format_config(config), previous, **details)
    training = {"moments": slice_moments(model.network, plan, moments)}
    left = Checkpoint(slim.network, slim.state_dict(), checkpoint.names, provenance, training)
    save_checkpoint(out, left)
    return made


def load_moments(checkpoint: Checkpoint, path: Path) -> Moments:
    """Return the optimizer's moments from a last.pt or a pruned network at `path`, or an empty dictionary.

    Raises:
        CheckpointError: they do not fit the network; names the tensor.
    """
    model = checkpoint.make_last_step_model()
    if "optimizer" in checkpoint.training:
        optimizer = read_saved_state(checkpoint.training, path)["optimizer"]
        check_numbers(optimizer["state"], len(name_parameters(model)), path)
        moments = get_moments(optimizer, model)
    else:
        moments = read_moments(checkpoint.training, path)
    check_moments(moments, model, path)
    return moments


def _score(
    model: Detector,
    graph: ChannelGraph,
    moments: Moments,
    config: IterateConfig,
    spec: DataSpec,
    device: torch.device,
) -> Float64Array:
    if config.criterion == "taylor" and moments.get(MEAN_SQUARE):
        scores = score_by_squares(model, graph, config, moments[MEAN_SQUARE])
    else:
        scores = score(model, graph, config, spec, device)
    return rank_within_groups(graph, scores) if config.scope == "layer" else scores


def _plan(
    model: Detector,
    graph: ChannelGraph,
    importance: Float64Array,
    config: IterateConfig,
    limits: Limits,
    device: torch.device,
) -> tuple[Plan, bool]:
    """Return the plan for the step's ratio, or for the target if that prunes less, and whether the target is met."""
    kept, present = round((1 - limits.ratio) * _count_prunable(limits.original)), int(graph.prunable.sum())
    floors = PlanConfig(ratio=0.0, min_channels=config.min_channels, spare=config.spare)
    step = make_plan(graph, importance, replace(floors, ratio=max(0.0, 1 - kept / present)))
    wanted = replace(
        floors,
        target_params=config.target_params,
        target_macs=config.target_macs,
        target_latency_ms=config.target_latency_ms,
    )
    budgets = make_cost_budgets(wanted, model.network, graph, limits.cost)
    if config.target_latency_ms is not None:
        targets = TimeTargets(wanted, model, Stopwatch(model, device, config.engine))
        target, _ = targets.settle(lambda times: make_plan(graph, importance, wanted, [*budgets, *times]))
    elif budgets:
        target = make_plan(graph, importance, wanted, budgets)
    else:
        return step, False
    is_nearer = int(np.count_nonzero(~target.keep)) <= int(np.count_nonzero(~step.keep))
    return (target, True) if is_nearer else (step, False)


def _count_prunable(network: Network) -> int:
    return int(make_channel_graph(network).prunable.sum())


def cut_weights(previous: Path, out: Path, config: IterateConfig, limits: Limits) -> Cut:
    """Zero weights of a checkpoint up to the limits, and write it to `out` with all moments.

    The weights zeroed are those of the last step, not the averaged ones of a last.pt: the moments belong to them.

    Raises:
        PlanError: a weight is NaN or infinite, or the target is out of reach.
    """
    checkpoint = load_checkpoint(previous)
    model = checkpoint.make_last_step_model().eval()
    wanted = replace(config.weights, ratio=limits.ratio)
    needed = _find_needed_ratio(model, wanted, config, limits)
    meets_target = needed is not None and needed <= limits.ratio
    plan = make_weight_plan(model, replace(wanted, ratio=needed) if meets_target and needed is not None else wanted)
    pruned = zero_weights(model, plan)
    nonzeros = count_nonzeros(pruned)
    made = Cut(plan.ratio, nonzeros.params, nonzeros.macs, meets_target)
    details = {"data": checkpoint.provenance.get("data"), "metrics": asdict(made), KEEPS_ZEROS: True}
    provenance = make_provenance("iterate", format_config(config), previous, **details)
    training = {"moments": {kind: dict(tensors) for kind, tensors in load_moments(checkpoint, previous).items()}}
    left = Checkpoint(pruned.network, pruned.state_dict(), checkpoint.names, provenance, training)
    save_checkpoint(out, left)
    return made


def _find_needed_ratio(model: Detector, wanted: WeightConfig, config: IterateConfig, limits: Limits) -> float | None:
    """Return the share of the prunable weights that must be zero for `target_params`; None without that target."""
    if config.target_params is None:
        return None
    prunable = 0
    for layer in find_prunable_layers(model.network, wanted):
        module = model.get_conv(layer)
        prunable += module.conv.weight.numel()
    needed = (1 - config.target_params) * limits.cost.params / prunable
    if needed >= 1:
        nearest = 1 - prunable / limits.cost.params
        right = f"use more than {nearest:.4f}, the share of what is not pruned"
        raise PlanError(f"{config.target_params:g} is out of reach", where="target_params", right=right)
    return needed
