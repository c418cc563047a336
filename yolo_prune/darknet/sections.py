"""The sections of a cfg text, with the line of every key, and the values that keys may have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from typing import TypeVar

from yolo_prune.errors import CfgError

T = TypeVar("T")


@dataclass
class Section:
    """One [section] while it is parsed: `take` removes keys; keys that are left over are unknown."""

    name: str
    source: str
    line: int
    values: dict[str, tuple[str, int]] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)
    """Keys that are set again, and where. As in Darknet, the first value counts."""

    def where(self, key: str | None = None) -> str:
        """Return file and line of a key, or of the section."""
        line = self.values[key][1] if key in self.values else self.line
        return f"{self.source}:{line}"

    def take(self, key: str, convert: Callable[[str], T], default: T | None = None) -> T:
        """Remove a key and return its value.

        Raises:
            CfgError: the value cannot be converted, or the key is missing and has no default.
        """
        if key not in self.values:
            if default is None:
                raise CfgError(f"[{self.name}] lacks the key {key}", where=self.where(), right=f"add {key}=…")
            return default
        text = self.values[key][0]
        try:
            value = convert(text)
        except ValueError as error:
            detail = str(error) if str(error).startswith("not ") else "not understood"
            raise CfgError(
                f"{key}={text} is {detail}", where=self.where(key), right=f"correct the value of {key}"
            ) from None
        del self.values[key]
        return value

    def take_known(self, keys: Collection[str]) -> tuple[tuple[str, str], ...]:
        """Remove some keys, and return those that are there with their text."""
        return tuple((key, self.values.pop(key)[0]) for key in [*self.values] if key in keys)

    def take_rest(self) -> tuple[tuple[str, str], ...]:
        """Remove all keys that are left, and return them with their text."""
        taken = tuple((key, text) for key, (text, _) in self.values.items())
        self.values.clear()
        return taken

    def check_complete(self, known: Collection[str]) -> None:
        """Raise if a key is left.

        Raises:
            CfgError: names the key, and the nearest known one.
        """
        for key in self.values:
            near = get_close_matches(key, known, 1)
            right = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
            raise CfgError(f"[{self.name}] does not know the key {key}", where=self.where(key), right=right)


def split_sections(text: str, source: str) -> Iterator[Section]:
    """Yield the sections of a cfg text; `source` is its name in errors.

    Raises:
        CfgError: a line is neither [section] nor key=value.
    """
    section: Section | None = None
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = raw.split("#", 1)[0].split(";", 1)[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]"):
                raise CfgError(f"{line!r} is not closed", where=f"{source}:{number}", right="write [section]")
            if section is not None:
                yield section
            section = Section(line[1:-1].strip().lower(), source, number)
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if section is None or not equals or not key:
            raise CfgError(
                f"{line!r} is neither [section] nor key=value",
                where=f"{source}:{number}",
                right="write key=value below a [section]",
            )
        if key in section.values:
            section.repeated.append((key, number))
        else:
            section.values[key] = (value, number)
    if section is not None:
        yield section


def integer(text: str) -> int:
    """Return a whole number. Raises ValueError, with what is wrong, as the functions below."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("not a whole number") from None


def number(text: str) -> float:
    """Return a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not isfinite(value):
        raise ValueError("not finite")
    return value


def positive(text: str) -> int:
    """Return a whole number from 1."""
    if (value := integer(text)) < 1:
        raise ValueError("not at least 1")
    return value


def natural(text: str) -> int:
    """Return a whole number from 0."""
    if (value := integer(text)) < 0:
        raise ValueError("not at least 0")
    return value


def flag(text: str) -> bool:
    """Return whether a whole number is not 0."""
    return bool(integer(text))


def integers(text: str) -> tuple[int, ...]:
    """Return whole numbers that commas separate."""
    return tuple(integer(part) for part in text.strip(", ").split(","))


def numbers(text: str) -> tuple[float, ...]:
    """Return finite numbers that commas separate."""
    return tuple(number(part) for part in text.strip(", ").split(","))
