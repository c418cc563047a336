"""The cgroups that limit this process.

Source: Linux's cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def list_cgroups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the folders of this process's cgroups that a controller, such as "cpu", can limit, and those above them.

    Args:
        root: the folder that holds the kernel's folders proc and sys.
    """
    mounts = list(_list_mounts(root))
    for line in read_lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_second = number == "0" and not controllers
        if not is_second and controller not in controllers.split(","):
            continue
        for kind, options, source, place in mounts:
            if kind == "cgroup2" if is_second else kind == "cgroup" and controller in options:
                top = root / place.lstrip("/")
                folder = top / _make_relative(path, source)
                yield folder
                yield from (parent for parent in folder.parents if parent.is_relative_to(top))


def _list_mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """Yield type, options, mounted folder of the file system, and mount point of every mount."""
    for line in read_lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) > 4 and len(rest) > 2:
            yield rest[0], rest[2].split(","), fields[3], fields[4]


def _make_relative(path: str, source: str) -> str:
    """Return a cgroup's path relative to the mounted folder, or that folder if the cgroup is not in it."""
    inside = path.removeprefix(source.rstrip("/"))
    if (inside and not inside.startswith("/")) or (inside == path and source != "/"):
        return ""
    return inside.lstrip("/")


def read_lines(path: Path) -> list[str]:
    """Return the lines of one of the kernel's files; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
