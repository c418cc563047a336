"""The tables of widths.py: how long widths of each multiple take against the first multiple's, and which are fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from engine_peers import format_spread

from yolo_prune.arrays import Float64Array

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the resamples that bound an interval."""


@dataclass(frozen=True)
class Measured:
    """Seconds (rounds,) of one pruned network in one engine."""

    network: str
    cut: str
    seed: int
    engine: str
    threads: int
    round_to: int
    macs: int
    share: float
    """Of the whole network's MACs."""
    params: int
    seconds: Float64Array


class Cell(NamedTuple):
    """What stays the same while widths change."""

    network: str
    cut: str
    engine: str
    threads: int


@dataclass(frozen=True)
class Ratio:
    """How many times as long something takes; `logs` (RESAMPLES,) are bootstrapped logarithms of it."""

    value: float
    logs: Float64Array

    def __str__(self) -> str:
        low, high = np.exp(np.percentile(self.logs, INTERVAL))
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


Ratios = Mapping[Cell, Mapping[int, Ratio]]
"""By cell and multiple, the first multiple's apart."""


def compare(measured: Sequence[Measured]) -> dict[Cell, dict[int, Ratio]]:
    """Return every multiple's ratio to the first one's, cell by cell.

    A seed's ratio is that of medians over its rounds, a cell's the geometric mean of its seeds. Resampled are seeds, and
    rounds within them: the same ones in all engines, as these ran the same networks, and for all multiples, as these ran in
    the same rounds.
    """
    ratios: dict[Cell, dict[int, Ratio]] = {}
    cuts = list(dict.fromkeys((run.network, run.cut) for run in measured))
    for cell, columns in stack_times(measured).items():
        first, *others = columns
        seeds, rounds = columns[first].shape
        random = np.random.default_rng(cuts.index(cell[:2]))
        picks = (
            random.integers(seeds, size=(RESAMPLES, seeds, 1)),
            random.integers(rounds, size=(RESAMPLES, seeds, rounds)),
        )

        def average(times: Float64Array) -> Float64Array:
            return np.log(np.median(times, -1)).mean(-1)  # type: ignore[no-any-return]  # numpy types a mean as Any

        ratios[cell] = {
            multiple: Ratio(
                float(np.exp(average(columns[multiple]) - average(columns[first]))),
                average(columns[multiple][picks]) - average(columns[first][picks]),
            )
            for multiple in others
        }
    return ratios


def stack_times(measured: Sequence[Measured]) -> dict[Cell, dict[int, Float64Array]]:
    """Return the seconds (seeds, rounds) by cell and multiple."""
    columns: dict[Cell, dict[int, list[Float64Array]]] = {}
    for run in measured:
        cell = columns.setdefault(Cell(run.network, run.cut, run.engine, run.threads), {})
        cell.setdefault(run.round_to, []).append(run.seconds)
    return {cell: {key: np.stack(rows) for key, rows in column.items()} for cell, column in columns.items()}


def average(ratios: Sequence[Ratio]) -> Ratio:
    """Return the geometric mean."""
    return Ratio(
        float(np.exp(np.mean([np.log(ratio.value) for ratio in ratios]))),
        np.mean([ratio.logs for ratio in ratios], axis=0),
    )


def format_tables(measured: Sequence[Measured]) -> str:
    """Return a Markdown table for every cut of every network, one over all, and which multiple is fastest."""
    ratios, times = compare(measured), stack_times(measured)
    blocks = []
    for network, cut in dict.fromkeys((run.network, run.cut) for run in measured):
        runs = [run for run in measured if (run.network, run.cut) == (network, cut)]
        cells = [cell for cell in times if cell[:2] == (network, cut)]
        blocks.append(f"### {network}, {cut}\n\n{format_macs(runs)}\n\n{format_cut(cells, times, ratios)}")
    if any(ratios.values()):
        blocks.append(f"### Over all of these\n\n{format_overall(ratios)}\n\n{format_best(ratios)}")
    return "\n\n".join(blocks)


def format_macs(runs: Sequence[Measured]) -> str:
    """Return what is left of a network, and how far the multiples' MACs are apart."""
    macs: dict[int, list[int]] = {}
    params: dict[int, list[int]] = {}
    by_seed: dict[int, list[int]] = {}
    for run in runs:
        macs.setdefault(run.round_to, []).append(run.macs)
        params.setdefault(run.round_to, []).append(run.params)
        by_seed.setdefault(run.seed, []).append(run.macs)
    first, *others = macs
    apart = max(max(column) / min(column) - 1 for column in by_seed.values())
    said = f"{np.mean(macs[first]) / 1e6:.0f}M MACs, {np.mean([run.share for run in runs]):.1%} of the whole network's"
    if others:
        changes = (
            f"{key}: MACs {np.mean(macs[key]) / np.mean(macs[first]) - 1:+.1%}, "
            f"params {np.mean(params[key]) / np.mean(params[first]) - 1:+.0%}"
            for key in others
        )
        said += f"; in one seed at most {apart:.1%} apart. Against {first}, {'; '.join(changes)}"
    return f"{said}."


def format_cut(cells: Sequence[Cell], times: Mapping[Cell, Mapping[int, Float64Array]], ratios: Ratios) -> str:
    """Return a row for every engine and number of threads."""
    first, *others = times[cells[0]]
    heads = ["engine", "threads", f"{first}, ms"]
    for multiple in others:
        heads += [f"{multiple}, ms", f"as long as {first}"]
    lines = [format_row(heads), format_row(["---"] * len(heads))]
    for cell in cells:
        row = [cell.engine, str(cell.threads), format_spread(1e3 * times[cell][first], 2)]
        for multiple in others:
            row += [format_spread(1e3 * times[cell][multiple], 2), str(ratios[cell][multiple])]
        lines.append(format_row(row))
    return "\n".join(lines)


def format_overall(ratios: Ratios) -> str:
    """Return a row for every multiple: over all, by engine, by threads, and where it took longest."""
    engines = list(dict.fromkeys(cell.engine for cell in ratios))
    threads = list(dict.fromkeys(cell.threads for cell in ratios))
    heads = ["round_to", "all", *engines, *(f"threads {number}" for number in threads), "longest", "where"]
    lines = [format_row(heads), format_row(["---"] * len(heads))]
    for multiple in next(iter(ratios.values())):
        found = {cell: row[multiple] for cell, row in ratios.items()}
        longest = max(found, key=lambda cell: found[cell].value)
        parts = [list(found.values())]
        parts += [[ratio for cell, ratio in found.items() if cell.engine == engine] for engine in engines]
        parts += [[ratio for cell, ratio in found.items() if cell.threads == number] for number in threads]
        where = f"{longest.network}, {longest.cut}, {longest.engine}, threads {longest.threads}"
        lines.append(format_row([str(multiple), *(str(average(part)) for part in parts), str(found[longest]), where]))
    return "\n".join(lines)


def format_best(ratios: Ratios) -> str:
    """Say which multiple takes least time over all, and from which it cannot be told apart."""
    multiples = list(next(iter(ratios.values())))
    overall = {multiple: average([row[multiple] for row in ratios.values()]) for multiple in multiples}
    best = min(overall, key=lambda multiple: overall[multiple].value)
    ahead = np.percentile(overall[best].logs, INTERVAL[1]) < 0
    alike = [
        str(multiple)
        for multiple in multiples
        if multiple != best and np.percentile(overall[multiple].logs - overall[best].logs, INTERVAL[0]) <= 0
    ]
    if not ahead:
        alike = ["the first", *alike]
    said = f"; the intervals do not tell it apart from {', '.join(alike)}" if alike else ""
    return f"Fastest over all: round_to {best}, {overall[best]} times as long as the first{said}."


def format_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
