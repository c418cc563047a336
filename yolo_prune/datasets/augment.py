"""Augment training images: mosaic, scale, shift, rotation, colours and horizontal flip.

An image is a pair: RGB uint8 (H, W, 3), and float32 (N, 6) rows `class x1 y1 x2 y2 ignore` in its pixels, where x and y
count from the edge of the first pixel.
No function changes its input. All randomness comes from the given generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolo_prune.arrays import Float32Array
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.images import GREY, ImageArray, fit_image
from yolo_prune.image_size import AnySize, make_size

ImageAndBoxes: TypeAlias = tuple[ImageArray, Float32Array]

MIN_VISIBLE = 0.3
"""A box is dropped if less than this share of its area is left."""
MIN_SIDE_PX = 2.0
"""A box is dropped if one of its sides is shorter than this."""


def augment(items: Sequence[ImageAndBoxes], size: AnySize, config: AugmentConfig, rng: Generator) -> ImageAndBoxes:
    """Make one training image (H, W, 3) of a size from one image, or from four as a mosaic."""
    size = make_size(size)
    if len(items) == 4:
        item, scale = mosaic(items, size, rng), 1.0
    else:
        (item,) = items
        scale = size.measure_scale(item[0].shape[1], item[0].shape[0])
    image, boxes = affine(item, size, scale, config, rng)
    image = jitter_hsv(image, config, rng)
    return flip((image, boxes)) if rng.random() < config.flip else (image, boxes)


def mosaic(items: Sequence[ImageAndBoxes], size: AnySize, rng: Generator) -> ImageAndBoxes:
    """Place four images, each fitted into a size, around a random centre on a grey canvas (2 H, 2 W, 3).

    Boxes that the canvas cuts keep their full extent, so that `affine` can compute how much of them is left.
    Source: Bochkovskiy et al., "YOLOv4" (2020), §3.3.
    """
    size = make_size(size)
    canvas = np.full((2 * size.height, 2 * size.width, 3), GREY, np.uint8)
    centre_x, centre_y = (int(rng.integers(side // 2, side + side // 2 + 1)) for side in size)
    rows = []
    for place, (image, boxes) in enumerate(items):
        tile = fit_image(image, size)
        height, width = tile.shape[:2]
        x = centre_x - width if place % 2 == 0 else centre_x
        y = centre_y - height if place < 2 else centre_y
        left, top = max(x, 0), max(y, 0)
        visible = tile[top - y : 2 * size.height - y, left - x : 2 * size.width - x]
        canvas[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
        rows.append(_move(boxes, np.array([[width / image.shape[1], 0, x], [0, height / image.shape[0], y]])))
    return canvas, np.concatenate(rows)


def affine(item: ImageAndBoxes, size: AnySize, scale: float, config: AugmentConfig, rng: Generator) -> ImageAndBoxes:
    """Scale, shift and rotate an image about its centre into an image (H, W, 3) of a size, with one resampling.

    Boxes are clipped. Those that keep less than `MIN_VISIBLE` of their area, or have a side below `MIN_SIDE_PX`, are
    dropped. Ignored boxes are never dropped unless nothing of them is left.

    Args:
        scale: pixels of the result per pixel of the image, before `config.scale` varies it.
    """
    image, boxes = item
    size = make_size(size)
    height, width = image.shape[:2]
    scale *= 1 + config.scale * rng.uniform(-1, 1)
    angle = math.radians(config.degrees) * rng.uniform(-1, 1)
    shift = np.array(size) * (0.5 + config.translate * rng.uniform(-1, 1, size=2))
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.column_stack((turn, shift - turn @ (width / 2, height / 2)))
    centres = matrix.copy()
    centres[:, 2] += turn @ (0.5, 0.5) - 0.5  # OpenCV counts from the centre of the first pixel, boxes from its edge
    warped = cv2.warpAffine(image, centres, size, flags=cv2.INTER_LINEAR, borderValue=(GREY,) * 3)
    moved = _clip(_move(_clip(boxes, width, height), matrix), *size)
    sides = moved[:, 3:5] - moved[:, 1:3]
    whole = (boxes[:, 3:5] - boxes[:, 1:3]).prod(axis=1) * scale**2
    keep = (sides.prod(axis=1) >= MIN_VISIBLE * whole) & (sides >= MIN_SIDE_PX).all(axis=1)
    keep |= (boxes[:, 5] > 0) & (sides > 0).all(axis=1)
    return np.asarray(warped, np.uint8), moved[keep]


def jitter_hsv(image: ImageArray, config: AugmentConfig, rng: Generator) -> ImageArray:
    """Change hue, saturation and brightness, each by a random share within the config's limits."""
    hue, saturation, value = rng.uniform(-1, 1, size=3) * (config.hue, config.saturation, config.value)
    levels = np.arange(256.0)
    table = np.stack(((levels + round(180 * hue)) % 180, levels * (1 + saturation), levels * (1 + value)), axis=-1)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    varied = cv2.LUT(hsv, table.round().clip(0, 255).astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(varied, cv2.COLOR_HSV2RGB), np.uint8)


def flip(item: ImageAndBoxes) -> ImageAndBoxes:
    """Flip an image horizontally."""
    image, boxes = item
    mirrored = boxes.copy()
    mirrored[:, [1, 3]] = image.shape[1] - boxes[:, [3, 1]]
    return np.asarray(cv2.flip(image, 1), np.uint8), mirrored


def _move(boxes: Float32Array, matrix: NDArray[np.float64]) -> Float32Array:
    """Return (N, 6) rows with the axis-aligned boxes around the given ones after a (2, 3) transformation."""
    corners = boxes[:, [[1, 2], [3, 2], [3, 4], [1, 4]]] @ matrix[:, :2].T + matrix[:, 2]
    return np.column_stack((boxes[:, 0], corners.min(axis=1), corners.max(axis=1), boxes[:, 5])).astype(np.float32)


def _clip(boxes: Float32Array, width: int, height: int) -> Float32Array:
    low = np.zeros(6, np.float32)
    return boxes.clip(low, np.array((np.inf, width, height, width, height, 1), np.float32))
