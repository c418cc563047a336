"""Packages that are not installed with the project: imported where they are needed, with one line if they are missing."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

from yolo_prune.errors import ConfigError


def import_package(name: str, purpose: str, extra: str = "export") -> ModuleType:
    """Import an optional package.

    Raises:
        ConfigError: it is not installed; names the extra that brings it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it deprecates of others is not ours to mend
            return import_module(name)
    except ImportError as error:
        what = f"needs the package {name.partition('.')[0]} ({error})"
        raise ConfigError(what, where=purpose, right=f"python -m pip install 'yolo-prune[{extra}]'") from error
