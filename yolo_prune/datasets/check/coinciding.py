"""Find boxes of one image that nearly coincide, in time that grows with their number, not with that of pairs.

A box is compared with those of its class in the cells around it, where a cell holds boxes of similar size and place. Of
many that coincide, one stands for the others: those that stand for others do not coincide, so that few have room in a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import exp, floor, log

import numpy as np
from numpy.typing import NDArray

from yolo_prune.datasets.check.issues import SAME_BOX_IOU

CELL = 0.12
"""A cell's side: a factor of e^0.12 in width and height, and this share of the box along x and y.

Two boxes with an IoU above 0.9 differ by a factor of at most 1 / 0.9 in width and height, and their centres by at most
0.056 of the larger one, so that they are in the same or in adjacent cells.
"""

Floats = NDArray[np.float64]
_Key = tuple[float, int, int, int, int]
_AROUND = sorted(product((-1, 0, 1), repeat=2), key=any)
"""Steps to a cell itself, and then to those around it."""


def find_coinciding(rows: Floats) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of boxes of a class whose IoU is above `SAME_BOX_IOU`: two indices, the lower first, and the IoU.

    A box that coincides with several earlier ones is paired with one of them.

    Args:
        rows: (N, …) `class cx cy w h …`, in shares of the image's width and height.
    """
    standing: dict[_Key, list[int]] = {}
    every: dict[_Key, list[int]] = {}
    for index, (own, cx, cy, width, height) in enumerate(rows[:, :5].tolist()):
        home, *_ = keys = list(_list_cells(own, cx, cy, width, height))
        for cells in (standing, every):
            near = sorted(one for key in keys for one in cells.get(key, ()))
            iou = _measure_iou(rows[index], rows[near])
            if len(found := np.flatnonzero(iou > SAME_BOX_IOU)):
                yield near[found[0]], index, float(iou[found[0]])
                break
        if cells is every:
            standing.setdefault(home, []).append(index)
        every.setdefault(home, []).append(index)


def _list_cells(own: float, cx: float, cy: float, width: float, height: float) -> Iterator[_Key]:
    """Yield the cell of a box, and then those around it."""
    column, row = floor(log(width) / CELL), floor(log(height) / CELL)
    for wider, higher in _AROUND:
        x, y = floor(cx / (CELL * exp((column + wider) * CELL))), floor(cy / (CELL * exp((row + higher) * CELL)))
        for right, down in _AROUND:
            yield own, column + wider, row + higher, x + right, y + down


def _measure_iou(row: Floats, rows: Floats) -> Floats:
    """Return the (N,) IoUs of a row `class cx cy w h …` with rows (N, …), in shares of the image's width and height."""
    low, high = rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2
    sides = np.minimum(row[1:3] + row[3:5] / 2, high) - np.maximum(row[1:3] - row[3:5] / 2, low)
    common = sides.clip(0).prod(axis=1)
    return np.asarray(common / (row[3:5].prod() + rows[:, 3:5].prod(axis=1) - common))
