"""The entries of a COCO annotations file: read one by one, of each what is needed is kept."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from yolo_prune.datasets.formats.faults import Faults
from yolo_prune.errors import DatasetError
from yolo_prune.json_parts import iterate_json
from yolo_prune.limits import MOST_CLASSES

Entry = dict[str, Any]

RIGHT_FILE = "name a COCO annotations file, with images, annotations and categories"
LONGEST_ID = 20
"""Digits of an id that counts as a number."""


class Annotation(NamedTuple):
    """What is kept of an annotation, not parsed yet; files have millions of them."""

    number: int
    """Its place in the file's list."""
    image_id: int | str
    category_id: Any
    bbox: Any
    segmentation: Any
    """None if there is a bbox."""
    iscrowd: Any
    ignore: Any


def read_lists(path: Path, faults: Faults) -> tuple[list[Entry], list[Annotation], list[Entry]]:
    """Return what is kept of the images, annotations and categories of a file; only ids are parsed.

    Raises:
        DatasetError: the file is not JSON, or lacks one of the lists.
    """
    lists: dict[str, list[Any]] = {}
    for key, number, value in iterate_json(path, DatasetError, RIGHT_FILE):
        if not key:
            raise DatasetError("holds no COCO annotations", where=path, right=RIGHT_FILE)
        if key not in ("images", "annotations", "categories"):
            continue
        if number is None:
            lists[key] = [] if value is None and key == "annotations" else value  # a split without objects
            if not isinstance(lists[key], list):
                raise DatasetError(f"holds no list of {key}", where=path, right=RIGHT_FILE)
            continue
        where = f"{path}: {key}[{number}]"
        if not isinstance(value, dict):
            raise DatasetError("is no JSON object", where=where, right="write {…}")
        if key == "categories" and number >= MOST_CLASSES:
            what = f"there are more than {MOST_CLASSES:,} categories"
            raise DatasetError(what, where=f"{path}: {key}", right="correct it: no data set has so many")
        with faults:
            lists[key].append(_KEEP[key](value, number, where))
    for key in _KEEP:
        if key not in lists:
            raise DatasetError(f"holds no list of {key}", where=path, right=RIGHT_FILE)
    return lists["images"], lists["annotations"], lists["categories"]


def _keep_image(entry: Entry, number: int, where: str) -> Entry:
    kept = {key: entry.get(key) for key in ("file_name", "width", "height")}
    return {"id": _parse_id(entry, "id", where), "number": number, **kept}


def _keep_annotation(entry: Entry, number: int, where: str) -> Annotation:
    bbox = entry.get("bbox") or None
    values = (bbox, entry.get("segmentation") if bbox is None else None, entry.get("iscrowd"), entry.get("ignore"))
    return Annotation(number, _parse_id(entry, "image_id", where), entry.get("category_id"), *values)


def _keep_category(entry: Entry, number: int, where: str) -> Entry:
    return {key: entry.get(key) for key in ("id", "name", "supercategory")}


_KEEP = {"images": _keep_image, "annotations": _keep_annotation, "categories": _keep_category}


def _parse_id(entry: Entry, key: str, where: str) -> int | str:
    if (value := read_id(entry.get(key))) is None:
        raise DatasetError(f"{key} is {reprlib.repr(entry.get(key))}", where=where, right="write a whole number")
    return value


def read_id(value: Any) -> int | str | None:
    """Return an id, as a whole number if it is one in any spelling; None if it is no id."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isdecimal() and len(text) < LONGEST_ID else text or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_number(value: Any) -> bool:
    """Return whether a value from JSON is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
