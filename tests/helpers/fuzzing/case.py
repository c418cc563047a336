"""One input of a reader, what came of it, and the table's row of a reader."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from hypothesis.strategies import SearchStrategy

BASE = "base"
"""The link in a case's folder to the sound files that all cases share; nothing writes below it."""


@dataclass(frozen=True)
class Case:
    """A command line and what lies in its working folder."""

    words: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files to write, by their paths in the folder."""
    copies: tuple[str, ...] = ()
    """Files and folders of the base that are copied into the folder before these are written."""
    stdin: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)

    def format(self, **facts: Any) -> str:
        """Return the case and further facts as JSON, from which it can be run again."""
        plain = {
            "words": [_encode(word.encode("utf-8", "surrogatepass")) for word in self.words],
            "files": {name: _encode(content) for name, content in self.files.items()},
            "copies": list(self.copies),
            "stdin": _encode(self.stdin),
            "environment": dict(self.environment),
        }
        return json.dumps({**facts, "shown": [repr(word)[:200] for word in self.words], **plain})


def parse_case(text: str) -> tuple[str, Case]:
    """Return the name of the target, and the case, that `Case.format` wrote."""
    values = json.loads(text)
    words = tuple(_decode(word).decode("utf-8", "surrogatepass") for word in values["words"])
    files = {name: _decode(content) for name, content in values["files"].items()}
    case = Case(words, files, tuple(values["copies"]), _decode(values["stdin"]), values["environment"])
    return values["target"], case


def _encode(content: bytes) -> str:
    return base64.b85encode(content).decode()


def _decode(text: str) -> bytes:
    return base64.b85decode(text)


@dataclass(frozen=True)
class Outcome:
    """What a command ended with."""

    code: int
    err: str = ""
    trace: str = ""
    """Of an exception that is no error of the package."""
    allowed: tuple[int, ...] = (0, 2)


Make = Callable[[Random, Path], Case]
Run = Callable[[Case], Outcome]


@dataclass(frozen=True)
class Target:
    """A reader, or several that one file reaches: how its inputs are made, and what reads them."""

    name: str
    make: Make
    """Makes a damaged input of sound ones in the base's folder."""
    sound: Callable[[Path], list[Case]]
    """Returns sound inputs, which are read without an error."""
    run: Run
    draw: Callable[[Path], SearchStrategy[Case]] | None = None
    """Draws an input from a grammar; every third batch is of these."""
    parts: tuple[str, ...] = ("data",)
    """What the base must hold; see `seeds`."""
