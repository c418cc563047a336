"""Split a convolution into tiles, so that data that the kernel reads repeatedly stays in a core's caches."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.engines.sparse.packing import PackedWeights
from yolo_prune.engines.sparse.planes import Planes

SECOND_LEVEL_BYTES = 700 * 1024
"""The most bytes of a tile of pixels over all input channels: most of a core's 1 MiB second-level cache."""
FIRST_LEVEL_BYTES = 32 * 1024
"""The most bytes of a tile over a block of input channels."""
LEAST_NONZEROS = 4
"""The least mean number of non-zeros of an output channel in a block. With fewer, loading and storing sums is slower
than reading pixels from the second-level cache."""
LEAST_VECTORS = 8
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Limits:
    """Limits of the compiled kernel: floats in a vector, vectors summed up at once, output channels in a group."""

    lanes: int
    vectors: int
    rows: int


@dataclass(frozen=True)
class Tiling:
    """`tiles` tiles of `vectors` vectors of pixels; weights in `rows` and `blocks` (see `PackedWeights.place`)."""

    vectors: int
    tiles: int
    rows: int
    blocks: int


def make_tiling(limits: Limits, weights: PackedWeights, source: Planes, positions: int) -> Tiling:
    """Choose the tiles and blocks of a convolution that reads `source` and computes `positions` per output channel."""
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
    """Return the number of floats of one input channel that a tile of `tile` positions reads."""
    if weights.size == 1:
        return tile
    if weights.stride == 1:
        return min(tile + 2 * source.row, 3 * tile)
    return 4 * tile + 2 * min(source.row, tile)
