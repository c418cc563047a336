"""Counts and box statistics of a data set, per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.datasets.check.scan import Content, ScannedImage
from yolo_prune.image_size import AnySize, make_size

COCO_BOUNDS_PX = (32, 96)
"""COCO calls a box medium if it is between squares with these sides."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """The measurements of one split's images, one row per image or per object."""

    objects_per_image: NDArray[np.int64]
    """(P,) number of objects, without ignored ones."""
    are_labelled: NDArray[np.bool_]
    """(P,) whether there is a label file."""
    image_sizes_px: Floats
    """(R, 2) width and height of the readable images."""
    classes: NDArray[np.int64]
    """(N,) class of each object, without ignored ones."""
    ignored: int
    """Number of ignored boxes."""
    centres: Floats
    """(N, 2) x and y, in shares of the image's width and height."""
    sides_px: Floats
    """(M, 2) width and height of the objects of readable images, in image pixels."""
    scales: Floats
    """(M,) pixels at the network's size per image pixel."""

    @property
    def box_sides_px(self) -> Floats:
        """(M,) square roots of the boxes' areas, in image pixels."""
        return np.asarray(np.sqrt(self.sides_px.prod(axis=1)))

    @property
    def box_sides_at_img_size_px(self) -> Floats:
        """(M,) square roots of the boxes' areas, in pixels at the network's size."""
        return self.box_sides_px * self.scales

    @property
    def aspect_ratios(self) -> Floats:
        """(M,) width over height."""
        return np.asarray(self.sides_px[:, 0] / self.sides_px[:, 1])


@dataclass(frozen=True)
class Spread:
    """A low, a middle and a high value; nan if there are no values."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Statistics:
    """The statistics of a split."""

    images: int
    without_objects: int
    """Images with an empty label file or none."""
    without_labels: int
    """Images without a label file."""
    objects: int
    """Labelled objects; a repeated line counts once."""
    ignored: int
    """Ignored boxes."""
    objects_per_image_mean: float
    objects_per_image_max: int
    objects_per_class: tuple[int, ...]
    box_side_px: Spread
    """√(width · height) in image pixels: 5th percentile, median, 95th percentile."""
    box_side_at_img_size_px: Spread
    """√(width · height) in pixels at the network's size."""
    small: float
    """Share of boxes below 32² px at the network's size."""
    medium: float
    """Share of boxes from 32² to below 96² px."""
    large: float
    """Share of larger boxes."""
    aspect_ratio: Spread
    """Width over height: 5th percentile, median, 95th percentile."""
    width_px: Spread
    """The images' least, median and greatest width."""
    height_px: Spread
    """The images' least, median and greatest height."""

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the statistics for JSON output."""
        values = asdict(self)
        values["objects_per_class"] = [
            {"name": name, "objects": count} for name, count in zip(names, self.objects_per_class, strict=True)
        ]
        for key in ("box_side_px", "box_side_at_img_size_px", "aspect_ratio"):
            values[key] = dict(zip(("p5", "median", "p95"), values[key].values(), strict=True))
        for key in ("width_px", "height_px"):
            values[key] = dict(zip(("min", "median", "max"), values[key].values(), strict=True))
        return values


def collect_figures(images: Sequence[ScannedImage], splits: Sequence[str], img_size: AnySize) -> dict[str, Figures]:
    """Measure the images of each split; an image in two splits counts in both."""
    return {split: _collect([image for image in images if split in image.splits], img_size) for split in splits}


def join_figures(figures: Mapping[str, Figures]) -> Figures:
    """Return the measurements of all splits together."""
    parts = list(figures.values())
    return Figures(
        np.concatenate([part.objects_per_image for part in parts]),
        np.concatenate([part.are_labelled for part in parts]),
        np.concatenate([part.image_sizes_px for part in parts]),
        np.concatenate([part.classes for part in parts]),
        sum(part.ignored for part in parts),
        np.concatenate([part.centres for part in parts]),
        np.concatenate([part.sides_px for part in parts]),
        np.concatenate([part.scales for part in parts]),
    )


def measure_statistics(figures: Figures, classes: int) -> Statistics:
    """Return the statistics of a split with these measurements; `classes` is the number of classes of the data set."""
    counts, sides = figures.objects_per_image, figures.box_sides_at_img_size_px
    small, large = (sides < COCO_BOUNDS_PX[0]).sum(), (sides >= COCO_BOUNDS_PX[1]).sum()
    shares = np.array((small, len(sides) - small - large, large)) / len(sides) if len(sides) else np.full(3, np.nan)
    return Statistics(
        images=len(counts),
        without_objects=int((counts == 0).sum()),
        without_labels=int((~figures.are_labelled).sum()),
        objects=int(counts.sum()),
        ignored=figures.ignored,
        objects_per_image_mean=float(counts.mean()),
        objects_per_image_max=int(counts.max()),
        objects_per_class=tuple(np.bincount(figures.classes, minlength=classes).tolist()),
        box_side_px=_measure_spread(figures.box_sides_px),
        box_side_at_img_size_px=_measure_spread(sides),
        small=float(shares[0]),
        medium=float(shares[1]),
        large=float(shares[2]),
        aspect_ratio=_measure_spread(figures.aspect_ratios),
        width_px=_measure_spread(figures.image_sizes_px[:, 0], (0, 50, 100)),
        height_px=_measure_spread(figures.image_sizes_px[:, 1], (0, 50, 100)),
    )


def _collect(images: Sequence[ScannedImage], img_size: AnySize) -> Figures:
    objects = [image.labels.objects for image in images]
    counted = [rows[rows[:, 5] == 0] for rows in objects]
    sizes = [
        (image.content.width_px, image.content.height_px) if isinstance(image.content, Content) else (0, 0)
        for image in images
    ]
    rows, of_objects = np.concatenate(counted), np.repeat(np.array(sizes, np.float64), list(map(len, counted)), axis=0)
    readable = of_objects[:, 0] > 0
    return Figures(
        np.array(list(map(len, counted)), np.int64),
        np.array([not image.labels.is_missing for image in images], np.bool_),
        np.array([size for size in sizes if size[0]], np.float64).reshape(-1, 2),
        rows[:, 0].astype(np.int64),
        sum(map(len, objects)) - len(rows),
        rows[:, 1:3],
        rows[readable, 3:5] * of_objects[readable],
        (np.array(make_size(img_size)) / of_objects[readable]).min(axis=1),
    )


def _measure_spread(values: Floats, percentiles: tuple[int, int, int] = (5, 50, 95)) -> Spread:
    return Spread(*np.percentile(values, percentiles).tolist()) if len(values) else Spread(np.nan, np.nan, np.nan)
