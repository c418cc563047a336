"""Packages that are not installed with the project: imported where they are needed, with one line if they are missing."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType

from yolo_prune.errors import ConfigError

TELEMETRY = "openvino_telemetry"
"""OpenVINO and NNCF report each conversion to Intel through it, from a process of its own, unless it is missing."""


def import_package(name: str, purpose: str, extra: str = "export") -> ModuleType:
    """Import an optional package. None of them sends anything anywhere, or starts a process to do so.

    Raises:
        ConfigError: it is not installed; names the extra that brings it.
    """
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # Python then says that there is no such package
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it deprecates of others is not ours to mend
            return import_module(name)
    except ImportError as error:
        what = f"needs the package {name.partition('.')[0]} ({error})"
        raise ConfigError(what, where=purpose, right=f"python -m pip install 'yolo-prune[{extra}]'") from error
