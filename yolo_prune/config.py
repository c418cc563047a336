"""Settings: frozen dataclasses filled from YAML text and flags, with every mistake named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from yolo_prune.errors import ConfigError

C = TypeVar("C")


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: the file cannot be read, is no YAML (names the line) or no mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot be read", where=path, right="name a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        raise ConfigError(
            f"is not YAML ({getattr(error, 'problem', error)})", where=where, right="correct that line"
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError("is not a mapping", where=path, right="write key: value lines")
    return value


def parse_config(base: C, values: Mapping[str, Any], where: str | Path) -> C:
    """Return the config dataclass `base` with the mapping's values in place, nested ones from nested mappings.

    Raises:
        ConfigError: an unknown key (names the nearest known one) or a value of the wrong type.
    """
    hints = get_type_hints(type(base))
    known = [field.name for field in fields(base)]  # type: ignore[arg-type]  # C is always a dataclass
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, 1, cutoff=0.4)
            right = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
            raise ConfigError(f"unknown key {key}", where=where, right=right)
    changes = {key: _convert(hints[key], getattr(base, key), value, f"{where}: {key}") for key, value in values.items()}
    return replace(base, **changes)  # type: ignore[type-var]  # the same


def format_config(config: Any) -> dict[str, Any]:
    """Return a config as plain nested dictionaries that YAML and JSON can hold; `parse_config` takes them back."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return dict(plain(config))


def _convert_to_any(kinds: Sequence[Any], present: Any, value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return _convert(kind, present, value, where)
        except ConfigError:
            continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ConfigError(f"{value!r} is of the wrong type", where=where, right=f"write a value of type {names}")


def _convert(kind: Any, present: Any, value: Any, where: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        kinds = [option for option in get_args(kind) if option is not NoneType]
        if len(kinds) > 1:
            return _convert_to_any(kinds, present, value, where)
        (kind,) = kinds
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(kind)[0], None, item, where) for item in value)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{value!r} is no mapping", where=where, right="write key: value lines below it")
        return parse_config(kind() if present is None else present, value, where)
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = "str, in quotes" if kind is str else getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{value!r} is of the wrong type", where=where, right=f"write a value of type {name}")
