"""Load and save data sets in the layout that `train` reads: a data.yaml, images/SPLIT and labels/SPLIT."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from yolo_prune.datasets.formats.faults import Faults
from yolo_prune.datasets.formats.labelled_set import (
    Box,
    LabelledImage,
    LabelledSet,
    Progress,
    choose_names,
    make_image,
    make_set,
    place_image,
)
from yolo_prune.datasets.images import Header, read_header
from yolo_prune.datasets.labels import ROUNDING, load_objects, save_objects
from yolo_prune.datasets.spec import SUFFIXES, DataSpec, Sample, load_spec, save_spec
from yolo_prune.errors import DatasetError


def load_yolo(
    paths: Sequence[Path],
    wanted: Sequence[str] | None = None,
    progress: Progress = None,
    faults: Faults | None = None,
) -> LabelledSet:
    """Load the data sets of one or more data.yaml; with `wanted`, only these classes, in this order.

    Raises:
        DatasetError: a data.yaml, a label or an image is invalid, a name in `wanted` is unknown, two data.yaml have
            different names, or two images of a split have the same name.
    """
    faults = faults or Faults()
    specs = [load_spec(path) for path in paths]
    for spec in specs:
        spec.require_all()
    for spec in specs if wanted is None else ():
        if spec.names != specs[0].names:
            what = f"its names are not those of {specs[0].source}"
            raise DatasetError(what, where=f"{spec.source}: names", right="choose names that both know with --names")
    found = specs[0].names if wanted is None else [name for spec in specs for name in spec.names]
    names = choose_names(wanted, found, paths[0])
    numbers = {name: number for number, name in enumerate(names)}
    listed = [(spec, split, *pair) for spec in specs for split in spec.splits for pair in _name_samples(spec, split)]
    images = []
    for done, (spec, split, sample, name) in enumerate(listed, 1):
        with faults:
            images.append(_load_image(spec, split, sample, name, numbers))
        if progress:
            progress(done, len(listed))
    faults.check()
    return make_set(names, images)


def save_yolo(folder: Path, data: LabelledSet, link: bool = False, progress: Progress = None) -> None:
    """Write data.yaml, images and label files to a folder; with `link`, link to the images instead of copying.

    Raises:
        DatasetError: two images would share a label file, or a data.yaml cannot find an image by its name.
    """
    samples = _place_samples(folder, data.images)
    for done, (sample, image) in enumerate(zip(samples, data.images, strict=True), 1):
        place_image(image.image, sample.image, link)
        save_objects(sample, image.objects, image.width_px, image.height_px)
        if progress:
            progress(done, len(samples))
    save_spec(folder, data.splits, data.names)


def _place_samples(folder: Path, images: Sequence[LabelledImage]) -> list[Sample]:
    """Return the new paths of images and labels, so that a data.yaml finds them: they are those of `make_sample`."""
    samples = []
    taken: dict[str, Path] = {}
    for image in images:
        place = f"/images/{image.split}/{image.name}"
        if place.rpartition("/")[2].startswith(".") or not place.lower().endswith(SUFFIXES):
            what = "a data.yaml finds no image of that name"
            right = f"give it a name that ends in one of {', '.join(SUFFIXES)} and does not begin with a dot"
            raise DatasetError(what, where=image.image, right=right)
        above, _, below = place.rpartition(".")[0].rpartition("/images/")
        stem = f"{above}/labels/{below}"
        for label in (f"{stem}.txt", f"{stem}.ignore.txt"):
            if (other := taken.setdefault(label, image.image)) != image.image:
                what = f"would share its label file with {other}"
                raise DatasetError(what, where=image.image, right="give one of them another name")
        samples.append(Sample(folder / place[1:], folder / f"{stem[1:]}.txt"))
    return samples


def _name_samples(spec: DataSpec, split: str) -> list[tuple[Sample, PurePath]]:
    """Return a split's samples with their paths from the data set's root, or else from their common folder."""
    root = Path(os.path.normpath(spec.root.absolute()))
    samples = spec.samples(split)
    images = [Path(os.path.normpath(sample.image.absolute())) for sample in samples]
    outside = [image.parent for image in images if not image.is_relative_to(root)]
    base = Path(os.path.commonpath(outside)) if outside else root
    names = [image.relative_to(root if image.is_relative_to(root) else base) for image in images]
    return list(zip(samples, names, strict=True))


def _restore_pixels(corners: NDArray[np.float64], header: Header) -> NDArray[np.float64]:
    """Return box edges in pixels; undo the rounding of whole pixels to labels of six decimals."""
    scale = np.array((header.width_px, header.height_px) * 2, np.float64)
    whole = np.round(corners * scale)
    return np.where(np.abs(corners * scale - whole) <= ROUNDING * scale, whole, corners * scale)


def _load_image(
    spec: DataSpec, split: str, sample: Sample, name: PurePath, numbers: Mapping[str, int]
) -> LabelledImage:
    header = read_header(sample.image)
    rows = load_objects(sample, len(spec.names)).astype(np.float64)
    corners = np.concatenate((rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2), axis=1)
    edges = _restore_pixels(corners, header).tolist()
    owners = [spec.names[int(kind)] for kind in rows[:, 0]]
    boxes = [
        Box(numbers[owner], tuple(edge), bool(ignore))
        for owner, edge, ignore in zip(owners, edges, rows[:, 5], strict=True)
        if owner in numbers
    ]
    left_out = [owner for owner in owners if owner not in numbers]
    return make_image(sample.image, name, split, header, boxes, left_out=left_out)
