"""The kernel's steps, one layer each, in the layout that kernel.cpp reads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.darknet.layers import MaxPool
from yolo_prune.engines.sparse.packing import PackedWeights
from yolo_prune.engines.sparse.planes import Planes
from yolo_prune.engines.sparse.tiling import Limits, make_tiling

CONV, COPY, SPLIT, ADD, POOL = range(5)
ACTIVATIONS = ("linear", "leaky", "relu")
"""Activations that the kernel applies when it stores."""
TASKS = 32
"""The least number of parts of a convolution, so that a few threads finish at about the same time."""
FLOAT_BYTES = 4

_INT32 = (
    "kind", "activation", "batch", "planes", "height", "width", "positions", "factor", "vectors", "chunks", "rows",
    "blocks", "size", "stride", "before", "after",
)  # fmt: skip
_INT64 = ("in_image", "in_plane", "in_row", "in_column", "out_image", "out_plane", "out_row")
_POINTERS = ("input", "other", "bias", "output", "mask", "starts", "bounds", "weights")


class Step(ctypes.Structure):
    """One layer; `Step` in kernel.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _INT32),
        *((name, ctypes.c_int64) for name in _INT64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


@dataclass(frozen=True)
class Block:
    """Images in memory: a buffer and its layout; `first` is the number of the block's first plane."""

    buffer: Tensor
    planes: Planes
    batch: int
    first: int = 0

    @property
    def address(self) -> int:
        """Address of the first plane's first pixel."""
        floats = self.planes.front + self.first * self.planes.stride
        return self.buffer.data_ptr() + FLOAT_BYTES * floats

    @property
    def pixels(self) -> Tensor:
        """The images as a tensor (B, C, H, W) that shares the buffer."""
        return self.planes.view(self.buffer, self.batch)


def make_conv_step(
    limits: Limits,
    weights: PackedWeights,
    bias: Tensor,
    activation: str,
    source: Block,
    target: Block,
    added: Block | None = None,
) -> tuple[Step, list[Any]]:
    """Return a convolution, which adds `added` after its activation, and the objects to keep alive with the step.

    With stride 2, `source` must be the target of a split step (`make_split_step`).
    """
    lines = target.planes
    tiling = make_tiling(limits, weights, source.planes, lines.positions)
    placed = weights.place(source.planes, tiling.rows, tiling.blocks)
    bounds, mask = placed.divide(-(-TASKS // (tiling.tiles * source.batch))), lines.make_mask()
    bias = bias.detach().to("cpu", torch.float32).contiguous()
    step = Step(
        kind=CONV, activation=ACTIVATIONS.index(activation), batch=source.batch, planes=lines.channels,
        positions=lines.positions, vectors=tiling.vectors, chunks=len(bounds) - 1, rows=placed.rows, blocks=placed.blocks,
        in_image=source.planes.image, out_image=lines.image, out_plane=lines.stride,
        input=source.address, other=None if added is None else added.address, bias=bias.data_ptr(),
        output=target.address, mask=_point(mask), starts=_point(placed.starts), bounds=_point(bounds),
        weights=_point(placed.weights),
    )  # fmt: skip
    return step, [placed, mask, bounds, bias]


def make_copy_step(source: Block, target: Block, channels: int, factor: int = 1) -> Step:
    """Return a copy of `channels` planes, with each pixel repeated `factor` by `factor` times."""
    return Step(
        kind=COPY, batch=source.batch, planes=channels, height=source.planes.height, width=source.planes.width,
        factor=factor, input=source.address, in_image=source.planes.image, in_plane=source.planes.stride,
        in_row=source.planes.row, in_column=1, output=target.address, out_image=target.planes.image,
        out_plane=target.planes.stride, out_row=target.planes.row,
    )  # fmt: skip


def make_split_step(source: Block, target: Block) -> Step:
    """Return a split by parity of rows and columns; `target` has the layout of `Planes.halve`."""
    planes = source.planes
    return Step(
        kind=SPLIT, batch=source.batch, planes=planes.channels, height=planes.height, width=planes.width,
        factor=target.planes.channels // planes.channels, input=source.address, in_image=planes.image,
        in_plane=planes.stride, in_row=planes.row, in_column=1, output=target.address, out_image=target.planes.image,
        out_plane=target.planes.stride, out_row=target.planes.row,
    )  # fmt: skip


def make_pool_step(source: Block, target: Block, layer: MaxPool) -> Step:
    """Return a max pooling."""
    planes, before = source.planes, layer.padding // 2
    return Step(
        kind=POOL, batch=source.batch, planes=planes.channels, height=planes.height, width=planes.width,
        size=layer.size, stride=layer.stride, before=before, after=layer.padding - before, input=source.address,
        in_image=planes.image, in_plane=planes.stride, in_row=planes.row, in_column=1, output=target.address,
        out_image=target.planes.image, out_plane=target.planes.stride, out_row=target.planes.row,
    )  # fmt: skip


def make_add_step(one: Block, other: Block, target: Block, activation: str) -> Step:
    """Return the sum of two blocks of one layout, then an activation."""
    planes = target.planes
    return Step(
        kind=ADD, activation=ACTIVATIONS.index(activation), batch=target.batch, planes=planes.channels,
        positions=planes.positions, input=one.address, other=other.address, in_image=planes.image,
        in_plane=planes.stride, output=target.address, out_image=planes.image, out_plane=planes.stride,
    )  # fmt: skip


def make_reading_step(target: Block) -> Step:
    """Return a copy of images into a block; `point_at_images_` sets the address of the images."""
    planes = target.planes
    return Step(
        kind=COPY, batch=target.batch, planes=planes.channels, height=planes.height, width=planes.width, factor=1,
        output=target.address, out_image=planes.image, out_plane=planes.stride, out_row=planes.row,
    )  # fmt: skip


def point_at_images_(step: Step, images: Tensor) -> None:
    """Make a reading step read float32 images (B, C, H, W) of any strides."""
    step.in_image, step.in_plane, step.in_row, step.in_column = images.stride()
    step.input = images.data_ptr()


def make_writing_step(source: Block) -> Step:
    """Return a copy of a block into a plain tensor (B, C, H, W); its `output` must be set."""
    planes = source.planes
    area = planes.height * planes.width
    return Step(
        kind=COPY, batch=source.batch, planes=planes.channels, height=planes.height, width=planes.width, factor=1,
        input=source.address, in_image=planes.image, in_plane=planes.stride, in_row=planes.row, in_column=1,
        out_image=planes.channels * area, out_plane=area, out_row=planes.width,
    )  # fmt: skip


def _point(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data
