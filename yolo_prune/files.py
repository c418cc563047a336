"""Load and save files; a file is saved completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from yolo_prune.bounded import open_plain, read_bytes, read_text
from yolo_prune.errors import ConfigError, OutputError, YoloPruneError
from yolo_prune.limits import MOST_JSON_BYTES, MOST_YAML_BYTES
from yolo_prune.scraps import begin_scrap, clear_once, discard, remove_scraps
from yolo_prune.yaml_text import Located, parse_yaml

PACKAGES = (".mlpackage",)
"""Ends of the names of folders that count as files."""
LONGEST_PATH_BYTES, LONGEST_NAME_BYTES, MOST_NAMES = 4096, 255, 1000
"""Of a path in Linux; of each name in it; and how many names a path in a file may have."""


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that gets the name `path` only after everything is written and synced.

    Remove what killed processes had begun to write in the same folder.

    Raises:
        OutputError: the folder or the file cannot be written; an existing `path` is not changed.
    """
    scratch = begin_scrap(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_once(path.parent)
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", where=path) from error
    finally:
        discard(scratch)


@contextmanager
def make_folder_atomically(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out` that is renamed to `out` at the end; after an error, an existing `out` is kept.

    Raises:
        OutputError: `out` exists and is not an empty folder, or it cannot be written.
    """
    if out.name in ("", ".."):  # a shell in this folder would lose it when it is replaced
        raise OutputError("is no name for a folder to make", where=out, right="name a new or empty folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError("holds something already", where=out, right="name a new or empty folder")
    with make_scratch_folder(out) as scratch:
        with naming_place(scratch, out):
            yield scratch
        scratch.replace(out)


@contextmanager
def naming_place(scratch: Path, out: Path) -> Iterator[None]:
    """Have errors about files in a scratch folder name their place in `out`: nobody finds what is removed.

    Raises:
        OutputError: as inside.
    """
    try:
        yield
    except OutputError as error:
        where = None if error.where is None else error.where.replace(str(scratch), str(out))
        raise OutputError(error.what, where=where, right=error.right) from error


@contextmanager
def make_scratch_folder(out: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `out`, which is removed at the end; remove those that killed processes left.

    Raises:
        OutputError: it cannot be made, or something inside raises an OSError.
    """
    scratch = begin_scrap(out)
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        remove_scraps(out.parent, out.name)
        scratch.mkdir()
        yield scratch
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", where=out) from error
    finally:
        discard(scratch)


def write_part(path: Path, content: bytes) -> None:
    """Write a file of a new folder, such as `make_folder_atomically` yields; the folders above it are made as needed.

    Raises:
        OSError: it cannot be written.
    """
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def check_replaceable(
    paths: Iterable[Path],
    *,
    force: bool,
    is_own: Callable[[Path], bool] = lambda path: False,
    inputs: Iterable[Path] = (),
    option: str = "--out",
) -> None:
    """Check, before a command writes anything, that no file of somebody else would be replaced.

    Args:
        paths: the files that will be written.
        force: whether files of others may be replaced.
        is_own: whether an existing file was made by the same command from the same thing.
        inputs: what the command reads; it is never replaced.
        option: what names the files.

    Raises:
        OutputError: names the first file that would be replaced, or a path that cannot be a file.
    """
    read = {path.resolve() for path in inputs}
    taken: list[Path] = []
    for path in paths:
        if path.name in ("", ".."):
            raise OutputError("is no name for a file", where=path, right="name a file")
        if path.is_dir() and path.suffix not in PACKAGES:
            raise OutputError("is a folder", where=path, right="name a file")
        if path.resolve() in read:
            raise OutputError(
                "is read by this command, and would be replaced", where=path, right=f"name another {option}"
            )
        if (path.exists() or path.is_symlink()) and not force and not is_own(path):
            taken.append(path)
    if taken:
        more = "" if len(taken) == 1 else f", as would {', '.join(map(str, taken[1:]))}"
        right = f"name another {option}, or replace with --force"
        raise OutputError(f"is there already, and would be replaced{more}", where=taken[0], right=right)


def expand_home(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder; as in a shell, `~name` stays if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises there


def can_be_path(path: str | Path) -> bool:
    """Return whether there can be a file with this path, whether or not there is one."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return False
    names = encoded.split(b"/")
    is_short = len(encoded) < LONGEST_PATH_BYTES and max(map(len, names)) <= LONGEST_NAME_BYTES
    return b"\0" not in encoded and is_short and len(names) <= MOST_NAMES


def save_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, atomically, and return `path`."""
    with open_atomically(path) as file:
        file.write(text.encode())
    return path


def save_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON to `path`, atomically, and return `path`; nan becomes null."""
    return save_text(path, json.dumps(replace_nan(value), indent=2) + "\n")


def is_text(path: Path, text: str) -> bool:
    """Return whether a file holds exactly this text, as UTF-8."""
    try:
        return read_bytes(path, len(text.encode())) == text.encode()
    except OSError:
        return False


def load_json(path: Path, error: type[YoloPruneError], right: str, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Read a JSON file of at most so many bytes as a whole.

    Raises:
        YoloPruneError: of type `error`: the file cannot be read, or is not JSON (names the line); `right` tells which
        file to name.
    """
    try:
        return json.loads(read_text(path, most_bytes, takes_pipes=True))
    except json.JSONDecodeError as broken:
        raise error(
            f"is not JSON ({broken.msg})", where=f"{path}:{broken.lineno}", right="correct that line"
        ) from broken
    except (OSError, ValueError, RecursionError) as broken:  # not UTF-8, a number of thousands of digits, too deep
        reason = broken.strerror if isinstance(broken, OSError) else "it is no JSON text"
        raise error(f"cannot be read ({reason})", where=path, right=right) from broken


def replace_nan(value: Any) -> Any:
    """Return nested data with every nan, which JSON does not have, replaced by None."""
    if isinstance(value, dict):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def measure_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes as hexadecimal text."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_yaml(path: Path) -> Located:
    """Load a YAML file that holds a mapping; all mappings in it record the lines of their keys.

    Raises:
        ConfigError: the file cannot be read, is not YAML (names the line) or not a mapping.
    """
    try:
        value = parse_yaml(read_text(path, MOST_YAML_BYTES, takes_pipes=True))
    except (OSError, ValueError) as error:  # not UTF-8, or a null byte in the path
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise ConfigError(f"cannot be read{reason}", where=path, right="name a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        raise ConfigError(
            f"is not YAML ({getattr(error, 'problem', error)})", where=where, right="correct that line"
        ) from error
    if value is None:
        return Located()
    if not isinstance(value, Located):
        raise ConfigError("is not a mapping", where=path, right="write key: value lines")
    return value
