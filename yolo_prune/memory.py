"""The memory that this process may still use, and errors that say that there is too little.

Source: Linux's proc_meminfo(5), cgroup-v2 (memory.max, memory.current, memory.stat), the memory controller of version 1,
getrlimit(2).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOMEM
from pathlib import Path

from yolo_prune.cgroups import ROOT, list_cgroups, read_lines
from yolo_prune.errors import InsufficientMemoryError, YoloPruneError

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50, "EiB": 2**60}
_SIGNS = (
    "out of memory",  # CUDA
    "can't allocate memory",  # PyTorch on CPUs
    "cannot allocate memory",  # the system, by name
    "not enough memory",
    "failed to allocate",  # OpenCV, ONNX Runtime
    "unable to allocate",  # NumPy
    "insufficient memory",
    "bad_alloc",  # C++
    "bad allocation",
    "_alloc_failed",  # cuBLAS, cuDNN
)
_SIZE = r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[KMGTPE]iB)?"
_ASKED = re.compile(rf"(?:allocate|of size) {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")


def find_available_bytes(root: Path = ROOT) -> int | None:
    """Return the bytes that this process may still use, by the machine, its cgroups and its limits; None if unknown.

    Args:
        root: the folder that holds the kernel's folders proc and sys.
    """
    found = [_read_meminfo(root), _read_address_space(root), *map(_read_cgroup, list_cgroups("memory", root))]
    return min((max(0, value) for value in found if value is not None), default=None)


@contextmanager
def without_collector() -> Iterator[None]:
    """Let Python's cyclic garbage collector rest within a block that makes millions of objects and keeps most.

    It would look at all of them again and again, and find nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice, by whatever library."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    return isinstance(error, Exception) and any(sign in str(error).lower() for sign in _SIGNS)


def explain_out_of_memory(error: BaseException, available: int | None = None) -> str:
    """Return what was asked for, and what is available, in a line; the latter is measured by default."""
    asked = _count(_ASKED.search(str(error)))
    available = find_available_bytes() if available is None else available
    if found := _FREE.search(str(error)):  # CUDA's own words, of the device
        available = _count(found)
    parts = [
        *([f"{format_bytes(asked)} asked for"] if asked else []),
        *([f"{format_bytes(available)} available"] if available is not None else []),
    ]
    return "out of memory" + (f" ({', '.join(parts)})" if parts else "")


@contextmanager
def naming_out_of_memory(where: str, right: str) -> Iterator[None]:
    """Turn any library's error about memory that does not suffice into one that says what to do.

    Raises:
        InsufficientMemoryError: memory did not suffice inside the context.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, YoloPruneError) or not is_out_of_memory(error):
            raise
        raise InsufficientMemoryError(explain_out_of_memory(error), where=where, right=right) from error


def format_bytes(count: float) -> str:
    """Return a number of bytes in kB, MB, GB or TB, with three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def _count(found: re.Match[str] | None) -> int | None:
    return None if found is None else round(float(found["number"]) * UNITS.get(found["unit"] or "", 1))


def _read_meminfo(root: Path) -> int | None:
    for line in read_lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return _parse(value.removesuffix("kB"), 1024)
    return None


def _read_address_space(root: Path) -> int | None:
    """Return how much the process's address space may still grow: `ulimit -v`."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = read_lines(root / "proc/self/statm")
        if limit != resource.RLIM_INFINITY and pages:
            return limit - int(pages[0].split()[0]) * resource.getpagesize()
    return None


def _read_cgroup(folder: Path) -> int | None:
    """Return what a cgroup may still use; what it keeps of files can be freed."""
    for most, used, freeable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = (_parse(" ".join(read_lines(folder / name))) for name in (most, used))
        if limit is not None and usage is not None:
            return limit - usage + _read_stat(folder, freeable)
    return None


def _read_stat(folder: Path, name: str) -> int:
    for line in read_lines(folder / "memory.stat"):
        key, _, value = line.partition(" ")
        if key == name:
            return _parse(value) or 0
    return 0


def _parse(text: str, unit: int = 1) -> int | None:
    return int(text) * unit if text.strip().isdecimal() else None
