"""Weights as the kernel reads them: the non-zeros of each output channel, each with an offset in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolo_prune.darknet.layers import Conv
from yolo_prune.engines.sparse.planes import Planes

WEIGHT = np.dtype([("offset", np.int32), ("value", np.float32)])
"""One non-zero weight; `Weight` in kernel.cpp."""
ROW_COST = 4
"""The time to start and store an output channel, in non-zeros; only used to divide the work evenly."""


@dataclass(frozen=True)
class PackedWeights:
    """The non-zeros of a convolution, sorted by output channel.

    starts is (filters + 1,); channels, taps_y, taps_x and values are (non-zeros,); taps count from the kernel's centre.
    """

    inputs: int
    size: int
    stride: int
    starts: NDArray[np.int32]
    channels: NDArray[np.int32]
    taps_y: NDArray[np.int32]
    taps_x: NDArray[np.int32]
    values: NDArray[np.float32]

    @property
    def filters(self) -> int:
        """The number of output channels."""
        return len(self.starts) - 1

    def place(self, source: Planes, rows: int, blocks: int) -> PlacedWeights:
        """Return the weights for an input with the layout `source`, which is split by parity if the stride is 2.

        They are grouped by `rows` output channels, within a group by `blocks` of input channels, and within a block by
        output channel.
        """
        y, x = self.taps_y, self.taps_x
        plane = self.channels
        if self.stride == 2 and self.size == 3:
            plane = 4 * plane + 2 * (y & 1) + (x & 1)
            y, x = np.minimum(y, 0), np.minimum(x, 0)  # odd rows −1 and 0 are above and below even row 0
        weights = np.empty(len(self.values), WEIGHT)
        weights["offset"] = plane * source.stride + y * source.row + x
        weights["value"] = self.values
        row = np.repeat(np.arange(self.filters), np.diff(self.starts))
        block = self.channels.astype(np.int64) * blocks // self.inputs
        place = (row // rows * blocks + block) * rows + row % rows
        order = np.argsort(place, kind="stable")
        groups = -(-self.filters // rows)
        starts = np.searchsorted(place[order], np.arange(groups * blocks * rows + 1))
        return PlacedWeights(weights[order], starts.astype(np.int32), groups, rows, blocks)


@dataclass(frozen=True)
class PlacedWeights:
    """Weights in the kernel's order: (non-zeros,) of `WEIGHT`, the start of each group, block and row, and the end."""

    weights: NDArray[np.void]
    starts: NDArray[np.int32]
    groups: int
    rows: int
    blocks: int

    def divide(self, parts: int) -> NDArray[np.int32]:
        """Return bounds (parts + 1,) of ranges of groups that take about the same time."""
        work = self.starts[:: self.rows * self.blocks] + ROW_COST * self.rows * np.arange(self.groups + 1)
        bounds = np.searchsorted(work, np.linspace(0, work[-1], min(parts, self.groups) + 1))
        return bounds.astype(np.int32)


def can_pack(layer: Conv) -> bool:
    """Return whether the kernel supports a convolution: 1×1 or 3×3, stride 1 or 2, size-keeping padding, one group."""
    return layer.size in (1, 3) and layer.stride in (1, 2) and layer.padding == layer.size // 2 and layer.groups == 1


def pack_weights(weight: Tensor, stride: int) -> PackedWeights:
    """Pack the non-zeros of a weight (filters, C, k, k)."""
    values = weight.detach().cpu().float().numpy()
    filters, inputs, size, _ = values.shape
    row, channel, y, x = (index.astype(np.int32) for index in np.nonzero(values))
    starts = np.searchsorted(row, np.arange(filters + 1)).astype(np.int32)
    middle = np.int32(size // 2)
    return PackedWeights(inputs, size, stride, starts, channel, y - middle, x - middle, values[values != 0])
