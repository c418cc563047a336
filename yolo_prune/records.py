"""Structures in files: what a file holds is checked against declared types before it is used.

A structure in JSON is a dataclass, one in a checkpoint, which may hold tensors, a `TypedDict`. All are read strictly: a
number is no text, a text no number. Keys that are not declared are ignored: another version may know them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from yolo_prune.errors import YoloPruneError
from yolo_prune.files import can_be_path, load_json
from yolo_prune.limits import MOST_JSON_BYTES, is_bounded

R = TypeVar("R")

TENSORS = ConfigDict(arbitrary_types_allowed=True)
"""The `__pydantic_config__` of a structure that holds tensors."""
LONGEST = 60
"""Characters of a wrong value that an error shows."""


def _check_path(text: str) -> str:
    if not can_be_path(text):
        raise ValueError("cannot be a path")
    return text


PathText = Annotated[str, AfterValidator(_check_path)]
"""The path of a file as text; whether there is such a file is another matter."""


def load_plain_json(path: Path, error: type[YoloPruneError], right: str) -> Any:
    """Read a small JSON file, whose values no reader of nested data can exhaust.

    Raises:
        YoloPruneError: of type `error`: the file cannot be read, or is nested deeper than any file of this package.
    """
    value = load_json(path, error, right)
    if not is_bounded(value, MOST_JSON_BYTES):
        raise error("is nested too deep", where=path, right=right)
    return value


def load_record(kind: type[R], path: Path, error: type[YoloPruneError], right: str) -> R:
    """Read a dataclass from a JSON file.

    Raises:
        YoloPruneError: of type `error`: the file cannot be read, or a key is missing or wrong; names it.
    """
    return parse_record(kind, load_plain_json(path, error, right), path, error, right)


def parse_record(kind: type[R], value: Any, where: str | Path, error: type[YoloPruneError], right: str) -> R:
    """Make a dataclass of what a JSON file holds.

    Raises:
        YoloPruneError: of type `error`: a key is missing or wrong; names it.
    """
    try:
        made: R = _adapt(kind).validate_json(json.dumps(value), strict=True)  # type: ignore[arg-type]  # types are hashable; Python's objects would not do
        return made
    except ValidationError as mistake:
        raise error(explain(mistake), where=where, right=right) from None
    except (TypeError, ValueError, RecursionError) as mistake:
        raise error(f"is not plain ({mistake})", where=where, right=right) from None


def check_record(
    kind: type[Any], value: Any, where: str | Path | None, error: type[YoloPruneError], right: str
) -> None:
    """Check that a value is such a `TypedDict`.

    Raises:
        YoloPruneError: of type `error`: a key is missing or wrong; names it.
    """
    try:
        _adapt(kind).validate_python(value, strict=True)  # type: ignore[arg-type]  # types are hashable
    except ValidationError as mistake:
        raise error(explain(mistake), where=where, right=right) from None


@cache
def _adapt(kind: Any) -> TypeAdapter[Any]:
    """Return what checks values of a type; it takes longer to make than to use."""
    return TypeAdapter(kind)


def explain(mistake: ValidationError) -> str:
    """Say the first mistake: the key, and what is wrong with it."""
    first = mistake.errors(include_url=False, include_context=False)[0]
    place = "".join(_format_places(first["loc"])).lstrip(".")
    if first["type"] == "missing":
        return f"lacks {place}"
    what = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    is_short = isinstance(first["input"], str | int | float | None) and first["type"] not in ("value_error", "int_type")
    shown = f" {shorten(first['input'])}" if is_short or isinstance(first["input"], str) else ""
    subject = f"{place or 'the whole'}{shown}"
    return f"{subject} {what}" if first["type"] == "value_error" else f"{subject} is not {what}"


def shorten(value: Any) -> str:
    """Return a value as an error shows it: its beginning, if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = type(value).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _format_places(places: tuple[int | str, ...]) -> Iterator[str]:
    for place in places:
        yield f"[{place}]" if isinstance(place, int) else f".{place}"
