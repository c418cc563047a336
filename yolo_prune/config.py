"""Settings: each is one field of a frozen config class, with its type, default, range and help text.

    field ──► check on construction ──► YAML keys ──► command-line options ──► JSON schema ──► docs/settings.md

A config class is a dataclass made by `settings`; a field's type says what it may hold, `Literal` lists choices, and a
`Setting` beside the type holds the rest:

    @settings
    class Example:
        epochs: Annotated[int, Setting("Passes over the training images.", ge=1)] = 30
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from dataclasses import Field as DataclassField
from difflib import get_close_matches
from functools import cache, partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import annotated_types
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from typing_extensions import dataclass_transform

from yolo_prune.errors import ConfigError
from yolo_prune.image_size import STRIDE_PX, ImageSize

C = TypeVar("C")

RUN = "Run"
"""Heading in --help of what is the same for many commands."""
LARGEST_SEED = 2**63 - 1
LONGEST_VALUE = 60
"""Characters of a wrong value that an error shows."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST_VALUE


@dataclass(frozen=True)
class Setting(annotated_types.GroupedMetadata):
    """What there is to say of a setting beside its type and default."""

    help: str
    """One or two sentences, for --help, the schema and the reference page."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    unit: str = ""
    """Such as `px`, `epochs`."""
    default: str = ""
    """In words, where it depends on other things."""
    flag: str = ""
    """The command-line option, where it is not `--` and the name."""
    group: str = ""
    """Heading in --help."""
    resumable: bool = False
    """A resumed run may change it: it says how a run is carried out, not what comes out of it."""
    was: str = ""
    """An older name, which is still read."""
    of: str = ""
    """The granularity, channel or weight, that it has a meaning for; empty for both."""

    def __iter__(self) -> Iterator[annotated_types.BaseMetadata]:
        """Yield the bounds, which pydantic checks."""
        bounds = {
            "ge": annotated_types.Ge,
            "gt": annotated_types.Gt,
            "le": annotated_types.Le,
            "lt": annotated_types.Lt,
        }
        for name, kind in bounds.items():
            if (bound := getattr(self, name)) is not None:
                yield kind(bound)


@dataclass(frozen=True)
class Entry:
    """One setting of a config class, as everything that is made from it needs it."""

    name: str
    kind: Any
    """The type without None and without metadata; a config class for nested settings."""
    setting: Setting
    factory: Any = field(repr=False)

    @property
    def default(self) -> Any:
        """The default value; config classes are made anew."""
        return None if self.factory is None else self.factory()

    def describe_default(self, value: Any) -> str:
        """Say a value in words, as that of a config where nothing is given; empty where there is nothing to say."""
        if value is None or value is False or value == () or (self.setting.default and value == self.default):
            return self.setting.default
        if self.is_nested:
            return ""
        if value is True:
            return "yes"
        is_list = isinstance(value, tuple) and not isinstance(value, ImageSize)
        return ",".join(map(str, value)) if is_list else str(value)

    def describe(self, value: Any, has_choices: bool) -> str:
        """Return the help text, with unit, choices if wanted, range, and `value` as the default."""
        words = "" if self.is_required else self.describe_default(value)
        notes = (
            self.setting.unit,
            f"one of {', '.join(self.choices)}" if has_choices else "",
            describe_bounds(self.setting),
            f"default: {words}" if words else "",
        )
        limits = "; ".join(note for note in notes if note)
        return f"{self.setting.help} ({limits})" if limits else self.setting.help

    @property
    def is_nested(self) -> bool:
        """Whether it holds a config class of its own."""
        return is_dataclass(self.kind)

    @property
    def is_list(self) -> bool:
        """Whether it holds several values."""
        return get_origin(self.kind) is tuple

    @property
    def is_union(self) -> bool:
        """Whether it may be of several types, such as a number or a word."""
        return get_origin(self.kind) in (Union, UnionType)

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.factory is None

    @property
    def choices(self) -> tuple[str, ...]:
        """What it may be, where that is a list."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def flag(self) -> str:
        """The command-line option."""
        return self.setting.flag or f"--{self.name.replace('_', '-')}"

    @property
    def range(self) -> str:
        """What values it takes, in words."""
        return describe(self.kind, self.setting)


@dataclass_transform(frozen_default=True)
def settings(cls: type[C]) -> type[C]:
    """Make a frozen dataclass whose fields are checked on construction.

    Raises:
        ConfigError: on construction, if a value is of the wrong type or out of range; names the field.
    """
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made = cast(type[C], checked_dataclass(frozen=True, config=rules)(cls))
    check = made.__init__

    @wraps(check)
    def construct(self: Any, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except ValidationError as error:
            raise _explain(made, error) from None

    setattr(made, "__init__", construct)  # noqa: B010  # mypy knows no other way to wrap it
    return made


def list_settings(cls: Any) -> tuple[Entry, ...]:
    """Return the settings of a config class in their order."""
    return _list_settings(cls)


@cache
def _list_settings(cls: Any) -> tuple[Entry, ...]:
    hints = get_type_hints(cls, include_extras=True)
    entries = []
    for one in fields(cls):
        metadata: list[Any] = []
        kind = _unwrap(hints[one.name], metadata)
        setting = next((part for part in metadata if isinstance(part, Setting)), Setting(""))
        factory: Any = one.default_factory
        if factory is MISSING:
            factory = None if one.default is MISSING else partial(_get_default, one)
        entries.append(Entry(one.name, kind, setting, factory))
    return tuple(entries)


def _get_default(one: DataclassField[Any]) -> Any:
    return one.default


def list_changed(config: Any) -> tuple[str, ...]:
    """Return the names of the settings that are not at their defaults."""
    return tuple(one.name for one in list_settings(type(config)) if getattr(config, one.name) != one.default)


def parse_config(base: C, values: Mapping[str, Any], where: str | Path) -> C:
    """Return the config `base` with the mapping's values in place, nested ones from nested mappings.

    Raises:
        ConfigError: an unknown key (names the nearest known one), or a value of the wrong type or out of range.
    """
    return _parse(base, values, where, "")


def _parse(base: C, values: Mapping[str, Any], where: str | Path, prefix: str) -> C:
    entries = {entry.name: entry for entry in list_settings(type(base))}
    renamed = {entry.setting.was: name for name, entry in entries.items() if entry.setting.was}
    changes = {}
    for key, value in values.items():
        place = _locate(where, values, key)
        key = renamed.get(key, key)
        if key not in entries:
            raise ConfigError(
                f"unknown key {prefix}{_cut(str(key))}", where=place, right=_suggest(str(key), type(base), prefix)
            )
        if key in changes:
            right = f"keep one of {prefix}{key} and {prefix}{entries[key].setting.was}, its older name"
            raise ConfigError(f"{prefix}{key} is given twice", where=place, right=right)
        entry, present = entries[key], getattr(base, key)
        if entry.is_nested and isinstance(value, Mapping):
            value = _parse(entry.kind() if present is None else present, value, where, f"{prefix}{key}.")
        elif entry.is_nested and value is not None:
            right = "write key: value lines below it"
            raise ConfigError(f"{_SHORT.repr(value)} is no mapping", where=f"{place}: {prefix}{key}", right=right)
        changes[key] = value
    try:
        return replace(base, **changes)  # type: ignore[type-var]  # C is always a dataclass
    except ConfigError as error:
        key = re.split(r"[.:\[]", error.where or "")[0]
        key = next((given for given in values if renamed.get(given) == key), key)
        place = _locate(where, values, key)
        raise ConfigError(error.what, where=f"{place}: {prefix}{error.where or ''}", right=error.right) from None


def _suggest(key: str, cls: Any, prefix: str) -> str:
    """Say which known key was probably meant, one of a nested config if none of this is near."""
    own = {one.name: f"{prefix}{one.name}" for one in list_settings(cls)}
    nested = {
        inner.name: f"{prefix}{one.name}.{inner.name}"
        for one in reversed(list_settings(cls))
        for inner in (list_settings(one.kind) if one.is_nested else ())
    }
    for known, cutoff in ((own, 0.7), (nested, 0.7), (own, 0.4)):
        if near := get_close_matches(key, known, 1, cutoff):
            return f"did you mean {known[near[0]]}?"
    return f"known keys are {', '.join(own)}"


def _locate(where: str | Path, values: Mapping[str, Any], key: Any) -> str:
    line = getattr(values, "lines", {}).get(key)
    return str(where) if line is None else f"{where}:{line}"


def format_config(config: Any) -> dict[str, Any]:
    """Return a config as plain nested dictionaries that YAML and JSON can hold; `parse_config` takes them back."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
        if isinstance(value, ImageSize):
            return value.plain
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return dict(plain(config))


def describe(kind: Any, setting: Setting) -> str:
    """Say in words which values a setting takes: `a number from 0 to below 1`, `adamw or sgd`."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return ", or ".join(_describe(option, setting) for option in options)


def _describe(kind: Any, setting: Setting) -> str:
    if get_origin(kind) is Annotated:
        metadata: list[Any] = []
        kind = _unwrap(kind, metadata)
        setting = next((part for part in metadata if isinstance(part, Setting)), setting)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    if get_origin(kind) is tuple:
        return f"a list of {_PLURALS[get_args(kind)[0]]}"
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text, in quotes", Path: "a path"}
    noun[ImageSize] = f"a multiple of {STRIDE_PX}, or WIDTHxHEIGHT"
    return f"{noun.get(kind, 'key: value lines')} {describe_bounds(setting)}".rstrip()


_PLURALS = {int: "whole numbers", float: "numbers", str: "words"}


def describe_bounds(setting: Setting) -> str:
    """Say in words between which numbers a setting lies: `from 0 to below 1`; empty without bounds."""
    if setting.gt is not None and setting.lt is not None:
        return f"between {setting.gt:g} and {setting.lt:g}"
    high = None if setting.le == LARGEST_SEED else setting.le
    low = ""
    if setting.ge is not None or setting.gt is not None:
        low = f"above {setting.gt:g}" if setting.ge is None else f"from {setting.ge:g}"
    if high is not None:
        return f"{low}, up to {high:g}" if setting.gt is not None else f"{low} to {high:g}".lstrip()
    return f"{low} to below {setting.lt:g}".lstrip() if setting.lt is not None else low


def _unwrap(hint: Any, metadata: list[Any]) -> Any:
    """Return a type without None and without its metadata, which is added to the list."""
    if get_origin(hint) is Annotated:
        metadata.extend(get_args(hint)[1:])
        return _unwrap(get_args(hint)[0], metadata)
    if get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
        options = [option for option in get_args(hint) if option is not NoneType]
        return _unwrap(options[0], metadata) if len(options) == 1 else Union[tuple(options)]  # noqa: UP007  # made at run time
    return hint


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _explain(cls: type, error: ValidationError) -> ConfigError:
    """Return the first mistake as one line in our words."""
    found = error.errors(include_url=False)
    place = found[0]["loc"][0]
    name = list_settings(cls)[place].name if isinstance(place, int) else str(place)
    mistakes = [one for one in found if one["loc"][0] == place]
    entry = next((one for one in list_settings(cls) if one.name == name), None)
    if entry is None:
        near = get_close_matches(name, [one.name for one in list_settings(cls)], 1, cutoff=0.4)
        return ConfigError(
            f"unknown setting {name}", where=cls.__name__, right=f"did you mean {near[0]}?" if near else None
        )
    place = next(
        (f"{name}[{one['loc'][1]}]" for one in mistakes if len(one["loc"]) > 1 and isinstance(one["loc"][1], int)), name
    )
    value, kinds = mistakes[0]["input"], [one["type"] for one in mistakes]
    if any(kind.startswith(("greater", "less", "finite")) for kind in kinds):
        what = f"{value:g} is out of range" if isinstance(value, float) else f"{_SHORT.repr(value)} is out of range"
    elif all(kind == "literal_error" for kind in kinds) and isinstance(value, str):
        what = f"unknown value {_cut(value)}" if len(name) < 3 else f"unknown {name.replace('_', ' ')} {_cut(value)}"
    elif kinds[0] == "value_error":  # of a function that checks it, which says what is wrong
        what = f"{_SHORT.repr(str(value))} {mistakes[0]['ctx']['error']}"
    else:
        what = f"{_SHORT.repr(value)} is of the wrong type"
    return ConfigError(what, where=place, right=f"use {entry.range}")
