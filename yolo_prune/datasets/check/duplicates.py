"""Find identical images and near-duplicates in a data set, within a split and between two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yolo_prune.datasets.check.issues import Issue
from yolo_prune.datasets.check.perceptual_hash import Crossing, Group, find_pairs, sum_up
from yolo_prune.datasets.check.scan import Content, ScannedImage
from yolo_prune.datasets.data_file import SPLITS


@dataclass(frozen=True)
class _Entry:
    """A readable image in one of its splits."""

    path: str
    split: str
    content: Content


def find_duplicates(images: Sequence[ScannedImage], near: int) -> list[Issue]:
    """Find images in two splits, identical ones within a split, and near-duplicates within a split.

    Each issue is reported once. The search for near-duplicates uses only the first of identical images. An image that
    is identically in an earlier split is not compared with that split's other images.
    """
    entries = [
        _Entry(str(image.sample.image), split, image.content)
        for image in images
        for split in image.splits
        if isinstance(image.content, Content)
    ]
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.path))
    alike: dict[tuple[str, bytes], list[_Entry]] = {}
    for entry in entries:
        alike.setdefault((entry.split, entry.content.digest), []).append(entry)
    firsts = [same[0] for same in alike.values()]
    pairs = find_pairs([entry.content.look for entry in firsts], near)
    groups, crossings = sum_up(pairs, np.array([SPLITS.index(entry.split) for entry in firsts], np.int64))
    return [
        *_find_crossings(alike, firsts, crossings),
        *(_describe_identical(same) for same in alike.values() if len(same) > 1),
        *(_describe_group(group, firsts) for group in groups),
    ]


def _find_crossings(
    alike: dict[tuple[str, bytes], list[_Entry]], firsts: Sequence[_Entry], crossings: Sequence[Crossing]
) -> Iterator[Issue]:
    known = set()
    for (split, digest), same in alike.items():
        for earlier in SPLITS[: SPLITS.index(split)]:
            if (there := alike.get((earlier, digest))) is not None:
                known.add((split, digest, earlier))
                yield from (_describe_same(entry, there) for entry in same)
    for crossing in crossings:
        entry, nearest = firsts[crossing.image], firsts[crossing.nearest]
        if (entry.split, entry.content.digest, nearest.split) not in known:
            yield _describe_crossing(crossing, entry, nearest)


def _describe_same(entry: _Entry, there: Sequence[_Entry]) -> Issue:
    splits = {"splits": [there[0].split, entry.split], "distance": 0, "mirrored": False}
    if any(entry.path == other.path for other in there):
        return Issue("two_splits", entry.path, f"is listed in {there[0].split} and in {entry.split}", details=splits)
    what = f"of {entry.split}, has the same pixels as {_name([other.path for other in there])} of {there[0].split}"
    return Issue("two_splits", entry.path, what, others=tuple(other.path for other in there), details=splits)


def _describe_crossing(crossing: Crossing, entry: _Entry, nearest: _Entry) -> Issue:
    mirrored = ", mirrored" if crossing.mirrored else ""
    more = f", and like {crossing.others} more there" if crossing.others else ""
    what = (
        f"of {entry.split}, looks like {nearest.path} of {nearest.split}{mirrored} (distance {crossing.distance}){more}"
    )
    details = {
        "splits": [nearest.split, entry.split],
        "distance": crossing.distance,
        "mirrored": crossing.mirrored,
        "more": crossing.others,
    }
    return Issue("two_splits", entry.path, what, others=(nearest.path,), details=details)


def _describe_identical(same: Sequence[_Entry]) -> Issue:
    first, *others = [entry.path for entry in same]
    details = {"splits": [same[0].split]}
    return Issue(
        "identical_images", first, f"has the same pixels as {_name(others)}", others=tuple(others), details=details
    )


def _describe_group(group: Group, firsts: Sequence[_Entry]) -> Issue:
    first, *others = [firsts[member].path for member in group.members]
    least, most = group.distances
    details = {
        "splits": [firsts[group.members[0]].split],
        "images": len(group.members),
        "pairs": group.pairs,
        "mirrored_pairs": group.mirrored,
        "distances": [least, most],
    }
    if group.pairs == 1:
        what = f"looks like {others[0]}{', mirrored' if group.mirrored else ''} (distance {least})"
    else:
        mirrored = f", {group.mirrored} of them mirrored" if group.mirrored else ""
        pairs = f"{group.pairs} pairs{mirrored}, distances {least} to {most}"
        what = f"is one of {len(group.members)} that are near-duplicates ({pairs}): {_name(others)}"
    return Issue("near_duplicates", first, what, others=tuple(others), details=details)


def _name(paths: Sequence[str], shown: int = 2) -> str:
    more = f" and {len(paths) - shown} more" if len(paths) > shown else ""
    return ", ".join(paths[:shown]) + more if more else " and ".join(paths)
