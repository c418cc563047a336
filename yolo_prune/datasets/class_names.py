"""Classes of a network and of a data set are the same if their names are, in whatever order they are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from yolo_prune.datasets.spec import DataSpec
from yolo_prune.errors import ConfigError

SHOWN = 5
"""How many names an error lists."""


def match_names(own: Sequence[str], others: Sequence[str]) -> tuple[int, ...] | None:
    """Return the number among `others` of each class of `own`, -1 for none; None if the numbers are to be taken as they are.

    That is so if the names are the same, if one of the two has no names but numbers, or if there is one class alone.
    """
    if tuple(own) == tuple(others) or is_unnamed(own) or is_unnamed(others) or len(own) == len(others) == 1:
        return None
    places = {name: place for place, name in reversed(list(enumerate(others)))}
    return tuple(places.get(name, -1) for name in own)


def rename(names: Sequence[str], changes: Sequence[str]) -> tuple[str, ...]:
    """Return a network's class names as a data set calls them; each of `changes` is NETWORK=DATA, one name for another.

    Raises:
        ConfigError: one is not of that form, or the network has no such class.
    """
    renamed = list(names)
    for change in changes:
        own, sign, other = (part.strip() for part in change.partition("="))
        if not (own and sign and other):
            raise ConfigError(f"{change!r} is no NETWORK=DATA", where="class_map", right="write person=pedestrian")
        if own not in names:
            what = f"the network does not know the class {own}, but {list_names(names)}"
            raise ConfigError(what, where="class_map", right="name one of its classes before the =")
        renamed = [other if name == own else now for name, now in zip(names, renamed, strict=True)]
    return tuple(renamed)


def find_classes(words: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of classes that are given by their names or numbers; a name comes before a number.

    Raises:
        ConfigError: there is no such class.
    """
    numbers = {str(number): number for number in range(len(names))} | {name: n for n, name in enumerate(names)}
    for word in words:
        if word not in numbers:
            near = get_close_matches(word.lower(), [name.lower() for name in names], 1)
            meant = next((name for name in names if [name.lower()] == near), None)
            right = f"did you mean {meant}?" if meant else f"use one of {list_names(names)}, or its number"
            raise ConfigError(f"the network knows no class {word}", where="classes", right=right)
    return tuple(dict.fromkeys(numbers[word] for word in words))


def is_unnamed(names: Sequence[str]) -> bool:
    """Return whether classes are called by their numbers."""
    return all(name in (str(number), f"class_{number}") for number, name in enumerate(names))


def number_as(spec: DataSpec, names: Sequence[str], owner: Path) -> DataSpec:
    """Return a data set with its classes numbered as those of a network, which must have the same names.

    Raises:
        ConfigError: the names differ; `owner` is the network's file.
    """
    places = match_names(spec.names, names)
    if places is None:
        return spec
    if -1 in places or len(spec.names) != len(names):
        what = f"the network has the classes {list_names(names)}, the data set {list_names(spec.names)}"
        raise ConfigError(what, where=owner, right="use a data set with the network's classes")
    splits = {
        split: tuple(replace(sample, kinds=places) for sample in samples) for split, samples in spec.splits.items()
    }
    note = f"{spec.source}: classes are numbered as in the network, by their names: {list_names(names)}"
    return replace(spec, names=tuple(names), splits=splits, notes=(*spec.notes, note))


def list_names(names: Sequence[str]) -> str:
    """Return the first names, and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
