"""Stop in an orderly way when SIGINT or SIGTERM asks for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from yolo_prune.errors import Interrupted


class StopSignal:
    """Remembers the signal that asked the run to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def watch_signals() -> Iterator[StopSignal]:
    """Yield a `StopSignal` that the first SIGINT or SIGTERM sets; a second one acts as it would have without us."""
    stop = StopSignal()
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def remember(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        restore()

    try:
        for signum in previous:
            signal.signal(signum, remember)
        yield stop
    finally:
        restore()
