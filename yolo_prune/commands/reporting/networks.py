"""The layers of the first and of the last network of a report: their channels and times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from string import ascii_uppercase

import torch

from yolo_prune.benchmarking.latency import timing_threads
from yolo_prune.benchmarking.layer_timing import TABLE_ENGINES, LayerCase, make_layer_timer
from yolo_prune.commands.profile import profile_layers
from yolo_prune.darknet.network import Network
from yolo_prune.engines.precision import computing_in
from yolo_prune.errors import PlanError
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.pruning.blocks import list_kept_layers, pick_blocks
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.report.data import LayerTime, LayerWidth, ShortcutGroup

Places = list[int]
"""For each layer of the last network its number in the first one."""


def match_layers(first: Network, last: Network, checkpoints: Sequence[Checkpoint]) -> Places | None:
    """Return which layers of the first network the last one's are, or None if it was not made from that.

    Layers of residual blocks that were removed are missing; the checkpoints say which blocks those are.
    """
    if _is_pruned(first, last, list(range(len(first.layers)))):
        return list(range(len(last.layers)))
    for checkpoint in checkpoints:
        shortcuts = (checkpoint.provenance.get("metrics") or {}).get("dropped_blocks") or ()
        try:
            places = list_kept_layers(first, pick_blocks(first, shortcuts))
        except PlanError:
            continue
        if _is_pruned(first, last, places):
            return places
    return None


def _is_pruned(first: Network, last: Network, places: Places) -> bool:
    if len(places) != len(last.layers):
        return False
    pairs = zip((first.layers[place] for place in places), last.layers, strict=True)
    widths = {index: conv.filters for index, conv in first.convs}
    is_narrower = all(conv.filters <= widths.get(places[index], 0) for index, conv in last.convs)
    return is_narrower and all(type(one) is type(other) for one, other in pairs)


def list_widths(
    first: Network | None, last: Network, places: Places | None
) -> tuple[tuple[LayerWidth, ...], tuple[ShortcutGroup, ...]]:
    """Return the channels of every convolution of the original, or of the last network alone, and the shortcut groups."""
    whole = last if first is None or places is None else first
    groups = _list_groups(whole)
    letters = {layer: group.letter for group in groups for layer in group.layers}
    found = {index: conv.filters for index, conv in last.convs}
    if whole is last:
        widths = [LayerWidth(index, None, filters, letters.get(index, "")) for index, filters in found.items()]
    else:
        assert places is not None
        after = {places[index]: filters for index, filters in found.items()}
        widths = [
            LayerWidth(index, conv.filters, after.get(index, 0), letters.get(index, "")) for index, conv in whole.convs
        ]
    return tuple(widths), groups


def _list_groups(network: Network) -> tuple[ShortcutGroup, ...]:
    tied = [group.writers for group in make_channel_graph(network).groups if group.is_tied]
    return tuple(map(ShortcutGroup, _make_letters(len(tied)), tied))


def _make_letters(wanted: int) -> list[str]:
    """Return A, B, … Z, A1, B1, …"""
    names = (f"{letter}{number or ''}" for number in count() for letter in ascii_uppercase)
    return [name for name, _ in zip(names, range(wanted), strict=False)]


def choose_engine(engine: str) -> str:
    """Return the engine to time layers in: that of the table if layers can be timed in it."""
    return engine if engine in TABLE_ENGINES else "folded"


def time_layers(
    first: Network | None, last: Network, places: Places | None, engine: str, threads: int | None, device: torch.device
) -> tuple[LayerTime, ...]:
    """Time every layer of both networks alone; of the last one if its layers are not those of the first.

    Raises:
        ConfigError: a package that the engine needs is not installed.
    """
    timer, known = make_layer_timer(engine, device), dict[LayerCase, float]()
    with timing_threads(threads), computing_in("fp32"):
        after = {layer.index: layer for layer in profile_layers(last, known, timer)}
        if first is None or places is None:
            return tuple(LayerTime(index, one.kind, None, one.time_ms) for index, one in after.items())
        before = profile_layers(first, known, timer)
    times = {places[index]: one.time_ms for index, one in after.items()}
    return tuple(LayerTime(one.index, one.kind, one.time_ms, times.get(one.index)) for one in before)
