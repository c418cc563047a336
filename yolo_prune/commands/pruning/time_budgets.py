"""Targets in time: plans are made by a table of latencies, and what they make is timed, interleaved with the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from yolo_prune.benchmarking.latency import Call, measure_latencies
from yolo_prune.benchmarking.latency_table import LatencyTable, measure_table
from yolo_prune.commands.timed_calls import make_timed_call
from yolo_prune.darknet.layers import Conv, Layer
from yolo_prune.darknet.network import Network, change_layers
from yolo_prune.errors import CfgError, PlanError
from yolo_prune.export.writers import ENGINE_SUFFIXES
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.budget import Budget
from yolo_prune.pruning.plans.plan import Plan, prune_network
from yolo_prune.pruning.surgery.rebuild import rebuild

RUNS, WARMUP, BLOCKS = 7, 3, 3
"""A time is the median of the medians of blocks of interleaved runs."""
SPREAD = 0.25
"""Times are no measure where the medians of blocks differ by more than this share."""
TRIALS = 3
"""Measurements before times are called no measure."""
ATTEMPTS = 5
"""Plans that are made and timed before a target is called missed."""
CLOSE = 0.92
"""A plan that takes at least this share of the time that is allowed removes no more than it must."""
SHARES, LEAST = (0.06, 0.3, 0.6), 2
"""The thinner networks that are timed to set the table keep such shares of every layer's channels, and at least so many. Most widths are no
powers of two, as in pruned networks: some engines are slower with these, which the times of layers alone do not tell."""


@dataclass
class Stopwatch:
    """Times networks with decoding, one image at a time, in an engine, interleaved with the same original."""

    original: Detector
    device: torch.device
    engine: str = "folded"

    def measure(self, *models: Detector) -> tuple[float, ...]:
        """Return the median milliseconds of the original and of each model, measured in alternating runs.

        Raises:
            PlanError: the times spread so far that they are no measure.
        """
        calls = [self._original_call, *(make_timed_call(model, self.engine, self.device) for model in models)]
        settles = self.engine in ENGINE_SUFFIXES
        for _ in range(TRIALS):
            rounds = [
                measure_latencies(calls, runs=RUNS, warmup=WARMUP, device=self.device, settles=settles)
                for _ in range(BLOCKS)
            ]
            blocks = np.array([[time.p50 for time in times] for times in rounds])
            middle = np.median(blocks, 0)
            if (np.ptp(blocks, 0) <= SPREAD * middle).all():
                return tuple(map(float, middle))
        low, high = blocks.min(0), blocks.max(0)
        ranges = [f"from {first:.2f} to {last:.2f} ms" for first, last in zip(low, high, strict=True)]
        what = (
            f"times are no measure here: medians of {RUNS} runs go {ranges[0]} for the original, and {', '.join(ranges[1:])} "
            "for pruned networks"
        )
        raise PlanError(what, where="engine", right="stop other processes, or set a target in MACs")

    def glance(self) -> float:
        """Return the milliseconds of the original, the median of a few runs."""
        (time,) = measure_latencies([self._original_call], runs=RUNS, warmup=WARMUP, device=self.device)
        return time.p50

    @cached_property
    def _original_call(self) -> Call:
        return make_timed_call(self.original, self.engine, self.device)


@dataclass
class TimeTargets:
    """The targets in time of a plan, and what they are measured with."""

    config: PlanConfig
    model: Detector
    """What is pruned."""
    stopwatch: Stopwatch
    table: LatencyTable = field(init=False)
    before_ms: float = field(init=False)

    def __post_init__(self) -> None:
        """Set up the table by timing the original and thinner networks of the same layers.

        Raises:
            PlanError: the original is already as fast, or times are no measure here.
            ConfigError: layers cannot be timed in the engine.
        """
        watch = self.stopwatch
        if self.config.target_latency_ms is not None:
            # where the target is far above the original's time, no table is needed to say so
            self._check_limit(watch.glance(), self.config.target_latency_ms / 2)
        self.table = measure_table(watch.original.network, watch.engine, watch.device)
        thinner = [make_thin(self.model.network, share, self.config.multiple) for share in SHARES]
        self.before_ms, *times_ms = watch.measure(*(Detector(network).eval() for network in thinner))
        for network, time_ms in zip(thinner, times_ms, strict=True):
            self.table.correct(network, time_ms)
        self.table.correct(watch.original.network, self.before_ms)
        if self.config.target_latency_ms is not None:
            self._check_limit(self.before_ms, self.config.target_latency_ms)

    def _check_limit(self, before_ms: float, limit_ms: float) -> None:
        if before_ms <= limit_ms:
            wanted = self.config.target_latency_ms
            what = f"{wanted:g} ms is above the original's cost, which is {before_ms:.2f} ms here"
            raise PlanError(what, where="target_latency_ms", right="use less")

    def settle(self, make: Callable[[Sequence[Budget[Plan]]], Plan]) -> tuple[Plan, tuple[float, float]]:
        """Return a plan that meets the targets on the clock, and the milliseconds before and after.

        What a plan makes is timed, the table corrected by it, and another plan made, until one meets the targets and removes little
        more than it must.

        Args:
            make: makes a plan from budgets.

        Raises:
            PlanError: no plan meets the targets, or times are no measure here.
        """
        best: tuple[Plan, tuple[float, float]] | None = None
        last: Plan | None = None
        best_used, margin = 0.0, 1.0
        for _ in range(ATTEMPTS):
            try:
                plan = make(self.make_budgets(margin))
            except PlanError:
                if best is None:
                    raise
                break
            before, after = self.stopwatch.measure(rebuild(self.model, plan))
            used = measure_used_share(self.config, before, after)
            if best_used < used <= 1:
                best, best_used = (plan, (before, after)), used
            if CLOSE <= used <= 1 or plan.keep.all() or (last is not None and np.array_equal(plan.keep, last.keep)):
                break
            last = plan
            if used > 1:
                margin *= 0.97
            # as a share of the original's time beside it, which drifts with the machine
            self.table.correct(prune_network(self.model.network, plan), self.before_ms * after / before)
        if best is None:
            what = f"the plan that should meet it takes {after:.2f} ms, and the original {before:.2f} ms"
            raise PlanError(what, where=name_target(self.config), right="ask for less, or stop other processes")
        return best

    def make_budgets(self, margin: float = 1.0) -> list[Budget[Plan]]:
        """Return the budgets for plans by the table; `margin` is the share of what is allowed that is used."""
        network = self.model.network
        budgets: list[Budget[Plan]] = []

        def estimate(plan: Plan) -> float:
            return self.table.estimate(prune_network(network, plan))

        if (limit := self.config.target_latency_ms) is not None:
            budgets.append(
                Budget(
                    where="target_latency_ms",
                    limit=limit * margin,
                    measure=estimate,
                    say=lambda cost: f"{cost:.4g} ms",
                    nearest=lambda cost: f"at least {math.ceil(1e3 * cost) / 1e3:.3f}",
                )
            )
        if (speedup := self.config.target_speedup) is not None:
            budgets.append(
                Budget(
                    where="target_speedup",
                    limit=margin / speedup,
                    measure=lambda plan: estimate(plan) / self.before_ms,
                    say=lambda cost: f"{1 / cost:.3g} times the original's speed",
                    nearest=lambda cost: f"at most {math.floor(100 / cost) / 100:.2f}",
                )
            )
        return budgets


def measure_used_share(config: PlanConfig, before_ms: float, after_ms: float) -> float:
    """Return the largest share of what a target in time allows that is used; above 1 one is missed."""
    shares = []
    if config.target_latency_ms is not None:
        shares.append(after_ms / config.target_latency_ms)
    if config.target_speedup is not None:
        shares.append(after_ms / before_ms * config.target_speedup)
    return max(shares)


def name_target(config: PlanConfig) -> str:
    """Return the setting that a target in time comes from."""
    return "target_latency_ms" if config.target_latency_ms is not None else "target_speedup"


def make_thin(network: Network, share: float, multiple: int) -> Network:
    """Return a network of the same layers with a share of the channels, or the same one where grouped convolutions do not allow it.

    Widths are multiples of `multiple`, but for those below it.
    """
    heads = network.head_convs

    def change(index: int, layer: Layer) -> Layer:
        if not isinstance(layer, Conv) or index in heads:
            return layer
        wanted = share * layer.filters
        filters = round(wanted / multiple) * multiple if wanted >= multiple else round(wanted)
        filters = min(layer.filters, max(LEAST, filters))
        return replace(layer, filters=filters, groups=filters if layer.groups == layer.filters else layer.groups)

    try:
        return change_layers(network, change)
    except CfgError:
        return network
