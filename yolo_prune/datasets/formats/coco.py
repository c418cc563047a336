"""Load and save COCO annotations.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
     "categories": [{"id": 1, "name": "hand"}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "iscrowd": 0}]}

Pixels count from 0 at the image's edge, and need not be whole. Boxes with `"iscrowd": 1` or `"ignore": 1` are ignored.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from yolo_prune.console import warn
from yolo_prune.datasets.class_names import SHOWN
from yolo_prune.datasets.formats.coco_file import Annotation, Entry, is_number, read_id, read_lists
from yolo_prune.datasets.formats.coco_masks import measure_box
from yolo_prune.datasets.formats.faults import Faults
from yolo_prune.datasets.formats.labelled_set import (
    PIXEL_DECIMALS,
    Box,
    LabelledImage,
    LabelledSet,
    Progress,
    Source,
    choose_names,
    find_canvas,
    find_image,
    find_parent,
    list_tails,
    make_image,
    make_set,
    place_image,
)
from yolo_prune.datasets.images import read_header
from yolo_prune.errors import DatasetError
from yolo_prune.files import save_json
from yolo_prune.text_tables import pluralize

RIGHT_BOX = "write bbox: [x, y, width, height], four finite numbers in pixels, or a segmentation"


@dataclass(frozen=True)
class _File:
    """An annotations file whose entries are not parsed yet."""

    source: Source
    categories: dict[int | str, str]
    images: list[Entry]
    annotations: dict[int | str, list[Annotation]]
    """The annotations of each image, by its id."""
    absent: int
    """How many annotations are of images that are not listed."""


def load_coco(
    sources: Sequence[Source],
    wanted: Sequence[str] | None = None,
    images: Path | None = None,
    progress: Progress = None,
    faults: Faults | None = None,
) -> LabelledSet:
    """Read annotations files. Classes are the categories in the order of their ids, or `wanted`.

    Images are searched in the folder `images`, beside the file, and in the usual folders of COCO and others, by the
    path that the file says or its end. A category that has no annotation and is another's supercategory is left out, as
    are annotations of images that the file does not list, which are counted.

    Raises:
        DatasetError: a file is not JSON, an entry is malformed (names it), an image is missing or of another size.
    """
    faults = faults or Faults()
    files = [_load_file(source, faults) for source in sources]
    faults.check(is_end=False)
    for file in files:
        if file.absent:
            warn(f"{file.source.path}: left out {pluralize(file.absent, 'annotation')} of images that are not listed")
    names = choose_names(wanted, _list_names(files, wanted), sources[0].path)
    numbers = {name: number for number, name in enumerate(names)}
    total, done = sum(len(file.images) for file in files), 0
    found = []
    for file in files:
        folders = _list_folders(file.source, images)
        for entry in file.images:
            where = f"{file.source.path}: images[{entry['number']}]"
            with faults:
                found.append(_load_image(file, entry, numbers, folders, where, faults))
            done += 1
            if progress:
                progress(done, total)
    faults.check()
    return make_set(names, found)


def save_coco(folder: Path, data: LabelledSet, link: bool = False, progress: Progress = None) -> None:
    """Write annotations/SPLIT.json and images/SPLIT to a folder; with `link`, link to the images instead of copying."""
    for split in data.splits:
        save_json(folder / "annotations" / f"{split}.json", format_coco(data.names, data.of(split)))
    for done, image in enumerate(data.images, 1):
        place_image(image.image, folder / "images" / image.split / image.name, link)
        if progress:
            progress(done, len(data.images))


def format_coco(names: Sequence[str], images: Sequence[LabelledImage]) -> Entry:
    """Return images and their objects as COCO annotations, ready for JSON; all ids start at 1."""
    rows = [(number, row) for number, one in enumerate(images, 1) for row in _list_objects(one)]
    return {
        "info": {"description": "written by yoloprune data convert"},
        "images": [
            {"id": number, "file_name": one.name, "width": one.width_px, "height": one.height_px}
            for number, one in enumerate(images, 1)
        ],
        "categories": [{"id": number, "name": name, "supercategory": "none"} for number, name in enumerate(names, 1)],
        "annotations": [{"id": number, "image_id": image, **row} for number, (image, row) in enumerate(rows, 1)],
    }


def _list_objects(image: LabelledImage) -> list[Entry]:
    objects = image.objects
    corners, sides = objects.boxes_xyxy[:, :2], objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    rows = zip(objects.classes.tolist(), corners.tolist(), sides.tolist(), objects.ignore.tolist(), strict=True)
    return [
        {
            "category_id": kind + 1,
            "bbox": [round(value, PIXEL_DECIMALS) for value in (*corner, *side)],
            "area": round(side[0] * side[1], PIXEL_DECIMALS),
            "iscrowd": int(ignore),
            "segmentation": [],
        }
        for kind, corner, side, ignore in rows
    ]


def _load_file(source: Source, faults: Faults) -> _File:
    images, annotations, categories = read_lists(source.path, faults)
    if not images:
        raise DatasetError("there are no images", where=f"{source.path}: images", right="leave this file out")
    by_image: dict[int | str, list[Annotation]] = {}
    kept: list[Entry] = []
    for image in images:
        with faults:
            if image["id"] in by_image:
                where, right = f"{source.path}: images[{image['number']}]", "give each image an id of its own"
                raise DatasetError(f"id {image['id']!r} is taken", where=where, right=right)
            by_image[image["id"]] = []
            kept.append(image)
    absent = 0
    for annotation in annotations:
        if annotation.image_id in by_image:
            by_image[annotation.image_id].append(annotation)
        else:
            absent += 1
    stated = (read_id(one.category_id) for rows in by_image.values() for one in rows)
    used = {kind for kind in stated if kind is not None}
    return _File(source, _parse_categories(categories, used, f"{source.path}: categories"), kept, by_image, absent)


def _parse_categories(entries: list[Entry], used: set[int | str], place: str) -> dict[int | str, str]:
    """Return the names by id; `used` are the ids that annotations have."""
    children: dict[str, list[int | str | None]] = {}
    for entry in entries:
        children.setdefault(str(entry.get("supercategory")).strip(), []).append(read_id(entry.get("id")))
    categories: dict[int | str, str] = {}
    taken: set[str] = set()
    for number, entry in enumerate(entries):
        where, own, name = f"{place}[{number}]", read_id(entry.get("id")), entry.get("name")
        if own is None or type(name) not in (str, int):
            what = f"id {reprlib.repr(own)} and name {reprlib.repr(name)} make no category"
            raise DatasetError(what, where=where, right="write both")
        name = str(name).strip()
        below = children.get(name, [])
        if own not in used and len(below) > below.count(own):
            continue  # the root that Roboflow adds above the classes
        if own in categories or name in taken:
            raise DatasetError(f"id {own} or name {name} is taken", where=where, right="give each category its own")
        categories[own] = name
        taken.add(name)
    return categories


def _list_names(files: Sequence[_File], wanted: Sequence[str] | None) -> list[str]:
    """Return the categories' names in the order of their ids; without `wanted`, all files must agree on them."""
    merged: dict[int | str, str] = {}
    owners: dict[str, int | str] = {}
    for file in files:
        for own, name in file.categories.items():
            agrees = merged.setdefault(own, name) == name and owners.setdefault(name, own) == own
            if wanted is None and not agrees:
                what = f"category {own} is {name}, and another file gives that id or that name otherwise"
                right = "choose the classes by their names with --names"
                raise DatasetError(what, where=f"{file.source.path}: categories", right=right)
    return (
        list(owners)
        if wanted is not None
        else [merged[own] for own in sorted(merged, key=lambda own: (isinstance(own, str), own))]
    )


def _list_folders(source: Source, images: Path | None) -> list[Path]:
    """Return the folders where a file's images may be, the most likely first."""
    home, split = source.path.parent, source.split
    up = find_parent(home)
    ending = source.path.stem.rpartition("_")[2]  # images of annotations/instances_train2017.json are in train2017/
    named = [images, images / split] if images else []
    return [*named, home, up / "images", up / "images" / split, up / split, up / ending, up / "images" / ending]


def _load_image(
    file: _File, entry: Entry, numbers: Mapping[str, int], folders: list[Path], where: str, faults: Faults
) -> LabelledImage:
    image, name = find_image(list_tails(entry.get("file_name"), where), folders, where)
    header = read_header(image)
    width, height = (_parse_side(entry, key, where) for key in ("width", "height"))
    canvas = find_canvas(header, (width, height), image, where)
    boxes, left_out = [], []
    for annotation in file.annotations[entry["id"]]:
        place = f"{file.source.path}: annotations[{annotation.number}]"
        with faults:
            kind = _parse_category(annotation, file.categories, place)
            if kind in numbers:
                flags = [
                    _parse_flag(annotation.iscrowd, "iscrowd", place),
                    _parse_flag(annotation.ignore, "ignore", place),
                ]
                boxes.append(Box(numbers[kind], _parse_box(annotation, canvas, place), any(flags)))
            else:
                left_out.append(kind)
    return make_image(image, name, file.source.split, header, boxes, canvas_px=canvas, left_out=left_out)


def _parse_side(entry: Entry, key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if not is_number(value):
        raise DatasetError(f"{key} is {reprlib.repr(value)}", where=where, right="write a number of pixels")
    return float(value)


def _parse_category(annotation: Annotation, categories: dict[int | str, str], where: str) -> str:
    own = read_id(annotation.category_id)
    if own is None or own not in categories:
        more = ", …" if len(categories) > SHOWN else ""
        shown = ", ".join(map(str, islice(categories, SHOWN)))
        right = f"use one of {shown}{more}" if categories else "add it to the categories"
        raise DatasetError(f"there is no category {own!r}", where=where, right=right)
    return categories[own]


def _parse_flag(value: Any, key: str, where: str) -> bool:
    value = 0 if value is None else int(value) if value in ("0", "1") else value
    if value not in (0, 1):
        raise DatasetError(f"{key} is {reprlib.repr(value)}", where=where, right="write 0 or 1")
    return bool(value)


def _parse_box(annotation: Annotation, canvas_px: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """Return an annotation's x1, y1, x2, y2, from its bbox, or else from its segmentation."""
    box = annotation.bbox
    if box is None and annotation.segmentation:
        box = list(measure_box(annotation.segmentation, *canvas_px, where))
    if box is None:
        raise DatasetError("there is neither a bbox nor a segmentation", where=where, right=RIGHT_BOX)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise DatasetError(f"bbox is {str(box)[:80]}", where=where, right=RIGHT_BOX)
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height
