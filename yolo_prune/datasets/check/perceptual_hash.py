"""Find near-duplicates: compare perceptual hashes of all pairs, plain and mirrored, then thumbnails of near pairs.

image ─► 32 × 32 grey ─┬─► 64 bits, and 64 of its mirror image ─► near: few bits differ ─┐
                       └─► 16 × 16 thumbnail ────────────────────► second check: correlated ─► pair
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BITS = 64
LEAST_CORRELATION = 0.85
"""The least correlation of the thumbnails of two near-duplicates.

Of pairs with near hashes, this rejects all pairs among 2,200 drawn images, which are all different, and all pairs of
real photos of different scenes. It accepts all images that were mirrored, re-encoded, scaled, brightened by 10 % or
cropped by 3 %. The accepted webcam frames were inspected: they show the same person in front of the same wall.
"""
FLAT = 2.0
"""A thumbnail whose grey levels have a lower standard deviation shows too little to be compared."""

MOST_ALIKE, FEWEST_ALIKE = 200, 2
"""Of images that are almost all alike, as the frames of a camera that stands still, so many pairs of each are compared.

The first: with images that follow; the second: with those of each block of rows. Else their number would grow as that of
all pairs.
"""

_GREY_PX, _THUMBNAIL_PX = 32, 16
_ROWS = 256
"""Number of images that are compared with all others at a time: 51 MB of distances for 50,000 images."""
_BLOCK = 1 << 16
"""Number of pairs whose thumbnails are compared at a time: 64 MB."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """The features of an image that are compared, in 0.4 kB."""

    bits: Bools
    """(64,) perceptual hash."""
    mirrored_bits: Bools
    """(64,) perceptual hash of the mirrored image."""
    thumbnail: NDArray[np.uint8]
    """(16, 16) grey thumbnail."""


@dataclass(frozen=True)
class Pairs:
    """Near-duplicates, each pair once."""

    first: Ints
    """(P,) indices."""
    second: Ints
    """(P,) indices, each greater than its `first`."""
    distances: Ints
    """(P,) bits that differ."""
    mirrored: Bools
    """(P,) whether one image is nearer to the other's mirror image than to the other image."""

    def select(self, chosen: NDArray[np.intp] | Bools) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.first[chosen], self.second[chosen], self.distances[chosen], self.mirrored[chosen])


@dataclass(frozen=True)
class Group:
    """Images of one split, each of which is a near-duplicate of another of them."""

    members: tuple[int, ...]
    """Indices in ascending order."""
    pairs: int
    """Number of pairs of near-duplicates among them."""
    mirrored: int
    """Number of these pairs that match mirrored."""
    distances: tuple[int, int]
    """Least and greatest of the pairs' distances."""


@dataclass(frozen=True)
class Crossing:
    """An image that is a near-duplicate of images of an earlier split."""

    image: int
    """Its index."""
    nearest: int
    """Index of the nearest of those images."""
    distance: int
    """Number of bits in which the two differ."""
    mirrored: bool
    """Whether it matches the mirror image of the nearest."""
    others: int
    """Number of other near-duplicates in that split."""


def measure_look(image: NDArray[np.uint8]) -> Look:
    """Return the features of an RGB image (H, W, 3)."""
    size = (_GREY_PX, _GREY_PX)
    grey = np.asarray(cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA), np.uint8)
    thumbnail = cv2.resize(grey, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return Look(_hash(grey), _hash(grey[:, ::-1]), np.asarray(thumbnail, np.uint8))


def find_pairs(looks: Sequence[Look], near: int, rows: int = _ROWS) -> Iterator[Pairs]:
    """Yield the pairs of near-duplicates, in parts.

    Their hashes differ by at most `near` bits, and their thumbnails are correlated by `LEAST_CORRELATION` or more, both
    either plain or mirrored.

    Each pair comes once, with the smaller of its plain and its mirrored distance. Memory grows with the number of
    images, not of pairs. Where an image has more than `MOST_ALIKE` near ones, some of its pairs are left out.
    """
    if not looks:
        return
    # With hashes as numbers ±1, d different bits give the inner product 64 − 2d, and matrix products are fast.
    plain = np.stack([look.bits for look in looks]) * np.float32(2) - 1
    mirror = np.stack([look.mirrored_bits for look in looks]) * np.float32(2) - 1
    thumbnails = np.stack([look.thumbnail for look in looks])
    seen, seen_mirrored = _standardise(thumbnails), _standardise(thumbnails[:, :, ::-1])
    for start in range(0, len(looks), rows):
        block, rest = slice(start, start + rows), slice(start, None)
        products = plain[block] @ plain[rest].T
        found = _look_again(products, start, near, seen, seen, mirrored=False)
        products = np.maximum(plain[block] @ mirror[rest].T, mirror[block] @ plain[rest].T)
        yield _keep_nearer(found, _look_again(products, start, near, seen, seen_mirrored, mirrored=True))


def sum_up(pairs: Iterable[Pairs], splits: Ints) -> tuple[list[Group], list[Crossing]]:
    """Return the groups within splits, the largest first, and the images with near-duplicates in an earlier split.

    Args:
        splits: (N,) number of each image's split. An image has one crossing per earlier split in which it has a pair.
    """
    groups, crossings = _Grouper(len(splits)), _Crosser(splits)
    for part in pairs:
        is_within = splits[part.first] == splits[part.second]
        groups.add(part.select(is_within))
        crossings.add(part.select(~is_within))
    return groups.collect(), crossings.collect()


def _hash(grey: NDArray[np.uint8]) -> Bools:
    return np.asarray(imagehash.phash(Image.fromarray(np.ascontiguousarray(grey))).hash, np.bool_).reshape(-1)


def _standardise(thumbnails: NDArray[np.uint8]) -> Floats:
    """Return (N, 256) rows of mean 0 and length 1, whose inner products are correlations; a constant one is all 0."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    spread = rows.std(axis=1, keepdims=True)
    scale = np.where(spread < FLAT, np.inf, spread * np.float32(_THUMBNAIL_PX))
    return np.asarray((rows - rows.mean(axis=1, keepdims=True)) / scale, np.float32)


def _look_again(products: Floats, start: int, near: int, seen: Floats, others: Floats, *, mirrored: bool) -> Pairs:
    """Return the near pairs of a block of rows, which starts at image `start`, whose thumbnails are correlated."""
    is_near = products >= BITS - 2 * near
    is_near[:, : len(products)] &= ~np.tri(*is_near[:, : len(products)].shape, dtype=np.bool_)
    rows, columns = np.divmod(np.flatnonzero(_thin(is_near)), products.shape[1])
    distances = ((BITS - products[rows, columns]) / 2).round().astype(np.int64)
    first, second = rows + start, columns + start
    agree = np.zeros(len(rows), np.bool_)
    for begin in range(0, len(rows), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        agree[part] = (seen[first[part]] * others[second[part]]).sum(axis=1) >= LEAST_CORRELATION
    return Pairs(first, second, distances, np.full(len(first), mirrored)).select(agree)


def _thin(is_near: Bools) -> Bools:
    """Leave out pairs of rows of images (R, N) with very many near ones, so that each image stays in some pairs."""
    if np.count_nonzero(is_near) <= MOST_ALIKE * len(is_near):
        return is_near
    of_row, of_column = is_near.cumsum(1, dtype=np.int32), is_near.cumsum(0, dtype=np.int32)
    return is_near & ((of_row <= MOST_ALIKE) | (of_column <= FEWEST_ALIKE))


def _keep_nearer(plain: Pairs, mirrored: Pairs) -> Pairs:
    """Join plain and mirrored pairs. Of equal pairs keep the nearer, or the plain one at equal distances."""
    both = Pairs(
        np.concatenate((plain.first, mirrored.first)),
        np.concatenate((plain.second, mirrored.second)),
        np.concatenate((plain.distances, mirrored.distances)),
        np.concatenate((plain.mirrored, mirrored.mirrored)),
    )
    both = both.select(np.lexsort((both.mirrored, both.distances, both.second, both.first)))
    is_new = np.ones(len(both.first), np.bool_)
    is_new[1:] = (np.diff(both.first) != 0) | (np.diff(both.second) != 0)
    return both.select(is_new)


class _Grouper:
    """Collects connected images, and figures of the pairs that connect them, stored at each pair's first image."""

    def __init__(self, count: int) -> None:
        self._labels = np.arange(count)
        self._pairs, self._mirrored = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._least, self._most = np.full(count, BITS), np.zeros(count, np.int64)

    def add(self, pairs: Pairs) -> None:
        count = len(self._labels)
        ends = self._labels[pairs.first], self._labels[pairs.second]
        links = coo_array((np.ones(len(pairs.first), np.bool_), ends), shape=(count, count))
        self._labels = connected_components(links, directed=False)[1][self._labels].astype(np.int64)
        np.add.at(self._pairs, pairs.first, 1)
        np.add.at(self._mirrored, pairs.first, pairs.mirrored)
        np.minimum.at(self._least, pairs.first, pairs.distances)
        np.maximum.at(self._most, pairs.first, pairs.distances)

    def collect(self) -> list[Group]:
        order = np.argsort(self._labels, kind="stable")
        borders = np.flatnonzero(np.diff(self._labels[order])) + 1
        groups = [self._make_group(members) for members in np.split(order, borders) if len(members) > 1]
        return sorted(groups, key=lambda group: (-len(group.members), group.members))

    def _make_group(self, members: Ints) -> Group:
        distances = int(self._least[members].min()), int(self._most[members].max())
        pairs, mirrored = int(self._pairs[members].sum()), int(self._mirrored[members].sum())
        return Group(tuple(members.tolist()), pairs, mirrored, distances)


class _Crosser:
    """Collects the nearest image of each earlier split for each image, at the key `image × splits + split`."""

    def __init__(self, splits: Ints) -> None:
        self._splits, self._count = splits, int(splits.max(initial=0)) + 1
        size = len(splits) * self._count
        self._distances, self._nearest = np.full(size, BITS + 1), np.zeros(size, np.int64)
        self._mirrored, self._pairs = np.zeros(size, np.bool_), np.zeros(size, np.int64)

    def add(self, pairs: Pairs) -> None:
        is_first_late = self._splits[pairs.first] > self._splits[pairs.second]
        late = np.where(is_first_late, pairs.first, pairs.second)
        early = np.where(is_first_late, pairs.second, pairs.first)
        keys = late * self._count + self._splits[early]
        np.add.at(self._pairs, keys, 1)
        order = np.lexsort((early, pairs.mirrored, pairs.distances, keys))
        best, places = np.unique(keys[order], return_index=True)
        places = order[places]
        better = pairs.distances[places] < self._distances[best]
        best, places = best[better], places[better]
        self._distances[best], self._nearest[best] = pairs.distances[places], early[places]
        self._mirrored[best] = pairs.mirrored[places]

    def collect(self) -> list[Crossing]:
        return [
            Crossing(
                int(key) // self._count,
                int(self._nearest[key]),
                int(self._distances[key]),
                bool(self._mirrored[key]),
                int(self._pairs[key]) - 1,
            )
            for key in np.flatnonzero(self._pairs)
        ]
