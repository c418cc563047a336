"""From a checkpoint and settings to a plan: which blocks and channels are pruned, and what that saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yolo_prune.arrays import Float64Array
from yolo_prune.commands.config import PruneConfig
from yolo_prune.commands.data import find_data_of, load_data_of
from yolo_prune.commands.pruning.calibration import EXAMPLE_BATCH, iterate_examples, iterate_images, pick_samples
from yolo_prune.commands.pruning.time_budgets import Stopwatch, TimeTargets
from yolo_prune.console import report, warn
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.errors import PlanError
from yolo_prune.files import measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.device import make_device
from yolo_prune.pruning.blocks import Block, find_blocks, number_kept_layers
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import AUTO, ON_IMAGES, ScoreConfig
from yolo_prune.pruning.plans.plan import (
    Plan,
    check_spare,
    choose_multiple,
    make_cost_budgets,
    make_plan,
    prune_network,
    rank_with_floor,
    rank_within_groups,
)
from yolo_prune.pruning.plans.plan_file import BlockPlan, load_plan, measure_network_sha256
from yolo_prune.pruning.scores.auto import choose_criterion
from yolo_prune.pruning.scores.importance import check_finite, score_blocks, score_channels
from yolo_prune.pruning.scores.sensitivity import Sensitivity, load_sensitivity, rank_by_damage
from yolo_prune.pruning.sparsity.gamma_sparsity import GAMMA_THRESHOLD
from yolo_prune.pruning.surgery.rebuild import cut_blocks
from yolo_prune.records import load_plain_json
from yolo_prune.text_tables import format_count

CHECKPOINT_SHA256 = "checkpoint_sha256"
"""The key of a plan.json that says which checkpoint it was made for."""


@dataclass(frozen=True)
class Planned:
    """A checkpoint's model, the model without the dropped blocks, the plan for that, and the costs before and after."""

    checkpoint: Checkpoint
    model: Detector
    short: Detector
    made: BlockPlan
    slim: Network
    before: Cost
    after: Cost
    latency_ms: tuple[float, float] | None
    """Latency of the original and of the slim network; None without a target in time."""
    spec: DataSpec | None
    """The data set; None if no images are needed."""

    @property
    def prune_ratio(self) -> float:
        """The share of the prunable channels of `short` that are pruned."""
        return self.made.plan.measure_ratio(make_channel_graph(self.short.network))

    def describe_left(self) -> str:
        """Say in words what is left, and the changes."""
        before, after = self.before, self.after
        params, macs = after.params / before.params - 1, after.macs / before.macs - 1
        return (
            f"{format_count(after.params)} params ({params:+.1%}), {format_count(after.macs)} MACs ({macs:+.1%}) left"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the costs before and after under the names that JSON output uses."""
        before, after = self.before.as_dict(), self.after.as_dict()
        if self.latency_ms is not None:
            before, after = (
                {**cost, "latency_ms": time} for cost, time in zip((before, after), self.latency_ms, strict=True)
            )
        return {
            **self.after.as_dict(),
            "prune_ratio": self.prune_ratio,
            "dropped_blocks": [block.shortcut for block in self.made.blocks],
            "before": before,
            "after": after,
        }


def make_planned(source: Path, config: PruneConfig) -> Planned:
    """Plan what to prune from a checkpoint.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid, or a budget cannot be met.
    """
    checkpoint = load_checkpoint(source)
    spec: DataSpec | None = None
    if ways := config.ways_without_data:
        spec = load_data_of(config.data, checkpoint.provenance, " and ".join(ways))
    elif config.criterion == AUTO and config.plan is None:
        spec = find_data_of(config.data, checkpoint.provenance)
    model = checkpoint.make_model().eval()
    check_finite(model)
    subject = _Subject(source, model, spec, make_device(config.device))
    latency_ms: tuple[float, float] | None = None
    if config.plan is not None:
        made = load_plan(config.plan, model.network)
        _check_checkpoint(
            config.plan, load_plain_json(config.plan, PlanError, "").get(CHECKPOINT_SHA256), source, config
        )
        short = cut_blocks(model, made.blocks)
    else:
        check_spare((index for index, _ in model.network.convs), config.spare)
        blocks = _choose_blocks(subject, config)
        short = cut_blocks(model, blocks)
        numbers = number_kept_layers(model.network, blocks)
        renumbered = replace(config, spare=tuple(numbers[layer] for layer in config.spare))
        plan, latency_ms = _plan_channels(subject, short, renumbered)
        made = BlockPlan(blocks, plan)
    slim = prune_network(short.network, made.plan)
    return Planned(
        checkpoint=checkpoint,
        model=model,
        short=short,
        made=made,
        before=measure_cost(model.network),
        after=measure_cost(slim),
        slim=slim,
        latency_ms=latency_ms,
        spec=spec,
    )


def choose_blocks_of(source: Path, config: PruneConfig) -> tuple[Block, ...]:
    """Return the residual blocks of a checkpoint's network that `drop_blocks` removes.

    Raises:
        PlanError: the network has fewer blocks.
    """
    if not config.drop_blocks:
        return ()
    checkpoint = load_checkpoint(source)
    spec = load_data_of(config.data, checkpoint.provenance, "--drop-blocks 0")
    model = checkpoint.make_model().eval()
    return _choose_blocks(_Subject(source, model, spec, make_device(config.device)), config)


@dataclass(frozen=True)
class _Subject:
    """The model as loaded, and what is needed to measure it."""

    source: Path
    model: Detector
    spec: DataSpec | None
    device: torch.device


def _choose_blocks(subject: _Subject, config: PruneConfig) -> tuple[Block, ...]:
    """Return the `drop_blocks` residual blocks that contribute least, among those without spared layers."""
    if not (count := config.drop_blocks):
        return ()
    blocks = [block for block in find_blocks(subject.model.network) if not set(block.layers) & set(config.spare)]
    if count > len(blocks):
        raise PlanError(
            f"{count} blocks cannot be cut: the network has {len(blocks)} that can be cut",
            where="drop_blocks",
            right=f"use at most {len(blocks)}",
        )
    assert subject.spec is not None
    data = pick_samples(subject.spec, "train", config.images, subject.model.network.img_size)
    with _placed(subject.model, subject.device) as model:
        scores = score_blocks(model, blocks, iterate_images(data, subject.device))
    ranked = sorted(zip(scores, blocks, strict=True), key=lambda pair: pair[0])
    for score, block in ranked:
        decision = "is cut" if (score, block) in ranked[:count] else "stays"
        report(f"block {block.layers[0]}–{block.shortcut} contributes {score:.3f} of its sum and {decision}")
    return tuple(sorted((block for _, block in ranked[:count]), key=lambda block: block.shortcut))


def _plan_channels(subject: _Subject, short: Detector, config: PruneConfig) -> tuple[Plan, tuple[float, float] | None]:
    """Return the plan, and the milliseconds before and after if a target is a time."""
    graph = make_channel_graph(short.network)
    original = measure_cost(subject.model.network)
    costs = make_cost_budgets(config, short.network, graph, original)
    targets = None
    if config.is_timed:
        targets = TimeTargets(config, short, Stopwatch(subject.model, subject.device, config.engine))
    budgets = costs if targets is None else [*costs, *targets.make_budgets()]
    table, scores = None, None
    if config.from_sensitivity is not None:
        table = _load_table(config.from_sensitivity, short.network, config)
        recipe = load_plain_json(config.from_sensitivity, PlanError, "").get("recipe")
        sha256 = recipe.get("sha256") if isinstance(recipe, dict) else None  # a table by hand need not say it
        _check_checkpoint(config.from_sensitivity, sha256, subject.source, config)
        config = replace(config, criterion=table.criterion)
    elif config.criterion == AUTO:
        choice = choose_criterion(short, graph, config, budgets, subject.spec is not None)
        report(f"criterion auto takes {choice.criterion}: {choice.why}")
        normalize = choice.normalize if config.normalize == "none" else config.normalize
        config, scores = replace(config, criterion=choice.criterion, normalize=normalize), choice.scores
        if choice.criterion != "bn-gamma":
            config = fill_round_to(config, graph)
    if scores is None:
        scores = score(short, graph, config, subject.spec, subject.device)
    importance = scores if table is None else rank_by_damage(graph, scores, table)
    if config.scope != "global":
        importance = _spread(graph, scores, config)
    latency_ms = None
    if targets is None:
        plan = make_plan(graph, importance, config, costs)
    else:
        plan, latency_ms = targets.settle(lambda times: make_plan(graph, importance, config, [*costs, *times]))
    if config.criterion == "bn-gamma" and config.normalize == "none":
        _warn_of_active_channels(graph, scores, plan)
    return plan, latency_ms


def fill_round_to(config: PruneConfig, graph: ChannelGraph) -> PruneConfig:
    """Return the settings with `round_to`, if it is not set, as the multiple that is fast for this network."""
    if config.round_to is not None or config.plan is not None:
        return config
    multiple = choose_multiple(graph)
    if multiple > 1:
        report(f"widths are multiples of {multiple}, which are faster; --round-to 1 takes any")
    return replace(config, round_to=multiple)


def _spread(graph: ChannelGraph, scores: Float64Array, config: PruneConfig) -> Float64Array:
    """Return (N,) values to rank channels by, so that pruning is spread over the groups as `config.scope` says."""
    if config.scope == "layer":
        return rank_within_groups(graph, scores)
    return rank_with_floor(graph, scores, config, config.floor)


def _warn_of_active_channels(graph: ChannelGraph, gammas: Float64Array, plan: Plan) -> None:
    """Warn of pruned channels whose γ the γ sparsity training has not brought near zero: removing them costs mAP."""
    active, dropped = gammas > GAMMA_THRESHOLD, ~plan.keep
    if count := int((active & dropped).sum()):
        near_zero = float((~active & graph.prunable).sum() / graph.prunable.sum())
        warn(
            f"{count} of the {int(dropped.sum())} channels to prune have a γ above {GAMMA_THRESHOLD}: removing them "
            f"costs mAP; {near_zero:.0%} of the prunable channels are near zero: prune no more than these, train "
            "longer with γ sparsity, or plan to finetune"
        )


def score(
    model: Detector,
    graph: ChannelGraph,
    config: ScoreConfig,
    spec: DataSpec | None,
    device: torch.device,
) -> Float64Array:
    """Score every channel, (N,). Use training images of `spec` if the criterion needs images.

    Raises:
        PlanError, DatasetError: a weight is NaN or infinite, or needed images are missing or cannot be read.
    """
    if config.criterion not in ON_IMAGES or spec is None:
        return score_channels(model, graph, config)
    data = pick_samples(spec, "train", config.score_batches * EXAMPLE_BATCH, model.network.img_size)
    with _placed(model, device):
        return score_channels(model, graph, config, iterate_examples(data, device))


@contextmanager
def _placed(model: Detector, device: torch.device) -> Iterator[Detector]:
    """Move the model to a device for a while, then back to the CPU."""
    try:
        yield model.to(device)
    finally:
        model.cpu()


def _check_checkpoint(path: Path, sha256: object, source: Path, config: PruneConfig) -> None:
    """Check that a file was made for the checkpoint `source`, if it says for which; another's scores mean nothing here.

    Raises:
        PlanError: it was made for another one, and `config.force` is not set.
    """
    if sha256 is not None and not config.force and sha256 != measure_sha256(source):
        right = "make one for this checkpoint, or use it all the same with --force"
        raise PlanError(f"was made for another checkpoint than {source}", where=path, right=right)


def _load_table(path: Path, network: Network, config: ScoreConfig) -> Sensitivity:
    table = load_sensitivity(path)
    if table.network != measure_network_sha256(network):
        right = "measure this one with yoloprune sensitivity"
        raise PlanError("was measured on another network", where=path, right=right)
    for name in ("criterion", "group_reduce"):
        if name == "criterion" and config.criterion == AUTO:
            continue
        if (theirs := getattr(table, name)) != getattr(config, name):
            raise PlanError(f"was measured by {name} {theirs}", where=path, right=f"use {name} {theirs} here as well")
    return table


def format_layers(planned: Planned) -> str:
    """Return a table of the convolutions before → after, and the totals."""
    lines = [f"{'layer':>5}  {'filters':>13}  {'params':>23}  {'MACs':>25}"]
    kept = number_kept_layers(planned.model.network, planned.made.blocks)
    for index, old in planned.model.network.convs:
        new = planned.slim.layers[kept[index]] if index in kept else None
        old_cost = planned.before.layers[index]
        new_cost = planned.after.layers[kept[index]] if index in kept else None
        lines.append(
            f"{index:>5}  {old.filters:>5} → {new.filters if isinstance(new, Conv) else 'cut':>5}  "
            f"{old_cost.params:>10,} → {new_cost.params if new_cost else 0:>10,}  "
            f"{old_cost.macs / 1e6:>9,.2f}M → {(new_cost.macs if new_cost else 0) / 1e6:>9,.2f}M"
        )
    before, after = planned.before, planned.after
    lines.append(
        f"  all  {f'-{planned.prune_ratio:.1%}':>13}  {before.params:>10,} → {after.params:>10,}  "
        f"{before.macs / 1e6:>9,.2f}M → {after.macs / 1e6:>9,.2f}M"
    )
    last = f"params {after.params / before.params - 1:+.1%}, MACs {after.macs / before.macs - 1:+.1%}, size {after.size_bytes / 1e6:.2f} MB"
    if planned.latency_ms is not None:
        one, other = planned.latency_ms
        last += f", {one:.2f} → {other:.2f} ms ({one / other:.2f} times as fast)"
    return "\n".join([*lines, last])
