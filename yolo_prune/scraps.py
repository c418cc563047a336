"""What a process is writing has a hidden name that tells the process; what killed processes left is removed.

.NAME.MACHINE-PID.tmp    beside the place that the finished file or folder gets
"""

from __future__ import annotations

import atexit
import glob
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yolo_prune.errors import OutputError

CLOCK_SLACK_S = 2.0
"""By so much the start of a process may be told too late: the time of the last boot is told in whole seconds."""
_SCRAP = re.compile(r"\..+?\.(?:([0-9a-f]{8})-)?(\d+)\.tmp(?:\.\w+)?")
"""The name of what a process is writing; it tells no machine in versions before 0.2."""
_unfinished: set[Path] = set()
"""What this process is writing; what is still in here when it ends is removed then."""
_cleared: set[Path] = set()
"""Folders in which this process has looked for what killed processes left."""


def name_scrap(path: Path) -> Path:
    """Return the name that `path` has while this process writes it: a hidden one that tells machine and process."""
    return path.with_name(f".{path.name}.{_name_machine()}-{os.getpid()}.tmp")


def begin_scrap(path: Path, suffix: str = "") -> Path:
    """Return `name_scrap` of a path, with a suffix; what has this name at this process's end is removed."""
    scrap = name_scrap(path)
    scrap = scrap.with_name(scrap.name + suffix)
    _unfinished.add(scrap)
    return scrap


def remove_scraps(folder: Path, name: str = "*", *, machines: tuple[str | None, ...] | None = None) -> None:
    """Remove what killed processes of this machine had begun to write in a folder, under any name or the given one.

    Args:
        machines: which machines' names they may tell; by default this one's, or none as in old versions.
    """
    machines = (None, _name_machine()) if machines is None else machines
    for scrap in folder.glob(f".{name if name == '*' else glob.escape(name)}.*.tmp*"):
        found = _SCRAP.fullmatch(scrap.name)
        if found is None or found[1] not in machines or _may_be_writing(int(found[2]), scrap):
            continue
        discard(scrap)


def discard(scrap: Path) -> None:
    """Remove a file or folder that was not finished, as far as that is possible."""
    with suppress(OSError):
        shutil.rmtree(scrap) if scrap.is_dir() and not scrap.is_symlink() else scrap.unlink()
    _unfinished.discard(scrap)


@atexit.register
def _discard_unfinished() -> None:
    """Remove what is left of a with block that a signal came to before its first or after its last line."""
    for scrap in list(_unfinished):
        if f"-{os.getpid()}." in scrap.name:
            discard(scrap)


def clear_once(folder: Path) -> None:
    """Remove, unless this process has done so, what killed processes left in a folder, which may be anybody's."""
    place = folder.absolute()
    if place not in _cleared:
        _cleared.add(place)
        remove_scraps(folder, machines=(_name_machine(),))


@contextmanager
def make_temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the system's temporary files, which is removed at the end.

    Remove those that killed processes left.

    Raises:
        OutputError: it cannot be made.
    """
    home: Path | None = None
    try:
        home = _make_temporary_home()
        folder = Path(tempfile.mkdtemp(dir=home))
    except OSError as error:
        what = f"no temporary folder can be made ({error.strerror or error})"
        right = "make room there, or name a folder that can be written in TMPDIR"
        raise OutputError(what, where=home or "TMPDIR", right=right) from error
    try:
        yield folder
    finally:
        discard(folder)
        with suppress(OSError):
            home.rmdir()  # unless another part of this process uses it


def _make_temporary_home() -> Path:
    """Make the folder of this process's temporary files, whose name tells the process; return it."""
    place = Path(tempfile.gettempdir()) / "yolo_prune"
    remove_scraps(place.parent, place.name)
    home = begin_scrap(place)
    home.mkdir(mode=0o700, exist_ok=True)
    is_own = not hasattr(os, "geteuid") or home.lstat().st_uid == os.geteuid()
    return home if is_own and not home.is_symlink() else place.parent


def _name_machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _may_be_writing(pid: int, scrap: Path) -> bool:
    """Return whether the process of this number lives, and lived when `scrap` was last written."""
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        (booted_s,) = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
        return int(booted_s) + ticks / os.sysconf("SC_CLK_TCK") <= scrap.stat().st_mtime + CLOCK_SLACK_S
    except (OSError, ValueError, IndexError):
        return True  # not Linux: nobody tells when it began
