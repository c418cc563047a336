"""A plan and a sensitivity table as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo_prune.darknet.layers import Network
from yolo_prune.files import open_atomically
from yolo_prune.pruning.blocks import drop_blocks, list_kept_layers
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plan_file import BlockPlan
from yolo_prune.pruning.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONE, FROZEN, BEFORE = "tab:gray", "black", "0.88"
NAMED_LAYERS = 4
"""A group of more layers than this is named by its first and last."""


def draw_plan(path: Path, network: Network, made: BlockPlan) -> Path:
    """Draw every convolution's filters before and after, in the colour of the group that it must be pruned with.

    A cut block's convolutions keep nothing.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    graph = make_channel_graph(drop_blocks(network, made.blocks))
    kept = {old: new for new, old in enumerate(list_kept_layers(network, made.blocks))}
    tied = [group for group in graph.groups if group.is_tied and not group.frozen]
    palette = _make_palette(len(tied))
    colours = dict.fromkeys(graph.conv_layers, ALONE)
    colours |= {layer: FROZEN for group in graph.groups if group.frozen for layer in group.writers}
    colours |= {layer: colour for group, colour in zip(tied, palette, strict=True) for layer in group.writers}
    layers = [index for index, _ in network.convs]
    before = [conv.filters for _, conv in network.convs]
    after = [int(made.plan.keep[graph.writes[kept[index]]].sum()) if index in kept else 0 for index in layers]
    figure = Figure(figsize=(max(8.0, 0.19 * len(layers) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(layers))
    axes.bar(places, before, 0.9, color=BEFORE)
    axes.bar(places, after, 0.9, color=[colours[kept[index]] if index in kept else ALONE for index in layers])
    axes.set_xticks(places, [str(index) for index in layers], rotation=90, fontsize=7)
    axes.set(xlabel="layer", ylabel="filters", xlim=(-0.7, len(layers) - 0.3))
    axes.set_title(f"{sum(after):,} of {sum(before):,} filters stay")
    entries = [(BEFORE, "before"), (ALONE, "after"), (FROZEN, "after, detection head")]
    entries += [(colour, f"after, tied group {number}") for number, colour in enumerate(palette, 1)]
    handles = [Patch(color=colour, label=label) for colour, label in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9), fontsize=8, frameon=False)
    return _save(path, figure)


def draw_sensitivity(path: Path, table: Sensitivity) -> Path:
    """Draw the damage of every group (row) at every ratio (column) as a heat map with its figures."""
    from matplotlib.figure import Figure

    damages = np.array([table.measure_damages(curve) for curve in table.groups]).reshape(-1, len(table.ratios))
    height = 1.4 + 0.24 * max(1, len(table.groups))
    figure = Figure(figsize=(3.2 + 0.75 * len(table.ratios), height), layout="constrained")
    axes = figure.subplots()
    largest = max(float(damages.max(initial=0)), 1e-9)
    image = axes.imshow(damages, cmap="YlOrRd", vmin=0, vmax=largest, aspect="auto")
    axes.set_xticks(range(len(table.ratios)), [f"{ratio:g}" for ratio in table.ratios])
    names = [name_layers(curve.layers) for curve in table.groups]
    axes.set_yticks(
        range(len(names)),
        [f"{name} ({curve.channels})" for name, curve in zip(names, table.groups, strict=True)],
        fontsize=7,
    )
    for (row, column), damage in np.ndenumerate(damages):
        ink = "white" if damage > 0.6 * largest else "black"
        axes.text(column, row, f"{damage:.3f}", ha="center", va="center", fontsize=7, color=ink)
    what = "AP50 lost" if table.metric == "map50" else "loss gained"
    axes.set(xlabel="fraction of the group dropped", ylabel="group: its layers (channels)")
    axes.set_title(f"{what}, {table.criterion}; whole: {table.base:.4f}", fontsize=9)
    figure.colorbar(image, ax=axes)
    return _save(path, figure)


def name_layers(layers: tuple[int, ...]) -> str:
    """Return a group's layers in few letters: `12`, `1, 3`, or of many the first and the last."""
    if len(layers) > NAMED_LAYERS:
        return f"{layers[0]} … {layers[-1]}, {len(layers)} layers"
    return ", ".join(map(str, layers))


def _make_palette(count: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](0.08 + 0.84 * number / max(1, count - 1))) for number in range(count)]


def _save(path: Path, figure: Figure) -> Path:
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
