"""Memory layout of images for the kernel: in padded planes, a tap of a convolution is one offset for all pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDEST = 16
"""Number of floats in the widest vector of any instruction set; the number of positions is a multiple of it."""


def _round_up(count: int) -> int:
    return -(-count // WIDEST) * WIDEST


@dataclass(frozen=True)
class Planes:
    """A stack of `channels` planes of `height` × `width` pixels; all distances are in floats.

    A row has one zero after its pixels, which is also the zero before the next row. At least one row and one pixel of
    zeros are before the first plane, after the last one and between any two.
    """

    channels: int
    height: int
    width: int

    @property
    def row(self) -> int:
        """Distance from a pixel to the one below."""
        return self.width + 1

    @property
    def positions(self) -> int:
        """The positions computed per plane: its pixels, the zeros between rows, and the rest of the last vector."""
        return _round_up(self.height * self.row)

    @property
    def stride(self) -> int:
        """Distance from a plane to the next: an odd number of cache lines, to avoid conflicts in the cache."""
        lines = _round_up(self.positions + self.row + 1) // WIDEST
        return (lines | 1) * WIDEST

    @property
    def front(self) -> int:
        """Number of zeros before the first plane."""
        return _round_up(self.row + 1)

    @property
    def image(self) -> int:
        """Distance from an image to the next."""
        return self.channels * self.stride

    def make_buffer(self, batch: int) -> Tensor:
        """Allocate a buffer for `batch` images, filled with zeros."""
        return torch.zeros(self.front + batch * self.image + self.row + 1)

    def view(self, buffer: Tensor, batch: int) -> Tensor:
        """Return a buffer's pixels as a tensor (B, C, H, W) that shares its memory."""
        size = (batch, self.channels, self.height, self.width)
        return buffer.as_strided(size, (self.image, self.stride, self.row, 1), self.front)

    def make_mask(self) -> NDArray[np.int32]:
        """Return (positions,) with all bits set at pixels and no bit set elsewhere."""
        mask = np.zeros(self.positions, np.int32)
        mask[: self.height * self.row].reshape(self.height, self.row)[:, : self.width] = -1
        return mask

    def halve(self, size: int) -> Planes:
        """Return the planes that a convolution of kernel `size` and stride 2 reads: one per parity of its taps."""
        return Planes(self.channels * (4 if size == 3 else 1), (self.height + 1) // 2, (self.width + 1) // 2)
