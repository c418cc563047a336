"""Measure the latency of networks: with warm-up, synchronised, and interleaved run by run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.console import report
from yolo_prune.contention import count_free_cores
from yolo_prune.engines.make import Engine
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import suppress
from yolo_prune.image_size import ImageSize


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: the 5th, 50th and 95th percentile of the runs."""

    p5: float
    p50: float
    p95: float


Call = Callable[[], object]


@contextmanager
def timing_threads(wanted: int | None) -> Iterator[None]:
    """Compute with `wanted` threads in the block; without it, with as many as other processes leave cores free.

    Threads that share a core with another process wait for each other most of the time, and the times say little.
    """
    before = torch.get_num_threads()
    free = before if wanted is not None or before == 1 else count_free_cores()
    if free < before:
        report(f"other processes use the cores: timing with {free} of {before} threads; --threads {before} uses all")
    torch.set_num_threads(wanted or min(free, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure_latencies(calls: Sequence[Call], *, runs: int, warmup: int, device: torch.device) -> list[Latency]:
    """Time each call `runs` times, after `warmup` rounds that are not counted. Each round makes all calls in turn."""
    for _ in range(warmup):
        for call in calls:
            call()
    times_ms = np.empty((runs, len(calls)))
    for run in range(runs):
        for column, call in enumerate(calls):
            _synchronise(device)
            started = time.perf_counter()
            call()
            _synchronise(device)
            times_ms[run, column] = 1e3 * (time.perf_counter() - started)
    return [Latency(*map(float, np.percentile(column, (5, 50, 95)))) for column in times_ms.T]


def draw_inputs(size: ImageSize, channels: int = 3, batch_size: int = 1) -> Tensor:
    """Return random images (B, C, H, W) in 0 … 1, always the same."""
    shape = (batch_size, channels, size.height, size.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def make_network_call(engine: Engine, images: Tensor) -> Call:
    """Return a call that runs the network and its decoding on images (B, 3, H, W) in 0 … 1."""
    return lambda: engine(images)


@torch.inference_mode()
def make_suppression_call(engine: Engine, images: Tensor, config: DetectConfig) -> Call:
    """Return a call that runs NMS on the network's outputs for `images`, without the network itself."""
    boxes, scores = engine(images)
    return lambda: suppress(boxes, scores, config)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_environment(device: torch.device, engine: str, precision: str = "fp32") -> dict[str, Any]:
    """Return the conditions of the measurement."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _read_cpu_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "engine": engine,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _read_cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
