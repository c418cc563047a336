"""Latency of any width of a network, from times of its layers at several widths, measured once on this machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_prune.benchmarking.latency import describe_environment
from yolo_prune.benchmarking.layer_timing import LayerCase, list_cases, make_layer_timer
from yolo_prune.console import report
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError
from yolo_prune.files import save_json
from yolo_prune.records import load_record
from yolo_prune.text_tables import pluralize

SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Widths that are timed, as shares of the widest layer of a family."""
MULTIPLE = 8
"""Widths are timed, and looked up, as multiples of so many channels, which is how engines compute them."""
CACHE = "YOLO_PRUNE_CACHE"
"""The environment variable that names the folder of stored tables."""


@dataclass
class Grid:
    """Milliseconds of a family of layers at widths in and out; they never fall where a width grows."""

    inputs: list[int]
    outputs: list[int]
    times_ms: list[list[float]]
    """A row for each width in, a column for each width out."""

    def __post_init__(self) -> None:
        """Raise ValueError if widths do not rise, or times are not one for each pair of them."""
        rises = all(one < other for widths in (self.inputs, self.outputs) for one, other in pairwise(widths))
        is_whole = [len(row) for row in self.times_ms] == [len(self.outputs)] * len(self.inputs)
        if not self.inputs or not self.outputs or not rises or not is_whole or not np.isfinite(self.times_ms).all():
            raise ValueError("is no grid of times")

    def look_up(self, inputs: int, outputs: int) -> float:
        """Return the milliseconds at any width, by linear interpolation in both."""
        times = np.array(self.times_ms)
        for axis in (0, 1):  # a time that is longer than that of a wider layer was disturbed
            times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
        row = [np.interp(_round_up(outputs), self.outputs, line) for line in times]
        return float(np.interp(_round_up(inputs), self.inputs, row))


@dataclass
class LatencyTable:
    """Times of families of layers in one engine on one machine.

    Layers alone are not all of a network: decoding, concatenation, calls and caches take time as well. So whole networks are timed,
    and the time of another is interpolated between theirs, by the sums of their layers' times.
    """

    grids: dict[LayerCase, Grid]
    wholes: dict[float, float] = field(default_factory=dict)
    """Milliseconds of whole networks that were timed, by the sum of their layers' times."""

    def sum_layers(self, network: Network) -> float:
        """Return the sum of the milliseconds of a network's layers."""
        return sum(self.grids[case.family].look_up(case.inputs, case.outputs) for _, case in list_cases(network))

    def correct(self, network: Network, measured_ms: float) -> None:
        """Make the estimate of a network agree with the time that it takes as a whole."""
        self.wholes[self.sum_layers(network)] = measured_ms

    def estimate(self, network: Network) -> float:
        """Return the milliseconds of a network, one image at a time, whose layers are of the table's families."""
        total = self.sum_layers(network)
        if not self.wholes:
            return total
        sums = np.array(sorted(self.wholes))
        times = np.maximum.accumulate([self.wholes[one] for one in sums])
        if total < sums[0]:
            return float(times[0] * total / sums[0])
        return float(np.interp(total, sums, times) + max(0.0, total - sums[-1]) * times[-1] / sums[-1])


def measure_table(network: Network, engine: str, device: torch.device) -> LatencyTable:
    """Time the layers of a network at several widths, or read what was timed before in the same engine on this machine.

    Raises:
        ConfigError: layers cannot be timed in the engine, or its package is not installed.
    """
    path = _find_path(engine, device)
    stored = {} if path is None else _load(path)
    widest: dict[LayerCase, tuple[int, int]] = {}
    for _, case in list_cases(network):
        inputs, outputs = widest.get(case.family, (0, 0))
        widest[case.family] = max(inputs, case.inputs), max(outputs, case.outputs)
    missing = {
        family: widths
        for family, widths in widest.items()
        if family not in stored or not _covers(stored[family], widths)
    }
    if missing:
        report(f"timing {pluralize(len(missing), 'kind')} of layers at several widths in {engine}")
        timer = make_layer_timer(engine, device)
        for family, (inputs, outputs) in missing.items():
            stored[family] = _measure_grid(family, inputs, outputs, timer)
        if path is not None:
            _save(path, stored)
    return LatencyTable({family: stored[family] for family in widest})


def _measure_grid(family: LayerCase, inputs: int, outputs: int, timer: Callable[[LayerCase], float]) -> Grid:
    is_flat = family.kind != "conv" or family.groups > 1  # as many channels out as in
    rows, columns = _list_widths(inputs), [_round_up(outputs)] if is_flat else _list_widths(outputs)
    times = [[timer(family.with_widths(row, column)) for column in columns] for row in rows]
    return Grid(rows, columns, times)


def _list_widths(most: int) -> list[int]:
    """Return the widths that are timed; the image's channels are not rounded."""
    if most < MULTIPLE:
        return [most]
    return sorted({_round_up(max(1, round(share * most))) for share in SHARES})


def _round_up(width: int) -> int:
    return width if width < MULTIPLE else -(-width // MULTIPLE) * MULTIPLE


def _covers(grid: Grid, widths: tuple[int, int]) -> bool:
    return grid.inputs[-1] >= _round_up(widths[0]) and (
        len(grid.outputs) == 1 or grid.outputs[-1] >= _round_up(widths[1])
    )


def _find_path(engine: str, device: torch.device) -> Path | None:
    """Return where the table of an engine, its version, the device and the number of threads is stored, if anywhere."""
    version = torch.__version__ if engine in ("folded", "cudagraph") else import_module(engine).__version__
    environment = describe_environment(device, engine)
    facts = [version, *(str(environment[key]) for key in ("device", "threads", "engine"))]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    try:
        folder = os.environ.get(CACHE) or Path.home() / ".cache/yolo_prune"
    except RuntimeError:  # there is no home folder: it is measured each time
        return None
    return Path(folder) / f"latency-{engine}-{name}.json"


@dataclass
class _Entry:
    """What the file holds of a family."""

    family: list[Any]
    grid: Grid


def _load(path: Path) -> dict[LayerCase, Grid]:
    try:
        entries = load_record(list[_Entry], path, ConfigError, "")
        return {LayerCase(*entry.family): entry.grid for entry in entries}
    except (ConfigError, TypeError):
        return {}  # not there yet, or of another version: it is measured again


def _save(path: Path, grids: Mapping[LayerCase, Grid]) -> None:
    entries = [{"family": list(astuple(family)), "grid": asdict(grid)} for family, grid in grids.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, entries)
    except OSError:
        return  # a table that cannot be stored is measured again next time
