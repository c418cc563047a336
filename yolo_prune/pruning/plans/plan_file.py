"""Plans on disk: JSON that people can read, edit and apply.

    {"format": "yolo_prune plan", "format_version": 1,
     "network": "<sha256 of the cfg text>",                       the network that it was made for
     "blocks": [8],                                               shortcuts whose residual blocks are cut first
     "groups": [{"layers": [0], "channels": 32, "drop": [3, 7]},  per group of the network that is left: the channels to
                …],                                               drop, numbered from 0
     …}                                                           other keys are for the reader and are ignored

A group is named by the convolutions that write it, and its channels are numbered in order. For a single convolution
they are its filters. If shortcuts tie whole convolutions, channel n is filter n of each. If a cfg slices channels into
equal parts, or ties only some of them, a filter that is tied to an earlier one is skipped in the numbering.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.darknet.cfg import format_cfg
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.files import save_text
from yolo_prune.pruning.blocks import Block, drop_blocks, pick_blocks
from yolo_prune.pruning.channels import ChannelGraph, Group, make_channel_graph
from yolo_prune.pruning.plans.plan import Plan, name_group
from yolo_prune.records import load_plain_json, shorten

FORMAT = "yolo_prune plan"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BlockPlan:
    """Residual blocks to cut out of a network, and a plan for the rest of it."""

    blocks: tuple[Block, ...]
    plan: Plan


def measure_network_sha256(network: Network) -> str:
    """Return the SHA-256 of the network's cfg text, with which files identify the network that they were made for."""
    return sha256(format_cfg(network).encode()).hexdigest()


def format_plan(network: Network, made: BlockPlan) -> dict[str, Any]:
    """Return the plan for `network` as plain data, which `parse_plan` reads."""
    graph = make_channel_graph(drop_blocks(network, made.blocks))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": measure_network_sha256(network),
        "blocks": [block.shortcut for block in made.blocks],
        "groups": [
            {
                "layers": list(group.writers),
                "channels": len(group.ids),
                "drop": np.flatnonzero(~made.plan.keep[group.ids]).tolist(),
            }
            for group in graph.groups
            if not group.frozen
        ],
    }


def save_plan(path: Path, network: Network, made: BlockPlan, facts: Mapping[str, Any]) -> Path:
    """Write the plan, one line per group, with `facts` for the reader, and return `path`."""
    content = {**format_plan(network, made), **facts}
    groups = ",\n    ".join(json.dumps(group) for group in content.pop("groups"))
    head = json.dumps(content, indent=2).removesuffix("\n}")
    return save_text(path, f'{head},\n  "groups": [\n    {groups}\n  ]\n}}\n')


def load_plan(path: Path, network: Network) -> BlockPlan:
    """Load a plan for `network` that `save_plan` wrote; it may have been edited.

    Raises:
        PlanError: the file does not exist, is not a plan, is for another network, or does not fit; names group and
            number.
    """
    content = load_plain_json(path, PlanError, "name a file that yoloprune plan wrote")
    return parse_plan(content, network, path)


def parse_plan(content: Any, network: Network, where: str | Path) -> BlockPlan:
    """Make a plan from plain data; see `load_plan`."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError("is not a plan", where=where, right="name a file that yoloprune plan wrote")
    if content.get("format_version") != FORMAT_VERSION:
        right = f"this version reads format {FORMAT_VERSION}"
        raise PlanError(f"has format version {shorten(content.get('format_version'))}", where=where, right=right)
    if content.get("network") != measure_network_sha256(network):
        raise PlanError(
            "was made for another network", where=where, right="make a plan for this one with yoloprune plan"
        )
    ends = _read_numbers(content.get("blocks"), f"{where}: blocks")
    try:
        blocks = pick_blocks(network, ends)
    except PlanError as error:
        raise PlanError(f"{error.where} {error.what}", where=f"{where}: blocks", right=error.right) from None
    graph = make_channel_graph(drop_blocks(network, blocks))
    return BlockPlan(blocks, _parse_groups(content.get("groups"), graph, f"{where}: groups"))


def _parse_groups(values: Any, graph: ChannelGraph, where: str) -> Plan:
    if not isinstance(values, list):
        raise PlanError("is no list", where=where, right='write [{"layers": …, "channels": …, "drop": …}, …]')
    known = {group.writers: group for group in graph.groups if not group.frozen}
    keep, seen = np.ones(graph.size, dtype=bool), set[tuple[int, ...]]()
    for number, value in enumerate(values):
        place = f"{where}[{number}]"
        layers = tuple(_read_numbers(value.get("layers") if isinstance(value, dict) else None, f"{place}: layers"))
        if layers not in known or layers in seen:
            what = "is listed twice" if layers in seen else "is no group that can be pruned"
            right = "name each group once, by the layers that yoloprune plan gives"
            raise PlanError(f"layer {', '.join(map(str, layers))} {what}", where=place, right=right)
        seen.add(layers)
        _drop(keep, known[layers], value, place)
    if missing := known.keys() - seen:
        raise PlanError(f"lacks the group of {name_group(known[min(missing)])}", where=where, right="name every group")
    return Plan(keep)


def _drop(keep: np.ndarray[Any, np.dtype[np.bool_]], group: Group, value: Mapping[str, Any], place: str) -> None:
    count, name = len(group.ids), name_group(group)
    if value.get("channels") != count:
        raise PlanError(f"{name} has {count} channels", where=f"{place}: channels", right=f"write {count}")
    drop = _read_numbers(value.get("drop"), f"{place}: drop")
    for channel in drop:
        if not channel < count:
            raise PlanError(f"{name} has no channel {channel}", where=f"{place}: drop", right=f"use 0 … {count - 1}")
    if len(set(drop)) == count:
        raise PlanError(f"leaves {name} no channel", where=f"{place}: drop", right="keep at least one")
    keep[group.ids[drop]] = False


def _read_numbers(value: Any, where: str) -> Sequence[int]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise PlanError(f"{shorten(value)} is no list of whole numbers from 0 on", where=where, right="write [3, 7, …]")
    return value
