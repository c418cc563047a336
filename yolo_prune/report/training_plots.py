"""The plots of training: losses and scores over epochs, and with γ sparsity the distribution of |γ|."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolo_prune.pruning.sparsity.gamma_sparsity import GAMMA_THRESHOLD
from yolo_prune.report.data import Stage
from yolo_prune.report.tables import Table, make_cells
from yolo_prune.report.vega import AFTER, Plot, Spec, clean, make_axis, make_colour, make_dash, make_spec, make_tooltip
from yolo_prune.training.report import BINS, HIGHEST, LOWEST

MOST_COLUMNS = 60
"""Of a longer training that many epochs are drawn, spread evenly."""
MOST_LINES = 12
"""Epochs that a table lists, spread evenly."""


def make_training_plots(stages: Sequence[Stage], models: Sequence[str]) -> list[Plot]:
    """Plot the training loss and the validation AP50 of every training over its epochs."""
    trained = [stage for stage in stages if stage.epochs]
    if not trained:
        return []
    return [
        plot
        for key, title in (("loss", "Training loss"), ("val_map50", "Validation AP50"))
        if (plot := _make_lines(trained, models, key, title)) is not None
    ]


def _make_lines(stages: Sequence[Stage], models: Sequence[str], key: str, title: str) -> Plot | None:
    values, lines, ends = [], [], []
    for stage in stages:
        points = [(row["epoch"], value) for row in stage.epochs if (value := row.get(key)) is not None]
        if not points:
            continue
        values += [clean({"name": stage.name, "epoch": epoch, "value": value}) for epoch, value in points]
        chosen = [points[place] for place in _pick(len(points), MOST_LINES)]
        lines += [(stage.name, f"{epoch:g}", f"{value:.4f}") for epoch, value in chosen]
        ends.append(f"{stage.name}: {points[-1][1]:.4f} after {points[-1][0]:g} epochs")
    if not values:
        return None
    axis = {"tickMinStep": 1, "tickCount": 6, "grid": False}
    mark: Spec = {
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 30, "filled": True}},
        "encoding": {
            "x": make_axis("epoch", "Epoch", axis=axis, scale={"zero": False, "nice": False}),
            "y": make_axis("value", title, axis={"tickCount": 5}, scale={"zero": True}),
            "color": make_colour(models),
            "strokeDash": make_dash(models),
            "tooltip": make_tooltip(("name", "model"), ("epoch", "epoch"), ("value", title)),
        },
    }
    table = Table(f"{title} over epochs", ("model", "epoch", title.lower()), make_cells(lines))
    spec = make_spec([mark], 240, data={"values": values})
    return Plot(key.replace("_", "-"), title, f"{'; '.join(ends)}.", spec, table)


def _pick(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices below `count`, spread evenly, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted)).tolist()})


def make_gamma_plots(stages: Sequence[Stage]) -> list[Plot]:
    """Plot how |γ| of the prunable channels is distributed after every epoch, for each training with γ sparsity."""
    return [_make_gammas(number, stage) for number, stage in enumerate(stages) if stage.gammas]


def _make_gammas(number: int, stage: Stage) -> Plot:
    edges = [10 ** (LOWEST + (HIGHEST - LOWEST) * place / BINS) for place in range(BINS + 1)]
    counts = np.array(stage.gammas, dtype=float)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    epochs = _pick(len(shares), MOST_COLUMNS)
    values = []
    for place, epoch in enumerate(epochs):
        end = epochs[place + 1] if place + 1 < len(epochs) else epoch + 1
        for row in np.flatnonzero(shares[epoch]).tolist():
            low, high, share = edges[row], edges[row + 1], float(shares[epoch, row])
            span = f"{low:.2g} – {high:.2g}" if row else f"below {high:.2g}"
            values.append(
                clean({"from": epoch + 0.5, "to": end + 0.5, "low": low, "high": high, "share": share})
                | {"epoch": epoch + 1, "span": span, "text": f"{share:.1%} of the channels"}
            )
    scale = {"type": "log", "domain": [edges[0], edges[-1]], "nice": False}
    powers = [10.0**power for power in range(int(LOWEST), int(HIGHEST) + 1)]
    y = make_axis("low", "|γ|", scale=scale, axis={"values": powers, "format": "~g", "grid": False})
    shade = {"type": "log", "domain": [0.001, 1], "range": [0.1, 1], "clamp": True}
    ticks = [epoch + 1 for epoch in _pick(len(shares), 8)]
    x_scale = {"domain": [0.5, len(shares) + 0.5], "nice": False, "zero": False}
    cells: Spec = {
        "data": {"values": values},
        "mark": {"type": "rect", "color": AFTER, "stroke": None},
        "encoding": {
            "x": make_axis("from", "Epoch", scale=x_scale, axis={"values": ticks, "grid": False}),
            "x2": {"field": "to"},
            "y": y,
            "y2": {"field": "high"},
            "opacity": {"field": "share", "type": "quantitative", "scale": shade, "legend": None},
            "tooltip": make_tooltip(("epoch", "epoch"), ("span", "|γ|"), ("text", "share")),
        },
    }
    rule: Spec = {
        "data": {"values": [{"low": GAMMA_THRESHOLD}]},
        "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [4, 3]},
        "encoding": {"y": y},
    }
    below = _measure_below(shares)
    described = (
        f"{stage.name}: {below[0]:.0%} of the prunable channels had a |γ| below {GAMMA_THRESHOLD:g} after the first epoch, "
        f"{below[-1]:.0%} after the last, epoch {len(below)}."
    )
    lines = [(str(epoch + 1), f"{below[epoch]:.1%}") for epoch in _pick(len(below), MOST_LINES)]
    table = Table(f"Share of |γ| below {GAMMA_THRESHOLD:g}", ("epoch", "share"), make_cells(lines))
    return Plot(f"gammas-{number}", f"|γ| over epochs: {stage.name}", described, make_spec([cells, rule], 280), table)


def _measure_below(shares: np.ndarray) -> list[float]:
    """Return the share of channels below the threshold after each epoch (E,)."""
    edge = (np.log10(GAMMA_THRESHOLD) - LOWEST) / (HIGHEST - LOWEST) * BINS
    return [float(part) for part in shares[:, : round(edge)].sum(axis=1)]
