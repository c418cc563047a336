"""Tables of the scores of each class: all of a few classes; of many the worst and the largest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from yolo_prune.benchmarking.table import format_cells_markdown
from yolo_prune.evaluation.classes.scores import ClassScore
from yolo_prune.text_tables import format_table, wrap

MANY = 20
"""Of more classes not all are printed."""
SHOWN = 10
"""How many of many classes are printed as the worst, and as the largest."""
NAME_WIDTH = 28
"""Longer names of classes are shortened, so that a table fits 80 columns."""
LONGEST = 40
"""Longer names of models are shortened in headings."""

Cells = list[tuple[str, ...]]


def format_classes(models: Mapping[str, Sequence[ClassScore]], *, all_classes: bool, markdown: bool = False) -> str:
    """Return a table of each model's classes, with the change of AP from the first model's; "" for fewer than two classes.

    Of more than `MANY` classes, those with the lowest AP and those with the most objects are shown, unless
    `all_classes` is set.
    """
    (first, *_) = models.values()
    if len(first) < 2:
        return ""
    parts = []
    for number, (name, scores) in enumerate(models.items()):
        title = "By class" if len(models) == 1 else f"By class, {shorten(name, LONGEST)}"
        before = first if number else None
        for ending, rows in _select(scores, all_classes).items():
            cells = _list_cells(scores, rows, before)
            heading = f"{title}{ending}"
            table = format_cells_markdown(cells) if markdown else format_table(cells, range(1, len(cells[0])))
            parts.append(f"{heading}:\n\n{table}" if markdown else f"{heading}\n{table}")
    notes = ["AP at IoU 0.5; precision and recall at the best F1 of all classes together."]
    if (empty := sum(not one.instances for one in first)) > 0:
        notes.append(f"{empty} of {len(first)} classes have no objects, and do not count in mAP.")
    if not all_classes and len(first) > MANY:
        notes.append(f"All {len(first)} classes: --all-classes, or --json.")
    note = "\n".join(notes)
    return "\n\n".join([*parts, note if markdown else wrap(note)])


def _select(scores: Sequence[ClassScore], all_classes: bool) -> dict[str, list[int]]:
    """Return the classes of each table by the end of its heading."""
    every = list(range(len(scores)))
    if all_classes or len(scores) <= MANY:
        return {"": every}
    present = [own for own in every if scores[own].instances]
    worst = sorted(present, key=lambda own: (scores[own].ap50, -scores[own].instances))[:SHOWN]
    largest = sorted(present, key=lambda own: -scores[own].instances)[:SHOWN]
    return {
        f": {len(worst)} of {len(scores)}, lowest AP first": worst,
        f": {len(largest)} of {len(scores)}, most objects first": largest,
    }


def _list_cells(scores: Sequence[ClassScore], rows: Sequence[int], before: Sequence[ClassScore] | None) -> Cells:
    """Return the table's cells, with the headings first, and with a column for the change of AP from `before`."""
    head = ("class", "objects", "AP", *([] if before is None else ["change"]))
    cells = [(*head, "precision", "recall")]
    for own in rows:
        one = scores[own]
        change = [] if before is None else [_format(one.ap50 - before[own].ap50, "+.4f")]
        precision, recall = _format(one.precision, ".3f"), _format(one.recall, ".3f")
        cells.append(
            (shorten(one.name, NAME_WIDTH), str(one.instances), _format(one.ap50, ".4f"), *change, precision, recall)
        )
    return cells


def shorten(name: str, width: int) -> str:
    """Return a name of at most so many characters: the middle of a longer one is an ellipsis."""
    if len(name) <= width:
        return name
    end = (width - 1) // 3
    return f"{name[: width - 1 - end]}…{name[-end:]}"


def _format(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
