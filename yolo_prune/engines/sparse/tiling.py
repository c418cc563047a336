"""How a convolution is cut so that what the kernel reads again and again stays in a core's caches."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.engines.sparse.packing import PackedWeights
from yolo_prune.engines.sparse.planes import Planes

SECOND_LEVEL_BYTES = 700 * 1024
"""What a tile of pixels may take over all input channels: most of a core's 1 MiB of second-level cache."""
FIRST_LEVEL_BYTES = 32 * 1024
"""What a tile may take over a block of input channels."""
LEAST_NONZEROS = 4
"""The least mean non-zeros of an output channel in a block: below, sums that come and go cost more than pixels from the
second level."""
LEAST_VECTORS = 8
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Limits:
    """What the compiled kernel can do: floats in a vector, vectors that it sums up at once, output channels in a group."""

    lanes: int
    vectors: int
    rows: int


@dataclass(frozen=True)
class Tiling:
    """A tile is `vectors` of pixels, of which there are `tiles`; weights come by `rows` and `blocks` (`PackedWeights.place`)."""

    vectors: int
    tiles: int
    rows: int
    blocks: int


def make_tiling(limits: Limits, weights: PackedWeights, source: Planes, positions: int) -> Tiling:
    """Choose the tiles and blocks of a convolution that reads `source` and gives `positions` per output channel."""
    total = positions // limits.lanes
    fitting = SECOND_LEVEL_BYTES // (FLOAT_BYTES * limits.lanes * source.channels)
    most = min(limits.vectors, max(fitting, LEAST_VECTORS))
    tiles = -(-total // most)
    vectors = -(-total // tiles)
    tiles = -(-total // vectors)
    block = FIRST_LEVEL_BYTES // (FLOAT_BYTES * _count_touched(weights, source, vectors * limits.lanes))
    blocks = -(-weights.inputs // max(block, 1))
    nonzeros = len(weights.values) / weights.filters / blocks
    return Tiling(vectors, tiles, limits.rows, blocks) if nonzeros >= LEAST_NONZEROS else Tiling(vectors, tiles, 1, 1)


def _count_touched(weights: PackedWeights, source: Planes, tile: int) -> int:
    """Return the floats of one input channel that a tile of so many pixels reads."""
    if weights.size == 1:
        return tile
    if weights.stride == 1:
        return min(tile + 2 * source.row, 3 * tile)
    return 4 * tile + 2 * min(source.row, tile)
