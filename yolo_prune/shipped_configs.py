"""The configs that come with the package, by name: networks (`yolov3-tiny-hand`) and whole runs (`demo`).

A wheel has them beside this module; in a clone they are in the folder configs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from yolo_prune.errors import ConfigError
from yolo_prune.files import can_be_path, open_atomically
from yolo_prune.shared_settings import PathSetting

_HERE = Path(__file__).resolve()
FOLDER = next(
    (folder for folder in (_HERE.with_name("configs"), _HERE.parents[1] / "configs") if folder.is_dir()), _HERE
)


def find_cfg(path: Path) -> Path:
    """Return the shipped Darknet cfg file of that name; any other path, and one that exists, as it is."""
    return _find(path, ".cfg")


def find_run(path: Path) -> Path:
    """Return the shipped YAML file of a run of that name; any other path, and one that exists, as it is."""
    return _find(path, ".yaml")


CfgPath = Annotated[PathSetting, AfterValidator(find_cfg)]
"""The path of a Darknet cfg file, or the name of a shipped one."""


def list_configs() -> list[str]:
    """Return the file names of all shipped configs."""
    return sorted(path.name for path in FOLDER.glob("*.*") if path.suffix in (".cfg", ".yaml"))


def copy_config(name: str, folder: Path) -> Path:
    """Copy a shipped config to a folder, to be edited there, and return the copy's path.

    Raises:
        ConfigError: there is none of that name (names all), or the folder has such a file already.
        OutputError: it cannot be written.
    """
    known = list_configs()
    file = next((one for one in (name, f"{name}.yaml", f"{name}.cfg") if one in known), None)
    if file is None:
        raise ConfigError(
            f"there is no {name}" if name else "no config is named",
            where="NAME",
            right=f"use one of {', '.join(known)}",
        )
    copy = folder / file
    if copy.exists():
        raise ConfigError("is there already", where=copy, right="remove it first, or name another folder with --out")
    with open_atomically(copy) as target, (FOLDER / file).open("rb") as source:
        shutil.copyfileobj(source, target)
    return copy


def _find(path: Path, suffix: str) -> Path:
    if not can_be_path(path) or path.exists() or path.parent != Path():
        return path
    shipped = FOLDER / (path.name if path.suffix == suffix else f"{path.name}{suffix}")
    return shipped if shipped.is_file() else path
