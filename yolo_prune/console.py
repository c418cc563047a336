"""What is told on stderr while a command runs: lines, warnings and bars. stdout is for results.

A terminal gets colours, bars and lines that are wrapped between words; NO_COLOR and TERM=dumb are obeyed. A file gets each
line whole.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from typing_extensions import Self

LONGEST_LINE = 1_000
"""Characters of an error."""
REFRESH_S = 0.1
"""The least time between two drawings of a bar."""

_told: set[str] = set()
_is_quiet = False


def is_first_process() -> bool:
    """Return whether this process writes to stdout: of those that torchrun started, the first one does."""
    return os.environ.get("RANK", "0") == "0"


def set_quiet(is_quiet: bool) -> None:
    """Choose whether to leave out bars, and all lines but warnings and errors."""
    global _is_quiet
    _is_quiet = is_quiet


def escape(text: str, kept: str = "\n\t") -> str:
    """Return a text with its control characters written as escapes, so that a name cannot command a terminal.

    Those in `kept` stay. With none kept, it is one line that can be drawn: fonts and OpenCV fail with some of them.
    """
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )


def get_columns(stream: TextIO | None) -> int | None:
    """Return how many columns a stream's terminal has; None if it is no terminal."""
    if stream is None or not stream.isatty():
        return None
    return _console().width


def report(line: str) -> None:
    """Write a line to stderr, above any bar, in the first process; with --quiet write nothing."""
    if not _is_quiet and is_first_process():
        _write(line)


def warn(line: str) -> None:
    """Write a line that begins with `warning:` to stderr, above any bar, in the first process."""
    if is_first_process():
        _write(line, "warning", "bold yellow")


def report_error(line: str) -> None:
    """Write a line that begins with `error:` to stderr: something failed, and the command goes on to its end."""
    if is_first_process():
        _write(line, "error", "bold red")


def report_end(line: str, kind: str = "") -> None:
    """Write why the process ends to stderr, as one line; it begins with its kind, such as `error:`, if it has one.

    The middle of a very long line, such as one that quotes a file, is left out.
    """
    line = " ".join(line.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    _write(line, kind, "bold red", is_wrapped=bool(kind))  # a stop names a command to paste


def report_done(line: str, seconds: float, following: str = "") -> None:
    """Close a command: write what came out and how long it took, and the command that may follow, ready to paste."""
    if not _is_quiet and is_first_process():
        _write(line, f"done in {format_duration(seconds)}", "bold green")
        if following:
            _write(following, "next", "bold green", is_wrapped=False)


def format_duration(seconds: float) -> str:
    """Return a time in words: 4.2 s, 48 s, 16 min, 2 h 5 min."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def warn_once(kind: str, line: str) -> None:
    """Write a warning, unless this process has written one of its kind."""
    if kind not in _told:
        _told.add(kind)
        warn(line)


def _write(line: str, kind: str = "", style: str = "", is_wrapped: bool = True) -> None:
    from rich.text import Text

    text = Text.assemble((f"{kind}: ", style), escape(line)) if kind else Text(escape(line))
    console = _console()
    console.print(text, soft_wrap=not (is_wrapped and console.is_terminal))


@cache
def _console() -> Console:
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR"))  # rich would leave bold text
    return Console(
        stderr=True,
        force_jupyter=False,
        color_system=None if plain else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )


class Bar:
    """A bar on a terminal's stderr, with a note beside it; elsewhere it does nothing. Bars may be nested."""

    def __init__(self, title: str, total: int | None = None, unit: str = "images", is_shown: bool = True) -> None:
        self._total, self._unit, self._drawn_at = total, unit, 0.0
        self._progress = _bars() if is_shown and not _is_quiet and _has_terminal() else None
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Move the bar to `done` of `total`; the note is these numbers, unless another is given."""
        if self._progress is None:
            return
        self._total = self._total if total is None else total
        note = self._count(done) if note is None else note
        self._progress.update(self._task, completed=done, total=self._total, note=escape(note))
        if time.monotonic() - self._drawn_at >= REFRESH_S:
            self._progress.refresh()
            self._drawn_at = time.monotonic()

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.remove_task(self._task)
            if not self._progress.tasks:
                self._progress.stop()
            self._progress = None

    def _count(self, done: int) -> str:
        if self._unit == "bytes":
            return f"{done / 1e6:.1f}{'' if self._total is None else f' of {self._total / 1e6:.1f}'} MB"
        return f"{done:,}{'' if self._total is None else f' of {self._total:,}'} {self._unit}"


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and not _console().is_dumb_terminal


@cache
def _bars() -> Progress:
    """Return the display of all bars of this process. It is drawn when a bar moves, so that it needs no thread."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    progress = Progress(*columns, console=_console(), transient=True, expand=True, auto_refresh=False)
    atexit.register(progress.stop)  # it shows the cursor again
    return progress
