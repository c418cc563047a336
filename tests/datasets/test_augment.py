from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from numpy.typing import NDArray

from yolo_prune.datasets.augment import ImageAndBoxes, affine, augment, flip, jitter_hsv, mosaic
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.images import GREY
from yolo_prune.errors import ConfigError
from yolo_prune.image_size import ImageSize

STILL = AugmentConfig(mosaic=0, flip=0, hue=0, saturation=0, value=0, scale=0, translate=0, degrees=0)
SEEDS = st.integers(0, 2**32)


def rows(*boxes: tuple[float, ...], ignore: float = 0) -> NDArray[np.float32]:
    return np.column_stack((np.array(boxes, np.float32).reshape(-1, 5), np.full(len(boxes), ignore, np.float32)))


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def black_with_white_box(width: int, height: int, x1: int, y1: int, x2: int, y2: int) -> ImageAndBoxes:
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return image, rows((0, x1, y1, x2, y2))


def bounds(mask: NDArray[np.bool_]) -> list[int]:
    (ys,), (xs,) = mask.any(axis=1).nonzero(), mask.any(axis=0).nonzero()
    return [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]


def test_affine_without_change_is_the_identity() -> None:
    image, boxes = noise(16, 16), rows((2, 1, 3, 9, 16))
    warped, moved = affine((image, boxes), 16, 1.0, STILL, default_rng(0))
    np.testing.assert_array_equal(warped, image)
    np.testing.assert_array_equal(moved, boxes)


def test_affine_of_a_hand_worked_image() -> None:
    item = black_with_white_box(16, 8, 4, 2, 10, 6)
    warped, moved = affine(item, 32, 2.0, STILL, default_rng(0))
    assert moved.tolist() == [[0, 8, 12, 20, 20, 0]]
    assert (warped[13:19, 9:19] == 255).all()
    assert bounds(warped[..., 0] > 127) == [8, 12, 20, 20]
    assert (warped[:7] == GREY).all()
    assert (warped[25:] == GREY).all()


def test_affine_drops_what_is_hardly_seen() -> None:
    boxes = rows((0, 0, 4, 8, 12), (1, 0, 4, 5.5, 12), (2, 6, 6, 7, 9), (3, 6, 6, 6.9, 9))
    _, moved = affine((noise(16, 16), boxes), 16, 2.0, STILL, default_rng(0))
    assert moved.tolist() == [[0, 0, 0, 8, 16, 0], [2, 4, 4, 6, 10, 0]]  # 1 keeps 27 %, 3 is 1.8 px wide


def test_of_an_ignored_box_every_rest_stays_ignored() -> None:
    boxes = rows((1, 0, 4, 5.5, 12), (3, 6, 6, 6.9, 9), (4, -9, 4, 4, 12), ignore=1)  # the last lies outside
    _, moved = affine((noise(16, 16), boxes), 16, 2.0, STILL, default_rng(0))
    np.testing.assert_allclose(moved, np.array([[1, 0, 0, 3, 16, 1], [3, 4, 4, 5.8, 10, 1]]), atol=1e-6)
    _, mirrored = flip((noise(16, 16), moved))
    assert mirrored[:, 5].tolist() == [1, 1]


@given(SEEDS, st.integers(30, 60), st.integers(30, 60))
@settings(max_examples=60, deadline=None)
def test_boxes_follow_their_pixels(seed: int, width: int, height: int) -> None:
    image, boxes = black_with_white_box(width, height, 8, 9, width - 12, height - 10)
    config = AugmentConfig(scale=0.4, translate=0.1)
    warped, moved = affine((image, boxes), 48, 48 / max(width, height), config, default_rng(seed))
    np.testing.assert_allclose(bounds(warped[..., 0] > 185), moved[0, 1:5], atol=1.0)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_rotated_boxes_hold_their_pixels_tightly(seed: int) -> None:
    item = black_with_white_box(60, 60, 20, 25, 45, 40)
    warped, moved = affine(item, 60, 1.0, AugmentConfig(scale=0, translate=0, degrees=180), default_rng(seed))
    np.testing.assert_allclose(bounds(warped[..., 0] > 185), moved[0, 1:5], atol=1.5)


def test_affine_into_a_rectangle() -> None:
    item = black_with_white_box(16, 8, 4, 2, 10, 6)
    warped, moved = affine(item, ImageSize(48, 16), 2.0, STILL, default_rng(0))
    assert warped.shape == (16, 48, 3)
    assert moved.tolist() == [[0, 16, 4, 28, 12, 0]]
    assert bounds(warped[..., 0] > 127) == [16, 4, 28, 12]


@given(SEEDS, st.integers(30, 90), st.integers(30, 90))
@settings(max_examples=60, deadline=None)
def test_boxes_follow_their_pixels_in_a_rectangle(seed: int, width: int, height: int) -> None:
    image, boxes = black_with_white_box(width, height, 8, 9, width - 12, height - 10)
    config = AugmentConfig(mosaic=0, hue=0, saturation=0, value=0, scale=0.4, translate=0.1)
    size = ImageSize(96, 64)
    made, moved = augment([(image, boxes)], size, config, default_rng(seed))
    assert made.shape == (64, 96, 3)
    np.testing.assert_allclose(bounds(made[..., 0] > 185), moved[0, 1:5], atol=1.5)


def test_mosaic_in_a_rectangle_fits_each_image() -> None:
    size = ImageSize(32, 16)
    items = [(np.full((8, 8, 3), 40 * place, np.uint8), rows((place, 0, 0, 8, 8))) for place in range(4)]
    for seed in range(20):
        canvas, boxes = mosaic(items, size, default_rng(seed))
        assert canvas.shape == (32, 64, 3)
        x, y = boxes[0, 3:5].astype(int)
        assert 16 <= x <= 48
        assert 8 <= y <= 24
        expected = [[x - 16, y - 16, x, y], [x, y - 16, x + 16, y], [x - 16, y, x, y + 16], [x, y, x + 16, y + 16]]
        assert boxes[:, 1:5].tolist() == expected
        covered = np.full_like(canvas, GREY)
        for place, (left, top, right, bottom) in enumerate(expected):
            covered[max(top, 0) : bottom, max(left, 0) : right] = 40 * place
        np.testing.assert_array_equal(canvas, covered)


def test_mosaic_lays_each_image_at_the_centre() -> None:
    size = 16
    items = [(np.full((8, 8, 3), 40 * place, np.uint8), rows((place, 0, 0, 8, 8))) for place in range(4)]
    for seed in range(20):
        canvas, boxes = mosaic(items, size, default_rng(seed))
        assert canvas.shape == (2 * size, 2 * size, 3)
        assert boxes[:, 0].tolist() == [0, 1, 2, 3]
        x, y = boxes[0, 3:5].astype(int)
        assert size // 2 <= min(x, y)
        assert max(x, y) <= 3 * size // 2
        expected = [
            [x - size, y - size, x, y],
            [x, y - size, x + size, y],
            [x - size, y, x, y + size],
            [x, y, x + size, y + size],
        ]
        assert boxes[:, 1:5].tolist() == expected
        covered = np.full_like(canvas, GREY)
        for place, (left, top, right, bottom) in enumerate(expected):
            covered[max(top, 0) : bottom, max(left, 0) : right] = 40 * place
        np.testing.assert_array_equal(canvas, covered)


def test_a_box_that_the_canvas_cuts_counts_as_cut() -> None:
    item = np.full((16, 16, 3), 9, np.uint8), rows((0, -12, 4, 8, 12), (1, -4, 4, 8, 12))
    _, moved = affine(item, 32, 1.0, STILL, default_rng(0))
    assert moved.tolist() == [[0, 8, 12, 16, 20, 0], [1, 8, 12, 16, 20, 0]]
    _, moved = affine((item[0], rows((0, -24, 4, 8, 12))), 32, 1.0, STILL, default_rng(0))
    assert len(moved) == 0


def test_flip_of_a_hand_worked_image() -> None:
    image, boxes = black_with_white_box(10, 4, 1, 0, 4, 2)
    mirrored, moved = flip((image, boxes))
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    assert moved.tolist() == [[0, 6, 0, 9, 2, 0]]


def test_flipping_twice_is_the_identity() -> None:
    item = noise(9, 7), rows((1, 2, 3, 4, 5))
    image, boxes = flip(flip(item))
    np.testing.assert_array_equal(image, item[0])
    np.testing.assert_array_equal(boxes, item[1])


def test_jitter_changes_brightness_by_the_drawn_share() -> None:
    class Highest(np.random.Generator):
        def uniform(self, *_: object, **__: object) -> NDArray[np.float64]:  # type: ignore[override]
            return np.ones(3)

    grey = np.full((4, 4, 3), 100, np.uint8)
    bright = jitter_hsv(grey, AugmentConfig(hue=0, saturation=0, value=0.3), Highest(np.random.PCG64(0)))
    assert (bright == 130).all()
    red = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    green = jitter_hsv(red, AugmentConfig(hue=1 / 3, saturation=0, value=0), Highest(np.random.PCG64(0)))
    assert (green == (0, 200, 0)).all()
    dull = np.full((4, 4, 3), (200, 150, 150), np.uint8)
    vivid = jitter_hsv(dull, AugmentConfig(hue=0, saturation=1, value=0), Highest(np.random.PCG64(0)))
    np.testing.assert_allclose(vivid[0, 0].astype(int), (200, 100, 100), atol=1)


def test_jitter_without_change_keeps_the_colours() -> None:
    image = noise(32, 32)
    varied = jitter_hsv(image, STILL, default_rng(0)).astype(int)
    np.testing.assert_allclose(varied, image, atol=5)  # a hue of 180 steps is that coarse


@given(SEEDS, st.sampled_from([1, 4]))
@settings(max_examples=60, deadline=None)
def test_augmented_boxes_lie_in_the_square_and_inputs_stay(seed: int, count: int) -> None:
    items = [(noise(30 + place, 40, place), rows((place, 2, 3, 20, 30), (5, 0, 0, 30, 40))) for place in range(count)]
    before = [(image.copy(), boxes.copy()) for image, boxes in items]
    image, boxes = augment(items, 32, AugmentConfig(degrees=10), default_rng(seed))
    assert image.shape == (32, 32, 3)
    assert boxes.dtype == np.float32
    assert ((boxes[:, 1:5] >= 0) & (boxes[:, 1:5] <= 32)).all()
    assert (boxes[:, 3:5] - boxes[:, 1:3] >= 2).all()
    for (image, boxes), (old_image, old_boxes) in zip(items, before, strict=True):
        np.testing.assert_array_equal(image, old_image)
        np.testing.assert_array_equal(boxes, old_boxes)


def test_the_same_seed_gives_the_same_image() -> None:
    items = [(noise(32, 32, place), rows((0, 4, 4, 20, 20))) for place in range(4)]
    first, again, other = (augment(items, 32, AugmentConfig(), default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_settings_say_what_is_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"mosaic: 1\.5 is out of range; use a number from 0 to 1"):
        AugmentConfig(mosaic=1.5)
    with pytest.raises(ConfigError, match="scale: 1 is out of range"):
        AugmentConfig(scale=1)
    with pytest.raises(ConfigError, match="degrees: -5 is out of range"):
        AugmentConfig(degrees=-5)
    with pytest.raises(ConfigError, match="flip: nan is out of range"):
        AugmentConfig(flip=float("nan"))


def test_without_mosaic_changes_nothing_else() -> None:
    assert AugmentConfig(flip=0.25).without_mosaic() == AugmentConfig(flip=0.25, mosaic=0)
