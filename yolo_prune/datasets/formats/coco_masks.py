"""Compute boxes of COCO segmentations: polygons, run lengths, and run lengths packed as text."""

from __future__ import annotations

import re
from itertools import groupby
from operator import itemgetter
from typing import Any

from pycocotools import mask

from yolo_prune.datasets.formats.coco_file import is_number
from yolo_prune.errors import DatasetError

RIGHT = "write polygons [[x1, y1, x2, y2, x3, y3, …], …], or run lengths {size: [height, width], counts: …}, or a bbox"

MOST_OUTLINE_PX = 5_000_000
"""Of a polygon, which takes 80 bytes of memory for each: the outline of a crowd over a photo of 12 megapixels has less."""
_PACKED = re.compile(r"(?:[P-o]{0,6}[0-O])*")
"""Numbers have up to seven characters of five bits each; a sixth bit marks all but the last character of a number."""


def measure_box(segmentation: Any, width_px: int, height_px: int, where: str) -> tuple[float, float, float, float]:
    """Return the box x, y, width, height in pixels around a segmentation; that of an empty one has no area.

    pycocotools crashes or reads foreign memory if run lengths do not fit the image, so they are checked here.

    Raises:
        DatasetError: it is not a segmentation, or one of an image of another size (names `where`).
    """
    if isinstance(segmentation, list):
        polygons = [_parse_polygon(polygon, width_px, height_px, where) for polygon in segmentation]
        packed = mask.merge(mask.frPyObjects(polygons, height_px, width_px))
    else:
        counts = _parse_runs(segmentation, width_px, height_px, where)
        packed = mask.frPyObjects({"size": [height_px, width_px], "counts": counts}, height_px, width_px)
    left, top, width, height = mask.toBbox(packed).tolist()
    return left, top, width, height


def _parse_polygon(polygon: Any, width_px: int, height_px: int, where: str) -> list[float]:
    """Return a polygon's coordinates, clipped far outside the image: there they take time and change nothing."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
        raise DatasetError(
            "a polygon of the segmentation is not three or more pairs of numbers", where=where, right=RIGHT
        )
    sides = (width_px, height_px) * (len(polygon) // 2)
    clipped = [float(min(max(value, -side), 2 * side)) for value, side in zip(polygon, sides, strict=True)]
    steps = (
        max(abs(clipped[at] - clipped[at - 2]), abs(clipped[at + 1] - clipped[at - 1]))
        for at in range(0, len(clipped), 2)
    )
    if sum(steps) > MOST_OUTLINE_PX:
        what = f"a polygon of the segmentation is longer than {MOST_OUTLINE_PX:,} pixels"
        raise DatasetError(what, where=where, right=RIGHT)
    return clipped


def _parse_runs(segmentation: Any, width_px: int, height_px: int, where: str) -> list[int]:
    """Return run lengths that cover the image exactly, column by column."""
    size, counts = (segmentation.get(key) if isinstance(segmentation, dict) else None for key in ("size", "counts"))
    if isinstance(counts, str) and _PACKED.fullmatch(counts):
        counts = _unpack(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise DatasetError("the segmentation holds no run lengths", where=where, right=RIGHT)
    if size != [height_px, width_px] or sum(counts) != width_px * height_px:
        what = f"the segmentation's run lengths, of size {size}, are not those of {width_px} × {height_px} pixels"
        raise DatasetError(what, where=where, right=f"write size: [{height_px}, {width_px}] and as many pixels as that")
    return _join(counts)


def _join(counts: list[int]) -> list[int]:
    """Return run lengths without empty runs, which pycocotools would count as pixels of the mask."""
    runs = [(number % 2, count) for number, count in enumerate(counts) if count]
    joined = [(kind, sum(count for _, count in own)) for kind, own in groupby(runs, key=itemgetter(0))]
    return [0] * joined[0][0] + [count for _, count in joined]


def _unpack(text: str) -> list[int]:
    """Return the run lengths of COCO's packed text: from the fourth on, each is stored minus the one two before.

    Source: cocoapi, common/maskApi.c, rleFrString.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (1 << shift) if code & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts
