"""A picture of how γ moves while a run trains sparse: epochs from left to right, sizes from zero upwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolo_prune.files import open_atomically
from yolo_prune.pruning.plan import FloatArray

LOWEST, HIGHEST, BINS = -5.0, 1.0, 48
"""The powers of ten between which sizes are told apart, and into how many bins; smaller ones, zeros too, are in the first."""


def count_gammas(gammas: FloatArray) -> list[int]:
    """Return how many of the finite |γ| fall in every bin, the smallest first."""
    present = gammas[np.isfinite(gammas)]
    powers = np.log10(np.maximum(present, 10.0**LOWEST)).clip(LOWEST, HIGHEST)
    return [int(count) for count in np.histogram(powers, BINS, (LOWEST, HIGHEST))[0]]


def draw_gammas(path: Path, counts: Sequence[Sequence[int]], threshold: float) -> Path:
    """Draw the histogram of every epoch as a column, and the threshold below which a channel counts as gone."""
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
