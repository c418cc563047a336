"""The rows of bench: a model in an engine each, and their times, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from yolo_prune.commands.measure_config import MeasurementConfig
from yolo_prune.commands.pruning.calibration import pick_samples
from yolo_prune.console import report
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.engines.exported.model import RUNTIMES, ExportedModel
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.engines.make import Engine, check_device, make_engine
from yolo_prune.engines.precision import OF_ENGINES, choose_precision, compute_in, computing_in
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.models import Model
from yolo_prune.export.writers import ENGINE_SUFFIXES, describe, write_model
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.decode import normalise
from yolo_prune.model.free_memory import check_evaluation
from yolo_prune.text_tables import pluralize

NMS_IMAGES = 8
"""Images that NMS is timed on."""


@dataclass(frozen=True)
class Entry:
    """A row to be: a model in an engine, and how it is run."""

    name: str
    path: Path
    model: Model
    engine: str
    precision: str
    batch_size: int
    threads: int | None
    """None for as many as other processes leave cores free."""

    @property
    def is_exported(self) -> bool:
        """Whether a file runs, or a checkpoint as a file."""
        return self.engine in ENGINE_SUFFIXES

    @property
    def channels(self) -> int:
        """Channels of the noise that it is timed on; exported files take colour, as images have it."""
        return self.model.network.channels if isinstance(self.model, Checkpoint) and not self.is_exported else 3

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compute with its threads and in its precision in the block."""
        before = torch.get_num_threads()
        try:
            with computing_in(self.precision):
                self.prepare()
                yield
        finally:
            torch.set_num_threads(before)

    def prepare(self) -> None:
        """Compute with its threads and in its precision from now on."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        compute_in(self.precision)


@dataclass(frozen=True)
class Times:
    """Of a row: the network with decoding per call, decoding alone per call, NMS per image."""

    network: Latency
    decoding: Latency | None
    nms: Latency
    memory_bytes: int | None
    """The peak on CUDA."""


def list_entries(
    checkpoints: Mapping[str, Path], loaded: Mapping[str, Model], config: MeasurementConfig, device: torch.device
) -> list[Entry]:
    """Return the rows: each checkpoint in every engine and precision, an exported file in its own, with all batch sizes and threads.

    Raises:
        ConfigError: an engine, or the device, does not compute in a precision, or cannot change its threads.
    """
    entries = [
        Entry(name, checkpoints[name], model, engine, precision, batch_size, threads)
        for name, model in loaded.items()
        for engine, precision in _list_engines(model, config, device)
        for batch_size in config.batch_size
        for threads in config.threads or (None,)
    ]
    if len(config.threads) > 1 and any(entry.engine == "executorch" for entry in entries):
        what = "ExecuTorch keeps the threads that it began with"
        raise ConfigError(what, where="threads", right="name one number of threads")
    return entries


def check_engines(config: MeasurementConfig, device: torch.device) -> None:
    """Check that the engines and precisions of the settings can run here; nothing is built yet.

    Raises:
        ConfigError: an engine, or the device, does not compute in a precision, or a package is not installed.
    """
    for engine in config.engine:
        check_device(engine, device)
        for precision in _choose_own(engine, config.precision):
            choose_precision(engine, precision, device)
        if engine in ENGINE_SUFFIXES:
            for package in ("onnx", engine):
                import_package(package, f"--engine {engine}")


def _list_engines(model: Model, config: MeasurementConfig, device: torch.device) -> list[tuple[str, str]]:
    if isinstance(model, ExportedModel):
        return [(model.runtime, model.metadata.precision)]
    return [
        (engine, choose_precision(engine, precision, device))
        for engine in config.engine
        for precision in _choose_own(engine, config.precision)
    ]


def _choose_own(engine: str, wanted: Sequence[str]) -> Sequence[str | None]:
    """Return the precisions of an engine's rows: of several, one that computes in one alone has that."""
    own = OF_ENGINES.get(engine)
    return [own] if own in wanted else wanted or [None]


def prepare_engine(entry: Entry, device: torch.device, stem: Path) -> Callable[[], Engine]:
    """Return what makes a row's engine; a checkpoint for an engine of exported files is written below `stem` first."""
    if isinstance(entry.model, ExportedModel):
        return entry.model.make_engine
    if entry.is_exported:
        path = stem.with_name(stem.name + ENGINE_SUFFIXES[entry.engine])
        write_model(entry.model, describe(entry.model, ""), path, entry.batch_size)
        return partial(RUNTIMES[ENGINE_SUFFIXES[entry.engine]].make_engine, path)
    with entry.running():
        engine = make_engine(entry.model.make_model().eval(), entry.engine, device, entry.precision)
    return lambda: engine


def pick_images(entries: Sequence[Entry], spec: DataSpec | None, split: str | None) -> list[Tensor]:
    """Return images (B, C, H, W) for each row that NMS is timed on: of the split, or noise without a data set."""
    counts = [max(1, NMS_IMAGES // entry.batch_size) * entry.batch_size for entry in entries]
    if spec is None or split is None:
        pairs = zip(entries, counts, strict=True)
        return [draw_inputs(entry.model.img_size, entry.channels, count) for entry, count in pairs]
    samples = {
        size: pick_samples(spec, split, max(counts), size) for size in {entry.model.img_size for entry in entries}
    }
    images = {size: _stack(data, max(counts)) for size, data in samples.items()}
    return [images[entry.model.img_size][:count] for entry, count in zip(entries, counts, strict=True)]


def _stack(data: DetectionDataset, count: int) -> Tensor:
    """Return images (count, 3, H, W) in 0 … 1, from the first again where there are fewer."""
    pixels = [torch.from_numpy(data.make_item(index % len(data))[0]).permute(2, 0, 1) for index in range(count)]
    return normalise(torch.stack(pixels))


def time_rows(
    entries: Sequence[Entry],
    makers: Sequence[Callable[[], Engine]],
    images: Sequence[Tensor],
    config: MeasurementConfig,
    device: torch.device,
    clock: str,
) -> list[Times]:
    """Time all rows, interleaved, each with its threads and in its precision."""
    calls: list[tuple[int, str, Call]] = []
    memory: list[int | None] = []
    for number, (entry, make, real) in enumerate(zip(entries, makers, images, strict=True)):
        with entry.running():
            parts, peak = _make_calls(entry, make(), real, device, config)
        calls += [(number, part, call) for part, call in parts.items()]
        memory.append(peak)
    report(f"timing {pluralize(len(entries), 'row')}, {pluralize(config.runs, 'interleaved run')} each")
    found = measure_latencies(
        [call for _, _, call in calls],
        runs=config.runs,
        warmup=config.warmup,
        device=device,
        clock=clock,
        settles=any(entry.is_exported for entry in entries) or len(config.threads) > 1,
        prepare=[entries[number].prepare for number, _, _ in calls],
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


def _make_calls(
    entry: Entry, engine: Engine, real: Tensor, device: torch.device, config: MeasurementConfig
) -> tuple[dict[str, Call], int | None]:
    """Return the calls that are timed of a row, and the peak of memory on CUDA."""
    if isinstance(entry.model, Checkpoint):
        check_evaluation(entry.model.network, entry.batch_size, entry.model.img_size, device)
    inputs = draw_inputs(entry.model.img_size, entry.channels, entry.batch_size)
    if not entry.is_exported:
        inputs, real = (part.to(device, memory_format=torch.channels_last) for part in (inputs, real))
    detection = DetectConfig(agnostic_nms=config.agnostic_nms)
    calls = {"network": make_network_call(engine, inputs), "nms": make_suppression_call(engine, real, detection)}
    if (decoding := make_decoding_call(engine, inputs)) is not None:
        calls["decoding"] = decoding
    return calls, measure_peak_bytes(calls["network"], device)
