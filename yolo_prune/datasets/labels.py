"""Labels of one image as text: a line `class cx cy w h` per object, in shares of the image's width and height."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray

from yolo_prune.arrays import Float32Array
from yolo_prune.bounded import read_text
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError
from yolo_prune.files import write_part
from yolo_prune.limits import MOST_BOXES, MOST_LABEL_BYTES
from yolo_prune.text_tables import pluralize

OVERSHOOT = 1e-2
"""A box may extend this far over the image's edge, in shares of its side, and is clipped; beyond, it is an error."""
LEAST_POINTS = 3
"""A line with a class and at least so many points x y is a polygon, as segmentation and oriented boxes are written."""
MOST_ERRORS = 1_000
"""Bad lines of a file that are told one by one."""
ROUNDING = 1e-6
"""Rounding tolerance: a smaller overshoot is not clipped, and a box with a smaller side is empty."""


@dataclass(frozen=True)
class Objects:
    """The labelled objects of one image, in pixels as displayed."""

    classes: NDArray[np.int64]
    """(N,) class indices."""
    boxes_xyxy: NDArray[np.float64]
    """(N, 4) in pixels."""
    ignore: NDArray[np.bool_]
    """(N,) objects to ignore, such as crowds."""

    def __len__(self) -> int:
        return len(self.classes)

    def clip(self, width_px: float, height_px: float) -> Objects:
        """Return the objects clipped to an image, without those that have no area left."""
        boxes = np.minimum(np.maximum(self.boxes_xyxy, 0.0), (width_px, height_px, width_px, height_px))
        shares = (boxes[:, 2:] - boxes[:, :2]) / (width_px, height_px)
        kept = (shares >= 2 * ROUNDING).all(axis=1)
        return Objects(self.classes[kept], boxes[kept], self.ignore[kept])


@dataclass
class Repairs:
    """What was read otherwise than it is written."""

    clipped: int = 0
    """Boxes that extend over the edge a little."""
    polygons: int = 0
    """Polygons, of which the box around them is taken."""
    first: str = ""
    """File and line of the first."""

    def describe(self) -> str:
        """Say it in words; empty if there was nothing."""
        clipped = f"{pluralize(self.clipped, 'box', 'boxes')} over the image's edge by up to {OVERSHOOT:.0%}: clipped"
        polygons = f"{pluralize(self.polygons, 'polygon')}: the box around each counts"
        said = " and ".join([clipped] * bool(self.clipped) + [polygons] * bool(self.polygons))
        return f"labels: {said}, the first in {self.first}" if said else ""


@dataclass(frozen=True)
class LabelLines:
    """The lines of a label file, without empty ones."""

    numbers: NDArray[np.int64]
    """(N,) line numbers of the good lines, from 1."""
    rows: NDArray[np.float64]
    """(N, 5) their values, `class cx cy w h` in shares; repeated rows are kept."""
    errors: tuple[DatasetError, ...]
    """The error of each bad line, the first `MOST_ERRORS`, and of how many more there are."""
    repairs: Repairs = field(default_factory=Repairs)


def parse_labels(text: str, source: str | Path, classes: int, repairs: Repairs | None = None) -> Float32Array:
    """Return the objects as (N, 5) rows `class cx cy w h`, normalised, in the text's order; repeated rows count once.

    Args:
        source: name of the text in messages: its file.
        classes: number of classes; a label's class is in [0, classes).
        repairs: counts what is read otherwise than it is written.

    Raises:
        DatasetError: a line that is neither five numbers nor a polygon, an unknown class, a box without area or outside the image;
            names `source` and the line. There are more than `MOST_BOXES` lines.
    """
    lines = ((number, line.split()) for number, line in enumerate(_split(text, source), 1))
    rows = dict.fromkeys(_parse_line(words, f"{source}:{number}", classes, repairs) for number, words in lines if words)
    return np.array(list(rows), np.float32).reshape(-1, 5)


def format_labels(
    classes: NDArray[np.integer], boxes_xyxy: NDArray[np.floating], width_px: float, height_px: float
) -> str:
    """Format objects, (N,) classes and (N, 4) boxes in pixels of an image, as lines with six decimals."""
    boxes = boxes_xyxy.astype(np.float64) / (width_px, height_px, width_px, height_px)
    rows = np.column_stack((classes, (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]))
    return "%d %.6f %.6f %.6f %.6f\n" * len(rows) % tuple(rows.ravel().tolist())


def save_objects(sample: Sample, objects: Objects, width_px: float, height_px: float) -> None:
    """Write the label file of an image, and its file of ignored boxes where it has any; folders are made as needed."""
    counted = ~objects.ignore
    text = format_labels(objects.classes[counted], objects.boxes_xyxy[counted], width_px, height_px)
    write_part(sample.label, text.encode())
    if not counted.all():
        ignored = objects.ignore
        text = format_labels(objects.classes[ignored], objects.boxes_xyxy[ignored], width_px, height_px)
        write_part(sample.ignored, text.encode())


def load_labels(path: Path, classes: int, repairs: Repairs | None = None) -> Float32Array:
    """Read a label file as `parse_labels` does; a missing file means an image without objects.

    Raises:
        DatasetError: the file cannot be read or is not text, or as for `parse_labels`.
    """
    return parse_labels(_load_text(path), path, classes, repairs)


def scan_labels(path: Path, classes: int) -> LabelLines:
    """Read a label file and return each bad line as an error; a missing file has no lines.

    Raises:
        DatasetError: the file cannot be read, is not text, or has more than `MOST_BOXES` lines.
    """
    numbers, rows, repairs, left_out = [], [], Repairs(), 0
    errors: list[DatasetError] = []
    for number, line in enumerate(_split(_load_text(path), path), 1):
        if words := line.split():
            try:
                rows.append(_parse_line(words, f"{path}:{number}", classes, repairs))
                numbers.append(number)
            except DatasetError as error:
                left_out += len(errors) == MOST_ERRORS
                errors += [error.with_traceback(None)] if len(errors) < MOST_ERRORS else []
    if left_out:
        errors.append(DatasetError(f"{left_out:,} more lines are bad", where=path, right="correct the first ones"))
    return LabelLines(np.array(numbers, np.int64), np.array(rows, np.float64).reshape(-1, 5), tuple(errors), repairs)


def load_objects(sample: Sample, classes: int, repairs: Repairs | None = None) -> Float32Array:
    """Return an image's objects as (N, 6) rows `class cx cy w h ignore`, ignored ones last; ignore is 0 or 1.

    Raises:
        DatasetError: as for `load_labels`, for either file.
    """
    counted, ignored = (load_labels(path, classes, repairs) for path in (sample.label, sample.ignored))
    if sample.kinds:
        for rows in (counted, ignored):
            rows[:, 0] = np.array(sample.kinds, np.float32)[rows[:, 0].astype(int)]
    flags = np.repeat(np.array((0, 1), np.float32), (len(counted), len(ignored)))
    return np.column_stack((np.concatenate((counted, ignored)), flags))


def locate_objects(rows: Float32Array, width_px: float, height_px: float) -> Float32Array:
    """Convert (N, 6) rows `class cx cy w h ignore` in shares to rows `class x1 y1 x2 y2 ignore` in pixels."""
    kinds, centres, sides, ignore = np.split(rows, (1, 3, 5), axis=1)
    scale = np.array((width_px, height_px), np.float32)
    return np.concatenate((kinds, (centres - sides / 2) * scale, (centres + sides / 2) * scale, ignore), axis=1)


def _load_text(path: Path) -> str:
    try:
        return read_text(path, MOST_LABEL_BYTES, "utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise DatasetError(
            f"labels cannot be read{reason}", where=path, right="make it a readable text file"
        ) from error


def _split(text: str, source: str | Path) -> list[str]:
    lines = text.splitlines()
    if len(lines) > MOST_BOXES:
        what = f"has {len(lines):,} lines, more than {MOST_BOXES:,} objects"
        raise DatasetError(what, where=source, right="correct it: no image has so many")
    return lines


def _parse_line(words: list[str], where: str, classes: int, repairs: Repairs | None) -> tuple[float, ...]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    is_polygon = len(values) > 2 * LEAST_POINTS and len(values) % 2 == 1
    if not (len(values) == 5 or is_polygon) or not all(map(math.isfinite, values)):
        line = shorten(" ".join(words), 60, placeholder=" …")
        right = "write class cx cy w h, or class and the points of a polygon"
        raise DatasetError(f"{line!r} is not five numbers", where=where, right=right)
    kind, cx, cy, w, h = values if len(values) == 5 else _enclose(values)
    if repairs is not None:
        repairs.polygons += is_polygon
        repairs.first = repairs.first or (where if is_polygon else "")
    if kind not in range(classes):
        right = f"use a whole number from 0 to {classes - 1}, or add the class to the data set's names"
        raise DatasetError(f"class {words[0]} is out of range", where=where, right=right)
    if min(w, h) < ROUNDING:
        raise DatasetError(
            f"a box of width {w:g} and height {h:g} is empty", where=where, right="make both greater than 0"
        )
    clipped = (*_clip(cx, w, where), *_clip(cy, h, where))
    if repairs is not None and clipped != (cx, w, cy, h):
        repairs.clipped += 1
        repairs.first = repairs.first or where
    return kind, clipped[0], clipped[2], clipped[1], clipped[3]


def _enclose(values: list[float]) -> list[float]:
    """Return class cx cy w h of the box around a polygon: class x y x y …"""
    xs, ys = values[1::2], values[2::2]
    return [
        values[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys),
    ]  # fmt: skip


def _clip(centre: float, side: float, where: str) -> tuple[float, float]:
    low, high = centre - side / 2, centre + side / 2
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return centre, side
    clipped_low, clipped_high = max(low, 0.0), min(high, 1.0)
    if low < -OVERSHOOT or high > 1 + OVERSHOOT or clipped_high - clipped_low < ROUNDING:
        right = "write shares of the image's width and height, so that a box spans at most 0 to 1"
        raise DatasetError(f"a box from {low:g} to {high:g} lies outside the image", where=where, right=right)
    return (clipped_low + clipped_high) / 2, clipped_high - clipped_low
