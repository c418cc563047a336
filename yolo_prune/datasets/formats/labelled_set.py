"""Labelled images in memory: every reader of a format returns them, and every writer takes them.

    COCO json ── load_coco ─┐                 ┌─ save_coco ── annotations/SPLIT.json  images/SPLIT/NAME
    VOC xml ──── load_voc ──┼── LabelledSet ──┼─ save_voc ─── Annotations/ID.xml  JPEGImages/NAME  ImageSets/Main/SPLIT.txt
    data.yaml ── load_yolo ─┘                 └─ save_yolo ── data.yaml  images/SPLIT/NAME  labels/SPLIT/NAME

The functions for data.yaml are in yolo.py, those for COCO in coco.py, those for VOC in voc.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from yolo_prune.bounded import is_file, read_bytes
from yolo_prune.datasets.class_names import list_names
from yolo_prune.datasets.data_file import SPLITS, check_names
from yolo_prune.datasets.images import Header
from yolo_prune.datasets.labels import Objects
from yolo_prune.errors import DatasetError
from yolo_prune.files import write_part
from yolo_prune.limits import MOST_IMAGE_BYTES

Progress: TypeAlias = Callable[[int, int], None] | None
"""Called with the numbers of finished images and of all."""
StatedSize: TypeAlias = tuple[float | None, float | None]
"""Width and height in pixels as stated by a source; None if it does not."""

PIXEL_DECIMALS = 7
"""Decimals of written pixel values: precise to a millionth of any image's side."""


@dataclass(frozen=True)
class Source:
    """A file or folder of labels, and the split that it becomes."""

    split: str
    path: Path


@dataclass(frozen=True)
class LabelledImage:
    """An image with its objects, in pixels as displayed."""

    image: Path
    """The path of the image."""
    name: str
    """Its path below its split's folder of images, with suffix and forward slashes."""
    split: str
    """train, val or test."""
    width_px: int
    """Width as displayed."""
    height_px: int
    """Height as displayed."""
    objects: Objects
    """Its objects, clipped to the image."""
    dropped: int = 0
    """Boxes that were dropped, because they have no area or are outside the image."""
    left_out: tuple[str, ...] = ()
    """Class name of each box that was left out, because its class is not wanted."""


@dataclass(frozen=True)
class LabelledSet:
    """Class names, and images sorted by split and name."""

    names: tuple[str, ...]
    images: tuple[LabelledImage, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        present = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in present)

    def of(self, split: str) -> list[LabelledImage]:
        """Return the images of a split."""
        return [image for image in self.images if image.split == split]


class Box(NamedTuple):
    """One labelled box as in the source."""

    kind: int
    """Its class index."""
    xyxy: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels from 0."""
    ignore: bool
    """Whether the box is to be ignored, such as a crowd."""


def choose_names(wanted: Sequence[str] | None, found: Iterable[str], where: Path) -> tuple[str, ...]:
    """Return the wanted class names, or, without any, all names found in the source `where`, in order.

    Raises:
        DatasetError: a wanted name was not found, nothing was found, or a name cannot be written or is repeated.
    """
    known = tuple(found) if wanted is None else tuple(dict.fromkeys(found))
    there = set(known)
    for name in wanted or ():
        if name not in there:
            right = f"use some of {list_names(known)}" if known else "no box has a name there, so leave --names out"
            raise DatasetError(f"nothing is named {name}", where="--names", right=right)
    names = known if wanted is None else tuple(wanted)
    if not names:
        raise DatasetError("there are no classes", where=where, right="name a source with labelled objects")
    check_names(names, where)
    seen: set[str] = set()
    for name in names:
        if not name or not name.isprintable() or name != name.strip():
            right = "write a word that can be printed, without spaces around it"
            raise DatasetError(f"{name!r} is no class name", where=where, right=right)
        if name in seen:
            raise DatasetError(f"two classes are named {name}", where=where, right="give each class its own name")
        seen.add(name)
    return names


def parse_name(value: Any, where: str) -> PurePosixPath:
    """Return an image's relative path, as given in a label file.

    Raises:
        DatasetError: it is not a path, or leads out of the folder of the images.
    """
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if not path.name or "\0" in str(path):
        raise DatasetError(f"{value!r} names no image", where=where, right="write the image's file name")
    if path.is_absolute() or ".." in path.parts:
        right = "write it from the folder of the images, without .., and name that folder with --images"
        raise DatasetError(f"the image {value} is outside its folder", where=where, right=right)
    return path


def list_tails(value: Any, where: str) -> list[PurePosixPath]:
    """Return an image's relative path as `parse_name`, and then without its first folders, one after another.

    Other tools write paths of the machine that they ran on. No tail leads out of a folder.

    Raises:
        DatasetError: it is not a path.
    """
    text = value.strip().replace("\\", "/") if isinstance(value, str) else ""
    parts = [
        part for part in PurePosixPath(text).parts if part not in ("/", "//", "..", ".") and not part.endswith(":")
    ]
    if not parts or "\0" in text:
        raise DatasetError(f"{value!r} names no image", where=where, right="write the image's file name")
    return [PurePosixPath(*parts[first:]) for first in range(len(parts))]


def find_image(names: Iterable[PurePosixPath], folders: Iterable[Path], where: str) -> tuple[Path, PurePosixPath]:
    """Return the first image that exists, and its name; for each folder, all names are tried.

    Raises:
        DatasetError: there is none.
    """
    names = list(names)
    for folder in folders:
        for name in names:
            if is_file(folder / name):
                return folder / name, name
    right = "put it beside this file or name its folder with --images"
    raise DatasetError(f"the image {names[0]} cannot be found", where=where, right=right)


def find_parent(folder: Path) -> Path:
    """Return the parent of a folder; the folder may be `.`."""
    return Path(os.path.normpath(folder / ".."))


def find_canvas(header: Header, stated_px: StatedSize, image: Path, where: str) -> tuple[int, int]:
    """Return the width and height in which a source counts pixels: displayed, or as stored if it states these.

    Raises:
        DatasetError: the stated size is neither (names `where`).
    """
    shown = header.width_px, header.height_px
    for size in (shown, header.stored_size):
        if all(stated is None or stated == own for stated, own in zip(stated_px, size, strict=True)):
            return size
    width, height = ("?" if side is None else f"{side:g}" for side in stated_px)
    what = f"an image of {width} × {height} pixels is stated, and {image} has {shown[0]} × {shown[1]}"
    raise DatasetError(what, where=where, right="use the image that was labelled, or state its size")


def make_image(
    image: Path,
    name: PurePath,
    split: str,
    header: Header,
    boxes: Sequence[Box],
    *,
    canvas_px: tuple[int, int] | None = None,
    left_out: Iterable[str] = (),
) -> LabelledImage:
    """Convert boxes to pixels of the displayed image: rotate them if they are in stored pixels, then clip them."""
    objects = Objects(
        np.array([box.kind for box in boxes], np.int64),
        np.array([box.xyxy for box in boxes], np.float64).reshape(-1, 4),
        np.array([box.ignore for box in boxes], np.bool_),
    )
    shown = header.width_px, header.height_px
    if canvas_px not in (None, shown):
        objects = replace(objects, boxes_xyxy=header.turn(objects.boxes_xyxy))
    inside = objects.clip(*shown)
    return LabelledImage(image, name.as_posix(), split, *shown, inside, len(objects) - len(inside), tuple(left_out))


def make_set(names: tuple[str, ...], images: Iterable[LabelledImage]) -> LabelledSet:
    """Sort images, and shorten their names to the part below the folder of their split.

    Raises:
        DatasetError: two images of a split have the same name.
    """
    by_split: dict[str, list[LabelledImage]] = {split: [] for split in SPLITS}
    for image in images:
        by_split[image.split].append(image)
    found: dict[tuple[str, str], LabelledImage] = {}
    for split, own in by_split.items():
        for image, name in zip(own, _shorten([one.name for one in own], split), strict=True):
            if (other := found.get((split, name))) is not None:
                same = f"has the same name, {name}, as {other.image}"
                what = f"{'is there twice' if other.image == image.image else same} in {split}"
                right = "name an image once, and give each its own name"
                raise DatasetError(what, where=image.image, right=right)
            found[split, name] = image if image.name == name else replace(image, name=name)
    order = sorted(found, key=lambda key: (SPLITS.index(key[0]), key[1]))
    return LabelledSet(names, tuple(found[key] for key in order))


def place_image(image: Path, target: Path, link: bool) -> None:
    """Copy an image's bytes to a new place, or link to it from there; folders are made as needed.

    Raises:
        DatasetError: the image cannot be read any more.
    """
    if link:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(image.resolve())
        return
    try:
        content = read_bytes(image, MOST_IMAGE_BYTES)
    except OSError as error:
        what, right = f"cannot be read any more ({error.strerror})", "leave the images alone until all are copied"
        raise DatasetError(what, where=image, right=right) from error
    write_part(target, content)


def _shorten(names: list[str], split: str) -> list[str]:
    """Remove folders up to the last `images`, and the split's own folder if every name has it."""
    parts = [name.split("/") for name in names]
    below = [own[len(own) - 1 - own[-2::-1].index("images") :] if "images" in own[:-1] else own for own in parts]
    if all(len(own) > 1 and own[0] == split for own in below):
        below = [own[1:] for own in below]
    return ["/".join(own) for own in below]
