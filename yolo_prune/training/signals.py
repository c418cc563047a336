"""Stop a run cleanly on SIGINT or SIGTERM, or when its time is up."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from yolo_prune.errors import RESUMABLE, TIME_UP, Interrupted, TimeUp
from yolo_prune.launch import is_launched

SAME_S = 3.0
"""Signals that come so soon after each other are one: a terminal and torchrun both send Ctrl-C's to every process."""


class StopSignal:
    """Stores the signal that a run has received, and the time at which it must stop."""

    def __init__(self, max_minutes: float | None = None) -> None:
        self.signum: int | None = None
        self._noted_at = 0.0
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    @property
    def code(self) -> int:
        """The exit code to stop with; 0 if the run may continue."""
        if self.signum is not None:
            return 128 + self.signum
        return TIME_UP if self._deadline is not None and time.monotonic() >= self._deadline else 0

    @property
    def minutes_left(self) -> float | None:
        """The minutes until the time is up; None without a limit."""
        return None if self._deadline is None else max(0.0, (self._deadline - time.monotonic()) / 60)

    @property
    def is_recent(self) -> bool:
        """Whether the signal came less than `SAME_S` ago."""
        return time.monotonic() - self._noted_at < SAME_S

    def note(self, signum: int) -> None:
        """Store a signal."""
        self.signum, self._noted_at = signum, time.monotonic()

    def check(self) -> None:
        """Raise Interrupted if a signal was received, TimeUp if the time is up."""
        if code := self.code:
            leave(code)


def leave(code: int, left: str = RESUMABLE) -> None:
    """Raise the exception that ends the process with this exit code; `left` says what the run leaves.

    Raises:
        Interrupted: SIGINT or SIGTERM.
        TimeUp: the time is up.
    """
    raise TimeUp(left) if code == TIME_UP else Interrupted(code - 128, left)


@contextmanager
def watch_signals(max_minutes: float | None = None) -> Iterator[StopSignal]:
    """Yield a `StopSignal` that the first SIGINT or SIGTERM sets; a second one has its usual effect.

    Of several processes, a second one has that only after `SAME_S`. A signal that is ignored, as SIGINT is where a script started the
    command in the background, stays ignored.

    If these contexts are nested, a signal sets all of them: one that comes too late for the inner still stops the
    outer.
    """
    stop = StopSignal(max_minutes)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    previous = {signum: handler for signum, handler in handlers.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for signum, handler in previous.items():
            if signal.getsignal(signum) is remember:
                signal.signal(signum, handler)

    def remember(signum: int, frame: FrameType | None) -> None:
        if stop.signum is not None and not stop.is_recent:
            restore()
            signal.raise_signal(signum)
            return
        if stop.signum is None:
            stop.note(signum)
        if not is_launched():
            restore()
        outer = previous[signal.Signals(signum)]
        if getattr(outer, "__qualname__", None) == remember.__qualname__ and callable(outer):
            outer(signum, frame)

    try:
        for signum in previous:
            signal.signal(signum, remember)
        yield stop
    finally:
        restore()
