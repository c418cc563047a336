"""What commands return: a text for stdout, the same as a dictionary for JSON, and a summary that closes the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class Result(Protocol):
    """The result of a command."""

    @property
    def stdout(self) -> str:
        """What is printed: the path of what was made, or a table."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""


@dataclass(frozen=True)
class Summary:
    """What closes a command on stderr."""

    line: str
    """What came out, and where it is."""
    following: tuple[str, ...] = ()
    """The words, after `yoloprune`, of the command that may follow."""


@runtime_checkable
class CheckedResult(Result, Protocol):
    """A result that is printed, and then may be an error."""

    def raise_on_issues(self) -> None:
        """Raise a YoloPruneError if something is wrong."""


@dataclass(frozen=True)
class PathResult:
    """A file that was made."""

    path: Path
    summary: Summary | None = None
    """None where the path says it all."""

    @property
    def stdout(self) -> str:
        """The file's path."""
        return str(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}


@dataclass(frozen=True)
class TextResult:
    """A text that is all there is to return."""

    stdout: str

    def as_dict(self) -> dict[str, Any]:
        """Return the text."""
        return {"text": self.stdout}
