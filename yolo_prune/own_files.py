"""Files that this package made are told from those of others by a mark inside them, so that a command may make them anew."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from yolo_prune.files import check_replaceable

NAME = "yolo_prune"
PLOTS = {".png": {"Software": NAME}, ".svg": {"Title": NAME}, ".pdf": {"Creator": NAME}}
"""The kinds of plots that can be marked, and the metadata with which Matplotlib marks each."""
LOOKED_BYTES = 4096
"""So much of the beginning and of the end is looked at."""
_TEXT = b"Software\0" + NAME.encode()
_IHDR_END = 33
"""Bytes of a PNG file before its first chunk that may be text."""
_MARKS = {
    ".png": re.compile(re.escape(_TEXT)),
    ".pdf": re.compile(rb"/Creator \(yolo_prune\)"),
    ".svg": re.compile(rb"<dc:title>yolo_prune</dc:title>"),
    ".html": re.compile(rb'<meta name="generator" content="yolo_prune '),
    ".mp4": re.compile(rb"freeyolo_prune\Z"),
    ".json": re.compile(rb'\A\[(\]|\s+\{\s+"image_id": [^\n]*,\s+"category_id": \d+,\s+"bbox": \[)'),
    ".jsonl": re.compile(rb'\A\{"source": "[^\n]*", "frame": (\d+|null), "time_s": [^\n]*"detections": \['),
}
"""What is in files of each kind: a note of the program, or in JSON, which has no place for one, the very layout."""
_KINDS = {".htm": ".html"}


def name_maker(suffix: str) -> dict[str, str] | None:
    """Return the metadata with which Matplotlib marks a plot of this kind; None for a kind that has no place for it."""
    return PLOTS.get(suffix.lower())


def mark_png(content: bytes) -> bytes:
    """Return the bytes of a PNG file with the mark."""
    body = b"tEXt" + _TEXT
    chunk = struct.pack(">I", len(_TEXT)) + body + struct.pack(">I", zlib.crc32(body))
    return content[:_IHDR_END] + chunk + content[_IHDR_END:]


def mark_mp4(path: Path) -> None:
    """Append the mark to an MP4 file, as a box that players pass over."""
    with path.open("ab") as file:
        file.write(struct.pack(">I", 8 + len(NAME)) + b"free" + NAME.encode())


def is_marked(path: Path) -> bool:
    """Return whether this package made a file."""
    suffix = path.suffix.lower()
    if (mark := _MARKS.get(_KINDS.get(suffix, suffix))) is None:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_BYTES)
            file.seek(max(0, path.stat().st_size - LOOKED_BYTES))
            return any(map(mark.search, (head, file.read(LOOKED_BYTES))))
    except OSError:
        return False


def check_own(paths: Iterable[Path], *, force: bool, inputs: Iterable[Path] = (), option: str = "--out") -> None:
    """Check, before a command begins, that it will replace nothing but what this package made; see `check_replaceable`.

    Raises:
        OutputError: names the first file of somebody else, or a path that cannot be a file.
    """
    check_replaceable(paths, force=force, is_own=is_marked, inputs=inputs, option=option)
