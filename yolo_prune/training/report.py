"""Write the results of a run: results.csv, results.png, previews of images, and with γ sparsity gammas.png."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yolo_prune.arrays import Float64Array
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.previews import (
    Image,
    draw_detections,
    draw_found,
    get_truth,
    make_side_by_side,
    pick_evenly,
    save_image,
)
from yolo_prune.files import open_atomically, save_text
from yolo_prune.model.detector import Detector
from yolo_prune.training.epoch import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_results(folder: Path, rows: Sequence[dict[str, Any]], draw: bool = True) -> None:
    """Write one row per epoch to results.csv and, if `draw`, plot them in results.png."""
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
    """Plot the losses, the AP50 of the network (with γ sparsity also if pruned now), and the learning rate."""
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


LOWEST, HIGHEST, BINS = -5.0, 1.0, 48
"""The histogram's range of log₁₀ |γ|, and its number of bins; smaller values and zeros are in the first bin."""


def count_gammas(gammas: Float64Array) -> list[int]:
    """Return the number of finite |γ| in every bin, smallest first."""
    present = gammas[np.isfinite(gammas)]
    powers = np.log10(np.maximum(present, 10.0**LOWEST)).clip(LOWEST, HIGHEST)
    return [int(count) for count in np.histogram(powers, BINS, (LOWEST, HIGHEST))[0]]


def draw_gammas(path: Path, counts: Sequence[Sequence[int]], threshold: float) -> Path:
    """Plot the histogram of every epoch as a column, and the threshold below which a channel counts as removable."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    shares = np.array(counts, dtype=float).T / np.maximum(1, np.sum(counts, axis=1))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    epochs = len(counts)
    mesh = axes.pcolormesh(
        np.arange(epochs + 1) + 0.5,
        np.linspace(LOWEST, HIGHEST, BINS + 1),
        np.where(shares > 0, shares, np.nan),
        norm=LogNorm(1e-3, 1),
        cmap="viridis",
    )
    axes.axhline(np.log10(threshold), color="tab:red", linewidth=1, label=f"threshold {threshold:g}")
    ticks = np.arange(LOWEST, HIGHEST + 1)
    names = [rf"$10^{{{power:.0f}}}$" for power in ticks]
    axes.set_yticks(ticks, [f"≤ {names[0]}", *names[1:]])
    axes.set(title="|γ| of the prunable channels", xlabel="epoch", ylabel="|γ|")
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # MaxNLocator, where axes are linear
    axes.legend(loc="upper left")
    figure.colorbar(mesh, ax=axes, label="share of the channels")
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return path


COLUMNS, ROWS = 4, 4


def save_batch_image(folder: Path, data: DetectionDataset) -> Path:
    """Save augmented training images with their boxes as train_batch.png."""
    images = []
    for image, boxes in (data.make_item(index) for index in pick_evenly(len(data), COLUMNS * ROWS)):
        images.append(draw_detections(image, make_detections([], [], []), (), get_truth(boxes)))
    return save_image(folder / "train_batch.png", _lay_out("training images and their boxes", images))


@torch.inference_mode()
def save_detections_image(
    folder: Path,
    model: Detector,
    data: DetectionDataset,
    names: Sequence[str],
    device: torch.device,
    config: DetectConfig | None = None,
) -> Path:
    """Save the detections of a model in evaluation mode on validation images as val_detections.png."""
    chosen = pick_evenly(len(data), COLUMNS * ROWS)
    images = [draw_found(model, data, index, names, device, config) for index in chosen]
    return save_image(folder / "val_detections.png", _lay_out("validation, truth in white", images))


def _lay_out(title: str, images: Sequence[Image]) -> Image:
    return make_side_by_side([(title if column == 0 else "", images[column::COLUMNS]) for column in range(COLUMNS)])
