"""Residual blocks: find those that can be cut out of a network, and cut them out.

layer s        the block's input ─────────┐
layers s+1 … i−1   the branch             │        after the cut, layers that read layer i read layer s
layer i        [shortcut] from=s  ──── + ─┘
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from yolo_prune.darknet.layers import SIGMOIDS, Conv, Gate, Layer, Route, Shortcut, Yolo, get_sources
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError


@dataclass(frozen=True)
class Block:
    """A residual block: the layer that it reads and the shortcut that ends it; its branch is the layers in between."""

    source: int
    shortcut: int

    @property
    def layers(self) -> range:
        """The layers that are removed when the block is cut."""
        return range(self.source + 1, self.shortcut + 1)

    @property
    def last_conv(self) -> int:
        """The convolution whose output the shortcut adds."""
        return self.shortcut - 1


def find_blocks(network: Network) -> tuple[Block, ...]:
    """Return the residual blocks that can be cut, in order.

    The branch ends in a convolution that outputs 0 for γ = β = 0. No layer outside the block reads the branch, and the
    branch reads no layer before the block's input. The shortcut is linear. So cutting the block is the same as zeroing
    the branch.
    """
    readers: dict[int, set[int]] = {}
    for index, layer in enumerate(network.layers):
        for source in get_sources(layer, index):
            readers.setdefault(source, set()).add(index)
    blocks = (
        Block(layer.source, index)
        for index, layer in enumerate(network.layers)
        if isinstance(layer, Shortcut)
        and layer.activation == "linear"
        and layer.source < index - 1
        and network.shapes[layer.source] == network.shapes[index]
    )
    return tuple(block for block in blocks if _is_closed(network, block, readers))


def _is_closed(network: Network, block: Block, readers: dict[int, set[int]]) -> bool:
    branch, inside = block.layers[:-1], set(block.layers)
    last = network.layers[block.last_conv]
    return (
        isinstance(last, Conv)
        and last.activation not in SIGMOIDS
        and not any(isinstance(network.layers[index], Shortcut | Gate | Yolo) for index in branch)
        and all(source >= block.source for index in branch for source in get_sources(network.layers[index], index))
        and all(readers.get(index, set()) <= inside for index in branch)
    )


def pick_blocks(network: Network, shortcuts: Iterable[int]) -> tuple[Block, ...]:
    """Return the blocks that end in the given shortcuts.

    Raises:
        PlanError: a layer ends no block that can be cut.
    """
    known = {block.shortcut: block for block in find_blocks(network)}
    wanted = sorted(set(shortcuts))
    for index in wanted:
        if index not in known:
            right = f"name one of {', '.join(map(str, known))}" if known else "name none, for this network has none"
            raise PlanError("ends no residual block that can be cut", where=f"layer {index}", right=right)
    return tuple(known[index] for index in wanted)


def list_kept_layers(network: Network, blocks: Collection[Block]) -> list[int]:
    """Return the numbers of the layers that are left when blocks are cut, in order."""
    removed = {index for block in blocks for index in block.layers}
    return [index for index in range(len(network.layers)) if index not in removed]


def number_kept_layers(network: Network, blocks: Collection[Block]) -> dict[int, int]:
    """Return the layers that are left when blocks are cut, as a map from old to new numbers, in order."""
    return {old: new for new, old in enumerate(list_kept_layers(network, blocks))}


def drop_blocks(network: Network, blocks: Collection[Block]) -> Network:
    """Return the network without the blocks; layers that read a block's output read its input instead."""
    ends = {block.shortcut: block.source for block in blocks}
    number = {-1: -1} | number_kept_layers(network, blocks)

    def find(index: int) -> int:
        while index in ends:
            index = ends[index]
        return number[index]

    def rewire(layer: Layer) -> Layer:
        match layer:
            case Route(sources=sources):
                return replace(layer, sources=tuple(map(find, sources)))
            case Shortcut(source=source) | Gate(source=source):
                return replace(layer, source=find(source))
            case _:
                return layer

    return replace(network, layers=tuple(rewire(network.layers[index]) for index in number if index >= 0))
