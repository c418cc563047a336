"""Packed storage of tensors with many zeros: one bit per element, and the non-zero elements.

    {"shape": [out, in, k, k], "channels_last": bool, "mask": uint8 (⌈n / 8⌉,), "values": (count of bits set,)}

The bits are in the order of the flattened tensor, the highest bit of each byte first; unused bits of the last byte are
0. An element counts as zero only if all of its bits are zero, so that −0.0 and NaN are restored exactly.
`benchmarks/sparse_storage.py` compares the bitmask with stored indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

Packed: TypeAlias = dict[str, Any]

LEAST_SAVING_BYTES = 1024
"""A tensor is packed only if that saves more than this: a second stored tensor costs some hundred bytes of its own."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype for each element size in bytes."""


def is_worth_packing(tensor: Tensor) -> bool:
    """Return whether a tensor is a convolution kernel that takes less space packed than plain.

    Vectors are never packed: a new batch norm has vectors of zeros, but they are small.
    """
    if tensor.ndim != 4 or tensor.element_size() not in _BITS:
        return False
    saved = (tensor.numel() - int(torch.count_nonzero(_view_bits(tensor)))) * tensor.element_size()
    return saved > -(-tensor.numel() // 8) + LEAST_SAVING_BYTES


def pack(tensor: Tensor) -> Packed:
    """Pack a CPU tensor with elements of 1, 2, 4 or 8 bytes into its non-zero elements and their positions."""
    bits = _view_bits(tensor)
    is_set = bits != 0
    return {
        "shape": list(tensor.shape),
        "channels_last": _is_channels_last(tensor),
        "mask": torch.from_numpy(np.packbits(is_set.numpy())),
        "values": bits[is_set].view(tensor.dtype),
    }


def unpack(packed: Packed, shape: Sequence[int]) -> Tensor:
    """Restore the tensor of shape `shape` that `pack` was given, bit for bit.

    Raises:
        ValueError: a part is missing or has the wrong type or size, or the tensor has another shape; says which.
    """
    mask, values, count = packed.get("mask"), packed.get("values"), prod(shape)
    if packed.get("shape") != list(shape):
        raise ValueError(f"shape {packed.get('shape')} where its cfg wants {list(shape)}")
    if not _is_flat(mask) or mask.dtype != torch.uint8 or len(mask) != -(-count // 8):
        raise ValueError(f"no bitmask of {count} elements")
    if not _is_flat(values) or values.element_size() not in _BITS:
        raise ValueError("no list of values")
    is_channels_last = packed.get("channels_last")
    if not isinstance(is_channels_last, bool) or (is_channels_last and len(shape) != 4):
        raise ValueError("no order of its elements")
    is_set = np.unpackbits(mask.numpy()).astype(bool)
    if is_set[count:].any() or np.count_nonzero(is_set) != len(values):
        raise ValueError(f"{len(values)} values for {np.count_nonzero(is_set)} places of {count}")
    tensor = torch.zeros(count, dtype=values.dtype)
    bits = _BITS[values.element_size()]
    tensor.view(bits)[torch.from_numpy(is_set[:count])] = values.contiguous().view(bits)
    tensor = tensor.view(tuple(shape))
    if not is_channels_last:
        return tensor
    return torch.empty(tuple(shape), dtype=tensor.dtype, memory_format=torch.channels_last).copy_(tensor)


def _view_bits(tensor: Tensor) -> Tensor:
    """Return (n,) the bits of a tensor's elements as integers, in the order of the flattened tensor."""
    return tensor.detach().contiguous().reshape(-1).view(_BITS[tensor.element_size()])


def _is_channels_last(tensor: Tensor) -> bool:
    """Return whether the strides are those of channels last; for 1×1 kernels `is_contiguous` cannot tell."""
    if tensor.ndim != 4:
        return False
    like = torch.empty(tensor.shape, device="meta", memory_format=torch.channels_last)
    plain = torch.empty(tensor.shape, device="meta")
    return like.stride() == tensor.stride() != plain.stride()


def _is_flat(tensor: Any) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_cpu and tensor.ndim == 1
