"""Plot where a network's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from yolo_prune.files import open_atomically
from yolo_prune.own_files import name_maker

COLOURS = ("0.75", "tab:blue")
CROWDED = 30
"""With more layers than this, numbers are turned upright."""


class Profiled(Protocol):
    """What is plotted of a network."""

    @property
    def layers(self) -> Sequence[Any]:
        """Layers with `index`, `macs` and `time_ms`."""

    @property
    def layers_ms(self) -> float:
        """The sum of the layers' times."""


def draw_profile(path: Path, networks: Sequence[Profiled]) -> Path:
    """Plot the milliseconds and the multiply–accumulates of every layer, of one network or of two.

    Args:
        path: ends in one of `own_files.PLOTS`.
    """
    from matplotlib.figure import Figure

    first = networks[0].layers
    figure = Figure(figsize=(max(8.0, 0.22 * len(first) + 1.5), 5.2), layout="constrained")
    times, macs = figure.subplots(2, 1, sharex=True)
    names = ["before", "after"] if len(networks) > 1 else [""]
    for network, colour, name in zip(networks, COLOURS, names, strict=False):
        places = range(len(network.layers))
        label = f"{name} ({network.layers_ms:.2f} ms)".strip()
        times.bar(places, [layer.time_ms for layer in network.layers], 0.85, color=colour, label=label)
        macs.bar(places, [layer.macs / 1e6 for layer in network.layers], 0.85, color=colour)
    times.set(ylabel="time in ms", title="Time and multiply–accumulates of every layer")
    times.legend(frameon=False)
    macs.set(ylabel="MACs in millions", xlabel="layer", xlim=(-0.7, len(first) - 0.3))
    turn = 90 if len(first) > CROWDED else 0
    macs.set_xticks(range(len(first)), [str(layer.index) for layer in first], rotation=turn, fontsize=7)
    for axes in (times, macs):
        axes.spines[["top", "right"]].set_visible(False)
    with open_atomically(path) as file:
        figure.savefig(file, dpi=110, format=path.suffix[1:].lower(), metadata=name_maker(path.suffix))
    return path
