"""Small images, random labelled sets of them, and what a rejected conversion looks like."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from tiny import Outcome

from yolo_prune.datasets.data_file import SPLITS
from yolo_prune.datasets.formats.labelled_set import LabelledImage, LabelledSet
from yolo_prune.datasets.labels import Objects

WORDS = ("hand", "foot", "left hand", "füße: 2", "no")
Row = tuple[int, tuple[float, float, float, float], bool]


@cache
def draw_image(width_px: int, height_px: int, orientation: int, box_xyxy: tuple[int, int, int, int]) -> bytes:
    """Return a JPEG stored at this size, black but for one white box, that asks to be turned."""
    pixels = np.zeros((height_px, width_px), np.uint8)
    pixels[box_xyxy[1] : box_xyxy[3], box_xyxy[0] : box_xyxy[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def save_image(
    path: Path,
    width_px: int = 64,
    height_px: int = 40,
    orientation: int = 1,
    box_xyxy: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Path:
    """Write such an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_image(width_px, height_px, orientation, box_xyxy))
    return path


def make_objects(*rows: Row) -> Objects:
    """Return objects of rows class, box in pixels, ignore."""
    classes, boxes, ignore = zip(*rows, strict=True) if rows else ((), (), ())
    return Objects(np.array(classes, np.int64), np.array(boxes, np.float64).reshape(-1, 4), np.array(ignore, np.bool_))


def list_rows(image: LabelledImage) -> list[Row]:
    """Return an image's objects as rows class, box in pixels, ignore, those that count first."""
    objects = image.objects
    rows = zip(objects.classes.tolist(), objects.boxes_xyxy.tolist(), objects.ignore.tolist(), strict=True)
    return sorted(((kind, tuple(box), ignore) for kind, box, ignore in rows), key=lambda row: row[2])


def is_same(one: LabelledSet, other: LabelledSet, tolerance: float = 2e-6) -> bool:
    """Return whether two sets hold the same images and objects, boxes to within a share of the image's sides."""
    return (
        one.names == other.names
        and len(one.images) == len(other.images)
        and all(
            (left.split, left.name, left.width_px, left.height_px)
            == (right.split, right.name, right.width_px, right.height_px)
            and left.image.read_bytes() == right.image.read_bytes()
            and _has_same_objects(left, right, tolerance)
            for left, right in zip(one.images, other.images, strict=True)
        )
    )


def _has_same_objects(one: LabelledImage, other: LabelledImage, tolerance: float) -> bool:
    left, others = list_rows(one), list_rows(other)
    sides = np.array((one.width_px, one.height_px) * 2)
    for kind, box, ignore in left:
        for row in others:
            near = abs((np.array(box) - row[1]) / sides).max() <= tolerance
            if near and row[0] == kind and row[2] == ignore:
                others.remove(row)
                break
        else:
            return False
    return not others


@st.composite
def labelled_sets(draw: st.DrawFn) -> LabelledSet:
    """Draw a set whose images are yet to be written (`save_images`), its names in alphabetical order and all used."""
    boxes = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.001, 0.1), st.floats(0.001, 0.1))
    kinds = st.integers(0, len(WORDS) - 1)
    images = []
    for number, split in enumerate((*SPLITS, *draw(st.lists(st.sampled_from(SPLITS), max_size=3)))):
        width, height = draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
        rows = draw(
            st.lists(st.tuples(kinds, boxes, st.booleans()), max_size=4, unique_by=lambda row: round(row[1][0], 3))
        )
        if not number:
            rows.append((0, (0.0, 0.95, 1.0, 0.05), False))
        shares = ((kind, (x, y, x + w, y + h), ignore) for kind, (x, y, w, h), ignore in rows)
        objects = make_objects(
            *((kind, (a * width, b * height, c * width, d * height), ignore) for kind, (a, b, c, d), ignore in shares)
        )
        name = f"{draw(st.sampled_from(('', 'deep/', 'a b/c/')))}{number}.{draw(st.sampled_from(('jpg', 'JPEG')))}"
        turned = draw(st.integers(1, 8))
        images.append(LabelledImage(Path(str(turned)), name, split, width, height, objects))
    used = sorted({int(kind) for one in images for kind in one.objects.classes}, key=WORDS.__getitem__)
    return LabelledSet(tuple(WORDS[kind] for kind in used), tuple(_renumber(one, used) for one in images))


def _renumber(image: LabelledImage, used: list[int]) -> LabelledImage:
    rows = [(used.index(kind), box, ignore) for kind, box, ignore in list_rows(image)]
    return LabelledImage(image.image, image.name, image.split, image.width_px, image.height_px, make_objects(*rows))


def save_images(folder: Path, data: LabelledSet) -> LabelledSet:
    """Write the images of a drawn set below a folder, and return the set with their places."""
    written = []
    for one in data.images:
        orientation = int(str(one.image))
        stored = (one.height_px, one.width_px) if orientation >= 5 else (one.width_px, one.height_px)
        image = save_image(folder / one.split / one.name, *stored, orientation)
        written.append(LabelledImage(image, one.name, one.split, one.width_px, one.height_px, one.objects))
    order = sorted(written, key=lambda one: (SPLITS.index(one.split), one.name))
    return LabelledSet(data.names, tuple(order))


def check_rejected(outcome: Outcome, place: str, right: str) -> None:
    """Expect one line that begins with the place and ends in what would be right, and nothing at `out` or beside it."""
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith(f"error: {place}"), outcome.err
    assert right in outcome.err[len(f"error: {place}") :], outcome.err
    assert not [path for path in Path().iterdir() if path.name == "out" or path.name.startswith(".out")]
