"""The images of a data set: a YOLO data.yaml, and text lists of images.

    path: .                 # root of the other paths, relative to the YAML's folder; by default that folder
    train: images/train     # a folder (searched recursively), a .txt with an image per line, or a list of these
    val: images/val
    test: images/test       # may be omitted, or not exist
    names: {0: hand}        # or [hand]

The labels of images/a/b.jpg are in labels/a/b.txt. If no folder is called `images`, they are beside the image.
Ignored boxes, such as crowds, are in labels/a/b.ignore.txt, which other tools do not read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yolo_prune.errors import DatasetError
from yolo_prune.files import save_text

SPLITS = ("train", "val", "test")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Sample:
    """An image and its label file, which need not exist."""

    image: Path
    label: Path

    @property
    def ignored(self) -> Path:
        """The file of ignored boxes, such as crowds; most images have none."""
        return self.label.with_suffix(".ignore.txt")


@dataclass(frozen=True)
class DataSpec:
    """The contents of a data.yaml: the class names, and each split's samples sorted by path."""

    source: Path
    """The path of the data.yaml."""
    root: Path
    """The folder that its other paths are relative to."""
    names: tuple[str, ...]
    """The name of each class."""
    splits: Mapping[str, tuple[Sample, ...]]
    """Samples of train, val and, if there is one, test."""
    absent: Mapping[str, Path] = field(default_factory=dict)
    """The folder or list of a test split that the data.yaml names but that does not exist."""

    def samples(self, split: str) -> tuple[Sample, ...]:
        """Return the samples of a split.

        Raises:
            DatasetError: there is no such split, or its folder or list is missing.
        """
        if split in self.absent:
            place = self.absent[split]
            what = f"there is no {'list' if place.suffix == '.txt' else 'folder'} {place}"
            right = f"name a folder of images or a .txt list, or leave {split} out"
            raise DatasetError(what, where=f"{self.source}: {split}", right=right)
        samples = self.splits.get(split, ())
        if not samples:
            known = ", ".join(name for name in self.splits if self.splits[name])
            raise DatasetError(
                f"there are no images for {split}", where=f"{self.source}: {split}", right=f"use one of {known}"
            )
        return samples

    def require_all(self) -> None:
        """Check that every split named in the data.yaml exists.

        Raises:
            DatasetError: the folder or list of one is missing.
        """
        for split in self.absent:
            self.samples(split)


def load_spec(path: Path) -> DataSpec:
    """Load a data.yaml and find its images.

    Raises:
        DatasetError: the file is missing, broken (names the line) or lacks a key (names it), class names are invalid,
            or a split's images, or the folder or list of train or val, are missing; those of test may be.
    """
    values = _load_mapping(path)
    for key in ("train", "val", "names"):
        if values.get(key) is None:
            raise DatasetError(f"the key {key} is missing", where=path, right=f"add a line {key}: …")
    names = _parse_names(values, path)
    root = path.parent / _parse_path(values.get("path") or ".", f"{path}: path")
    if not root.is_dir():
        raise DatasetError(
            f"there is no folder {root}", where=f"{path}: path", right="name the folder that holds the images"
        )
    missing = _find_missing(root, values.get("test"), f"{path}: test")
    absent = {} if missing is None else {"test": missing}
    present = [key for key in SPLITS if values.get(key) is not None and key not in absent]
    splits = {key: _find_samples(root, values[key], f"{path}: {key}") for key in present}
    return DataSpec(path, root, names, splits, absent)


def save_spec(folder: Path, splits: Iterable[str], names: Sequence[str]) -> Path:
    """Write the data.yaml of a folder with images/SPLIT and labels/SPLIT for each split, and return its path."""
    values = {"path": ".", **{split: f"images/{split}" for split in splits}, "names": dict(enumerate(names))}
    return save_text(folder / "data.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def load_list(spec: DataSpec, path: Path) -> tuple[Sample, ...]:
    """Read a text file with one image path per line, relative to the data set's root, or after ./ to the list's folder.

    Raises:
        DatasetError: the list cannot be read, is empty, or names an image that does not exist (names the line).
    """
    samples = tuple(map(make_sample, _read_list(spec.root, path)))
    if not samples:
        raise DatasetError("the list is empty", where=path, right="write an image's path per line")
    return samples


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, found by suffix and sorted by path."""
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


def make_sample(image: Path) -> Sample:
    """Return an image with the path of its labels."""
    parts = image.parent.parts
    if "images" not in parts:
        return Sample(image, image.with_suffix(".txt"))
    last = len(parts) - 1 - parts[::-1].index("images")
    return Sample(image, Path(*parts[:last], "labels", *parts[last + 1 :], image.stem + ".txt"))


def measure_fingerprint(spec: DataSpec) -> str:
    """Return a SHA-256 of a data set's contents: names, splits, images' paths and sizes, labels' contents.

    It does not depend on where the data set is. Images are not read, so a change that keeps a file's size is not
    noticed.

    Raises:
        DatasetError: an image is missing, or a label file cannot be read.
    """
    digest = hashlib.sha256(repr(spec.names).encode())
    for split in sorted(spec.splits):
        for sample in spec.splits[split]:
            digest.update(repr((split, os.path.relpath(sample.image, spec.root), *_measure_sample(sample))).encode())
    return digest.hexdigest()


def _measure_sample(sample: Sample) -> tuple[int | bytes | None, ...]:
    try:
        size_bytes = sample.image.stat().st_size
        labels = sample.label.read_bytes() if sample.label.exists() else None
        return size_bytes, labels, *([sample.ignored.read_bytes()] if sample.ignored.exists() else [])
    except OSError as error:
        raise DatasetError(
            f"cannot be read ({error.strerror})", where=error.filename, right="correct or restore the file"
        ) from error


def _load_mapping(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError("there is no such file", where=path, right="name a data.yaml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError("cannot be read", where=path, right="name a data.yaml, a text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or error
        raise DatasetError(f"is not YAML ({problem})", where=where, right="correct that line") from error
    if not isinstance(values, dict):
        raise DatasetError("is not a mapping", where=path, right="write lines such as train: images/train")
    return values


def _parse_names(values: Mapping[Any, Any], path: Path) -> tuple[str, ...]:
    where, names = f"{path}: names", values["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DatasetError(
                f"the classes are {list(names)}", where=where, right="number them 0, 1, 2, … without a gap"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(
            f"{names!r} does not name the classes", where=where, right="write a line 0: name for each class"
        )
    for name in names:
        if type(name) not in (str, int):  # YAML reads an unquoted no as false
            raise DatasetError(f"{name!r} is no name", where=where, right="put quotes around it")
    if values.get("nc", len(names)) != len(names):
        right = f"write nc: {len(names)}, or leave it out"
        raise DatasetError(f"{values['nc']!r} does not agree with {len(names)} names", where=f"{path}: nc", right=right)
    return tuple(map(str, names))


def _parse_path(value: Any, where: str) -> Path:
    if not isinstance(value, str):
        raise DatasetError(f"{value!r} is no path", where=where, right="name a folder or a .txt list")
    return Path(value).expanduser()


def _find_missing(root: Path, value: Any, where: str) -> Path | None:
    """Return the first folder or list that a split's value names but that does not exist."""
    places = [] if value is None else [root / _parse_path(source, where) for source in _list_sources(value)]
    return next((place for place in places if not place.exists()), None)


def _list_sources(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _find_samples(root: Path, value: Any, where: str) -> tuple[Sample, ...]:
    sources = _list_sources(value)
    images = {image for source in sources for image in _find_images(root, _parse_path(source, where), where)}
    if not images:
        right = f"put images there ({', '.join(SUFFIXES)}), or name another folder"
        raise DatasetError(f"there are no images in {value}", where=where, right=right)
    return tuple(map(make_sample, sorted(images)))


def _find_images(root: Path, source: Path, where: str) -> Iterable[Path]:
    place = root / source
    if place.suffix == ".txt":
        return _read_list(root, place)
    if place.suffix == ".json" and place.is_file():
        right = "make a data set of it with yoloprune data convert, and name that one's data.yaml"
        raise DatasetError(f"{source} holds annotations, not images", where=where, right=right)
    if not place.is_dir():
        raise DatasetError(f"there is no folder {place}", where=where, right="name a folder of images or a .txt list")
    return find_images(place)


def _read_list(root: Path, path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            "the list cannot be read", where=path, right="name a text file with an image's path per line"
        ) from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        image = (path.parent if line.startswith("./") else root) / line
        if not image.is_file():
            right = "name an image that exists, from the data set's root or after ./ from this list"
            raise DatasetError(f"there is no image {line}", where=f"{path}:{number}", right=right)
        yield image
