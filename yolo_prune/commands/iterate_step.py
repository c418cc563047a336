"""One step of `iterate`: score a network as it was finetuned, drop a few channels, and rebuild it, its optimizer's moments too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from yolo_prune.commands.iterate_config import IterateConfig
from yolo_prune.commands.plan import score
from yolo_prune.commands.prune import verify
from yolo_prune.commands.time_budgets import Stopwatch, make_time_budgets
from yolo_prune.config import format_config
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.layers import Network
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.constants import carry_constants
from yolo_prune.pruning.importance import score_by_squares
from yolo_prune.pruning.plan import FloatArray, Plan, make_cost_budgets, make_plan, rank_within_groups
from yolo_prune.pruning.surgery import mask, rebuild
from yolo_prune.training.moments import MEAN_SQUARE, Moments, get_moments, slice_moments


@dataclass(frozen=True)
class Limits:
    """How far a step goes, as shares of the network that all began with."""

    original: Network
    cost: Cost
    """The original's."""
    ratio: float
    """The share of the original's prunable channels that is gone after the step."""


@dataclass(frozen=True)
class Cut:
    """What a step left."""

    ratio: float
    params: int
    macs: int
    meets_target: bool
    """Whether a target in parameters, MACs or milliseconds is met."""


def cut(previous: Path, out: Path, config: IterateConfig, limits: Limits, spec: DataSpec, device: torch.device) -> Cut:
    """Cut the network of a checkpoint down to the limits, and write it to `out` with the moments of what is left.

    Of a last.pt the last step's weights are cut, to which the moments belong.

    Raises:
        PlanError: the floors of the groups leave too few channels to drop, or a target is out of reach.
    """
    checkpoint = load_checkpoint(previous)
    model = checkpoint.make_last_step_model().eval()
    moments = load_moments(checkpoint)
    graph = make_channel_graph(model.network)
    importance = _score(model, graph, moments, config, spec, checkpoint.img_size, device)
    plan, meets_target = _plan(model, graph, importance, config, limits, checkpoint.img_size, device)
    verify(mask(model, plan), rebuild(model, plan), previous)
    slim = rebuild(model, plan, carry_constants(model, plan))
    ratio = 1 - int(make_channel_graph(slim.network).prunable.sum()) / _count_prunable(limits.original)
    cost = measure_cost(slim.network, checkpoint.img_size)
    made = Cut(ratio, cost.params, cost.macs, meets_target)
    facts = {"data": checkpoint.provenance.get("data"), "metrics": asdict(made)}
    provenance = make_provenance("iterate", format_config(config), previous, **facts)
    training = {"moments": slice_moments(model.network, plan, moments)}
    left = Checkpoint(slim.network, slim.state_dict(), checkpoint.names, checkpoint.img_size, provenance, training)
    save_checkpoint(out, left)
    return made


def load_moments(checkpoint: Checkpoint) -> Moments:
    """Return what the optimizer of a checkpoint knew: of a last.pt, of a cut network, or nothing."""
    if "optimizer" in checkpoint.training:
        return get_moments(checkpoint.training["optimizer"], checkpoint.make_last_step_model())
    moments: Moments = checkpoint.training.get("moments", {})
    return moments


def _score(
    model: Detector,
    graph: ChannelGraph,
    moments: Moments,
    config: IterateConfig,
    spec: DataSpec,
    img_size: int,
    device: torch.device,
) -> FloatArray:
    if config.criterion == "taylor" and moments.get(MEAN_SQUARE):
        scores = score_by_squares(model, graph, config, moments[MEAN_SQUARE])
    else:
        scores = score(model, graph, config, spec, img_size, device)
    return rank_within_groups(graph, scores) if config.scope == "layer" else scores


def _plan(
    model: Detector,
    graph: ChannelGraph,
    importance: FloatArray,
    config: IterateConfig,
    limits: Limits,
    img_size: int,
    device: torch.device,
) -> tuple[Plan, bool]:
    """Return the step's plan: to its ratio, or only as far as the target asks where that is less."""
    kept, present = round((1 - limits.ratio) * _count_prunable(limits.original)), int(graph.prunable.sum())
    floors = PlanConfig(ratio=0.0, min_channels=config.min_channels, spare=config.spare)
    step = make_plan(graph, importance, replace(floors, ratio=max(0.0, 1 - kept / present)))
    wanted = replace(
        floors,
        target_params=config.target_params,
        target_macs=config.target_macs,
        target_latency_ms=config.target_latency_ms,
    )
    budgets = make_cost_budgets(wanted, model.network, graph, limits.cost, img_size)
    if config.target_latency_ms is not None:
        budgets += make_time_budgets(wanted, model, Stopwatch(model, img_size, device))
    if not budgets:
        return step, False
    target = make_plan(graph, importance, wanted, budgets)
    is_nearer = int(np.count_nonzero(~target.keep)) <= int(np.count_nonzero(~step.keep))
    return (target, True) if is_nearer else (step, False)


def _count_prunable(network: Network) -> int:
    return int(make_channel_graph(network).prunable.sum())
