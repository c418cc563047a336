"""Convert the Visual Geometry Group's hand archive, images and MATLAB annotations, to a data set with a data.yaml.

    training_dataset/training_data/images/*.jpg           →  images/train/*.jpg
    training_dataset/training_data/annotations/*.mat      →  labels/train/*.txt
    validation_dataset/validation_data/…                  →  …/val/…
    test_dataset/test_data/…                              →  …/test/…

An annotation's `boxes` is a 1×N cell of structs with the corners `a b c d` of a hand, each `[y x]`.

Source: A. Mittal, A. Zisserman, P. Torr, Hand detection using multiple proposals, BMVC 2011.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from scipy.io import loadmat

from yolo_prune.arrays import Float64Array
from yolo_prune.bounded import read_bytes
from yolo_prune.datasets.data_file import SPLITS
from yolo_prune.datasets.images import Header, read_header
from yolo_prune.datasets.labels import Objects, save_objects
from yolo_prune.datasets.spec import make_sample, save_spec
from yolo_prune.errors import DatasetError
from yolo_prune.files import save_text

FOLDERS = {
    "train": "training_dataset/training_data",
    "val": "validation_dataset/validation_data",
    "test": "test_dataset/test_data",
}
"""The folder of each split in the archive, below its top folder."""
PUBLISHED_IMAGES = {"train": 4069, "val": 738, "test": 821}
PUBLISHED_INSTANCES = 13050
"""Source: https://www.robots.ox.ac.uk/~vgg/data/hands/"""
NAMES = ("hand",)
CORNERS = ("a", "b", "c", "d")

_SUFFIXES = {"images": ".jpg", "annotations": ".mat"}
_NUMBERS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18)
"""MATLAB's element types with plain values."""
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _VALUES = 1, 2, (4, *range(6, 16))
"""MATLAB's matrix classes: cells, structs, and those of text or numbers."""
_ANNOTATION_BYTES = 1 << 24
"""Limit of the unpacked size of an annotation."""
_RIGHT_ARCHIVE = "download the archive again from its publisher"
_TRAINVAL = """\
# The case study trains on the official train and val together and has no val of its own.
# So val is part of train here, and scores on it are too good; test is untouched.
"""


@dataclass(frozen=True)
class Found:
    """The contents of an archive."""

    images: dict[str, int]
    """Number of images of each split."""
    instances: dict[str, int]
    """Number of annotated hands of each split, including those without a label."""
    without_hands: tuple[str, ...]
    """Images without a label, as SPLIT/NAME.jpg."""
    outside: tuple[str, ...]
    """One line per annotated hand that is outside its image."""

    @property
    def total(self) -> int:
        """Number of annotated hands of all splits."""
        return sum(self.instances.values())

    @property
    def is_as_published(self) -> bool:
        """Whether the counts equal the published ones."""
        return self.images == PUBLISHED_IMAGES and self.total == PUBLISHED_INSTANCES

    def format(self) -> str:
        """Return the counts and the published ones as one line."""
        found = _format_counts(self.images, self.total)
        if self.is_as_published:
            return f"holds {found}, as published"
        return f"holds {found}; published are {_format_counts(PUBLISHED_IMAGES, PUBLISHED_INSTANCES)}"


def choose_place(member: PurePosixPath) -> PurePosixPath | None:
    """Return a file's new path, images/SPLIT/NAME.jpg or annotations/SPLIT/NAME.mat; None for files not needed."""
    if len(member.parts) < 4 or member.name.startswith("."):
        return None
    *_, dataset, data, kind, name = member.parts
    split = {folder: split for split, folder in FOLDERS.items()}.get(f"{dataset}/{data}")
    if split is None or not name.endswith(_SUFFIXES.get(kind, "/")):
        return None
    return PurePosixPath(kind, split, name)


def make_labels(folder: Path, archive: Path, progress: Callable[[int, int], None] | None = None) -> Found:
    """Write labels/SPLIT/NAME.txt for every image in images/SPLIT of a folder, from annotations/SPLIT/NAME.mat.

    `progress` is called with the numbers of finished images and of all; messages name files as in `archive`.

    Raises:
        DatasetError: a split has no images, an image or an annotation has no counterpart, or one is broken (names it).
    """
    names = {split: _find_names(folder, split, archive) for split in SPLITS}
    members = [(split, name) for split in SPLITS for name in names[split]]
    instances = dict.fromkeys(SPLITS, 0)
    without_hands, outside = [], []
    for done, (split, name) in enumerate(members, start=1):
        where = _locate(archive, split, "annotations", name)
        corners_xy = load_corners(folder / "annotations" / split / f"{name}.mat", where)
        image = folder / "images" / split / f"{name}.jpg"
        header = _read_header(image, _locate(archive, split, "images", name))
        hands = [_make_object(one, header) for one in corners_xy]
        kept = [hand for hand in hands if len(hand)]
        save_objects(make_sample(image), _join(kept), header.width_px, header.height_px)
        instances[split] += len(hands)
        without_hands += [] if kept else [f"{split}/{name}.jpg"]
        numbers = [number for number, hand in enumerate(hands, start=1) if not len(hand)]
        outside += [f"{where}: box {number} is outside the image; it is left out" for number in numbers]
        if progress:
            progress(done, len(members))
    images = {split: len(names[split]) for split in SPLITS}
    return Found(images, instances, tuple(without_hands), tuple(outside))


def save_data(folder: Path, trainval: bool) -> Path:
    """Write the data.yaml of a folder of all three splits; with `trainval`, train includes the official val."""
    if not trainval:
        return save_spec(folder, SPLITS, NAMES)
    splits = {"train": ["images/train", "images/val"], "val": "images/val", "test": "images/test"}
    values = {"path": ".", **splits, "names": dict(enumerate(NAMES))}
    return save_text(folder / "data.yaml", _TRAINVAL + yaml.safe_dump(values, sort_keys=False))


def load_corners(path: Path, where: str | None = None) -> Float64Array:
    """Return the corners of an annotation's N hands as (N, 4, 2), x and y in pixels of the stored image.

    Raises:
        DatasetError: the file cannot be read, is not a MATLAB file of version 5 to 7, lacks `boxes` or a corner, or a
            corner is not two finite numbers. The message names `where`, or else the path, and the number of the box,
            from 1.
    """
    where = where or str(path)
    try:
        content = read_bytes(path, _ANNOTATION_BYTES)
        _check_structure(content)
    except (OSError, ValueError, struct.error, zlib.error, RecursionError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise DatasetError(f"is no readable MATLAB file{reason}", where=where, right=_RIGHT_ARCHIVE) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about variables other than boxes
            boxes = loadmat(io.BytesIO(content), variable_names=["boxes"]).get("boxes")
    except Exception as error:  # a broken file may raise anything in loadmat
        raise DatasetError("is no readable MATLAB file", where=where, right=_RIGHT_ARCHIVE) from error
    if not isinstance(boxes, np.ndarray):
        raise DatasetError("the variable boxes is missing", where=where, right=_RIGHT_ARCHIVE)
    if boxes.size == 0:
        return np.zeros((0, 4, 2))
    if boxes.dtype != object or boxes.ndim != 2 or min(boxes.shape) > 1:
        raise DatasetError("boxes is not a 1×N cell", where=where, right=_RIGHT_ARCHIVE)
    corners = [_read_corners(box, f"{where}: box {number}") for number, box in enumerate(boxes.flat, start=1)]
    return np.array(corners, np.float64).reshape(-1, 4, 2)


def enclose(corners_xy: Float64Array) -> Float64Array:
    """Return the axis-aligned boxes_xyxy (N, 4) around quadrilaterals (N, 4, 2)."""
    return np.concatenate((corners_xy.min(axis=1), corners_xy.max(axis=1)), axis=1)


def _format_counts(images: dict[str, int], instances: int) -> str:
    counts = "/".join(f"{images[split]:,}" for split in SPLITS)
    return f"{counts} images for {'/'.join(SPLITS)} and {instances:,} hands"


def _locate(archive: Path, split: str, kind: str, name: str) -> str:
    return f"{archive}: {FOLDERS[split]}/{kind}/{name}{_SUFFIXES[kind]}"


def _find_names(folder: Path, split: str, archive: Path) -> list[str]:
    names = {
        kind: {path.name[: -len(suffix)] for path in (folder / kind / split).glob(f"*{suffix}")}
        for kind, suffix in _SUFFIXES.items()
    }
    for kind, other in (("images", "annotations"), ("annotations", "images")):
        if alone := sorted(names[kind] - names[other]):
            more = f", and so {len(alone) - 1:,} more" if alone[1:] else ""
            what = f"has no {_SUFFIXES[other]} of its name{more}"
            raise DatasetError(what, where=_locate(archive, split, kind, alone[0]), right=_RIGHT_ARCHIVE)
    if not names["images"]:
        right = "name the Visual Geometry Group's hand_dataset.tar.gz"
        raise DatasetError(f"there are no images in {FOLDERS[split]}/images", where=archive, right=right)
    return sorted(names["images"])


def _read_header(image: Path, where: str) -> Header:
    try:
        return read_header(image)
    except DatasetError as error:
        raise DatasetError(error.what, where=where, right=_RIGHT_ARCHIVE) from error


def _make_object(corners_xy: Float64Array, header: Header) -> Objects:
    """Return one hand in pixels of the displayed image, or none if it is outside the image."""
    boxes_xyxy = header.turn(enclose(corners_xy[None]))
    return Objects(np.zeros(1, np.int64), boxes_xyxy, np.zeros(1, np.bool_)).clip(header.width_px, header.height_px)


def _join(hands: Sequence[Objects]) -> Objects:
    boxes_xyxy = np.concatenate([np.zeros((0, 4)), *(hand.boxes_xyxy for hand in hands)])
    return Objects(np.zeros(len(boxes_xyxy), np.int64), boxes_xyxy, np.zeros(len(boxes_xyxy), np.bool_))


def _read_corners(box: Any, where: str) -> list[Float64Array]:
    fields = box.dtype.names if isinstance(box, np.ndarray) and box.size == 1 else None
    if fields is None:
        raise DatasetError("is not a struct", where=where, right=_RIGHT_ARCHIVE)
    return [_read_corner(box.flat[0], fields, name, where) for name in CORNERS]


def _read_corner(box: Any, fields: tuple[str, ...], name: str, where: str) -> Float64Array:
    if name not in fields:
        raise DatasetError(f"corner {name} is missing", where=where, right=_RIGHT_ARCHIVE)
    corner = np.asarray(box[name])
    if corner.size != 2 or corner.dtype.kind not in "fiu" or not np.isfinite(corner).all():
        raise DatasetError(f"corner {name} is not two finite numbers", where=where, right=_RIGHT_ARCHIVE)
    # MATLAB counts pixels' centres from 1; here their edges count from 0, so the first pixel's centre is at 0.5
    return corner.astype(np.float64).reshape(2)[::-1] - 0.5


def _check_structure(content: bytes) -> None:
    """Raise if an element of a MATLAB file is not as loadmat expects: loadmat is compiled code, and would crash.

    Source: MAT-File Format, version 5, chapter 1.

    Raises:
        ValueError: an element is out of bounds, or of an unexpected type.
    """
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(content[124:128])
    if order is None:
        raise ValueError("no header of version 5")
    for kind, data in _split_elements(content[128:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, _ANNOTATION_BYTES)
            if not unpacker.eof:
                raise ValueError("too large, or broken off")
            ((kind, data),) = _split_elements(data, order)
        if kind != _MATRIX:
            raise ValueError(f"type {kind} instead of a matrix")
        _check_matrix(data, order)


def _check_matrix(data: bytes, order: str) -> None:
    if not data:
        return  # an empty matrix
    (flags_kind, flags), (shape_kind, shape), (name_kind, _), *rest = _split_elements(data, order)
    if (flags_kind, shape_kind, name_kind) != (6, 5, 1) or len(flags) != 8 or len(shape) not in range(8, 33, 4):
        raise ValueError("no head of a matrix")
    kinds = [kind for kind, _ in rest]
    size = math.prod(struct.unpack(f"{order}{len(shape) // 4}i", shape))
    array_class = struct.unpack(f"{order}I", flags[:4])[0] & 0x8FF  # keeps the bit of complex numbers, to reject them
    if array_class in _VALUES:
        is_right = len(kinds) == 1 and kinds[0] in _NUMBERS and size <= len(rest[0][1])
    elif array_class == _STRUCT:
        is_right = kinds[:2] == [5, 1] and all(kind == _MATRIX for kind in kinds[2:]) and 0 <= size <= len(kinds)
        rest = rest[2:]
    else:
        is_right = array_class == _CELL and all(kind == _MATRIX for kind in kinds) and size == len(kinds)
    if not is_right:
        raise ValueError(f"a matrix of class {array_class} of other parts than it should have")
    if array_class in (_CELL, _STRUCT):
        for _, inner in rest:
            _check_matrix(inner, order)


def _split_elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the bytes of each element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, padded = at + 8, size if kind == _COMPRESSED else -(-size // 8) * 8
        if kind >> 16:  # up to four bytes are stored in the tag itself
            kind, size, start, padded = kind & 0xFFFF, kind >> 16, at + 4, 4
        at = start + padded
        if start + size > min(at, len(data)):
            raise ValueError("an element is out of bounds")
        yield kind, data[start : start + size]
