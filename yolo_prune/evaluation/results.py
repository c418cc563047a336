"""COCO results: a JSON list of `image_id category_id bbox score category_name`, with bbox xywh in pixels.

Ids of images and classes are numbers from an annotations file, or else the images' paths.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.datasets.class_names import is_unnamed, list_names
from yolo_prune.datasets.formats.coco_file import is_number
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.json_parts import iterate_json

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")
RIGHT_RESULT = "write image_id, category_id, bbox [x, y, width, height] in pixels and score"

Entry = tuple[list[float], float, int]


def format_results(
    image_ids: Sequence[ImageId],
    detections: Sequence[Detections],
    category_ids: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return detections as COCO's results list, ready for JSON.

    `category_ids` gives each class its COCO id; without it the class index is written. Where the classes have `names`,
    and not only numbers, an entry has `category_name`, too, which readers of the format pass over.
    """
    named = bool(names) and not is_unnamed(names)
    rows = []
    for image_id, found in zip(image_ids, detections, strict=True):
        boxes = _to_xywh(found.boxes_xyxy).tolist()
        for box, score, own in zip(boxes, found.scores.tolist(), found.classes.tolist(), strict=True):
            category_id = own if category_ids is None else category_ids[own]
            row = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            rows.append({**row, "category_name": names[own]} if named else row)
    return rows


def load_results(path: Path, ids: ImageIds) -> list[Detections]:
    """Read a COCO results file into the detections of each image of `ids`, the inverse of `format_results`.

    Detections in images that are not evaluated are left out.

    Raises:
        DatasetError: the file cannot be read, or an entry is malformed or names an unknown image or category.
    """
    classes = {category_id: own for own, category_id in enumerate(ids.classes)}
    found: list[list[Entry]] = [[] for _ in ids.images]
    for number, row in _iterate_list(path):
        where = f"{path}[{number}]"
        image_id, (box, score, category_id) = _parse_result(row, where)
        place = find_image(ids, image_id, where)
        if category_id not in classes:
            right = f"use one of {list_names(list(map(str, sorted(classes))))}, or name with --annotations the file of the ids"
            raise DatasetError(f"category_id {reprlib.repr(category_id)} is unknown", where=where, right=right)
        if place is not None:
            found[place].append((box, score, classes[category_id]))
    return list(map(_make_found, found))


def _iterate_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the entries of a JSON file that holds a list, with their numbers."""
    parts = iterate_json(path, DatasetError, "name a COCO results file")
    if next(parts, None) != ("", None, []):
        raise DatasetError("holds no list", where=path, right="name a COCO results file, a JSON list of detections")
    yield from ((number, row) for _, number, row in parts if number is not None)


def _parse_result(row: Any, where: str) -> tuple[ImageId, Entry]:
    """Return the image, and box (xyxy), score and category, of one entry of a results file."""
    try:
        image_id, category_id, (x, y, width, height), score = (row[key] for key in RESULT_KEYS)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"is no detection ({json.dumps(row)[:120]})", where=where, right=RIGHT_RESULT) from error
    numbers = (x, y, width, height, score)
    if not all(map(is_number, numbers)):
        raise DatasetError(f"bbox {row['bbox']} or score {score!r} is not finite", where=where, right=RIGHT_RESULT)
    if width < 0 or height < 0:
        raise DatasetError(f"bbox {row['bbox']} has a negative side", where=where, right=RIGHT_RESULT)
    if type(image_id) not in (int, str) or type(category_id) is not int:
        what = f"image_id {image_id!r} or category_id {category_id!r} is of the wrong kind"
        raise DatasetError(what, where=where, right=RIGHT_RESULT)
    return image_id, ([x, y, x + width, y + height], score, category_id)


def _make_found(entries: Sequence[Entry]) -> Detections:
    boxes, scores, classes = zip(*entries, strict=True) if entries else ((), (), ())
    return make_detections(boxes, scores, classes)


def _to_xywh(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    boxes = boxes_xyxy.astype(np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


ImageId = int | str
RIGHT_ANNOTATIONS = "name a COCO annotations file with images and categories"


@dataclass(frozen=True)
class ImageIds:
    """The ids of some images of a data set, and of its classes."""

    images: tuple[ImageId, ...]
    """The id of each image."""

    classes: tuple[int, ...]
    """The category id of each class."""

    places: Mapping[ImageId, int | None]
    """The image, 0 … I − 1, of every known id; None for an image of the data set that is not evaluated."""

    ambiguous: frozenset[ImageId] = frozenset()
    """Ids that match more than one image."""


def name_images(samples: Sequence[Sample], root: Path, classes: int, others: Sequence[Sample] = ()) -> ImageIds:
    """Use each image's path below `root` as its id, and each class's index as its id.

    Also accepted are the full path, the ends of the path (`a/b.jpg`, `b.jpg`), and the file's name without suffix, as
    text or, if it is a number, as a number. `others` are images of the data set that are not evaluated.
    """
    images = tuple(_write_path(sample.image, root) for sample in samples)
    places: dict[ImageId, int | None] = {}
    ambiguous: set[ImageId] = set()
    for place, sample in enumerate(samples):
        for name in _list_names(sample.image, root):
            if places.setdefault(name, place) != place:
                ambiguous.add(name)
    ambiguous -= set(images)  # a whole path has priority over the end of another
    places |= {image: place for place, image in enumerate(images)}
    for sample in others:
        for name in _list_names(sample.image, root):
            places.setdefault(name, None)
    return ImageIds(images, tuple(range(classes)), places, frozenset(ambiguous))


def load_image_ids(
    path: Path, samples: Sequence[Sample], root: Path, names: Sequence[str], others: Sequence[Sample] = ()
) -> ImageIds:
    """Read the ids of images, by their file names, and of classes, by their names, from a COCO annotations file.

    Raises:
        DatasetError: the file cannot be read or is not such a file, or an image or a class is not in it.
    """
    values = _load_names(path)
    files = name_images(samples, root, len(names), others)
    places: dict[ImageId, int | None] = {}
    images: dict[int, ImageId] = {}
    for image_id, file_name in _iterate_entries(values, "images", "file_name", path):
        name = str(PurePosixPath(file_name))
        if name in files.ambiguous:
            raise _make_ambiguous(name, f"{path}: images")
        place = places[image_id] = files.places.get(name)
        if place is not None:
            images[place] = image_id
    missing = [name for place, name in enumerate(files.images) if place not in images]
    if missing:
        what = f"{len(missing)} images of the data set are not among the images, the first is {missing[0]}"
        raise DatasetError(what, where=path, right="name the annotations of these images")
    categories = {name: number for number, name in _iterate_entries(values, "categories", "name", path)}
    for name in names:
        if type(categories.get(name)) is not int:
            right = f"name the annotations of this data set; these have {list_names(list(categories)) or 'none'}"
            raise DatasetError(f"there is no category {name}", where=f"{path}: categories", right=right)
    classes = tuple(int(categories[name]) for name in names)
    return ImageIds(tuple(images[place] for place in range(len(samples))), classes, places)


def find_image(ids: ImageIds, image_id: ImageId, where: str) -> int | None:
    """Return the image of an id; None for one that is not evaluated.

    Raises:
        DatasetError: the id is unknown, or matches more than one image.
    """
    if image_id in ids.ambiguous:
        raise _make_ambiguous(image_id, where)
    if image_id not in ids.places:
        right = "name the data set that these results were made on, and with --annotations the file that gives its ids"
        raise DatasetError(f"image_id {image_id!r} is not in the data set", where=where, right=right)
    return ids.places[image_id]


def _make_ambiguous(image_id: ImageId, where: str) -> DatasetError:
    right = "name images by their path in the data set"
    return DatasetError(f"{image_id!r} fits more than one image", where=where, right=right)


def _write_path(image: Path, root: Path) -> str:
    return (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()


def _list_names(image: Path, root: Path) -> Iterator[ImageId]:
    parts = PurePosixPath(_write_path(image, root)).parts
    yield from ("/".join(parts[start:]) for start in range(len(parts)))
    yield str(image)
    yield str(image.absolute())
    yield image.stem
    if image.stem.isdecimal():
        yield int(image.stem)


def _load_names(path: Path) -> dict[str, Any]:
    """Return the images and categories of an annotations file, of each entry the id and the name."""
    values: dict[str, Any] = {}
    for key, number, value in iterate_json(path, DatasetError, RIGHT_ANNOTATIONS):
        if number is None:
            values[key] = value
        elif key in ("images", "categories"):
            is_entry = isinstance(value, dict)
            values[key].append({own: value.get(own) for own in ("id", "file_name", "name")} if is_entry else None)
    return values


def _iterate_entries(values: dict[str, Any], key: str, name: str, path: Path) -> Iterator[tuple[Any, str]]:
    """Yield (id, name) of the entries of a list in an annotations file."""
    entries = values.get(key)
    if not isinstance(entries, list):
        raise DatasetError(f"there is no list {key}", where=path, right=RIGHT_ANNOTATIONS)
    for number, entry in enumerate(entries):
        where = f"{path}: {key}[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get(name), str):
            raise DatasetError(f"has no {name}", where=where, right=f"write id and {name}")
        if not isinstance(entry.get("id"), int | str) or isinstance(entry["id"], bool):
            raise DatasetError("has no id", where=where, right=f"write id and {name}")
        yield entry["id"], entry[name]
