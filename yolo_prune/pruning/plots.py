"""Plot a plan and a sensitivity table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo_prune.darknet.network import Network
from yolo_prune.files import open_atomically
from yolo_prune.pruning.blocks import drop_blocks, list_kept_layers
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan_file import BlockPlan
from yolo_prune.pruning.scores.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONE, FROZEN, BEFORE, CUT = "tab:gray", "black", "0.88", "0.55"
NAMED_LAYERS = 4
"""A group of more layers than this is named by its first and last layer."""
CROWDED = 30
"""With more convolutions than this, numbers are turned upright."""
LEGEND_COLUMN = 1.9
"""Width of a legend entry in inches."""


def draw_plan(path: Path, network: Network, made: BlockPlan) -> Path:
    """Plot every convolution's filters before and after pruning, with one colour per tied group.

    The number on a bar is the number of filters kept. Convolutions of cut blocks are hatched and have no number.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    graph = make_channel_graph(drop_blocks(network, made.blocks))
    kept = list_kept_layers(network, made.blocks)
    after = {kept[layer]: int(made.plan.keep[graph.writes[layer]].sum()) for layer in graph.conv_layers}
    tied = [group for group in graph.groups if group.is_tied and not group.frozen]
    palette = _make_palette(len(tied))
    colours = dict.fromkeys(after, ALONE)
    colours |= {kept[layer]: FROZEN for group in graph.groups if group.frozen for layer in group.writers}
    colours |= {kept[layer]: colour for group, colour in zip(tied, palette, strict=True) for layer in group.writers}
    before = {index: conv.filters for index, conv in network.convs}
    places = {index: place for place, index in enumerate(before)}
    width = max(8.0, 0.19 * len(before) + 1.5)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes, turn = figure.subplots(), 90 if len(before) > CROWDED else 0
    for index, place in places.items():
        if index in after:
            axes.bar(place, before[index], 0.9, color=BEFORE)
            axes.bar(place, after[index], 0.9, color=colours[index])
            axes.annotate(str(after[index]), (place, after[index]), (0, 2), textcoords="offset points", rotation=turn, ha="center", va="bottom", fontsize=6)  # fmt: skip
        else:
            axes.bar(place, before[index], 0.9, facecolor="white", edgecolor=CUT, hatch="////", linewidth=0)
    axes.set_xticks(list(places.values()), [str(index) for index in places], rotation=turn, fontsize=7)
    for index, label in zip(places, axes.get_xticklabels(), strict=True):
        label.set_color(colours[index] if index in after and colours[index] != ALONE else "black")
    axes.set(xlabel="layer", ylabel="filters", xlim=(-0.7, len(places) - 0.3), ylim=(0, 1.1 * max(before.values())))
    axes.set_title(f"{sum(after.values()):,} of {sum(before.values()):,} filters stay")
    handles = [Patch(color=BEFORE, label="before"), Patch(color=ALONE, label="after")]
    handles += [Patch(color=FROZEN, label="detection head")]
    if made.blocks:
        handles += [Patch(facecolor="white", edgecolor=CUT, hatch="////", linewidth=0, label="cut block")]
    handles += [
        Patch(color=colour, label=f"tied: {name_layers(tuple(kept[layer] for layer in group.writers))}")
        for group, colour in zip(tied, palette, strict=True)
    ]
    lines = math.ceil(len(handles) * LEGEND_COLUMN / width)
    columns = math.ceil(len(handles) / lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return _save(path, figure)


def draw_sensitivity(path: Path, table: Sensitivity) -> Path:
    """Plot the damage of every group (row) at every ratio (column) as a heat map with numbers."""
    from matplotlib.figure import Figure

    damages = np.array([table.measure_damages(curve) for curve in table.groups])
    rows, columns = damages.shape
    figure = Figure(figsize=(max(4.5, 2.2 + 0.75 * columns), 1.2 + 0.24 * max(5, rows)), layout="constrained")
    axes = figure.subplots()
    largest = max(float(damages.max()), 1e-9)
    axes.imshow(damages, cmap="YlOrRd", vmin=0, vmax=largest, aspect="auto")
    axes.set_xticks(range(columns), [f"{ratio:g}" for ratio in table.ratios], fontsize=8)
    names = [f"{name_layers(curve.layers)} ({curve.channels})" for curve in table.groups]
    axes.set_yticks(range(rows), names, fontsize=7)
    for (row, column), damage in np.ndenumerate(damages):
        ink = "white" if damage > 0.6 * largest else "black"
        text = f"{damage:.3f}" if damage < 100 else f"{damage:.0e}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    what = "AP50 lost" if table.metric == "map50" else "loss gained"
    axes.set_xlabel("fraction of the group dropped", fontsize=8)
    axes.set_ylabel("layers (channels)", fontsize=8)
    axes.set_title(f"{what}, {table.criterion}; whole: {table.base:.4f}", fontsize=9)
    return _save(path, figure)


def name_layers(layers: tuple[int, ...]) -> str:
    """Return a short name of a group's layers: `12`, `1, 3`, or for many the first and the last."""
    if len(layers) > NAMED_LAYERS:
        return f"{layers[0]} … {layers[-1]}, {len(layers)} layers"
    return ", ".join(map(str, layers))


def _make_palette(count: int) -> list[str]:
    """Return `count` distinct colours; if there are few, none is gray."""
    from matplotlib import colormaps
    from matplotlib.colors import TABLEAU_COLORS, to_hex

    few = [name for name in TABLEAU_COLORS if name != ALONE]
    if count <= len(few):
        return few[:count]
    return [to_hex(colormaps["turbo"](0.08 + 0.84 * number / (count - 1))) for number in range(count)]


def _save(path: Path, figure: Figure) -> Path:
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
