"""Large JSON files, read part by part: what a file costs is what is kept of it, not its size.

{"images": [{…}, {…}], "info": {…}}  ─►  ("images", None, []) ("images", 0, {…}) ("images", 1, {…}) ("info", None, {…})
[{…}, {…}]                           ─►  ("", None, []) ("", 0, {…}) ("", 1, {…})
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from yolo_prune.bounded import open_plain
from yolo_prune.errors import YoloPruneError
from yolo_prune.limits import MOST_ANNOTATION_BYTES, MOST_ENTRY_CHARACTERS

BLOCK_CHARACTERS = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.0-9eE]*")
_DECODER = json.JSONDecoder()


class Part(NamedTuple):
    """An entry of a list of the file, the begin of such a list, or another value."""

    key: str
    """The key of the list or value; empty if the file is no mapping."""
    number: int | None
    """The place of an entry in its list, from 0; None for what is no entry."""
    value: Any
    """The value; an empty list at the begin of a list."""


def iterate_json(path: Path, error: type[YoloPruneError], right: str) -> Iterator[Part]:
    """Yield the parts of a JSON file, of a list or of a mapping of lists and other values.

    Raises:
        YoloPruneError: of type `error`: the file cannot be read, is not JSON (names the line), or one part is larger
            than any real one; `right` tells which file to name.
    """
    try:
        with open_plain(path, MOST_ANNOTATION_BYTES) as file, io.TextIOWrapper(file, "utf-8") as text:
            yield from _Reader(text, path, error, right).read()
    except (OSError, UnicodeDecodeError) as broken:
        reason = broken.strerror if isinstance(broken, OSError) else "it is no JSON text"
        raise error(f"cannot be read ({reason})", where=path, right=right) from broken


class _Reader:
    """The text of a file from the present place on, as far as it is read."""

    def __init__(self, file: io.TextIOWrapper, path: Path, error: type[YoloPruneError], right: str) -> None:
        self._file, self._path, self._error, self._right = file, path, error, right
        self._text, self._at, self._line, self._is_end = "", 0, 1, False

    def read(self) -> Iterator[Part]:
        first = self._peek()
        if first == "{":
            self._at += 1
            yield from self._read_members()
        else:
            yield from self._read_value("")
        if self._peek():
            self._fail("Extra data", self._at)

    def _read_members(self) -> Iterator[Part]:
        for _ in self._iterate("}"):
            if self._peek() != '"':
                self._fail("Expecting property name enclosed in double quotes", self._at)
            key = self._decode()
            self._take(":")
            yield from self._read_value(key)

    def _read_value(self, key: str) -> Iterator[Part]:
        if self._peek() != "[":
            yield Part(key, None, self._decode())
            return
        self._at += 1
        yield Part(key, None, [])
        for number in self._iterate("]"):
            yield Part(key, number, self._decode())

    def _iterate(self, end: str) -> Iterator[int]:
        """Yield the number of each member, which is then at the present place, up to the end of a list or mapping."""
        number = 0
        if self._peek() == end:
            self._at += 1
            return
        while True:
            yield number
            number += 1
            if self._peek() == end:
                self._at += 1
                return
            self._take(",")

    def _take(self, expected: str) -> None:
        if self._peek() != expected:
            self._fail(f"Expecting '{expected}' delimiter", self._at)
        self._at += 1

    def _peek(self) -> str:
        """Go to the next character that is no space, and return it; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or not self._fill():
                return self._text[self._at : self._at + 1]

    def _decode(self) -> Any:
        """Return the value at the present place, and go to its end."""
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                problem = None
            except json.JSONDecodeError as broken:
                value, end, problem = None, broken.pos, broken.msg
            except (ValueError, RecursionError) as broken:  # a number of thousands of digits, too deep
                what = "cannot be read (it is no JSON text)"
                raise self._error(what, where=self._path, right=self._right) from broken
            if problem is None and self._is_over(value, end):
                break
            if len(self._text) - self._at > MOST_ENTRY_CHARACTERS:
                what = f"holds a value of more than {MOST_ENTRY_CHARACTERS >> 20} MiB"
                raise self._error(what, where=f"{self._path}:{self._count(self._at)}", right=self._right)
            if not self._fill():  # nothing that follows may belong to it
                if problem is not None:
                    self._fail(problem, end)
                break
        self._at = end
        return value

    def _is_over(self, value: Any, end: int) -> bool:
        """Return whether no text that is not read yet can belong to a value, as further digits may to a number."""
        rest = _NUMBER.match(self._text, end) if isinstance(value, int | float) else None
        return (rest.end() if rest else end) < len(self._text)

    def _fill(self) -> bool:
        """Read more text, forget what is before the present place, and return whether there was more."""
        block = "" if self._is_end else self._file.read(BLOCK_CHARACTERS)
        if block:
            self._line = self._count(self._at)
            self._text, self._at = self._text[self._at :] + block, 0
        self._is_end = not block
        return bool(block)

    def _count(self, place: int) -> int:
        return self._line + self._text.count("\n", 0, place)

    def _fail(self, problem: str, place: int) -> NoReturn:
        what = f"is not JSON ({problem})"
        raise self._error(what, where=f"{self._path}:{self._count(place)}", right="correct that line")
