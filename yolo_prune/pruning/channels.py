"""The channel graph: every output channel of a convolution gets an id, and five rules say which layers share it.

    layer                              rule
    ────────────────────────────────   ──────────────────────────────────────────────────────────────
    conv                               emits new ids
    max-, avgpool, upsample, dropout   pass the ids on
    reorg                              repeats the ids, once for every pixel of a block
    route                              concatenates the ids of its sources
    shortcut, gate                     unites the two inputs' ids element by element (union–find)
    yolo                               freezes the ids it reads (as are the image's)

If a cfg slices channels into equal parts (`groups` of a route or a convolution), the ids of the parts are united
element by element. So any plan leaves parts of equal size, and the slimmer network can still be written as a cfg. Of a
shortcut of unequal channels the first are united, as many as both inputs have.

The outputs of a sigmoid are frozen as well: with γ = β = 0 they would be ½, not 0. They are not if only
gates read them as factors, because the channels that they multiply are zero then.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from yolo_prune.darknet.layers import SIGMOIDS, Conv, Gate, Reorg, Route, Shortcut, Yolo, get_sources
from yolo_prune.darknet.network import Network

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """All ids that are written by the same set of convolutions; shortcuts tie convolutions into one group."""

    ids: IntArray
    writers: tuple[int, ...]
    frozen: bool

    @property
    def is_tied(self) -> bool:
        """Whether several convolutions must drop these channels together."""
        return len(self.writers) > 1


@dataclass(frozen=True)
class ChannelGraph:
    """Which channel ids every layer reads and writes; N ids in all."""

    reads: tuple[IntArray, ...]
    """reads[i][c] is the id of input channel c of layer i (for a shortcut the layer before it)."""
    writes: tuple[IntArray, ...]
    """writes[i][c] is the id of output channel c of layer i."""
    frozen: BoolArray
    """(N,) ids that no plan may drop."""
    conv_layers: tuple[int, ...]
    """The convolutions, which emit the ids, in order."""

    @property
    def size(self) -> int:
        """The number of ids N."""
        return len(self.frozen)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All ids, partitioned by the set of convolutions that write them; the image's, which have none, come first."""
        writers: list[list[int]] = [[] for _ in range(self.size)]
        for layer in self.conv_layers:
            for channel in np.unique(self.writes[layer]):
                writers[channel].append(layer)
        members: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for channel, layers in enumerate(writers):
            members.setdefault((tuple(layers), bool(self.frozen[channel])), []).append(channel)
        return tuple(Group(np.array(ids), layers, frozen) for (layers, frozen), ids in sorted(members.items()))

    @cached_property
    def prunable(self) -> BoolArray:
        """(N,) ids that a plan may drop."""
        return ~self.frozen


def make_channel_graph(network: Network) -> ChannelGraph:
    """Give every channel of a network an id, the same one to channels that must be kept or dropped together."""
    ids = _Ids()
    image = ids.emit(network.channels)
    frozen = [image]
    reads: list[IntArray] = []
    writes: list[IntArray] = []

    def written(index: int) -> IntArray:
        return image if index == -1 else writes[index]

    factors = _find_factors(network)
    for index, layer in enumerate(network.layers):
        inputs = written(index - 1)
        outputs = inputs
        match layer:
            case Conv():
                outputs = ids.emit(layer.filters)
                frozen += [outputs] if layer.activation in SIGMOIDS and index not in factors else []
                _tie_groups(ids, inputs, outputs, layer.groups)
            case Route():
                parts = [written(source).reshape(layer.groups, -1) for source in layer.sources]
                for part in parts:
                    ids.unite_rows(part)
                inputs = outputs = np.concatenate([part[layer.group_id] for part in parts])
            case Shortcut():
                added = written(layer.source)
                both = min(len(inputs), len(added))
                ids.unite(inputs[:both], added[:both])
                frozen += [outputs] if layer.activation in SIGMOIDS else []
            case Gate():
                outputs = written(layer.source)
                if layer.factors == "pixels":  # one channel for all
                    frozen.append(inputs)
                else:
                    ids.unite(inputs, outputs)
                frozen += [outputs] if layer.activation in SIGMOIDS else []
            case Reorg():
                outputs = np.tile(inputs, layer.stride**2)
                frozen += [inputs] if layer.is_mixed else []  # an output channel holds rows of several
            case Yolo():
                frozen.append(inputs)
            case _:
                pass
        reads.append(inputs)
        writes.append(outputs)
    names = ids.name()
    is_frozen = np.zeros(int(names.max()) + 1, dtype=bool)
    is_frozen[names[np.concatenate(frozen)]] = True
    convs = tuple(index for index, _ in network.convs)
    return ChannelGraph(tuple(names[read] for read in reads), tuple(names[write] for write in writes), is_frozen, convs)


def _find_factors(network: Network) -> frozenset[int]:
    """Return the layers that gates alone read, as factors of channels or values."""
    readers: dict[int, list[bool]] = {}
    for index, layer in enumerate(network.layers):
        for source in get_sources(layer, index):
            is_factor = isinstance(layer, Gate) and layer.factors != "pixels" and layer.source != source
            readers.setdefault(source, []).append(is_factor)
    return frozenset(source for source, kinds in readers.items() if all(kinds))


def _tie_groups(ids: _Ids, inputs: IntArray, outputs: IntArray, groups: int) -> None:
    if groups == 1:
        return
    if len(inputs) == groups:  # depthwise: an input channel and the outputs made from it share an id
        ids.unite(np.repeat(inputs, len(outputs) // groups), outputs)
    else:
        ids.unite_rows(inputs.reshape(groups, -1))
        ids.unite_rows(outputs.reshape(groups, -1))


class _Ids:
    """Union–find over arrays of ids; the smallest id of a set is its root."""

    def __init__(self) -> None:
        self._parent: IntArray = np.empty(0, dtype=np.int64)

    def emit(self, count: int) -> IntArray:
        fresh = np.arange(len(self._parent), len(self._parent) + count)
        self._parent = np.concatenate((self._parent, fresh))
        return fresh

    def find(self, ids: IntArray) -> IntArray:
        roots = self._parent[ids]
        while not np.array_equal(above := self._parent[roots], roots):
            roots = above
        return roots

    def unite(self, one: IntArray, other: IntArray) -> None:
        while True:
            low, high = np.sort((self.find(one), self.find(other)), axis=0)
            if np.array_equal(low, high):
                return
            np.minimum.at(self._parent, high, low)

    def unite_rows(self, rows: IntArray) -> None:
        for row in rows[1:]:
            self.unite(rows[0], row)

    def name(self) -> IntArray:
        """Return for every emitted id the number of its set; sets are numbered from 0 in order of their roots."""
        roots = self.find(np.arange(len(self._parent)))
        return np.unique(roots, return_inverse=True)[1].reshape(-1).astype(np.int64)
