"""Standard streams as shells give them: closed, full, or of an encoding that has not every character."""

from __future__ import annotations

import os
import sys

from yolo_prune.errors import OutputError


def prepare_streams() -> None:
    """Open the streams that are closed, and have stdout write what its encoding lacks as escapes.

    A closed stream's number would go to the next file that is opened, which would then get what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115  # as long as the process
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    if hasattr(sys.stdout, "reconfigure"):  # a test's stdout has not
        sys.stdout.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")  # paths keep their bytes


def print_result(text: str) -> None:
    """Print a command's result.

    Raises:
        OutputError: stdout cannot be written, but for a closed pipe, which is left to the caller.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        raise OutputError(f"cannot be written ({error.strerror})", where="stdout", right="make room there") from error
