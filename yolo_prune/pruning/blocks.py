"""Residual blocks as data: which can be cut out of a network, and the network without them.

layer s        what goes in ──────────────┐
layers s+1 … i−1   the branch             │        cut: whoever read layer i reads layer s
layer i        [shortcut] from=s  ──── + ─┘
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from yolo_prune.darknet.layers import Conv, Layer, Network, Route, Shortcut, Yolo, get_sources
from yolo_prune.errors import PlanError


@dataclass(frozen=True)
class Block:
    """A residual block: what it reads, and the shortcut that ends it; its branch is what lies between."""

    source: int
    shortcut: int

    @property
    def layers(self) -> range:
        """The layers that go when the block is cut."""
        return range(self.source + 1, self.shortcut + 1)

    @property
    def last_conv(self) -> int:
        """The convolution whose output the shortcut adds."""
        return self.shortcut - 1


def find_blocks(network: Network) -> tuple[Block, ...]:
    """Return the residual blocks that can be cut, in order.

    The branch ends in a convolution that gives 0 for γ = β = 0, nobody else reads it, it reads nothing before the block's
    own input, and the sum passes unchanged (a linear shortcut): so cutting the block is the same as silencing the branch.
    """
    readers: dict[int, set[int]] = {}
    for index, layer in enumerate(network.layers):
        for source in get_sources(layer, index):
            readers.setdefault(source, set()).add(index)
    blocks = (
        Block(layer.source, index)
        for index, layer in enumerate(network.layers)
        if isinstance(layer, Shortcut) and layer.activation == "linear" and layer.source < index - 1
    )
    return tuple(block for block in blocks if _is_closed(network, block, readers))


def _is_closed(network: Network, block: Block, readers: dict[int, set[int]]) -> bool:
    branch, inside = block.layers[:-1], set(block.layers)
    last = network.layers[block.last_conv]
    return (
        isinstance(last, Conv)
        and last.activation != "logistic"
        and not any(isinstance(network.layers[index], Shortcut | Yolo) for index in branch)
        and all(source >= block.source for index in branch for source in get_sources(network.layers[index], index))
        and all(readers.get(index, set()) <= inside for index in branch)
    )


def pick_blocks(network: Network, shortcuts: Iterable[int]) -> tuple[Block, ...]:
    """Return the blocks that the given shortcuts end.

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
    """Return the numbers of the layers that stay when blocks are cut, in order."""
    removed = {index for block in blocks for index in block.layers}
    return [index for index in range(len(network.layers)) if index not in removed]


def number_kept_layers(network: Network, blocks: Collection[Block]) -> dict[int, int]:
    """Return the layers that stay when blocks are cut: their old numbers to their new ones, in order."""
    return {old: new for new, old in enumerate(list_kept_layers(network, blocks))}


def drop_blocks(network: Network, blocks: Collection[Block]) -> Network:
    """Return the network without the blocks; whoever read a block's sum reads what went into it."""
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
            case Shortcut(source=source):
                return replace(layer, source=find(source))
            case _:
                return layer

    return replace(network, layers=tuple(rewire(network.layers[index]) for index in number if index >= 0))
