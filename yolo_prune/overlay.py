"""Settings over settings: a YAML file over the defaults, and over that what the command line or a call gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

import yaml

from yolo_prune.config import Entry, list_settings, parse_config
from yolo_prune.errors import ConfigError
from yolo_prune.files import load_yaml
from yolo_prune.yaml_text import parse_yaml

C = TypeVar("C")
Given: TypeAlias = dict[str, Any]
"""The settings that were given on the command line, by their names."""
COMMAND_LINE, CALL = "command line", "call"
"""Where settings were given, if an error can name no better place."""


def overlay(base: C, file: Path | None, given: Mapping[str, Any]) -> C:
    """Return the settings `base` with a YAML file over them, and what was given on the command line over that.

    Raises:
        ConfigError: a key is unknown, a value is of the wrong type or out of range, or two contradict each other.
    """
    if file is not None:
        base = parse_config(base, load_yaml(file), file)
    try:
        return parse_config(base, given, COMMAND_LINE)
    except ConfigError as error:
        place = (error.where or "").removeprefix(COMMAND_LINE).removeprefix(": ")
        flags = {one.name: one.flag for one in list_settings(type(base)) if not one.is_nested and one.name in given}
        key = place.partition("[")[0]
        is_file = key.partition(".")[0] not in given and key
        where = flags.get(key) or (place if is_file else f"--set {place}".rstrip())
        raise ConfigError(error.what, where=where, right=error.right) from None


def overlay_call(base: C, keywords: Mapping[str, Any]) -> C:
    """Return the settings `base` with a call's keyword arguments over them; nested configs are given as such or as dicts.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    whole = {name: value for name, value in keywords.items() if is_dataclass(value)}
    rest = {name: value for name, value in keywords.items() if name not in whole}
    try:
        return parse_config(replace(base, **whole) if whole else base, rest, CALL)  # type: ignore[type-var]  # a dataclass
    except ConfigError as error:
        where = (error.where or "").removeprefix(CALL).removeprefix(": ")
        raise ConfigError(error.what, where=where or None, right=error.right) from None


def take_changes(base: Any, given: Given, others: Mapping[str, Any]) -> tuple[str, Given]:
    """Return the name of the run to resume, and what may change of it.

    Raises:
        ConfigError: more was given than that; `others` are further options and arguments.
    """
    entries = list_settings(type(base))
    changeable = [one for one in entries if one.setting.resumable]
    flags = {one.name: one.flag for one in entries if not one.is_nested}
    more = [
        flags.get(name, f"--set {name}")
        for name in given
        if name != "name" and name not in {one.name for one in changeable}
    ]
    more += [name for name, value in others.items() if value]
    if more:
        right = f"leave it out, or start a new run; {', '.join(one.flag for one in changeable)} may change"
        raise ConfigError("a resumed run keeps its settings", where=more[0], right=right)
    return given.get("name", base.name), {name: value for name, value in given.items() if name != "name"}


def parse_option(entry: Entry, value: Any) -> Any:
    """Return an option's value as the setting takes it: lists from texts with commas, numbers or words where both may be."""
    if entry.is_list:
        texts = [text.strip() for part in value for text in part.split(",")]
        return texts if str in get_args(entry.kind) else [_read(text) for text in texts]
    return _read(value) if entry.is_union and isinstance(value, str) else value


def set_by_path(given: Given, text: str) -> None:
    """Add KEY=VALUE, the key with dots for nested settings.

    Raises:
        ConfigError: it is not of that form.
    """
    key, sign, value = text.partition("=")
    *path, last = key.strip().split(".")
    if not sign or not all((*path, last)):
        raise ConfigError(f"{text!r} is no KEY=VALUE", where="--set", right="write loss.box=2.0")
    for part in path:
        given = given.setdefault(part, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{part} was given a value as a whole", where="--set", right="give one of the two")
    given[last] = _read(value)


def _read(text: str) -> Any:
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # a wrong tag
        return text
