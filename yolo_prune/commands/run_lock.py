"""The lock of a run's folder: a file that one process keeps locked, and that the system unlocks when this process ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from yolo_prune.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
MOST_TRIALS = 100
"""How often a folder is made that others remove at the same time."""
_open_locks: set[TextIO] = set()


class FolderInUseError(Exception):
    """Another process has locked a folder; the text says which."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which is made if it does not exist, and removed at the end, as its parent, if empty.

    Yield whether the lock's last holder was killed: it has not removed it. Where the file system has no locks, hold none.

    Raises:
        FolderInUseError: another process, or another run of this one, holds it.
        OutputError: the folder cannot be written.
    """
    file, was_left = _lock(folder)
    _open_locks.add(file)
    try:
        yield was_left
    finally:
        _open_locks.discard(file)
        with suppress(OSError):
            (folder / LOCK).unlink()
            folder.rmdir()  # it fails where there is anything to keep
            folder.parent.rmdir()
        file.close()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with lock_folder(folder):
            return False
    except FolderInUseError:
        return True


def _lock(folder: Path) -> tuple[TextIO, bool]:
    """Return the locked file, and whether its last holder has left it."""
    try:
        while True:
            file = _open(folder)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with file:
                    file.seek(0)
                    raise FolderInUseError(_describe(file.read())) from None
            except OSError:  # a file system without locks
                return file, False
            if _is_still(file, folder / LOCK):
                file.seek(0)
                was_left = bool(file.read())
                file.truncate(0)
                file.write(f"{os.getpid()} {socket.gethostname()}\n")
                file.flush()
                return file, was_left
            file.close()  # its last holder has removed it since it was opened
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", where=folder) from error


def _open(folder: Path) -> TextIO:
    for trial in count(1):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return (folder / LOCK).open("a+", encoding="utf-8")
        except FileNotFoundError:  # its last holder has just removed the folder
            if trial == MOST_TRIALS:
                raise
    raise AssertionError("a count without an end")


def _is_still(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _describe(text: str) -> str:
    """Return the process that a lock's text names, in words."""
    pid, _, host = text.strip().partition(" ")
    if not pid.isdigit():
        return "another process"  # it has the lock, and has not written its number yet
    return f"process {pid}" if host in ("", socket.gethostname()) else f"process {pid} of {host}"


def _let_go() -> None:
    for file in _open_locks:
        file.close()
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # else a child that outlives this process would keep its locks
