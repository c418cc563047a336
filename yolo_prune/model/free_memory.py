"""Compare the memory that a network needs on a device with what is available there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import torch

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.memory import estimate_evaluation_bytes
from yolo_prune.darknet.network import Network
from yolo_prune.errors import CfgError, InsufficientMemoryError
from yolo_prune.image_size import STRIDE_PX, AnySize, ImageSize, make_size
from yolo_prune.memory import find_available_bytes, format_bytes

Estimate: TypeAlias = Callable[[int, ImageSize], int]
"""Returns the bytes for a number of images and their size."""
ERROR = 0.2
"""The estimates are within this share of what was measured: more is refused only if it cannot fit."""


def find_free_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process may still use on a device; None if unknown."""
    if device.type != "cuda":
        return find_available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_weights(network: Network) -> None:
    """Check that a network's weights fit into the machine's memory.

    Raises:
        InsufficientMemoryError: they do not.
    """
    needed, free = measure_cost(network).size_bytes, find_available_bytes()
    if free is not None and needed > free:
        what = f"the network's weights need {format_bytes(needed)} of memory, and {format_bytes(free)} are available"
        raise InsufficientMemoryError(what, right="use a smaller network")


def check_evaluation(network: Network, batch_size: int, img_size: AnySize | None, device: torch.device) -> None:
    """Check that a forward pass of a network, whose weights are in memory already, fits into a device's memory.

    Raises:
        InsufficientMemoryError: it does not.
    """
    size = network.img_size if img_size is None else make_size(img_size)
    weights, free = measure_cost(network).size_bytes, find_free_bytes(device)

    def estimate(images: int, size: ImageSize) -> int:
        return estimate_evaluation_bytes(network, images, size) - weights

    if free is not None and (1 - ERROR) * estimate(batch_size, size) > free:
        what = (
            f"{batch_size} images of {size} px at once need about {format_bytes(estimate(batch_size, size))} of memory"
        )
        fitting = explain_fitting(estimate, batch_size, size, free)
        raise InsufficientMemoryError(f"{what}, and {format_bytes(free)} are available", right=fitting)


def explain_fitting(estimate: Estimate, batch_size: int, size: ImageSize, free: int) -> str:
    """Return what to do: the largest number of images, or else the largest input size of one, that fit in `free` bytes."""
    if images := find_largest_batch(estimate, batch_size, size, free):
        return f"use a batch size of {images}"
    if (smaller := find_largest_size(estimate, size, free)) is not None:
        return f"use images of {smaller} px, and a batch size of 1"
    return "use a smaller network, or a machine with more memory"


def find_largest_batch(estimate: Estimate, most: int, size: ImageSize, free: int) -> int:
    """Return how many images of a size, up to `most`, need at most `free` bytes; 0 if not even one."""
    return _bisect(lambda images: estimate(images, size) <= free, most)


def find_largest_size(estimate: Estimate, size: ImageSize, free: int) -> ImageSize | None:
    """Return the largest size of the same shape of which one image needs at most `free` bytes; None if there is none."""

    def fits(steps: int) -> bool:
        with suppress(CfgError):  # the network's stride does not divide it
            return estimate(1, size.with_long_side(STRIDE_PX * steps)) <= free
        return False

    steps = _bisect(fits, max(size) // STRIDE_PX)
    return size.with_long_side(STRIDE_PX * steps) if steps else None


def _bisect(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 1 to `most` that fits, if all below it fit too; 0 if none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
