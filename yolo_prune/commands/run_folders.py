"""Run folders, and how a command finds the checkpoint of the command before it.

runs/NAME/          one run: config.yaml, results.csv, results.png, last.pt, best.pt, plots, previews
runs/latest.json    the newest checkpoint of every stage; the newest of all comes last
"""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path

from yolo_prune.commands.run_lock import LOCK, FolderInUseError, is_locked, lock_folder
from yolo_prune.console import is_first_process
from yolo_prune.errors import ConfigError, OutputError
from yolo_prune.files import LONGEST_PATH_BYTES, can_be_path, save_json
from yolo_prune.records import PathText, load_record
from yolo_prune.scraps import remove_scraps

RUNS = Path("runs")
_LATEST = RUNS / "latest.json"
TRAINED = ("finetune", "prune", "train")
"""Stages whose checkpoints can be measured, and exported."""
RESULTS = ("best.pt", "pruned.pt")
"""What a run leaves in its folder."""
BEGINNINGS = ("prune.json", "short.pt")
"""What prune writes before its training begins: with these alone a run can neither be used nor resumed."""
PARTS = (*BEGINNINGS, "plan.png", "plan.json", "pruned.cfg")
"""The same of a run that has not ended well."""


@contextmanager
def take_run_folder(name: str, default: str) -> Iterator[Path]:
    """Take a folder for a new run, and yield it, locked. The default name gets the next free number.

    A folder without a result is free, unless a process holds its lock: its run was killed. A folder that is still
    without a result at the end, because the run failed, is removed.

    Raises:
        ConfigError: the chosen name is that of another run.
        OutputError: the folder cannot be written.
    """
    with ExitStack() as stack:
        folder = _lock_first_free(name, default, stack)
        _remove(folder, PARTS)
        try:
            yield folder
        except BaseException:
            if _is_free(folder, PARTS):
                _remove(folder, PARTS)
            raise
        if _is_free(folder):
            _remove(folder)


@contextmanager
def hold_run_folder(folder: Path, *, is_made: bool = False) -> Iterator[None]:
    """Lock the folder of a run that goes on; with `is_made`, make it. Of torchrun's processes the first one locks it.

    Raises:
        ConfigError: the run is running in another process.
        OutputError: the folder cannot be written.
    """
    if not is_first_process() or not (is_made or folder.is_dir()):
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder))
        except FolderInUseError as user:
            what = f"is in use by {user}"
            raise ConfigError(what, where=folder, right="wait until that ends, or stop it first") from None
        yield


def _list_folders(name: str, default: str) -> Iterator[Path]:
    """Yield the folders that a run of this name may have.

    Raises:
        ConfigError: a chosen name's one folder was not taken.
    """
    yield RUNS / name
    if name != default:
        right = "use another name, or train --resume"
        raise ConfigError(f"{RUNS / name} already holds a run", where="--name", right=right)
    for number in count(2):
        yield RUNS / f"{name}-{number}"


def _lock_first_free(name: str, default: str, stack: ExitStack) -> Path:
    for folder in _list_folders(name, default):
        if not _is_free(folder, PARTS if (folder / LOCK).exists() else BEGINNINGS):
            with suppress(OutputError):
                is_locked(folder)  # it removes the lock of a run that was killed when all was done
            continue
        try:
            was_killed = stack.enter_context(lock_folder(folder))
        except FolderInUseError as user:
            if name == default:
                continue
            what = f"{folder} is in use by {user}"
            raise ConfigError(what, where="--name", right="use another name, or wait until that ends") from None
        if _is_free(folder, PARTS if was_killed else BEGINNINGS):
            return folder
        stack.close()  # between the two looks another run has begun and ended there
    raise AssertionError("a list of folders without an end")


def _is_free(folder: Path, parts: Collection[str] = BEGINNINGS) -> bool:
    """Return whether a folder holds neither a result nor anything that can be resumed: hidden files, and parts of a run.

    Raises:
        OutputError: it cannot be read, or `runs` is a file.
    """
    try:
        return all(path.name.startswith(".") or path.name in parts for path in folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError as error:
        if folder.exists():
            return False
        raise OutputError("is no folder", where=folder.parent, right="rename it, or work in another folder") from error
    except OSError as error:
        raise OutputError(f"cannot be read ({error.strerror or error})", where=folder) from error


def _remove(folder: Path, parts: Collection[str] = BEGINNINGS) -> None:
    """Remove what a run leaves that was killed, or failed."""
    remove_scraps(folder)
    for name in parts:
        with suppress(OSError):
            (folder / name).unlink()


def find_run_folder(name: str, default: str) -> Path | None:
    """Return the newest folder of a name's runs that no process holds; of a chosen name the only one, if it exists."""
    if name != default:
        return RUNS / name if (RUNS / name).exists() else None
    existing = takewhile(Path.exists, _list_folders(name, default))
    return next((folder for folder in reversed([*existing]) if not is_locked(folder)), None)


def remember_latest(stage: str, checkpoint: Path) -> None:
    """Record a stage's newest checkpoint for later commands."""
    others = {other: path for other, path in _load_latest().items() if other != stage}
    save_json(_LATEST, {**others, stage: str(checkpoint)})


def find_latest(*stages: str) -> Path:
    """Return the newest checkpoint of any of `stages` that is still on disk.

    Raises:
        ConfigError: there is none.
    """
    for stage, path in reversed(_load_latest().items()):
        if stage in stages and Path(path).is_file():
            return Path(path)
    raise ConfigError(
        f"no checkpoint of {' or '.join(stages)} below {RUNS}",
        where="CHECKPOINT",
        right=f"name one, or run yoloprune {stages[-1]} first",
    )


def resolve_checkpoint(argument: Path | None, *stages: str) -> Path:
    """Return the checkpoint for a command: a given path, the path on stdin for `-`, or the newest of `stages`.

    The folder of a run stands for its checkpoint.

    Raises:
        ConfigError: it cannot be a path, stdin does not name one, or no earlier command has left one.
    """
    if argument is None:
        return find_latest(*stages)
    if str(argument) != "-":
        return find_in_folder(argument)
    line = os.fsdecode(sys.stdin.buffer.readline(LONGEST_PATH_BYTES + 1)).strip()
    if not line:
        raise ConfigError(
            "stdin names no checkpoint", where="-", right="pipe a command in that prints a checkpoint's path"
        )
    return find_in_folder(Path(line))


def find_in_folder(path: Path) -> Path:
    """Return the checkpoint that a run left in a folder; another path, and a folder without one, as it is.

    Raises:
        ConfigError: it cannot be a path.
    """
    if not can_be_path(path / RESULTS[-1]):
        what = f"{reprlib.repr(str(path))} cannot be a path"
        raise ConfigError(what, where="CHECKPOINT", right="name a file that train, prune or finetune wrote")
    return next((path / name for name in RESULTS if (path / name).is_file()), path)


def resolve_checkpoints(arguments: Sequence[Path] | None) -> list[Path]:
    """Return the checkpoints for a command that takes several: each as `resolve_checkpoint`, the newest without any.

    Raises:
        ConfigError: as for `resolve_checkpoint`.
    """
    return [resolve_checkpoint(argument, *TRAINED) for argument in arguments or (None,)]


def _load_latest() -> dict[str, str]:
    if not _LATEST.is_file():
        return {}  # a command needs a path then
    try:
        return load_record(dict[str, PathText], _LATEST, ConfigError, "")
    except ConfigError:
        return {}  # the next command writes it anew
