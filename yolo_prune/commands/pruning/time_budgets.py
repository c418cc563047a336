"""Targets in time: candidate networks are rebuilt and timed, interleaved with the original run by run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from yolo_prune.benchmarking.latency import Call, draw_inputs, make_network_call, measure_latencies
from yolo_prune.engines.make import make_engine
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.budget import Budget
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.rebuild import rebuild

RUNS = 15
WARMUP = 3
STEPS = 64
"""Number of candidate plans, from the mildest to the most severe, that a search in time chooses from."""


@dataclass
class Stopwatch:
    """Times networks with decoding, at batch size 1 and with batch norm folded, interleaved with the same original."""

    original: Detector
    device: torch.device
    _original_call: Call = field(init=False)

    def __post_init__(self) -> None:
        self._original_call = self._make_call(self.original)

    def measure(self, model: Detector) -> tuple[float, float]:
        """Return the median milliseconds of the original and of `model`, measured in alternating runs."""
        before, after = measure_latencies(
            [self._original_call, self._make_call(model)], runs=RUNS, warmup=WARMUP, device=self.device
        )
        return before.p50, after.p50

    def _make_call(self, model: Detector) -> Call:
        images = draw_inputs(model.network.img_size, model.network.channels).to(self.device)
        return make_network_call(
            make_engine(model, "folded", self.device), images.to(memory_format=torch.channels_last)
        )


def make_time_budgets(config: PlanConfig, model: Detector, stopwatch: Stopwatch) -> list[Budget[Plan]]:
    """Return the budgets that `target_latency_ms` and `target_speedup` set for plans of `model`.

    Raises:
        PlanError: the original is already as fast.
    """
    budgets: list[Budget[Plan]] = []

    def measure(plan: Plan) -> tuple[float, float]:
        return stopwatch.measure(rebuild(model, plan))

    if (limit := config.target_latency_ms) is not None:
        _, already = stopwatch.measure(stopwatch.original)
        if already <= limit:
            raise PlanError(
                f"{limit:g} ms is above the original's cost, which is {already:.2f} ms here",
                where="target_latency_ms",
                right="use less",
            )
        budgets.append(
            Budget(
                where="target_latency_ms",
                limit=limit,
                measure=lambda plan: measure(plan)[1],
                say=lambda cost: f"{cost:.4g} ms",
                nearest=lambda cost: f"at least {math.ceil(1e3 * cost) / 1e3:.3f}",
                steps=STEPS,
            )
        )
    if config.target_speedup is not None:

        def measure_share(plan: Plan) -> float:
            before, after = measure(plan)
            return after / before

        budgets.append(
            Budget(
                where="target_speedup",
                limit=1 / config.target_speedup,
                measure=measure_share,
                say=lambda cost: f"{1 / cost:.3g} times the original's speed",
                nearest=lambda cost: f"at most {math.floor(100 / cost) / 100:.2f}",
                steps=STEPS,
            )
        )
    return budgets
