"""Sizes of a network's input, as settings hold them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_prune.errors import ConfigError
from yolo_prune.image_size import STRIDE_PX, ImageSize, make_size, parse_size
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.run_data import list_sizes

sides = st.integers(1, 64).map(lambda count: STRIDE_PX * count)
sizes = st.builds(ImageSize, sides, sides)


@given(sizes)
def test_what_is_written_is_read(size: ImageSize) -> None:
    assert parse_size(size.plain) == parse_size(str(size)) == parse_size(size) == make_size(size) == size


@pytest.mark.parametrize("text", ["640x384", " 640 X 384 ", "640×384"])
def test_width_comes_first(text: str) -> None:
    assert parse_size(text) == ImageSize(width=640, height=384)
    assert str(parse_size(text)) == "640x384"


def test_a_number_is_the_side_of_a_square() -> None:
    assert parse_size(416) == parse_size("416") == parse_size("416x416") == make_size(416) == (416, 416)
    assert ImageSize(416, 416).plain == 416


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (100, "img_size: 100 is no multiple of 32; use 96"),
        ("640x380", "img_size: 640x380 is not made of multiples of 32; use 640x384"),
        (0, "img_size: 0 is no multiple of 32; use 32"),
        (-64, "img_size: -64 is no multiple of 32; use 32"),
        ("5x1", "img_size: 5x1 is not made of multiples of 32; use 32"),
        *((value, "is no image size; use a multiple of 32") for value in ("640x", "x", "a", 1.5, True, [64, 64], None)),
    ],
)
def test_other_values_are_errors(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(value)
    assert message in str(caught.value)


@given(sizes, st.integers(1, 999), st.integers(1, 999))
def test_an_image_just_fits(size: ImageSize, width: int, height: int) -> None:
    scale = size.measure_scale(width, height)
    gaps = (size.width - scale * width, size.height - scale * height)
    assert min(gaps) == pytest.approx(0, abs=1e-6)
    assert max(gaps) >= -1e-6


@given(sizes, st.sampled_from((0.0, 0.2, 0.5)))
def test_multi_scale_keeps_the_shape(size: ImageSize, share: float) -> None:
    found = list_sizes(size, share)
    assert size in found
    for one in found:
        assert all(side % STRIDE_PX == 0 for side in one)
        assert (1 - share) * max(size) <= max(one) <= (1 + share) * max(size)
        expected = min(size) * max(one) / max(size)
        assert abs(min(one) - expected) <= max(STRIDE_PX / 2, STRIDE_PX - expected)
        assert (one.width >= one.height) == (size.width >= size.height) or one.width == one.height


def test_a_setting_takes_either() -> None:
    assert TrainConfig(img_size=64).img_size == (64, 64)
    with pytest.raises(ConfigError, match="img_size: 65 is no multiple of 32; use 64"):
        TrainConfig(img_size=65)
