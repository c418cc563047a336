"""Tables and paragraphs for a terminal, as wide as it is; whole lines where stdout is no terminal."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Collection, Sequence
from functools import partial

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from yolo_prune.console import escape, get_columns

Cells = Sequence[tuple[str, ...]]
"""Lines of cells, the headings first."""
GAP = 1
"""Spaces between columns, beside the one of their border."""


def format_table(cells: Cells, numbers: Collection[int] = (), can_turn: bool = False) -> str:
    """Return a table as wide as stdout's terminal allows; elsewhere with a line for each row.

    `numbers` are the columns to align at the right. What does not fit is broken before brackets, as in `1.8ms (-71%)`. With
    `can_turn` a table that is still too wide is turned, its rows become columns; then cells are broken between words.
    """
    return fit_table(cells, get_columns(sys.stdout), numbers, can_turn)


def fit_table(cells: Cells, columns: int | None, numbers: Collection[int] = (), can_turn: bool = False) -> str:
    """Return a table of at most so many columns of text; see `format_table`."""
    lines = [tuple(map(escape, line)) for line in cells]
    stacked = [tuple(cell.replace(" (", "\n(", 1) for cell in line) for line in lines]
    if columns is None:
        return _render(lines, numbers)
    turned = list(zip(*lines, strict=True))
    shapes = [(lines, numbers), (stacked, numbers), *([(turned, range(1, len(lines)))] if can_turn else [])]
    texts = (_render(shape, right) for shape, right in shapes)
    fitting = next((text for text in texts if _measure(text) <= columns), None)
    return _render(stacked, numbers, columns) if fitting is None else fitting


def wrap(text: str) -> str:
    """Return a text with its lines wrapped between words, as wide as stdout's terminal; elsewhere as it is."""
    columns = get_columns(sys.stdout)
    if columns is None:
        return text
    fill = partial(textwrap.fill, width=columns, break_long_words=False, break_on_hyphens=False)  # paths stay whole
    return "\n".join(fill(line, subsequent_indent=_get_indent(line)) for line in text.split("\n"))


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 image, 1,600 images."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_count(value: float) -> str:
    """Return a number of parameters or multiply–accumulates with three digits or so: 8.67M, 32.8B, 481.2K."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.{1 if value >= 10 * size else 2}f}{unit}"
    return f"{value / 1e3:.1f}K"


def _get_indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _measure(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _render(cells: Cells, numbers: Collection[int], columns: int = 10_000) -> str:
    heads, *rows = cells
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True)
    for place, head in enumerate(heads):
        is_kept = place == 0 and 2 * _measure("\n".join(line[0] for line in cells)) <= columns
        table.add_column(head, justify="right" if place in numbers else "left", overflow="fold", no_wrap=is_kept)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(
        file=text, force_jupyter=False, width=columns, color_system=None, markup=False, emoji=False, highlight=False
    ).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n"))
