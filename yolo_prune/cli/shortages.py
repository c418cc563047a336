"""Errors by which the system says that it lacks something: no defect of this package, wherever they come up."""

from __future__ import annotations

import errno
import os

from yolo_prune.errors import InsufficientMemoryError, YoloPruneError
from yolo_prune.memory import explain_out_of_memory, is_out_of_memory

SMALLER = "use a smaller --batch-size or --img-size, fewer --workers, or a machine with more memory"
CURES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the whole system's files are open",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "name a place that can be written",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network's file system",
}
"""What to do, by the number of the system's error."""
WORDS = {
    "can't start new thread": (
        "no thread can be started",
        "raise the limit of processes (ulimit -u, docker run --pids-limit), or stop others",
    ),
    "No usable temporary directory": (
        "there is no folder for temporary files",
        "name one that can be written, and has room, in TMPDIR",
    ),
}
"""What is lacking and what to do, by the words of Python's own errors."""


def explain_shortage(error: BaseException | None) -> YoloPruneError | None:
    """Return an error, or one that it came of, as one of this package, if it says what the system lacks; else None.

    Libraries that are not written in Python raise errors of their own, with the system's words in them.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if is_out_of_memory(error):
            return InsufficientMemoryError(explain_out_of_memory(error), right=SMALLER)
        for words, (what, right) in WORDS.items():
            if words in str(error):
                return YoloPruneError(what, where="system", right=right)
        for number, cure in CURES.items():
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                where = getattr(error, "filename", None)
                return YoloPruneError(os.strerror(number), where="system" if where is None else str(where), right=cure)
        error = error.__cause__ or error.__context__
    return None
