"""Plots of the classes of one model: the confusion matrix, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo_prune.arrays import Float64Array
from yolo_prune.evaluation.classes.confusion import ConfusionMatrix
from yolo_prune.evaluation.curves import Curve
from yolo_prune.files import open_atomically
from yolo_prune.own_files import name_maker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTED, SHARED, NAMED = 12, 32, 160
"""Up to so many rows of a confusion matrix, cells have a count and a share, or the share alone, or rows have names."""
COLOURS = (*("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9"), "navy")
"""Of more classes than these, those of the lowest AP have a colour and a name in the curves; the others are grey."""
POINTS = 1000
"""Points that are drawn of a curve."""
LONGEST_NAME = 24


def draw_confusion(path: Path, matrix: ConfusionMatrix) -> Path:
    """Draw a confusion matrix into a PNG file, each row as shares of its sum, and return the file's path.

    Rows are the truth, columns what it is detected as; the last of both is background. The fewer classes, the more is
    written into the cells.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    rows, shares = len(matrix.labels), matrix.shares
    cell = 0.9 if rows <= COUNTED else 0.42 if rows <= SHARED else 0.2 if rows <= NAMED else 14 / rows
    side = max(1.8, cell * rows)
    labels = _make_drawable(matrix.labels)
    margin = 0.7 + (0.085 * max(map(len, labels)) if rows <= NAMED else 0.4)
    figure = Figure(figsize=(max(5.2, side + margin + 1.1), max(3.6, side + margin + 0.5)), layout="constrained")
    axes = figure.subplots()
    # The root, as rare confusions are what one looks for.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.axhline(rows - 1.5, color="0.4", linewidth=0.8)
    axes.axvline(rows - 1.5, color="0.4", linewidth=0.8)
    if rows <= NAMED:
        size = 9 if rows <= SHARED else 7
        axes.set_xticks(range(rows), labels, rotation=90 if rows > 3 else 0, fontsize=size)
        axes.set_yticks(range(rows), labels, fontsize=size)
    if rows <= SHARED:
        _write_cells(axes, matrix, shares, has_counts=rows <= COUNTED)
    title = f"confidence ≥ {matrix.confidence:.3f}, shares of each row"
    title = "no objects, so no best confidence" if np.isnan(matrix.confidence) else title
    axes.set(title=title, xlabel="detected as", ylabel="truth")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, aspect=max(20, rows / 2))
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata=name_maker(".png"))
    return path


def _write_cells(axes: Axes, matrix: ConfusionMatrix, shares: Float64Array, has_counts: bool) -> None:
    for (row, column), count in np.ndenumerate(matrix.counts):
        if count:
            share = shares[row, column]
            text = f"{share:.2f}\n{count}" if has_counts else f"{share:.2f}".removeprefix("0")
            colour = "white" if share > 0.4 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if has_counts else 7)


def draw_class_curves(
    path: Path, curves: Sequence[Curve], every: Curve, ap50: dict[int, float], names: Sequence[str]
) -> Path:
    """Draw four panels into a PNG file, and return its path.

    Precision over recall, and F1, precision and recall over the confidence; a line for each class that has objects, and
    a black one for all classes together, with a point at the best F1.

    Args:
        curves: one per class.
        every: the curve of all classes together.
        ap50: AP by class, of those that have objects.
        names: the classes' names.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.4), layout="constrained")
    panels = [axes for row in figure.subplots(2, 2) for axes in row]
    lowest, labels = sorted(ap50, key=lambda own: ap50[own]), _make_drawable(names)
    colours = dict(zip(lowest, COLOURS, strict=False))
    for own in reversed(lowest):  # the lowest on top
        width, label = (1.3, f"{labels[own]} {ap50[own]:.3f}") if own in colours else (0.7, None)
        _draw_lines(panels, curves[own], colours.get(own, "0.75"), width, label)
    if len(names) > 1:
        _draw_lines(panels, every, "black", 2.2, "all classes together")
    best = int(every.f1.argmax()) if len(every.confidence) and every.instances else None
    for axes, (kind, (x, y)) in zip(panels, _list_values(every).items(), strict=True):
        is_area = axes is panels[0]
        axes.set(title=kind if is_area else f"{kind} over the confidence", xlim=(0, 1), ylim=(0, 1.02))
        axes.set(xlabel="recall" if is_area else "confidence", ylabel="precision" if is_area else kind)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        if best is not None:
            label = f"best F1 {every.f1[best]:.3f} at {every.confidence[best]:.3f}"
            axes.plot(x[best], y[best], "o", color="black", label=label)
    handles, texts = panels[0].get_legend_handles_labels()
    shown = min(len(lowest), len(COLOURS))
    places = [*reversed(range(shown)), *range(shown, len(handles))]
    title = "class and AP" if shown == len(lowest) else f"the {shown} of {len(lowest)} classes with the lowest AP"
    figure.legend(
        *([part[place] for place in places] for part in (handles, texts)),
        loc="outside right upper",
        fontsize=9,
        title=title,
    )
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata=name_maker(".png"))
    return path


def _list_values(curve: Curve) -> dict[str, tuple[Float64Array, Float64Array]]:
    """Return x and y of each panel, in the panels' order."""
    return {
        "precision–recall": (curve.recall, curve.precision),
        "F1": (curve.confidence, curve.f1),
        "precision": (curve.confidence, curve.precision),
        "recall": (curve.confidence, curve.recall),
    }


def _draw_lines(panels: Sequence[Axes], curve: Curve, colour: str, width: float, label: str | None) -> None:
    if not len(curve.confidence):
        panels[0].plot([], [], color=colour, linewidth=width, label=label)  # nothing is found, but the legend names it
        return
    chosen = np.unique(np.linspace(0, len(curve.confidence) - 1, POINTS).round().astype(np.int64))
    for axes, (x, y) in zip(panels, _list_values(curve).values(), strict=True):
        # Down to recall 0, and to confidence 0, where the same detections count as at the lowest score.
        place = 0 if axes is panels[0] else len(chosen)
        line = np.insert(x[chosen], place, 0), np.insert(y[chosen], place, y[0] if place == 0 else y[-1])
        axes.plot(*line, color=colour, linewidth=width, label=label)


def _make_drawable(names: Sequence[str]) -> list[str]:
    """Return names as matplotlib can write them: short, without its signs for formulas, in letters that its font has."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    known = FT2Font(findfont(FontProperties())).get_charmap()
    drawable = []
    for number, name in enumerate(names):
        text = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        is_known = all(ord(letter) in known for letter in text)
        drawable.append(text.replace("$", r"\$") if is_known else f"class {number}")
    return drawable
