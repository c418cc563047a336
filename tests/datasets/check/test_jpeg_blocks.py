"""Blocks of a JPEG that no encoder writes."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from yolo_prune.datasets.check import jpeg_blocks
from yolo_prune.datasets.check.issues import Issue
from yolo_prune.datasets.check.jpeg_blocks import find_impossible_block, finding_impossible_blocks, measure_excess
from yolo_prune.datasets.check.scan import capturing_stderr, read_content

jpeglib = pytest.importorskip("jpeglib", reason="jpeglib has no wheel for this machine")
ENCODERS = ("6b", "9e", "turbo210", "mozjpeg403")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new folder, and another for temporary files, in which nothing is left."""
    scratch = tmp_path / "temporary"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with finding_impossible_blocks():
        yield tmp_path
    assert tempfile.tempdir == str(scratch)
    assert not list(scratch.iterdir())


def draw_photo(seed: int, size: int = 96) -> Image.Image:
    """Draw a smooth image with edges and some noise."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (size // 2, size // 3), size // 4, rng.integers(0, 256, 3).tolist(), -1)
    noisy = image + rng.normal(0, 6, image.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def draw_letters(seed: int) -> Image.Image:
    """Draw black and coloured letters on white, which has the largest overshoot."""
    rng = np.random.default_rng(seed)
    image = np.full((128, 128, 3), 255, np.uint8)
    for _ in range(12):
        place = tuple(rng.integers(0, 128, 2).tolist())
        cv2.putText(image, "Hands 2", place, int(rng.integers(6)), 0.7, (255 * rng.integers(0, 2, 3)).tolist(), 2)
    return Image.fromarray(image)


def write(image: Image.Image, path: Path, encoder: str, **settings: Any) -> None:
    """Write a JPEG by one of jpeglib's encoders; what is read later is read by the usual one."""
    before = jpeglib.version.get() or "6b"
    jpeglib.version.set(encoder)
    try:
        jpeglib.from_spatial(np.asarray(image)).write_spatial(str(path), **settings)
    finally:
        jpeglib.version.set(before)


@pytest.mark.parametrize("draw", [draw_photo, draw_letters])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_nothing_is_said_of_what_encoders_write(folder: Path, encoder: str, draw: type) -> None:
    path = folder / "a.jpg"
    for quality in (10, 50, 75, 95, 100):
        for seed in range(3):
            write(draw(seed), path, encoder, qt=quality)
            assert find_impossible_block(path) == ""


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "settings", [{"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}]
)
def test_every_kind_of_jpeg_is_read(folder: Path, mode: str, settings: dict[str, Any]) -> None:
    path = folder / "a.jpg"
    for size in (1, 7, 8, 9, 50):
        draw_photo(size, size).convert(mode).save(path, **settings)
        assert find_impossible_block(path) == ""
    large = draw_photo(0, 1200).convert(mode)  # more blocks than are decoded at once
    large.save(path, quality=90, **settings)
    assert find_impossible_block(path) == ""
    (image := jpeglib.read_dct(str(path))).Y[-1, -1, 0, 0] = 1000
    image.write_dct(str(path))
    assert "x 1192, y 1192 px" in find_impossible_block(path)


def test_the_excess_is_that_of_the_definition_of_the_dct() -> None:
    rng = np.random.default_rng(0)
    channel = rng.integers(-40, 41, (3, 2, 8, 8)).astype(np.int16)
    table = rng.integers(1, 30, (8, 8)).astype(np.uint16)
    expected = np.zeros((3, 2))
    scale = np.array([np.sqrt(1 / 8)] + [0.5] * 7)
    basis = scale[:, None] * np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(8) + 1) / 16)  # (frequency, place)
    for row, column in np.ndindex(3, 2):
        samples = 128 + np.einsum("vu,vy,ux->yx", channel[row, column].astype(float) * table, basis, basis)
        over, under = np.maximum(samples - 255, 0), np.maximum(-samples, 0)
        expected[row, column] = np.sqrt((over**2 + under**2).sum())
    assert expected.min() > 100
    np.testing.assert_allclose(measure_excess(channel, table), expected, rtol=1e-5)


@pytest.mark.parametrize(("channel", "step"), [("Y", 8), ("Cb", 16), ("Cr", 16)])
def test_a_changed_block_is_found_where_it_is(folder: Path, channel: str, step: int) -> None:
    path = folder / "a.jpg"
    draw_photo(3).save(path, quality=85, subsampling=2)
    image = jpeglib.read_dct(str(path))
    getattr(image, channel)[2, 4, 1, 0] += 300
    image.write_dct(str(path))
    assert (
        find_impossible_block(path) == f"the block at x {4 * step}, y {2 * step} px has values that no encoder writes"
    )


@pytest.mark.parametrize("quality", [50, 75])
def test_damage_that_decoders_accept_is_found(folder: Path, quality: int) -> None:
    """Of overwritten bytes in the middle, a decoder reports most. Of the others, most are found by their blocks."""
    rng = np.random.default_rng(quality)
    silent = found = 0
    for seed in range(150):
        draw_photo(seed, 96).save(file := io.BytesIO(), "JPEG", quality=quality)
        data = bytearray(file.getvalue())
        begin = int(rng.integers(data.index(b"\xff\xda") + 14, len(data) - 64))
        data[begin : begin + 60] = rng.integers(0, 255, 60).astype(np.uint8).tobytes()
        path = folder / f"{seed}.jpg"
        path.write_bytes(data)
        with capturing_stderr() as said:
            image = cv2.imread(str(path))
            if image is not None and not said():
                silent += 1
                found += find_impossible_block(path) != ""
    assert silent >= 5
    assert found >= 0.7 * silent


def test_the_scan_keeps_what_is_found(folder: Path) -> None:
    path = folder / os.fsdecode(b"a\xff.jpg")  # no UTF-8
    draw_photo(3).save(path, quality=85)
    assert not getattr(read_content(path), "damage", "an issue")
    draw_photo(3).save(plain := folder / "b.jpg", quality=85)
    (image := jpeglib.read_dct(str(plain))).Y[2, 4, 1, 0] += 300
    image.write_dct(str(plain))
    plain.rename(path)
    content = read_content(path)
    assert not isinstance(content, Issue)
    assert content.damage == "the block at x 32, y 16 px has values that no encoder writes"


def test_nothing_is_said_of_files_that_are_no_jpegs_or_of_an_unknown_kind(folder: Path) -> None:
    draw_photo(1).save(folder / "a.png")
    assert find_impossible_block(folder / "a.png") == ""
    write(draw_photo(1), folder / "a.jpg", "9e", flags=["+ARITH_CODE"])
    assert find_impossible_block(folder / "a.jpg") == ""


def test_a_missing_jpeglib_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jpeg_blocks, "find_spec", lambda name: None)
    monkeypatch.setattr("yolo_prune.console._told", set())
    draw_photo(1).save(tmp_path / "a.jpg")
    with finding_impossible_blocks(), finding_impossible_blocks():
        assert find_impossible_block(tmp_path / "a.jpg") == ""
    assert capsys.readouterr().err.count("pip install jpeglib") == 1
