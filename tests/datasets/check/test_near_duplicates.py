"""Copies are found whatever was done to them, and different images are not; all pairs as brute force finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from yolo_prune.datasets.check import perceptual_hash
from yolo_prune.datasets.check.perceptual_hash import LEAST_CORRELATION, Look, Pairs, find_pairs, measure_look, sum_up
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.synthetic.dataset import make_image

ImageArray = NDArray[np.uint8]
NEAR = 12


def draw(seed: int) -> ImageArray:
    return make_image(np.random.default_rng((7, seed)), SyntheticConfig(size_px=160))[0]


@pytest.fixture(scope="module")
def drawn() -> list[ImageArray]:
    return [draw(seed) for seed in range(30)]


def pack(image: ImageArray) -> ImageArray:
    _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


def shrink(image: ImageArray) -> ImageArray:
    return np.asarray(cv2.resize(image, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA), np.uint8)


def mirror(image: ImageArray) -> ImageArray:
    return np.ascontiguousarray(image[:, ::-1])


def brighten(image: ImageArray) -> ImageArray:
    return np.asarray((image * 1.1).clip(0, 255), np.uint8)


def crop(image: ImageArray) -> ImageArray:
    x, y = round(image.shape[1] * 0.015), round(image.shape[0] * 0.015)
    return np.ascontiguousarray(image[y:-y, x:-x])


@pytest.mark.parametrize("change", [pack, shrink, mirror, brighten, crop, lambda image: pack(shrink(mirror(image)))])
def test_copies_are_found_and_different_images_are_not(
    drawn: list[ImageArray], change: Callable[[ImageArray], ImageArray]
) -> None:
    looks = [measure_look(image) for image in [*drawn, *map(change, drawn)]]
    (found,) = find_pairs(looks, NEAR)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(i, i + 30) for i in range(30)]
    is_mirrored = change is mirror or change not in (pack, shrink, brighten, crop)
    assert (found.mirrored == is_mirrored).all()


def test_the_hash_is_the_library_s_of_the_image_and_of_its_mirror_image(drawn: list[ImageArray]) -> None:
    for image in drawn[:5]:
        look = measure_look(image)
        whole, mirrored = (imagehash.phash(Image.fromarray(seen)) for seen in (image, mirror(image)))
        assert (look.bits != whole.hash.ravel()).sum() <= 4  # it shrinks by Lanczos's filter, not by areas
        assert (look.mirrored_bits != mirrored.hash.ravel()).sum() <= 4
        assert look.thumbnail.shape == (16, 16)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        areas = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA).astype(int)
        assert abs(look.thumbnail - areas).max() <= 1


def test_an_image_does_not_look_like_itself_mirrored() -> None:
    half = draw(0)
    look = measure_look(np.concatenate((half, mirror(half)), axis=1))
    assert (look.bits == look.mirrored_bits).all()
    assert [len(pairs.first) for pairs in find_pairs([look], NEAR)] == [0]


def test_flat_images_look_like_nothing() -> None:
    looks = [measure_look(np.full((50, 60, 3), grey, np.uint8)) for grey in (0, 0, 255, 90)]
    assert sum(len(pairs.first) for pairs in find_pairs(looks, 64)) == 0
    assert list(find_pairs([], NEAR)) == []


def test_the_second_look_tells_images_of_one_hash_apart() -> None:
    rng = np.random.default_rng(0)
    bits = rng.random(64) < 0.5
    one, other = rng.integers(0, 256, (2, 16, 16)).astype(np.uint8)
    half = np.rint(0.5 * one + 0.5 * other).astype(np.uint8)
    looks = [Look(bits, ~bits, thumbnail) for thumbnail in (one, other, one // 2, half)]
    (found,) = find_pairs(looks, 0)
    assert np.corrcoef(one.ravel(), half.ravel())[0, 1] < LEAST_CORRELATION
    assert (found.first.tolist(), found.second.tolist(), found.distances.tolist()) == ([0], [2], [0])


def search_slowly(looks: Sequence[Look], near: int) -> list[tuple[int, int, int, bool]]:
    """Return what `find_pairs` finds, pair by pair."""
    found = []
    for (i, one), (j, other) in combinations(enumerate(looks), 2):
        ways = []
        distance = int((one.bits != other.bits).sum())
        if distance <= near and correlate(one.thumbnail, other.thumbnail) >= LEAST_CORRELATION:
            ways.append((distance, False))
        distance = min(int((one.bits != other.mirrored_bits).sum()), int((one.mirrored_bits != other.bits).sum()))
        if distance <= near and correlate(one.thumbnail, other.thumbnail[:, ::-1]) >= LEAST_CORRELATION:
            ways.append((distance, True))
        if ways:
            found.append((i, j, *min(ways)))
    return found


def correlate(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    if min(one.std(), other.std()) < perceptual_hash.FLAT:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def make_looks(seed: int, count: int) -> list[Look]:
    """Return looks of which many are near, plainly or mirrored, since all come from three by a few changes.

    The first of the three is symmetrical, so that what comes from it is near both ways.
    """
    rng = np.random.default_rng(seed)
    bits, mirrored = rng.random((2, 3, 64)) < 0.5
    thumbnails = rng.integers(0, 256, (3, 16, 16))
    mirrored[0], thumbnails[0, :, 8:] = bits[0], thumbnails[0, :, 7::-1]
    looks = []
    for kind in rng.integers(0, 3, count):
        flips = rng.random((2, 64)) < rng.choice((0.0, 0.05, 0.15))
        noise = rng.normal(0, rng.choice((1, 40)), (16, 16))
        pair = (bits[kind] ^ flips[0], mirrored[kind] ^ flips[1])
        thumbnail = (thumbnails[kind] + noise).clip(0, 255).astype(np.uint8)
        looks.append(Look(*pair, thumbnail) if rng.random() < 0.6 else Look(*pair[::-1], thumbnail[:, ::-1]))
    return looks


@given(st.integers(0, 2**32), st.integers(0, 25), st.sampled_from((0, 3, 12, 20, 64)), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_all_pairs_are_found_as_brute_force_finds_them(seed: int, count: int, near: int, rows: int) -> None:
    looks = make_looks(seed, count)
    found = [
        row
        for pairs in find_pairs(looks, near, rows)
        for row in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.distances.tolist(), pairs.mirrored.tolist(), strict=True
        )
    ]
    assert found == search_slowly(looks, near)


@given(st.data(), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_groups_and_crossings_are_those_of_a_slow_search(data: st.DataObject, count: int) -> None:
    splits = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    ends = data.draw(st.lists(st.sampled_from(list(combinations(range(count), 2)) or [(0, 0)]), unique=True))
    pairs = [(i, j, data.draw(st.integers(0, 12)), data.draw(st.booleans())) for i, j in ends if i != j]
    parts = [pairs[start : start + 3] for start in range(0, len(pairs), 3)]
    groups, crossings = sum_up(map(as_pairs, parts), np.array(splits, np.int64))

    within = [pair for pair in pairs if splits[pair[0]] == splits[pair[1]]]
    assert {group.members for group in groups} == connect(count, within)
    assert [len(group.members) for group in groups] == sorted((len(group.members) for group in groups), reverse=True)
    for group in groups:
        inside = [pair for pair in within if pair[0] in group.members]
        distances = [distance for _, _, distance, _ in inside]
        assert (group.pairs, group.mirrored) == (len(inside), sum(mirrored for *_, mirrored in inside))
        assert group.distances == (min(distances), max(distances))

    between: dict[tuple[int, int], list[tuple[int, bool, int]]] = {}
    for i, j, distance, mirrored in pairs:
        if splits[i] != splits[j]:
            early, late = sorted((i, j), key=lambda image: splits[image])
            between.setdefault((late, splits[early]), []).append((distance, mirrored, early))
    assert len(crossings) == len(between)
    for crossing in crossings:
        found = between[crossing.image, splits[crossing.nearest]]
        best = min(distance for distance, _, _ in found)
        assert (crossing.distance, crossing.others) == (best, len(found) - 1)
        assert (crossing.distance, crossing.mirrored, crossing.nearest) in found


def as_pairs(rows: list[tuple[int, int, int, bool]]) -> Pairs:
    columns: list[Any] = [np.array(column) for column in zip(*rows, strict=True)]
    return Pairs(*columns)


def connect(count: int, pairs: Sequence[tuple[int, int, int, bool]]) -> set[tuple[int, ...]]:
    groups = [{image} for image in range(count)]
    for i, j, _, _ in pairs:
        one, other = (next(group for group in groups if image in group) for image in (i, j))
        if one is not other:
            groups.remove(other)
            one |= other
    return {tuple(sorted(group)) for group in groups if len(group) > 1}


def test_a_look_is_the_same_from_a_file(tmp_path: Path) -> None:
    image = draw(1)
    Image.fromarray(image).save(tmp_path / "a.png")
    one, other = measure_look(image), measure_look(read_image(tmp_path / "a.png"))
    assert (one.bits == other.bits).all()
    assert (one.thumbnail == other.thumbnail).all()


@pytest.mark.parametrize("rows", [16, 256])
def test_of_images_that_are_all_alike_some_pairs_are_compared_and_one_group_is_found(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual_hash, "MOST_ALIKE", 5)
    rng, count = np.random.default_rng(0), 300
    bits, thumbnail = rng.random(64) < 0.5, rng.integers(0, 255, (16, 16), dtype=np.uint8)
    looks = [Look(bits, bits[::-1], thumbnail)] * count
    found = list(find_pairs(looks, 6, rows))
    assert sum(len(part.first) for part in found) < count * (5 + 2 * -(-count // rows))
    splits = (np.arange(count) >= count // 2).astype(np.int64)
    groups, crossings = sum_up(found, splits)
    assert [len(group.members) for group in groups] == [count // 2, count // 2]
    assert {one.image for one in crossings} == set(range(count // 2, count))
