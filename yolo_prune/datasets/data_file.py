"""The file that describes a data set: a data.yaml as YOLO tools write it, or Darknet's .data.

path: .                 # root of the other paths, relative to the YAML's folder; by default that folder
train: images/train     # a folder (searched recursively), a .txt with an image per line, or a list of these
val: images/val         # or validation, or valid
test: images/test       # may be omitted, or not exist
names: {0: hand}        # or [hand], or nc: 1 alone

classes = 1             # Darknet's: paths are relative to the working folder, the file's, or the one above
train = data/train.txt
valid = data/test.txt
names = data/obj.names
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolo_prune.bounded import exists, is_file, is_folder, read_text
from yolo_prune.errors import DatasetError
from yolo_prune.files import can_be_path, expand_home
from yolo_prune.limits import LONGEST_NAME, MOST_CLASSES, MOST_NAMES_BYTES, MOST_YAML_BYTES
from yolo_prune.yaml_text import parse_plain_yaml

SPLITS = ("train", "val", "test")
OTHER_NAMES = {"validation": "val", "valid": "val"}
"""Keys that other tools use for a split."""
RIGHT_FILE = "name a data.yaml, a text file"


@dataclass(frozen=True)
class DataFile:
    """What the file says."""

    path: Path
    values: Mapping[str, Any]
    """The splits, by their names here."""
    names: tuple[str, ...]
    roots: tuple[Path, ...]
    """Folders that the paths may be relative to: the first that exists counts."""
    notes: tuple[str, ...] = ()


def load_data_file(path: Path, needed: Sequence[str] = ("train", "val")) -> DataFile:
    """Read a data.yaml or a .data file, or the only data.yaml in a folder; `needed` are the splits that must be named.

    Raises:
        DatasetError: there is no such file, or not exactly one; it is broken (names the line), lacks a key (names it),
            or its class names are invalid.
    """
    try:
        path = find_data_file(path)
    except OSError as error:  # such as a folder that may not be read
        raise DatasetError(f"cannot be read ({error.strerror})", where=path, right=RIGHT_FILE) from error
    return (_load_darknet if path.suffix == ".data" else _load_yaml)(path, needed)


def find_data_file(path: Path) -> Path:
    """Return the data.yaml in a folder; any other path as it is.

    Raises:
        DatasetError: the folder has none, or several of which none is called data.yaml.
    """
    if not is_folder(path):
        return path
    found = sorted(place for place in path.iterdir() if place.suffix in (".yaml", ".yml", ".data") and is_file(place))
    named = [place for place in found if place.name in ("data.yaml", "data.yml")]
    if len(found) != 1 and len(named) != 1:
        what = (
            f"holds {len(found)} files that may describe it"
            if found
            else "cannot be read: it is a folder without a data.yaml"
        )
        right = f"name one of {', '.join(place.name for place in found)}" if found else "name a data.yaml"
        raise DatasetError(what, where=path, right=right)
    return named[0] if len(named) == 1 else found[0]


def make_missing(key: str, path: Path) -> DatasetError:
    """Return the error about a key that a data.yaml or a .data file lacks."""
    shown, sign = ("valid" if key == "val" else key, " =") if path.suffix == ".data" else (key, ":")
    return DatasetError(f"the key {shown} is missing", where=path, right=f"add a line {shown}{sign} …")


def _load_yaml(path: Path, needed: Sequence[str]) -> DataFile:
    try:
        values = parse_plain_yaml(_read(path, MOST_YAML_BYTES))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or error
        raise DatasetError(f"is not YAML ({problem})", where=where, right="correct that line") from error
    if not isinstance(values, dict):
        raise DatasetError("is not a mapping", where=path, right="write lines such as train: images/train")
    for other, key in OTHER_NAMES.items():
        if values.get(key) is None and other in values:
            values[key] = values.pop(other)
    notes: list[str] = []
    if values.get("names") is None and isinstance(count := values.get("nc"), int) and count > 0:
        _check_count(count, path)
        values = {**values, "names": [f"class_{number}" for number in range(count)]}
        notes.append(f"{path}: names is missing: the {count} classes are called class_0 and so on")
    for key in (*needed, "names"):
        if values.get(key) is None:
            raise make_missing(key, path)
    root = values.get("path") or "."
    if not isinstance(root, str) or not can_be_path(root):
        raise DatasetError(f"{reprlib.repr(root)} is no path", where=f"{path}: path", right="name a folder")
    place = expand_home(root)
    return DataFile(path, values, _parse_names(values, path), (path.parent / place, place), tuple(notes))


def _load_darknet(path: Path, needed: Sequence[str]) -> DataFile:
    values: dict[str, str] = {}
    for number, line in enumerate(_read(path, MOST_YAML_BYTES).splitlines(), 1):
        text = line.split("#", 1)[0].split(";", 1)[0].strip()
        if not text:
            continue
        key, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not key or not value:
            raise DatasetError(
                f"{reprlib.repr(text)} is no key = value", where=f"{path}:{number}", right="write train = train.txt"
            )
        values.setdefault(OTHER_NAMES.get(key, key), value)
    for key in (*needed, "names"):
        if key not in values:
            raise make_missing(key, path)
        if not can_be_path(values[key]):
            what = f"{reprlib.repr(values[key])} is no path"
            raise DatasetError(what, where=f"{path}: {key}", right="name a file")
    folder = path.resolve().parent
    places = (Path(), path.parent, folder.parent)
    roots = tuple(place for place in places if exists(place / values["train"])) or places[1:]
    names = next((place / values["names"] for place in places if is_file(place / values["names"])), None)
    if names is None:
        raise DatasetError(
            f"there is no file {values['names']}", where=f"{path}: names", right="name a file with a class per line"
        )
    lines = tuple(line.strip() for line in _read(names, MOST_NAMES_BYTES).splitlines() if line.strip())
    check_names(lines, names)
    stated = values.get("classes", str(len(lines)))
    if not lines or stated != str(len(lines)):
        what = f"classes = {stated} does not agree with the {len(lines)} names of {names}"
        raise DatasetError(what, where=path, right=f"write classes = {len(lines)}, or correct the names")
    splits = {key: value for key, value in values.items() if key in SPLITS}
    return DataFile(path, splits, lines, roots)


def check_names(names: Sequence[Any], where: str | Path) -> None:
    """Check the number of class names, and the length of each.

    Raises:
        DatasetError: there are too many, or one is too long.
    """
    _check_count(len(names), where)
    if (longest := max((len(str(name)) for name in names), default=0)) > LONGEST_NAME:
        what = f"a class name has {longest:,} characters, more than {LONGEST_NAME:,}"
        raise DatasetError(what, where=where, right="shorten it")


def _check_count(count: int, where: str | Path) -> None:
    if count > MOST_CLASSES:
        right = "correct it: no data set has so many"
        raise DatasetError(f"there are {count:,} classes, more than {MOST_CLASSES:,}", where=where, right=right)


def _read(path: Path, most_bytes: int) -> str:
    try:
        return read_text(path, most_bytes, "utf-8-sig", takes_pipes=True)
    except FileNotFoundError as error:
        raise DatasetError("there is no such file", where=path, right="name a data.yaml") from error
    except UnicodeDecodeError as error:
        right = "save it as UTF-8"
        raise DatasetError("cannot be read: it is not text in UTF-8", where=path, right=right) from error
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise DatasetError(f"cannot be read{reason}", where=path, right=RIGHT_FILE) from error


def _parse_number(key: Any) -> Any:
    """Return a class number that is written as text, such as "0"; anything else as it is."""
    return int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key


def _parse_names(values: Mapping[Any, Any], path: Path) -> tuple[str, ...]:
    where, names = f"{path}: names", values["names"]
    if isinstance(names, dict):
        numbered = {_parse_number(key): name for key, name in names.items()}
        if set(numbered) != set(range(len(names))):
            raise DatasetError(
                f"the classes are {reprlib.repr(list(names))}",
                where=where,
                right="number them 0, 1, 2, … without a gap",
            )
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(
            f"{reprlib.repr(names)} does not name the classes", where=where, right="write a line 0: name for each class"
        )
    check_names([name for name in names if isinstance(name, str)], where)
    for name in names:
        if type(name) not in (str, int):  # YAML reads an unquoted no as false
            what = f"{name!r} is no name" if isinstance(name, bool | float) else f"a {type(name).__name__} is no name"
            raise DatasetError(what, where=where, right="put quotes around it")
    if values.get("nc", len(names)) != len(names):
        right = f"write nc: {len(names)}, or leave it out"
        what = f"{reprlib.repr(values['nc'])} does not agree with {len(names)} names"
        raise DatasetError(what, where=f"{path}: nc", right=right)
    return tuple(map(str, names))
