"""Read images from files, and letterbox them into the network's input and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from yolo_prune.arrays import Float32Array
from yolo_prune.bounded import open_plain, read_bytes
from yolo_prune.console import warn_once
from yolo_prune.errors import DatasetError
from yolo_prune.image_size import MOST_PIXELS, STRIDE_PX, AnySize, make_size
from yolo_prune.limits import MOST_IMAGE_BYTES

ImageArray = NDArray[np.uint8]

Image.MAX_IMAGE_PIXELS = None  # OpenCV decodes the images, which has a limit of its own; see yolo_prune/__init__.py

GREY = 114
"""The grey value of the padding of letterboxed images."""
ORIENTATION_TAG = 0x0112
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
FILLED_END = b"\x55" * 4 + JPEG_END
RIGHT_IMAGE = "put a whole JPEG, PNG, WebP, BMP or TIFF there"
LARGE_PIXELS = 2**25
"""Images with more are decoded one at a time: each takes more than 100 MB."""

_large, _turns = Lock(), local()


@contextmanager
def taking_turns() -> Iterator[None]:
    """Let threads decode large images one at a time: another one waits until this block, with its image, is left."""
    _turns.is_waiting, _turns.has_lock = True, False
    try:
        yield
    finally:
        _turns.is_waiting = False
        if _turns.has_lock:
            _turns.has_lock = False
            _large.release()


def take_turn(pixels: int) -> None:
    """Wait, within `taking_turns`, for the turn of this thread if an image has so many pixels that it counts as large."""
    if pixels > LARGE_PIXELS and getattr(_turns, "is_waiting", False) and not _turns.has_lock:
        _large.acquire()
        _turns.has_lock = True


def read_image(path: Path) -> ImageArray:
    """Read an image as RGB uint8 (H, W, 3), rotated as its EXIF data say; grey becomes RGB, alpha is dropped.

    A JPEG that lacks nothing but its end mark is read; this is reported of the first.

    Raises:
        DatasetError: the file is missing, cannot be read, is not an image or has too many pixels.
    """
    image, lacks_end = read_incomplete(path)
    if lacks_end:
        warn_once("jpeg end", f"{path}: lacks the mark at a JPEG's end, and is read; others like it are not named")
    return image


def read_incomplete(path: Path) -> tuple[ImageArray, bool]:
    """Return an image as `read_image` does, and whether it is a JPEG that lacks its end mark.

    Raises:
        DatasetError: as `read_image`.
    """
    lacks_end = False
    try:
        content = read_bytes(path, MOST_IMAGE_BYTES)
    except (OSError, ValueError) as error:
        raise _explain(error, path) from error
    data = np.frombuffer(content, np.uint8)
    _check_pixels(io.BytesIO(content), path)
    image = _decode(data)
    if image is None and content[:2] == JPEG_START and content[-2:] != JPEG_END:
        image, lacks_end = _decode_without_end(data), True
    if image is None:
        read_header(path)  # its errors come first
        raise DatasetError("is not a readable image", where=path, right=RIGHT_IMAGE)
    return image, lacks_end


def _explain(error: Exception, path: Path) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        return DatasetError("there is no such image", where=path, right="name an image that exists")
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return DatasetError(f"is not a readable image{reason}", where=path, right=RIGHT_IMAGE)


def _check_pixels(file: BinaryIO, path: Path) -> None:
    """Check the number of pixels of an image that Pillow knows, before it is decoded; OpenCV checks the others itself.

    Raises:
        DatasetError: it has too many.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
    except Exception:  # noqa: BLE001  # a broken file may raise anything in Pillow; it may be no worse for OpenCV
        return
    _check_size(width, height, path)
    take_turn(width * height)


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MOST_PIXELS:
        what = f"has {width} × {height} pixels, more than {MOST_PIXELS:,}"
        raise DatasetError(what, where=path, right="make it smaller")


def _decode(data: NDArray[np.uint8]) -> ImageArray | None:
    """Return what OpenCV decodes as RGB uint8 (H, W, 3); None if that fails."""
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _decode_without_end(data: NDArray[np.uint8]) -> ImageArray | None:
    """Return a JPEG decoded with an end mark added; None if more than that is missing.

    Bytes that are added to a whole image are not decoded. If some are missing, they stand for those.
    """
    image, other = (_decode(np.concatenate((data, np.frombuffer(end, np.uint8)))) for end in (JPEG_END, FILLED_END))
    if image is None or other is None or image.shape != other.shape:
        return None
    is_whole = all(np.array_equal(row, same) for row, same in zip(image, other, strict=True))
    return image if is_whole else None


@dataclass(frozen=True)
class Header:
    """The size and orientation of an image, read without decoding it."""

    width_px: int
    """Width as displayed, after EXIF rotation."""
    height_px: int
    """Height as displayed."""
    orientation: int
    """EXIF orientation, 1 … 8: 1 means stored as displayed; from 5 on, width and height are swapped."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the stored pixels."""
        return (self.height_px, self.width_px) if self.orientation >= 5 else (self.width_px, self.height_px)

    def turn(self, boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map (N, 4) boxes in stored pixels to pixels as displayed, if the image itself is rotated when it is read.

        Source: EXIF 2.32, tag 0x0112.
        """
        x1, y1, x2, y2 = boxes_xyxy.astype(np.float64).T
        if self.orientation >= 5:
            x1, y1, x2, y2 = y1, x1, y2, x2
        if self.orientation in (2, 3, 6, 7):
            x1, x2 = self.width_px - x2, self.width_px - x1
        if self.orientation in (3, 4, 7, 8):
            y1, y2 = self.height_px - y2, self.height_px - y1
        return np.column_stack((x1, y1, x2, y2))


def read_header(path: Path) -> Header:
    """Read an image's size and orientation without decoding it.

    Raises:
        DatasetError: the file is missing, cannot be read, is not an image or has too many pixels.
    """
    try:
        with open_plain(path, MOST_IMAGE_BYTES) as file, Image.open(file) as image:
            (width, height), kind = image.size, image.format
            _check_size(width, height, path)
            take_turn(width * height)  # Pillow decodes a PNG to find its EXIF data
            stated = image.getexif().get(ORIENTATION_TAG, 1)
    except DatasetError:
        raise
    except Exception as error:  # a broken file may raise anything in Pillow
        raise _explain(error, path) from error
    orientation = stated if stated in range(1, 9) else 1
    is_turned = orientation >= 5 and kind != "TIFF"  # Pillow already swaps the size of a TIFF
    return Header(*((height, width) if is_turned else (width, height)), orientation)


@dataclass(frozen=True)
class Letterbox:
    """Position of an image in the network's input: x_input = x_image × scale + pad.

    Coordinates count from edges, not from pixel centres. The two scales differ by
    less than half a pixel over the image, because the resized image has whole pixels.
    """

    scale_x: float
    """Input pixels per image pixel, along the width."""
    scale_y: float
    """Input pixels per image pixel, along the height."""
    pad_x_px: int
    """Padding left of the image, in input pixels."""
    pad_y_px: int
    """Padding above the image, in input pixels."""
    width_px: int
    """Width of the input."""
    height_px: int
    """Height of the input."""

    def to_network(self, boxes_xyxy: Float32Array) -> Float32Array:
        """Map (N, 4) boxes from image pixels to input pixels."""
        return boxes_xyxy * self._scale + self._pad

    def to_image(self, boxes_xyxy: Float32Array, width_px: int, height_px: int) -> Float32Array:
        """Map (N, 4) boxes from input pixels to image pixels, clipped to the image's width and height."""
        edges = np.array((width_px, height_px) * 2, np.float32)
        return ((boxes_xyxy - self._pad) / self._scale).clip(0, edges)

    @property
    def _scale(self) -> Float32Array:
        return np.array((self.scale_x, self.scale_y) * 2, np.float32)

    @property
    def _pad(self) -> Float32Array:
        return np.array((self.pad_x_px, self.pad_y_px) * 2, np.float32)


def is_larger(image: ImageArray, size: AnySize) -> bool:
    """Return whether an image has to be made smaller to fit into a size."""
    return make_size(size).measure_scale(image.shape[1], image.shape[0]) < 1


def fit_image(image: ImageArray, size: AnySize) -> ImageArray:
    """Resize an image to just fit into a size, keeping its aspect: by area to shrink, linearly to enlarge."""
    height, width = image.shape[:2]
    fitted = _fit(width, height, size)
    if fitted == (width, height):
        return image
    interpolation = cv2.INTER_AREA if is_larger(image, size) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, fitted, interpolation=interpolation), np.uint8)


def make_letterbox(width_px: int, height_px: int, size: AnySize, rectangular: bool = False) -> Letterbox:
    """Return the position of an image in an input of a size, or with `rectangular` of the least sides that `STRIDE_PX` divides."""
    fitted = _fit(width_px, height_px, size)
    sides = [-(-side // STRIDE_PX) * STRIDE_PX for side in fitted] if rectangular else make_size(size)
    pads = [(side - inner) // 2 for side, inner in zip(sides, fitted, strict=True)]
    return Letterbox(fitted[0] / width_px, fitted[1] / height_px, pads[0], pads[1], sides[0], sides[1])


def letterbox(image: ImageArray, size: AnySize, rectangular: bool = False) -> tuple[ImageArray, Letterbox]:
    """Fit an image into the middle of a grey input (H, W, 3) of a size, and return its position."""
    box = make_letterbox(image.shape[1], image.shape[0], size, rectangular)
    inner = fit_image(image, size)
    padded = np.full((box.height_px, box.width_px, 3), GREY, np.uint8)
    padded[box.pad_y_px : box.pad_y_px + inner.shape[0], box.pad_x_px : box.pad_x_px + inner.shape[1]] = inner
    return padded, box


def _fit(width_px: int, height_px: int, size: AnySize) -> tuple[int, int]:
    scale = make_size(size).measure_scale(width_px, height_px)
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))
