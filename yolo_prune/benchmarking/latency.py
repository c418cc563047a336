"""Measure the latency of networks: with warm-up, synchronised, and interleaved run by run."""

from __future__ import annotations

import os
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

from yolo_prune.console import warn
from yolo_prune.contention import count_free_cores
from yolo_prune.engines.make import Engine
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import suppress
from yolo_prune.image_size import ImageSize
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.text_tables import pluralize
from yolo_prune.threads import count_cores


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: the 5th, 50th and 95th percentile of the runs."""

    p5: float
    p50: float
    p95: float

    def divide(self, number: int) -> Latency:
        """Return the milliseconds of one of `number` equal parts of a call."""
        return Latency(self.p5 / number, self.p50 / number, self.p95 / number)


Call = Callable[[], object]
SETTLING_S = 0.01
"""After this the threads of engines that wait for work no longer spin."""


@contextmanager
def timing_threads(wanted: int | None) -> Iterator[None]:
    """Compute with `wanted` threads in the block; without it, with as many as other processes leave cores free.

    Threads that share a core with another process wait for each other most of the time, and the times say little.
    """
    before = torch.get_num_threads()
    free = before if wanted is not None or before == 1 else count_free_cores()
    if free < before:
        warn(
            f"other processes use the cores: timing with {free} of {pluralize(before, 'thread')}; --threads {before} uses all"
        )
    torch.set_num_threads(wanted or min(free, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure_latencies(
    calls: Sequence[Call],
    *,
    runs: int,
    warmup: int,
    device: torch.device,
    clock: str = "wall",
    settles: bool = False,
    prepare: Sequence[Call] | None = None,
) -> list[Latency]:
    """Time each call `runs` times, after `warmup` rounds that are not counted. Each round makes all calls in turn.

    Args:
        clock: wall for the time that passes, cpu for the time that this process computes.
        settles: repeat each call untimed for some milliseconds before it is timed, so that threads of other engines no longer spin, and
            caches and cores are as in a stream of images. Engines with threads of their own need it, and so do rows of several threads.
        prepare: for each call what is called before it, untimed, such as what sets the threads.
    """
    read = time.perf_counter if clock == "wall" else time.process_time
    settings = prepare or [_do_nothing] * len(calls)
    for _ in range(warmup):
        for call, prepare_call in zip(calls, settings, strict=True):
            prepare_call()
            call()
    times_ms = np.empty((runs, len(calls)))
    for run in range(runs):
        for column, (call, prepare_call) in enumerate(zip(calls, settings, strict=True)):
            prepare_call()
            if settles:
                _repeat(call)
            _synchronise(device)
            started = read()
            call()
            _synchronise(device)
            times_ms[run, column] = 1e3 * (read() - started)
    return [Latency(*map(float, np.percentile(column, (5, 50, 95)))) for column in times_ms.T]


def _do_nothing() -> None:
    pass


def _repeat(call: Call) -> None:
    end = time.perf_counter() + SETTLING_S
    call()
    while time.perf_counter() < end:
        call()


def draw_inputs(size: ImageSize, channels: int = 3, batch_size: int = 1) -> Tensor:
    """Return random images (B, C, H, W) in 0 … 1, always the same."""
    shape = (batch_size, channels, size.height, size.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def make_network_call(engine: Engine, images: Tensor) -> Call:
    """Return a call that runs the network and its decoding on images (B, 3, H, W) in 0 … 1."""
    return lambda: engine(images)


@torch.inference_mode()
def make_decoding_call(engine: Engine, images: Tensor) -> Call | None:
    """Return a call that decodes the network's outputs for `images`, or None if that cannot be done apart."""
    if not isinstance(engine, DecodedDetector):
        return None
    heads = engine.detector(images)
    return lambda: engine.decode(heads, images.shape[-2])


@torch.inference_mode()
def make_suppression_call(engine: Engine, images: Tensor, config: DetectConfig) -> Call:
    """Return a call that runs NMS on the network's outputs for `images`, without the network itself."""
    boxes, scores = engine(images)
    return lambda: suppress(boxes, scores, config)


def choose_clock(wanted: str | None, device: torch.device, threads: int) -> str:
    """Return the clock to time calls of at most so many threads with, and warn where other processes want more than the cores.

    Raises:
        ConfigError: the CPU's clock is asked for with several threads, or on another device.
    """
    is_single = threads == 1 and device.type == "cpu"
    if wanted == "cpu" and not is_single:
        what = "the CPU's clock measures nothing where several threads or a GPU compute"
        raise ConfigError(what, where="clock", right="use --threads 1 on the CPU, or --clock wall")
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, count_cores()
    if load <= cores or wanted == "cpu":
        return wanted or "wall"
    clock = wanted or ("cpu" if is_single else "wall")
    how = "the time that this process computes is measured" if clock == "cpu" else "times are too long, and spread"
    warn(f"processes want {load:.1f} cores, and there are {cores}: {how}")
    return clock


@torch.inference_mode()
def measure_peak_bytes(call: Call, device: torch.device) -> int | None:
    """Return the most bytes that PyTorch holds on CUDA during a call, or None on another device."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


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
