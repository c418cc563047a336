"""What is told on stderr while a command runs: lines and bars. stdout is for results."""

from __future__ import annotations

import os
import sys

_told: set[str] = set()


def is_first_process() -> bool:
    """Return whether this process writes to stdout: of those that torchrun started, the first one does."""
    return os.environ.get("RANK", "0") == "0"


def report(line: str) -> None:
    """Write a line to stderr, above any bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def report_once(kind: str, line: str) -> None:
    """Write a line to stderr, unless this process has written one of its kind."""
    if kind not in _told:
        _told.add(kind)
        report(line)


def report_progress(title: str) -> _Progress:
    """Return a callable (done, total) that draws a bar on a terminal's stderr."""
    return _Progress(title)


class _Progress:
    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=title, unit="image", leave=False, disable=None)

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
