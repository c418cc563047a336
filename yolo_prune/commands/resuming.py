"""The command that goes on with a stopped run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from yolo_prune.errors import Interrupted


@contextmanager
def naming_resume(*words: str) -> Iterator[None]:
    """Have a stop of what runs inside name the command that goes on, of these words after `yoloprune`.

    Raises:
        Interrupted, TimeUp: as inside.
    """
    try:
        yield
    except Interrupted as stop:
        stop.resume = shlex.join(("yoloprune", *words))
        raise
