"""The size of a network's input: width and height in pixels, written `416` for a square and `640x384` otherwise."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeAlias

from yolo_prune.errors import ConfigError

STRIDE_PX = 32
"""Width and height are multiples of this: the largest stride of the YOLO family."""
MOST_PIXELS = 2**28
"""An image with more is not decoded: it would take more than 800 MB of memory."""

MOST_SIDE_PX = 16_384
"""Larger inputs are slips: a batch of one such image fills a large GPU's memory."""

_RIGHT = f"use a multiple of {STRIDE_PX}, or WIDTHxHEIGHT such as 640x384"


class ImageSize(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        """Return the size as a cfg's user writes it: `416` or `640x384`."""
        return str(self.plain)

    @property
    def plain(self) -> int | str:
        """The side of a square, else `WIDTHxHEIGHT`: how YAML and JSON files hold it."""
        return self.width if self.width == self.height else f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    def measure_scale(self, width: float, height: float) -> float:
        """Return the factor by which an image is resized to just fit in."""
        return min(self.width / width, self.height / height)

    def with_long_side(self, side: int) -> ImageSize:
        """Return the size with another long side, and the short side in proportion, as a multiple of `STRIDE_PX`."""
        return ImageSize(*(_round(one * side / max(self)) for one in self))


AnySize: TypeAlias = ImageSize | int
"""A size, or the side of a square."""


def make_size(size: AnySize) -> ImageSize:
    """Return a size, made from the side of a square if it is a number."""
    return ImageSize(size, size) if isinstance(size, int) else size


def parse_size(value: Any) -> ImageSize:
    """Return the size that a setting holds, as `read_size`.

    Raises:
        ConfigError: it is no size, or a side is not a multiple of `STRIDE_PX`; names the nearest valid size.
    """
    size = read_size(value)
    if any(side < STRIDE_PX or side % STRIDE_PX for side in size):
        nearest = ImageSize(*map(_round, size))
        what = "is no multiple" if size.width == size.height else "is not made of multiples"
        raise ConfigError(f"{size} {what} of {STRIDE_PX}", where="img_size", right=f"use {nearest}")
    if max(size) > MOST_SIDE_PX:
        raise ConfigError(f"{size} is too large", where="img_size", right=f"use sides up to {MOST_SIDE_PX}")
    return size


def read_size(value: Any) -> ImageSize:
    """Return a size from a number, a text of one, `WIDTHxHEIGHT`, or a size.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(-?\d{1,9})(?:\s*[xX×]\s*(-?\d{1,9}))?\s*", value)):
        width, height = match.groups()
        value = ImageSize(int(width), int(height or width))
    elif isinstance(value, int) and not isinstance(value, bool):
        value = ImageSize(value, value)
    if not isinstance(value, ImageSize):
        raise ConfigError(f"{value!r} is no image size", where="img_size", right=_RIGHT)
    return value


def _round(side: float) -> int:
    return max(STRIDE_PX, round(side / STRIDE_PX) * STRIDE_PX)
