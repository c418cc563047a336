"""Find anchors for a data set's boxes: k-means on their widths and heights, with 1 − IoU as the distance.

    labels, image sizes ─► sides in pixels of the network's input ─► k-means++ and k-means, several times ─► the best

Source: J. Redmon, A. Farhadi, "YOLO9000: Better, Faster, Stronger" (2017), §2, "Dimension Clusters".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_up

import numpy as np
from numpy.typing import NDArray

from yolo_prune.arrays import Float64Array
from yolo_prune.datasets.images import read_header
from yolo_prune.datasets.labels import load_labels
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError
from yolo_prune.image_size import AnySize, make_size

MOST_BOXES = 20_000
"""The most boxes to cluster; of more, a random sample is taken. This changes the anchors' score by less than 0.001."""
RESTARTS = 10
"""Number of restarts; the best result is kept."""

_REACH = np.array((0.0001, 0.003, 0.01, 0.03, 0.1, 0.3))
_LEAST_GAIN = 1e-5
_ROUNDS = 300
_CHUNK = 1 << 20


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit boxes. Each box is compared with its best anchor, both with the same centre."""

    mean_iou: float
    """Mean IoU of the boxes with their best anchor: the objective of k-means."""
    recall_50: float
    """Share of the boxes whose IoU with their best anchor is at least 0.5."""
    within_ratio: float
    """Share of the boxes whose width and height differ from some anchor's by a factor below the loss's ratio."""
    boxes: int
    """Number of boxes."""


def load_sides(
    samples: Sequence[Sample], classes: int, img_size: AnySize, progress: Callable[[int, int], None] | None = None
) -> Float64Array:
    """Return width and height (N, 2) of all boxes, in pixels of the letterboxed input of `img_size`.

    Images are not decoded. Ignored boxes are left out. `progress` is called with the numbers of finished and of all
    images.

    Raises:
        DatasetError: a label file or an image cannot be read.
    """
    sides = [np.zeros((0, 2))]
    for done, sample in enumerate(samples, start=1):  # one thread: several would be slower, because of Python's lock
        if len(labels := load_labels(sample.label, classes)):
            header = read_header(sample.image)
            size = np.array((header.width_px, header.height_px), np.float64)
            sides.append(labels[:, 3:] * size * make_size(img_size).measure_scale(*size))
        if progress:
            progress(done, len(samples))
    return np.concatenate(sides)


def measure_iou(sides: Float64Array, anchors: Float64Array) -> Float64Array:
    """Return the IoU (N, K) of boxes (N, 2) and anchors (K, 2), given as width and height, with equal centres."""
    (widths, heights), (wide, high) = sides.T, anchors.T[..., None]
    overlap = np.minimum(widths, wide) * np.minimum(heights, high)
    return np.asarray((overlap / (widths * heights + wide * high - overlap)).T)


def measure_fit(sides: Float64Array, anchors: Float64Array, ratio: float) -> AnchorFit:
    """Measure how well anchors (K, 2) fit boxes (N, 2), with N at least 1; `ratio` is the loss's anchor_ratio."""
    iou, is_within = (np.concatenate(parts) for parts in zip(*_compare_with_best(sides, anchors, ratio), strict=True))
    return AnchorFit(float(iou.mean()), float((iou >= 0.5).mean()), float(is_within.mean()), len(sides))


def find_anchors(
    sides: Float64Array,
    count: int,
    seed: int = 0,
    *,
    restarts: int = RESTARTS,
    where: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Float64Array:
    """Find the `count` anchors (K, 2), sorted by area, with the highest mean IoU with the boxes (N, 2).

    The result depends only on the arguments and the seed. More restarts never make it worse.

    Args:
        where: the source of the boxes, for error messages.
        report: called with a message if only a sample of `MOST_BOXES` boxes is used.

    Raises:
        DatasetError: there are no boxes, or fewer different ones than `count`.
    """
    if not len(sides):
        raise DatasetError("there are no boxes to find anchors for", where=where, right="use images with labels")
    _, firsts = np.unique(sides.round(2), axis=0, return_index=True)
    if len(firsts) < count:
        right = f"find at most {len(firsts)}, or use more images"
        raise DatasetError(
            f"boxes of {len(firsts)} different sizes are too few for {count} anchors", where=where, right=right
        )
    rng = np.random.default_rng(seed)
    if len(sides) > MOST_BOXES:
        if report:
            report(f"looking for anchors in {MOST_BOXES:,} of the {len(sides):,} boxes")
        drawn = rng.choice(len(sides), MOST_BOXES, replace=False)
        sides = sides[np.concatenate((drawn, firsts[:count]))]  # these ensure enough different boxes
    endings = [improve_anchors(sides, _choose_seeds(sides, count, child)) for child in rng.spawn(restarts)]
    return _sort_by_area(max(endings, key=lambda anchors: float(measure_iou(sides, anchors).max(1).mean())))


def improve_anchors(sides: Float64Array, anchors: Float64Array) -> Float64Array:
    """Improve anchors (K, 2) by k-means on the boxes (N, 2); the mean IoU never gets lower.

    A cluster's centre takes the width, and then the height, of one of its boxes: the one that gives the highest sum of
    IoU, among boxes at several distances in sorted order. An anchor without boxes moves to the box that the others fit
    worst.
    """
    before = 0.0
    for _ in range(_ROUNDS):
        iou = measure_iou(sides, anchors)
        best, mean = iou.argmax(1), float(iou.max(1).mean())
        empty = np.flatnonzero(np.bincount(best, minlength=len(anchors)) == 0)
        if mean - before < _LEAST_GAIN and not len(empty):
            break
        before, moved = mean, anchors.copy()
        for number in np.unique(best):
            moved[number] = _move_centre(sides[best == number], anchors[number])
        for number in empty:
            moved[number] = sides[measure_iou(sides, np.delete(moved, number, axis=0)).max(1).argmin()]
        if np.array_equal(moved, anchors):
            break
        anchors = moved
    return anchors


def round_anchors(anchors: Float64Array) -> Float64Array:
    """Return the anchors (K, 2) rounded to whole pixels, sorted by area: all different, with sides of at least 1."""
    taken: list[tuple[int, int]] = []
    for anchor in anchors:
        width, height = (max(1, round(side)) for side in anchor.tolist())
        for reach in count_up():
            near = [
                place
                for x in range(max(1, width - reach), width + reach + 1)
                for y in range(max(1, height - reach), height + reach + 1)
                if (place := (x, y)) not in taken
            ]
            if near:
                taken.append(near[int(measure_iou(anchor[None], np.array(near, np.float64)).argmax())])
                break
    return _sort_by_area(np.array(taken, np.float64))


def format_anchors(anchors: Float64Array) -> str:
    """Return whole-pixel anchors (K, 2) in the form of a cfg: `width,height,width,height,…`."""
    return ",".join(f"{side:.0f}" for side in anchors.flat)


def _compare_with_best(
    sides: Float64Array, anchors: Float64Array, ratio: float
) -> Iterator[tuple[Float64Array, NDArray[np.bool_]]]:
    """Yield, in chunks that fit in memory, the best IoU of boxes and whether some anchor is within the ratio."""
    chunk = max(1, _CHUNK // len(anchors))
    for first in range(0, len(sides), chunk):
        part = sides[first : first + chunk]
        factors = part[:, None] / anchors
        is_within = (np.maximum(factors, 1 / factors).max(2) < ratio).any(1)
        yield measure_iou(part, anchors).max(1), is_within


def _choose_seeds(sides: Float64Array, count: int, rng: np.random.Generator) -> Float64Array:
    """Choose `count` different boxes by k-means++: with probability proportional to the distance from those chosen."""
    seeds = sides[rng.integers(len(sides), size=1)]
    distance = 1 - measure_iou(sides, seeds)[:, 0]
    while len(seeds) < count:
        chosen = sides[rng.choice(len(sides), size=1, p=distance / distance.sum())]
        seeds = np.concatenate((seeds, chosen))
        distance = np.minimum(distance, 1 - measure_iou(sides, chosen)[:, 0])
    return seeds


def _move_centre(sides: Float64Array, centre: Float64Array) -> Float64Array:
    reach = np.unique(np.ceil(len(sides) * _REACH).astype(np.int64))
    steps = np.concatenate(([0], -reach, reach))
    for axis in (0, 1):
        ranked = np.sort(sides[:, axis])
        places = np.searchsorted(ranked, centre[axis]) + steps
        candidates = np.tile(centre, (len(places) + 1, 1))
        candidates[1:, axis] = ranked[places.clip(0, len(sides) - 1)]
        centre = candidates[measure_iou(sides, candidates).sum(0).argmax()]
    return centre


def _sort_by_area(anchors: Float64Array) -> Float64Array:
    return np.asarray(anchors[np.lexsort((anchors[:, 0], anchors.prod(1)))])
