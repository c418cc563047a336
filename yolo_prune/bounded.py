"""Read files of at most so many bytes: nothing larger is read, and nothing is waited for."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PIPE_S = 10.0
"""Seconds that a pipe or a device is waited for, in all."""
BLOCK_BYTES = 1 << 16
NOT_PLAIN = "it is no regular file"


@contextmanager
def open_plain(path: Path, most_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Yield a regular file, open for reading. Nothing waits: a pipe, a device or a folder is an error.

    Raises:
        OSError: it is not there, is no regular file, or has more than `most_bytes`; `strerror` says so.
    """
    with io.BufferedReader(_open(path)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, NOT_PLAIN)
        _check_size(found.st_size, most_bytes)
        yield file


def read_bytes(path: Path, most_bytes: int, *, takes_pipes: bool = False) -> bytes:
    """Read a file of at most so many bytes; of a larger one nothing, or not more than that, is read.

    Args:
        takes_pipes: whether a pipe or a device is read, too, as the shell's `<(…)` is; it is waited for `PIPE_S`.

    Raises:
        OSError: it cannot be read, is larger, or is no regular file; `strerror` says so.
    """
    with _open(path) as file:
        found = os.fstat(file.fileno())
        is_pipe = not stat.S_ISREG(found.st_mode)
        if is_pipe and not takes_pipes:
            raise OSError(errno.EINVAL, NOT_PLAIN)
        _check_size(found.st_size, most_bytes)
        deadline_s, count = time.monotonic() + PIPE_S, 0
        parts: list[bytes] = []
        while True:
            block = _wait(file, deadline_s) if is_pipe else file.read(max(BLOCK_BYTES, found.st_size + 1 - count))
            if not block:
                return b"".join(parts)
            parts.append(block)
            count += len(block)
            _check_size(count, most_bytes)


def read_text(path: Path, most_bytes: int, encoding: str = "utf-8", *, takes_pipes: bool = False) -> str:
    """Read a text file of at most so many bytes, as `read_bytes`.

    Raises:
        OSError: as for `read_bytes`.
        UnicodeDecodeError: it is in another encoding.
    """
    return read_bytes(path, most_bytes, takes_pipes=takes_pipes).decode(encoding)


def read_lines(path: Path, most_bytes: int, longest: int) -> Iterator[tuple[int, str]]:
    """Yield the lines of a regular text file in UTF-8, with their numbers from 1, without holding it.

    Raises:
        OSError: it cannot be read, has more bytes, or a line has more than `longest` characters; `strerror` says so.
        UnicodeDecodeError: it is in another encoding.
    """
    with open_plain(path, most_bytes) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
        for number, line in enumerate(iter(lambda: text.readline(longest + 1), ""), 1):
            if len(line) > longest:
                raise OSError(errno.EFBIG, f"line {number} has more than {longest:,} characters")
            yield number, line.rstrip("\n")


def is_utf8(name: str) -> bool:
    """Return whether a name is text; bytes in another encoding are kept as surrogates, which crash OpenCV."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def is_file(path: Path) -> bool:
    """Return whether there is a file; False for a path that is too long or forbidden."""
    return _ask(path.is_file)


def exists(path: Path) -> bool:
    """Return whether there is anything; False for a path that is too long or forbidden."""
    return _ask(path.exists)


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; False for a path that is too long or forbidden."""
    return _ask(path.is_dir)


def _ask(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):
        return False


def _open(path: Path) -> io.FileIO:
    """Open a file for reading, without waiting for the other end of a pipe."""
    return io.FileIO(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def _wait(file: io.FileIO, deadline_s: float) -> bytes:
    """Return the next bytes of a pipe or a device; none at its end."""
    poll, block = select.poll(), None
    poll.register(file, select.POLLIN)
    while block is None:
        if not poll.poll(1000 * max(0.0, deadline_s - time.monotonic())):
            raise OSError(errno.ETIMEDOUT, f"it does not send all within {PIPE_S:g} s")
        block = file.read(BLOCK_BYTES)  # None if another process was faster
    return block


def _check_size(size: int, most_bytes: int | None) -> None:
    if most_bytes is not None and size > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes >> 20:,} MiB")
