"""Single corruptions of nested data, and what a reader says to them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from yolo_prune.errors import YoloPruneError

BUDGET = int(os.environ.get("YOLO_PRUNE_DAMAGES", "200"))
"""How many corruptions of a file are tried; more find more."""
LONGEST = 900
"""Characters of an error."""
Act = Callable[[Any], None]


def nest(depth: int) -> list[Any]:
    """Return a list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


WRONG: tuple[Any, ...] = (
    *(None, True, -1, 3, 10**30, 0.5, float("nan"), float("inf"), "", "text", [], [1], ["a"], {}, {"a": 1}),
    *(nest(30), "a\0b", "x" * 300, [None], [[]], [{}]),
)
"""Values to put in the place of others."""


def corrupt(whole: Any, read: Callable[[Any], object], more: Sequence[Any] = ()) -> tuple[int, int]:
    """Read single corruptions of nested data, chosen by chance, and return how many were read, and how many refused.

    What a reader raises beside errors of this package fails the test, and stdout names the corruption.
    """
    changes = list(_spoil(whole, (*WRONG, *more)))
    random.Random(0).shuffle(changes)
    refused = 0
    for name, act in changes[:BUDGET]:
        print(name)
        copy = deepcopy(whole)
        act(copy)
        refused += bool(refuse(read, copy))
    return min(BUDGET, len(changes)), refused


def refuse(read: Callable[[Any], object], value: Any) -> str:
    """Return the error of this package that reading a value raises; empty if it raises none."""
    try:
        read(value)
    except YoloPruneError as error:
        line = str(error)
    else:
        return ""
    assert "\n" not in line
    assert 0 < len(line) < LONGEST, line
    return line


def _spoil(value: Any, wrongs: Sequence[Any]) -> Iterator[tuple[str, Act]]:
    """Yield single corruptions of nested mappings and lists, each as a name and a function that does it in place."""
    places: Sequence[Any] = list(value) if isinstance(value, dict) else range(min(len(value), 3))
    for place in places:
        if isinstance(value, dict):
            yield f"without {place}", partial(_remove, place)
        for wrong in wrongs:
            yield f"{place} = {wrong!r:.30}", partial(_put, place, wrong)
        if isinstance(value[place], dict | list) and value[place]:
            for name, act in _spoil(value[place], wrongs):
                yield f"{place}.{name}", partial(_act_inside, place, act)


def _remove(place: Any, whole: Any) -> None:
    del whole[place]


def _put(place: Any, value: Any, whole: Any) -> None:
    whole[place] = value


def _act_inside(place: Any, act: Act, whole: Any) -> None:
    act(whole[place])
