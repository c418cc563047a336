"""Command-line options, made from settings: a flag, its help, range and default for each field of a config class."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args

import typer

from yolo_prune.config import RUN, Entry, describe_bounds, list_settings, parse_config
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.files import load_yaml, parse_yaml

C = TypeVar("C")
Given: TypeAlias = dict[str, Any]
"""The settings that were given on the command line."""

Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        help="A checkpoint; - reads its path from stdin. Default: the newest of the command before.", show_default=False
    ),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead.", rich_help_panel="Results")
]
Markdown: TypeAlias = Annotated[
    bool, typer.Option("--markdown", help="Print the table in Markdown.", rich_help_panel="Results")
]
Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="A YAML file of settings; options go over it.", show_default=False, rich_help_panel=RUN),
]
Resume: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run NAME where it stopped, with the settings that it has.",
        rich_help_panel=RUN,
    ),
]
COMMAND_LINE = "command line"
LONGEST_METAVAR = 24
"""Longer lists of choices are written in the help text."""


def with_settings(
    base: Any, without: Collection[str] = (), has_more: bool = True
) -> Callable[..., Callable[..., None]]:
    """Give a command an option for each setting of `base`'s class, its values as defaults.

    The command takes what was given as `given`. Settings of nested configs are given by --set, which is left out where
    `has_more` is not so, as are options of `without`.
    """
    entries = [one for one in list_settings(type(base)) if not one.is_nested and one.name not in without]
    entries.sort(key=lambda one: one.setting.group == RUN)  # the heading of what is the same everywhere comes last

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = [one for name, one in parameters.items() if name != "given"]
        arguments = [one for one in own if _is_argument(one)]
        options = [_make_option(one, getattr(base, one.name, None)) for one in entries]
        more = [_MORE] if has_more else []
        others = [one for one in own if not _is_argument(one)]

        @wraps(command)
        def run(**values: Any) -> None:
            given = {one.name: values.pop(one.name) for one in entries}
            given = {one.name: _parse(one, given[one.name]) for one in entries if given[one.name] is not None}
            for text in values.pop(_MORE.name, None) or ():
                _set(given, text)
            flags = {one.name: one.flag for one in entries if one.name in given}
            try:
                command(given=given, **values)
            except YoloPruneError as error:
                if error.where not in flags:
                    raise
                raise type(error)(error.what, where=flags[error.where], right=error.right) from error

        ordered = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*arguments, *options, *more, *others)]
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]  # what Typer reads
        return run

    return decorate


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


def take_changes(cls: type, given: Given, others: Mapping[str, Any]) -> Given:
    """Return what may change of a run that is resumed.

    Raises:
        ConfigError: more was given than that; `others` are further options and arguments.
    """
    changeable = [one for one in list_settings(cls) if one.setting.resumable]
    flags = {one.name: one.flag for one in list_settings(cls) if not one.is_nested}
    more = [
        flags.get(name, f"--set {name}")
        for name in given
        if name != "name" and name not in {one.name for one in changeable}
    ]
    more += [name for name, value in others.items() if value]
    if more:
        right = f"leave it out, or start a new run; {', '.join(one.flag for one in changeable)} may change"
        raise ConfigError("a resumed run keeps its settings", where=more[0], right=right)
    return {name: value for name, value in given.items() if name != "name"}


def print_json(value: Any) -> None:
    """Print one JSON object; NaN and infinite numbers become null."""
    from yolo_prune.files import replace_nan

    print(json.dumps(replace_nan(value)))


_MORE = inspect.Parameter(
    "more",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting by its key, such as loss.box=2.0; docs/settings.md lists them. May be repeated.",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ],
)


def _is_argument(parameter: inspect.Parameter) -> bool:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(one, typer.models.ArgumentInfo) for one in metadata)


def _make_option(entry: Entry, default: Any) -> inspect.Parameter:
    kind = entry.kind if entry.kind in (int, float, bool, Path) else str
    flag = f"{entry.flag}/--no-{entry.flag.removeprefix('--')}" if kind is bool else entry.flag
    choices = "|".join(entry.choices)
    is_long = len(choices) > LONGEST_METAVAR
    listed = f"one of {', '.join(entry.choices)}" if is_long else ""
    notes = (entry.setting.unit, listed, describe_bounds(entry.setting), _describe_default(entry, default))
    limits = "; ".join(note for note in notes if note)
    older = [f"--{entry.setting.was.replace('_', '-')}"] if entry.setting.was else []
    option = typer.Option(
        flag,
        *older,
        help=entry.setting.help + (f" ({limits})" if limits else ""),
        metavar="NAME" if is_long else choices or ("N,N" if entry.is_list else None),
        show_default=False,
        rich_help_panel=entry.setting.group or None,
    )
    annotation = Annotated[kind, option] if entry.is_required else Annotated[kind | None, option]
    absent = inspect.Parameter.empty if entry.is_required else None
    return inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=absent, annotation=annotation)


def _describe_default(entry: Entry, value: Any) -> str:
    """Return the default in words; empty where there is none to show."""
    words = entry.describe_default(value)
    return "" if entry.is_required or not words else f"default: {words}"


def _parse(entry: Entry, value: Any) -> Any:
    """Return an option's value as the setting takes it: lists from text with commas, numbers or words where both may be."""
    if entry.is_list:
        texts = [text.strip() for text in str(value).split(",")]
        return texts if str in get_args(entry.kind) else [_read(text) for text in texts]
    return _read(value) if entry.is_union and isinstance(value, str) else value


def _read(text: str) -> Any:
    import yaml

    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def _set(given: Given, text: str) -> None:
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
