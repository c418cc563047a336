"""What the device can do at most, measured in the same run, and what that makes of a network's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from yolo_prune.darknet.cost import BYTES_PER_WEIGHT, measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.engines.precision import DTYPES, computing_in

MATRIX, TINY_MATRIX = 8192, 512
COPY_BYTES, TINY_COPY_BYTES = 1 << 30, 1 << 24
LAUNCHES = 1000
RUNS = 10
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Times:
    """Times of calls in milliseconds: by the wall clock, and by the device's own (CUDA events)."""

    wall_ms: list[float]
    device_ms: list[float]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return median, 5th and 95th percentile of each."""
        return {name: summarise(values) for name, values in (("wall_ms", self.wall_ms), ("device_ms", self.device_ms))}


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Return median, 5th and 95th percentile."""
    p5, p50, p95 = np.percentile(values, (5, 50, 95))
    return {"p50": float(p50), "p5": float(p5), "p95": float(p95)}


def time_calls(calls: Sequence[Callable[[], object]], runs: int, warmup: int, device: torch.device) -> list[Times]:
    """Time calls in turn, run after run; on the CPU the device's clock is the wall clock."""
    for _ in range(warmup):
        for call in calls:
            call()
    found = [Times([], []) for _ in calls]
    for _ in range(runs):
        for call, times in zip(calls, found, strict=True):
            wall, own = time_call(call, device)
            times.wall_ms.append(wall)
            times.device_ms.append(own)
    return found


def time_call(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return milliseconds of one call by the wall clock and by the device's."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        wall = 1e3 * (time.perf_counter() - started)
        return wall, wall
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - started), float(begin.elapsed_time(end))


def measure_ceilings(device: torch.device, is_tiny: bool) -> dict[str, Any]:
    """Return floating-point operations per second by precision, bytes per second of a copy, and seconds of a launch."""
    side, size = (TINY_MATRIX, TINY_COPY_BYTES) if is_tiny else (MATRIX, COPY_BYTES)
    flops = {}
    for precision in PRECISIONS if device.type == "cuda" else ("fp32", "bf16"):
        matrix = torch.randn(side, side, device=device).to(DTYPES[precision])
        with computing_in(precision):
            times = time_calls([lambda matrix=matrix: matrix @ matrix], RUNS, 3, device)[0]  # type: ignore[misc]
        flops[precision] = 2 * side**3 / (np.median(times.device_ms) / 1e3)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = time_calls([lambda: target.copy_(source)], RUNS, 3, device)[0]
    one = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    launched = time_calls([launch], 3, 1, device)[0]
    return {
        "flops_per_s": {name: float(value) for name, value in flops.items()},
        "bytes_per_s": float(2 * size / (np.median(copied.device_ms) / 1e3)),
        "launch_s": float(np.median(launched.wall_ms) / 1e3 / LAUNCHES),
    }


def judge(
    network: Network, img_size: int, batch: int, precision: str, kernels: int, seconds: float, ceilings: dict[str, Any]
) -> dict[str, Any]:
    """Say what bounds a network's time: the least that its arithmetic, its memory traffic and its launches can take.

    The traffic is every weight once, and every layer's output written once and read once.

    Args:
        kernels: launches of one pass.
        seconds: of one pass.
    """
    cost = measure_cost(network, img_size)
    width = torch.tensor([], dtype=DTYPES[precision]).element_size()
    values = sum(prod(layer.shape) for layer in cost.layers)
    traffic = cost.size_bytes / BYTES_PER_WEIGHT * width + 2 * values * width * batch
    floors = {
        "compute": 2 * cost.macs * batch / ceilings["flops_per_s"][precision],
        "memory": traffic / ceilings["bytes_per_s"],
        "launch": kernels * ceilings["launch_s"],
    }
    bound = max(floors, key=floors.__getitem__)
    floor = max(floors["compute"], floors["memory"])
    return {
        "macs_per_s": cost.macs * batch / seconds,
        "floors_ms": {name: 1e3 * value for name, value in floors.items()},
        "verdict": f"{bound}-bound",
        "times_the_floor": seconds / floor,
    }
