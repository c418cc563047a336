"""Tables of the page: cells with the text that is shown and the value that is sorted by."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from yolo_prune.benchmarking.details import format_details
from yolo_prune.benchmarking.table import CONDITIONS, FILE_HEADING, IMAGE_HEADING, TIME_HEADING, Row, format_rows
from yolo_prune.report.data import ErrorCount


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller note beside it, and what it is sorted by."""

    text: str
    note: str = ""
    value: float | str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_sortable: bool = False


_MINUS = re.compile(r"-(?=\d)")
_VALUES: Mapping[str, Callable[[Row], float]] = {
    "params": lambda row: row.params,
    "size": lambda row: row.size_bytes,
    FILE_HEADING: lambda row: row.file_bytes or 0,
    "FLOPs (MACs)": lambda row: row.macs,
    TIME_HEADING: lambda row: row.latency_ms.p50,
    IMAGE_HEADING: lambda row: row.image_ms,
    "mAP": lambda row: -1.0 if row.scores is None or math.isnan(row.scores.map50) else row.scores.map50,
    "batch": lambda row: row.batch_size,
    "threads": lambda row: row.threads or 0,
}
"""What a column of numbers is sorted by."""


def make_results_table(rows: Sequence[Row]) -> Table:
    """Return the case study's table; the first row is what the others' changes refer to."""
    headings, *lines = format_rows(rows)
    cells = tuple(
        tuple(_split(text, heading, row) for text, heading in zip(line, headings, strict=True))
        for line, row in zip(lines, rows, strict=True)
    )
    caption = "Models with their costs and scores; changes in brackets are relative to the first"
    return Table(caption, headings, cells, is_sortable=True)


def _split(text: str, heading: str, row: Row) -> Cell:
    if heading not in _VALUES:
        return Cell(text, value=text)
    value = _VALUES[heading](row)
    if heading in CONDITIONS:
        return Cell(text, value=value)
    if text == "no ground truth":
        return Cell(text, value=value)
    main, _, note = text.partition(" ")
    return Cell(main, _MINUS.sub("−", note), value)


def make_details_table(rows: Sequence[Row]) -> Table:
    """Return how the times spread, what they consist of, and what bounds the networks."""
    headings, *lines = format_details(rows)
    return Table("Times of a call, memory and what bounds the network", headings, make_cells(lines))


def make_errors_table(errors: Sequence[ErrorCount]) -> Table:
    """Return how many objects each model misses, and how many of its detections are false."""
    lines = [
        (
            one.name,
            f"{one.confidence:.3f}",
            f"{one.objects}",
            f"{one.misses}",
            _format_share(one.misses, one.objects),
            f"{one.false_alarms}",
        )
        for one in errors
    ]
    headings = ("model", "confidence", "objects", "missed", "missed, share", "false alarms")
    return Table("Misses and false alarms at the confidence of the best F1", headings, make_cells(lines))


def _format_share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def make_class_table(rows: Sequence[Row]) -> Table | None:
    """Return AP of every class that has objects, of several models with the last one's change; None for fewer than two classes."""
    models = {row.name: row.scores.classes for row in rows if row.scores is not None}
    if not models or len(next(iter(models.values()))) < 2:
        return None
    headings = ("class", "objects", *models, *(["change"] if len(models) > 1 else []))
    lines = []
    for scores in zip(*models.values(), strict=True):
        first, last = scores[0], scores[-1]
        if not first.instances:
            continue
        cells = [Cell(first.name, value=first.name), Cell(f"{first.instances:,}", value=first.instances)]
        cells += [Cell(f"{one.ap50:.4f}", value=one.ap50) for one in scores]
        if len(models) > 1:
            change = last.ap50 - first.ap50
            cells.append(Cell(_MINUS.sub("−", f"{change:+.4f}"), value=change))
        lines.append(tuple(cells))
    return Table("AP at IoU 0.5 of every class that has objects", headings, tuple(lines), is_sortable=True)


def make_cells(lines: Iterable[Sequence[str]]) -> tuple[tuple[Cell, ...], ...]:
    """Return rows of text as cells."""
    return tuple(tuple(map(Cell, line)) for line in lines)
