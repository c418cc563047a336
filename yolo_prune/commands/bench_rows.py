"""The rows of bench: a model in an engine each, and their times, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from yolo_prune.benchmarking.latency import (
    Call,
    Latency,
    draw_inputs,
    make_decoding_call,
    make_network_call,
    make_suppression_call,
    measure_latencies,
    measure_peak_bytes,
)
from yolo_prune.commands.measure_config import BenchConfig
from yolo_prune.commands.pruning.calibration import pick_samples
from yolo_prune.console import report
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.engines.exported.model import RUNTIMES, ExportedModel
from yolo_prune.engines.make import Engine, make_engine
from yolo_prune.engines.precision import choose_precision
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.models import Model
from yolo_prune.export.writers import ENGINE_SUFFIXES, describe, write_model
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.decode import normalise

NMS_IMAGES = 8
"""Images that NMS is timed on."""


@dataclass(frozen=True)
class Entry:
    """A row to be: a model in an engine."""

    name: str
    path: Path
    model: Model
    engine: str


@dataclass(frozen=True)
class Times:
    """Of a row: the network with decoding per call, decoding alone per call, NMS per image."""

    network: Latency
    decoding: Latency | None
    nms: Latency
    memory_bytes: int | None
    """The peak on CUDA."""


def list_entries(checkpoints: Mapping[str, Path], loaded: Mapping[str, Model], config: BenchConfig) -> list[Entry]:
    """Return the rows: each checkpoint in every engine of the settings, an exported file in its own."""
    return [
        Entry(name, checkpoints[name], model, engine)
        for name, model in loaded.items()
        for engine in ((model.runtime,) if isinstance(model, ExportedModel) else config.engine)
    ]


def choose_entry_precision(entry: Entry, config: BenchConfig, device: torch.device) -> str:
    """Return in what a row computes: an exported file in its own precision."""
    if isinstance(entry.model, ExportedModel):
        return entry.model.metadata.precision
    return choose_precision(entry.engine, config.precision, device)


def prepare_engine(entry: Entry, config: BenchConfig, device: torch.device, stem: Path) -> Callable[[], Engine]:
    """Return what makes a row's engine; a checkpoint for an engine of exported files is written below `stem` first."""
    if isinstance(entry.model, ExportedModel):
        return entry.model.make_engine
    if entry.engine in ENGINE_SUFFIXES:
        path = stem.with_name(stem.name + ENGINE_SUFFIXES[entry.engine])
        write_model(entry.model, describe(entry.model, ""), path, config.batch_size)
        return partial(RUNTIMES[ENGINE_SUFFIXES[entry.engine]].make_engine, path)
    engine = make_engine(entry.model.make_model().eval(), entry.engine, device, config.precision)
    return lambda: engine


def pick_images(
    entries: Sequence[Entry], spec: DataSpec | None, split: str | None, config: BenchConfig
) -> list[Tensor]:
    """Return images (B, C, H, W) for each row that NMS is timed on: of the split, or noise without a data set."""
    count = max(1, NMS_IMAGES // config.batch_size) * config.batch_size
    if spec is None or split is None:
        return [draw_inputs(entry.model.img_size, _get_channels(entry), count) for entry in entries]
    samples = {size: pick_samples(spec, split, count, size) for size in {entry.model.img_size for entry in entries}}
    images = {size: _stack(data, count) for size, data in samples.items()}
    return [images[entry.model.img_size] for entry in entries]


def _stack(data: DetectionDataset, count: int) -> Tensor:
    """Return images (count, 3, H, W) in 0 … 1, from the first again where there are fewer."""
    pixels = [torch.from_numpy(data.make_item(index % len(data))[0]).permute(2, 0, 1) for index in range(count)]
    return normalise(torch.stack(pixels))


def _get_channels(entry: Entry) -> int:
    """Return the channels of the noise that a row is timed on; exported files take colour, as images have it."""
    if isinstance(entry.model, Checkpoint) and entry.engine not in ENGINE_SUFFIXES:
        return entry.model.network.channels
    return 3


def time_rows(
    entries: Sequence[Entry],
    engines: Sequence[Engine],
    images: Sequence[Tensor],
    config: BenchConfig,
    device: torch.device,
    clock: str,
) -> list[Times]:
    """Time all rows, interleaved."""
    calls: list[tuple[int, str, Call]] = []
    memory: list[int | None] = []
    for number, (entry, engine, real) in enumerate(zip(entries, engines, images, strict=True)):
        inputs = draw_inputs(entry.model.img_size, _get_channels(entry), config.batch_size)
        if entry.engine not in ENGINE_SUFFIXES:
            inputs, real = (part.to(device, memory_format=torch.channels_last) for part in (inputs, real))
        calls.append((number, "network", make_network_call(engine, inputs)))
        if (decoding := make_decoding_call(engine, inputs)) is not None:
            calls.append((number, "decoding", decoding))
        calls.append((number, "nms", make_suppression_call(engine, real, DetectConfig())))
        memory.append(measure_peak_bytes(make_network_call(engine, inputs), device))
    report(f"timing {len(entries)} rows, {config.runs} interleaved runs each")
    found = measure_latencies(
        [call for _, _, call in calls],
        runs=config.runs,
        warmup=config.warmup,
        device=device,
        clock=clock,
        settles=any(entry.engine in ENGINE_SUFFIXES for entry in entries),
    )
    by_row = {(number, part): latency for (number, part, _), latency in zip(calls, found, strict=True)}
    return [
        Times(
            network=by_row[number, "network"],
            decoding=by_row.get((number, "decoding")),
            nms=by_row[number, "nms"].divide(len(images[number])),
            memory_bytes=memory[number],
        )
        for number in range(len(entries))
    ]
