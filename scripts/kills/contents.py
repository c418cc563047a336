"""What a folder holds: whether every file in it is whole, and whether it is the same as another."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import yaml
from PIL import Image

from yolo_prune.model.checkpoint import is_checkpoint, load_checkpoint

INCIDENTAL = {"images_per_s", "git_revision", "recipe", "seconds", "sha256", "checkpoint_sha256", "made_of", "begun_of"}
"""Keys whose values may differ: clocks, a commit between two runs, settings that change when a run is resumed, and hashes of
files that hold such."""
SCRAP = re.compile(r"\..+\.tmp(\.\w+)?")
"""The name of what a process is writing."""
LOCK = ".lock"
GROWING = (".csv", ".jsonl")
NUMBERED = re.compile(r"\b(runs/[a-z]+)-\d+(?=/)")
"""The folder of a run whose name was taken by one that was killed after its work was done."""

NAMES = re.compile(rb"(?<=\bModel)\d+|(?<=_)\d+(?=[\"_,])")
"""OpenVINO numbers a network's parts by all that its process has made."""

Contents = Mapping[str, bytes]
"""The bytes of every file of a folder, by its path in it."""


def read_contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in list_files(folder)}


def list_files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, in order."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def find_scraps(folder: Path) -> list[str]:
    """Return what processes were writing when they ended; folders as well as files."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if SCRAP.fullmatch(path.name))
    return [path.as_posix() for path in found if not any(SCRAP.fullmatch(part) for part in path.parts[:-1])]


def find_broken(folder: Path, before: Contents, whole: Contents) -> list[str]:
    """Return the files that are not whole: that cannot be read, or, where nobody can tell, are none of the whole ones."""
    broken = []
    for name, content in read_contents(folder).items():
        if is_scrap(name) or content in (before.get(name), whole.get(name)):
            continue
        path = Path(name)
        try:
            if name in before and not is_written(name, before, whole):
                broken.append(f"{name} was changed")
            elif not check(path, content) and name in whole and len(content) < len(whole[name]) / 2:
                broken.append(f"{name} has {len(content)} bytes")
        except Exception as error:  # noqa: BLE001  # whatever a reader says of what is half-written
            broken.append(f"{name} ({type(error).__name__})")
    return broken


def is_scrap(name: str) -> bool:
    """Return whether a path is that of something that is being written, or of a lock."""
    parts = name.split("/")
    return parts[-1] == LOCK or any(SCRAP.fullmatch(part) for part in parts)


def is_written(name: str, before: Contents, whole: Contents) -> bool:
    """Return whether the command writes a file that was there before."""
    return before.get(name) != whole.get(name)


def check(path: Path, content: bytes) -> bool:
    """Read a file's bytes to the end; return False if nobody knows its format.

    Raises:
        Exception: it is not whole.
    """
    suffix = path.suffix
    if suffix in (".png", ".jpg"):
        Image.open(io.BytesIO(content)).load()
    elif suffix in (".pt", ".pt2", ".pth") or content[:2] == b"PK":
        if zipfile.ZipFile(io.BytesIO(content)).testzip() is not None:
            raise ValueError("a part of the archive is damaged")
    elif suffix == ".json":
        json.loads(content)
    elif suffix == ".jsonl":
        [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    elif suffix == ".yaml":
        yaml.safe_load(content)
    elif suffix == ".xml":
        ElementTree.fromstring(content)
    elif suffix == ".csv":
        rows = [*csv.reader(content.decode().splitlines())]
        if not content.endswith(b"\n") or len({*map(len, rows)}) != 1:
            raise ValueError("a row is cut")
    elif suffix == ".html":
        if not content.rstrip().endswith(b"</html>"):
            raise ValueError("the page is cut")
    else:
        return False
    return True


def compare(folder: Path, other: Path, timed: Sequence[str]) -> str | None:
    """Return the first difference of two folders, or None; files of measured times need only be there, and whole."""
    ours, theirs = ({unnumber(name): path for name, path in _list(one)} for one in (folder, other))
    if missing := sorted(set(theirs) ^ set(ours)):
        return f"{missing[0]} is {'missing' if missing[0] in theirs else 'new'}"
    for name, path in ours.items():
        left, right = path.read_bytes(), theirs[name].read_bytes()
        if any(name == one or name.startswith(f"{one}/") for one in timed):
            check(path, left)
        elif left != right and (place := find_difference(read(path), read(theirs[name]), name)) is not None:
            return f"{place} differs"
    return None


def _list(folder: Path) -> list[tuple[str, Path]]:
    return [(path.relative_to(folder).as_posix(), path) for path in list_files(folder)]


def read(path: Path) -> Any:
    """Read a file as values to compare: a checkpoint, a table, or else bytes."""
    if path.suffix == ".pt" and is_checkpoint(path):
        found = load_checkpoint(path)
        return {part: getattr(found, part) for part in ("state", "training", "provenance")}
    if path.suffix == ".json":
        return json.loads(unnumber(path.read_text()))
    if path.suffix == ".csv":
        return [*csv.DictReader(path.read_text().splitlines())]
    if path.suffix in (".yaml", ".md"):
        return unnumber(path.read_text())
    return NAMES.sub(b"", path.read_bytes()) if path.suffix == ".xml" else path.read_bytes()


def unnumber(text: str) -> str:
    """Return a text with the first number's folder in place of those of later runs of a name."""
    return NUMBERED.sub(r"\1", text)


def find_difference(one: Any, other: Any, place: str) -> str | None:
    """Return where two nests of mappings, sequences, tensors and values differ first, or None."""
    if isinstance(one, torch.Tensor):
        return None if isinstance(other, torch.Tensor) and torch.equal(one, other) else place
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        pairs = [(key, one[key], other[key]) for key in one if key not in INCIDENTAL]
    elif isinstance(one, Sequence) and not isinstance(one, str | bytes) and len(one) == len(other):
        pairs = [(number, *pair) for number, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other or (one != one and other != other) else place
    return next(filter(None, (find_difference(a, b, f"{place}: {key}") for key, a, b in pairs)), None)
