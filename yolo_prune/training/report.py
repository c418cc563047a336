"""What a run leaves to look at: results.csv and results.png."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.files import open_atomically, save_text
from yolo_prune.training.epoch import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_results(folder: Path, rows: Sequence[dict[str, Any]], draw: bool = True) -> None:
    """Write one row per epoch to results.csv, and unless told otherwise draw them in results.png."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(folder / "results.csv", text.getvalue())
    if draw:
        _draw_results(folder / "results.png", rows)


def _draw_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open_atomically(path) as file:
        make_results_figure(rows).savefig(file, format="png", dpi=100)


def make_results_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the losses, a teacher's among them, AP50 of the network and of what a prune would leave, and the schedules."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    for name in PARTS:
        if name != "loss" and name in rows[-1]:
            losses.plot(epochs, [row[name] for row in rows], label=name)
    losses.set(title="training loss", xlabel="epoch", ylim=(0, None))
    losses.legend(fontsize=8)
    scored = [row for row in rows if row["val_map50"] is not None]
    measured = [row["epoch"] for row in scored]
    scores.plot(measured, [row["val_map50"] for row in scored], marker=".", label="as it is")
    if "pruned_map50" in rows[-1]:
        scores.plot(measured, [row["pruned_map50"] for row in scored], "--", marker=".", label="pruned now")
        scores.legend(loc="lower right", fontsize=8)
    scores.set(title="validation AP50", xlabel="epoch", ylim=(0, 1))
    rates.plot(epochs, [row["learning_rate"] for row in rows], color="tab:blue")
    rates.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    if any(row["channels_below"] for row in rows):
        rates.set_title("learning rate (blue), channels near zero (red)", fontsize="medium")
        share = rates.twinx()
        share.plot(epochs, [row["channels_below"] / row["channels"] for row in rows], color="tab:red")
        share.set(ylabel="share of the prunable", ylim=(0, 1))
    return figure
