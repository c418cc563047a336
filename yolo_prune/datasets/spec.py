"""The images of a data set: those that a data.yaml, or Darknet's .data, names, and text lists of images.

The labels of images/a/b.jpg are in labels/a/b.txt. If no folder is called `images`, or there is no such file, they are
beside the image.
Ignored boxes, such as crowds, are in labels/a/b.ignore.txt, which other tools do not read.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

from yolo_prune.bounded import exists, is_file, is_folder, read_bytes, read_lines
from yolo_prune.datasets.data_file import SPLITS, load_data_file, make_missing
from yolo_prune.errors import DatasetError
from yolo_prune.files import can_be_path, expand_home, save_text
from yolo_prune.limits import LONGEST_PATH, MOST_LABEL_BYTES, MOST_LIST_BYTES

SUFFIXES = (
    *(
        ".bmp",
        ".dib",
        ".jpeg",
        ".jpg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
        ".avif",
        ".gif",
        ".jp2",
    ),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""What OpenCV decodes."""
UNREAD_SUFFIXES = (".heic", ".heif", ".dng", ".raw", ".cr2", ".nef", ".arw", ".psd", ".svg", ".ico", ".tga", ".jxl")
"""Images that it does not."""


@dataclass(frozen=True)
class Sample:
    """An image and its label file, which need not exist."""

    image: Path
    label: Path
    kinds: tuple[int, ...] = ()
    """The number of each class of the label file, if it is another one there."""

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
    absent: Mapping[str, Path | None] = field(default_factory=dict)
    """The folder or list of a test split that the data.yaml names but that does not exist."""
    notes: tuple[str, ...] = ()
    """What was read otherwise than it is written, and what may not be meant."""

    def samples(self, split: str) -> tuple[Sample, ...]:
        """Return the samples of a split.

        Raises:
            DatasetError: there is no such split, or its folder or list is missing.
        """
        if split in self.absent:
            if (place := self.absent[split]) is None:
                raise make_missing(split, self.source)
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


def load_spec(path: Path, needs_val: bool = True) -> DataSpec:
    """Load a data.yaml or Darknet .data, or the one in a folder, and find its images.

    Without `needs_val` it may lack the key val, which is an error once the split is asked for.

    Raises:
        DatasetError: the file is missing, broken (names the line) or lacks a key (names it), class names are invalid,
            or a split's images, or the folder or list of train or val, are missing; those of test may be.
    """
    file = load_data_file(path, ("train", "val") if needs_val else ("train",))
    path, values = file.path, file.values
    root = next((place for place in file.roots if is_folder(place)), None)
    if root is None:
        raise DatasetError(
            f"there is no folder {file.roots[0]}", where=f"{path}: path", right="name the folder that holds the images"
        )
    missing = _find_missing(root, values.get("test"), f"{path}: test")
    absent: dict[str, Path | None] = {} if missing is None else {"test": missing}
    if values.get("val") is None:
        absent["val"] = None
    present = [key for key in SPLITS if values.get(key) is not None and key not in absent]
    splits = {key: _find_samples(root, values[key], f"{path}: {key}") for key in present}
    notes = (*file.notes, *_find_oddities(splits, path))
    return DataSpec(path, root, file.names, splits, absent, notes)


def _find_oddities(splits: Mapping[str, tuple[Sample, ...]], path: Path) -> Iterator[str]:
    """Yield what may not be meant: labels that could be others, and files that are no images."""
    samples = list(dict.fromkeys(sample for split in splits.values() for sample in split))
    both = [one for one in samples if one.label.parent != one.image.parent and one.image.with_suffix(".txt").exists()]
    if used := [one for one in both if one.label.exists()]:
        yield f"{path}: labels are read from {used[0].label.parent}; there are others beside {len(used)} images, in {used[0].image.parent}"
    folders = {sample.image.parent for sample in samples}
    others = Counter(
        suffix for folder in folders for file in folder.iterdir() if (suffix := file.suffix.lower()) in UNREAD_SUFFIXES
    )
    if others:
        found = ", ".join(f"{count} of {suffix}" for suffix, count in sorted(others.items()))
        yield f"{path}: files that cannot be read as images are left out: {found}; convert them to JPEG or PNG"


def find_shared_labels(spec: DataSpec) -> list[Path]:
    """Return the label files that serve several images, which have one name and different suffixes."""
    samples = dict.fromkeys(sample for split in spec.splits.values() for sample in split)
    counts = Counter(sample.label for sample in samples)
    return [label for label, count in counts.items() if count > 1 and label.exists()]


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
    """Return the images in a folder and its subfolders, found by suffix and sorted by path; each folder counts once."""
    return find_files(folder, SUFFIXES)


def find_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files in a folder and its subfolders that have one of the suffixes, as `find_images`."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above, or to one that came before
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in suffixes and not name.startswith(".") and path.is_file():
                found.append(path)
    return sorted(found)


def make_sample(image: Path) -> Sample:
    """Return an image with the path of its labels: below `labels` instead of the last `images`, else beside it.

    The path counts as it is without `..`, and if it is relative, as the whole path from the root. A file beside the
    image is taken if there is none below `labels`.
    """
    beside = image.with_suffix(".txt")
    for spell in (
        Path,
        Path.absolute,
    ):  # what is written first: the working folder is asked only where that says too little
        parts = Path(os.path.normpath(spell(image))).parent.parts
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            label = Path(*parts[:last], "labels", *parts[last + 1 :], image.stem + ".txt")
            return Sample(image, beside if beside.exists() and not label.exists() else label)
    return Sample(image, beside)


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
        labels = read_bytes(sample.label, MOST_LABEL_BYTES) if sample.label.exists() else None
        ignored = [read_bytes(sample.ignored, MOST_LABEL_BYTES)] if sample.ignored.exists() else []
        return size_bytes, labels, *ignored
    except OSError as error:
        where, right = error.filename or sample.label, "correct or restore the file"
        raise DatasetError(f"cannot be read ({error.strerror})", where=where, right=right) from error


def _parse_path(value: Any, where: str) -> Path:
    if not isinstance(value, str) or not can_be_path(value):
        raise DatasetError(f"{reprlib.repr(value)} is no path", where=where, right="name a folder or a .txt list")
    return expand_home(value)


def _find_missing(root: Path, value: Any, where: str) -> Path | None:
    """Return the first folder or list that a split's value names but that does not exist."""
    places = [] if value is None else [_place(root, _parse_path(source, where)) for source in _list_sources(value)]
    return next((place for place in places if not exists(place)), None)


def _place(root: Path, source: Path) -> Path:
    """Return a split's folder or list below the root; as other tools do, `../train` also means `train`."""
    place = root / source
    if not exists(place) and source.parts[:1] == ("..",) and exists(root / Path(*source.parts[1:])):
        return root / Path(*source.parts[1:])
    return place


def _list_sources(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _find_samples(root: Path, value: Any, where: str) -> tuple[Sample, ...]:
    sources = _list_sources(value)
    images = {image for source in sources for image in _find_images(root, _parse_path(source, where), where)}
    if not images:
        right = f"put images there ({', '.join(SUFFIXES)}), or name another folder"
        raise DatasetError(
            f"there are no images in {shorten(str(value), 60, placeholder=' …')}", where=where, right=right
        )
    return tuple(map(make_sample, sorted(images)))


def _find_images(root: Path, source: Path, where: str) -> Iterable[Path]:
    place = _place(root, source)
    if place.suffix == ".txt":
        return _read_list(root, place)
    if place.suffix == ".json" and is_file(place):
        right = "make a data set of it with yoloprune data convert, and name that one's data.yaml"
        raise DatasetError(f"{source} holds annotations, not images", where=where, right=right)
    if not is_folder(place):
        raise DatasetError(f"there is no folder {place}", where=where, right="name a folder of images or a .txt list")
    return find_images(place)


def _read_list(root: Path, path: Path) -> Iterator[Path]:
    lines = read_lines(path, MOST_LIST_BYTES, LONGEST_PATH)
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except (OSError, UnicodeDecodeError) as error:
            reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
            right = "name a text file with an image's path per line"
            raise DatasetError(f"the list cannot be read{reason}", where=path, right=right) from error
        if not (line := line.strip()):
            continue
        image = (path.parent if line.startswith("./") else root) / line
        if not is_file(image):
            right = "name an image that exists, from the data set's root or after ./ from this list"
            raise DatasetError(f"there is no image {line}", where=f"{path}:{number}", right=right)
        yield image
