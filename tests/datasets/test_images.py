from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from yolo_prune.datasets.images import GREY, fit_image, letterbox, read_header, read_image
from yolo_prune.errors import DatasetError
from yolo_prune.image_size import ImageSize

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def save(path: Path, pixels: NDArray[np.generic]) -> Path:
    assert cv2.imwrite(str(path), np.asarray(pixels))
    return path


def test_colours_come_as_red_green_blue(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a b ü.png", RGB[..., ::-1])), RGB)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", RGB[..., 0])), RGB[..., [0, 0, 0]])


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((4, 6, 1), 255, np.uint8)
    path = save(tmp_path / "a.png", np.concatenate((RGB[..., ::-1], alpha), axis=-1))
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"a{suffix}", RGB[..., ::-1].astype(np.uint16) * 257))
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), RGB, atol=1)


def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", np.full((8, 16, 3), 200, np.uint8))
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert read_image(path).shape == (16, 8, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_the_image_does(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[8:16, 24:56] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    shown, header = read_image(path), read_header(path)
    with Image.open(path) as image:
        np.testing.assert_allclose(shown.astype(int), np.asarray(ImageOps.exif_transpose(image)).astype(int), atol=1)
    assert (header.height_px, header.width_px) == shown.shape[:2]
    assert header.stored_size == (64, 40)
    rows, columns = np.nonzero(shown[..., 0] > 127)
    (box,) = header.turn(np.array([[24, 8, 56, 16]])).tolist()
    assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("suffix", [".jpg", ".tiff"])
def test_printers_colours_become_red_green_blue(tmp_path: Path, suffix: str) -> None:
    smooth = cv2.resize(RGB, (48, 32))
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth).convert("CMYK").save(path, quality=95)
    np.testing.assert_allclose(read_image(path).astype(int), smooth, atol=12)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGBA"])
def test_every_mode_gives_what_another_reader_sees(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(cv2.resize(RGB, (48, 32)))
    if mode == "I;16":
        made = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        made = image.convert(mode)
    made.save(tmp_path / "a.png")
    expected = image.convert("L").convert("RGB") if mode in ("I;16", "LA") else made.convert("RGB")
    np.testing.assert_allclose(read_image(tmp_path / "a.png").astype(int), np.asarray(expected).astype(int), atol=1)


def test_a_header_of_nonsense_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    for name, what in {"text.jpg": "is not a readable image", "missing.jpg": "there is no such image"}.items():
        with pytest.raises(DatasetError, match=rf"{name}: {what}( \(Is a directory\))?; "):
            read_header(tmp_path / name)


def test_a_missing_or_unreadable_image_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name, what in {
        "missing.jpg": "there is no such image",
        "text.jpg": "is not a readable image",
        "empty.jpg": "is not a readable image",
        "folder.jpg": "is not a readable image",
    }.items():
        with pytest.raises(DatasetError, match=rf"{name}: {what}( \(Is a directory\))?; "):
            read_image(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_letterbox_of_a_hand_worked_image() -> None:
    square, box = letterbox(np.full((2, 4, 3), 200, np.uint8), 8)
    assert square.shape == (8, 8, 3)
    assert (square[2:6] == 200).all()
    assert (square[:2] == GREY).all()
    assert (square[6:] == GREY).all()
    assert (box.scale_x, box.scale_y, box.pad_x_px, box.pad_y_px, box.width_px, box.height_px) == (2, 2, 0, 2, 8, 8)
    np.testing.assert_array_equal(box.to_network(np.array([[1, 0, 3, 2]], np.float32)), [[2, 2, 6, 6]])
    np.testing.assert_array_equal(box.to_image(np.array([[2, 0, 9, 6]], np.float32), 4, 2), [[1, 0, 4, 2]])


def test_letterbox_into_a_rectangle() -> None:
    padded, box = letterbox(np.full((2, 4, 3), 200, np.uint8), ImageSize(16, 4))
    assert padded.shape == (4, 16, 3)
    assert (padded[:, 4:12] == 200).all()
    assert (padded[:, :4] == GREY).all()
    assert (padded[:, 12:] == GREY).all()
    assert (box.scale_x, box.scale_y, box.pad_x_px, box.pad_y_px, box.width_px, box.height_px) == (2, 2, 4, 0, 16, 4)
    np.testing.assert_array_equal(box.to_network(np.array([[1, 0, 3, 2]], np.float32)), [[6, 0, 10, 4]])


def test_shrinking_averages_areas() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0] = 160
    assert fit_image(image, 1).tolist() == [[[40, 40, 40]]]


def test_a_fitting_image_is_left_alone() -> None:
    assert fit_image(RGB, 6) is RGB


SIDES = st.integers(8, 128)


@given(st.integers(1, 300), st.integers(1, 300), st.builds(ImageSize, SIDES, SIDES), st.data())
@settings(max_examples=60, deadline=None)
def test_the_way_back_from_the_input_is_the_inverse(
    width: int, height: int, size: ImageSize, data: st.DataObject
) -> None:
    x, y = (sorted(data.draw(st.tuples(st.floats(0, side), st.floats(0, side)))) for side in (width, height))
    boxes = np.array([[x[0], y[0], x[1], y[1]], [0, 0, width, height]], np.float32)
    square, box = letterbox(np.zeros((height, width, 3), np.uint8), size)
    mapped = box.to_network(boxes)
    np.testing.assert_allclose(
        box.to_image(mapped, width, height), boxes, atol=1e-3 / size.measure_scale(width, height) + 1e-3
    )
    left, top, right, bottom = np.round(mapped[1]).astype(int)
    assert (square[top:bottom, left:right] == 0).all()
    assert (square == GREY).sum() == 3 * (size.pixels - (right - left) * (bottom - top))
    assert right - left == size.width or bottom - top == size.height


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 64))
@settings(max_examples=60, deadline=None)
def test_an_image_shrunk_beforehand_gives_the_same_square(width: int, height: int, size: int) -> None:
    image = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(letterbox(fit_image(image, size), size)[0], letterbox(image, size)[0])


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 20_000)).save(path)  # a small file
    with pytest.raises(
        DatasetError, match=r"large\.png: has 20000 × 20000 pixels, more than 268,435,456; make it smaller"
    ):
        read_image(path)


def test_the_limit_holds_whichever_module_imports_opencv_first(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 20_000)).save(path)
    code = f"""
import yolo_prune.evaluation.previews
import cv2
from pathlib import Path
try:
    cv2.imdecode(__import__("numpy").fromfile({str(path)!r}, "uint8"), cv2.IMREAD_GRAYSCALE)
except cv2.error as error:
    print("pixels" in str(error).lower())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
