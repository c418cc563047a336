"""Command-line options, made from settings: a flag, its help, range and default for each field of a config class."""

from __future__ import annotations

import inspect
import json
import shlex
import time
from collections.abc import Callable, Collection
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args

import typer

from yolo_prune.cli.streams import print_result
from yolo_prune.commands.results import CheckedResult, Result
from yolo_prune.config import RUN, Entry, list_settings
from yolo_prune.console import is_first_process, report_done, set_quiet
from yolo_prune.errors import YoloPruneError
from yolo_prune.files import replace_nan
from yolo_prune.image_size import ImageSize
from yolo_prune.overlay import Given, overlay, parse_option, set_by_path, take_changes

_option = partial(typer.Option, show_default=False, rich_help_panel=RUN)
_output = partial(typer.Option, rich_help_panel="Results")
_CHECKPOINT = typer.Argument(help="Checkpoint; - reads its path from stdin. Default: the newest.", show_default=False)
_SET = "Any setting by its key, such as loss.box=2.0; docs/settings.md lists them. May be repeated."

Checkpoint: TypeAlias = Annotated[Path | None, _CHECKPOINT]
Checkpoints: TypeAlias = Annotated[list[Path] | None, _CHECKPOINT]
Config: TypeAlias = Annotated[Path | None, _option(help="A YAML file of settings; options go over it.")]
DryRun: TypeAlias = Annotated[bool, _output("--dry-run", help="Write the plan, prune nothing.")]
Markdown: TypeAlias = Annotated[bool, _output("--markdown", help="Print the table in Markdown.")]
Resumed: TypeAlias = tuple[str, Given] | None
"""The name of the run to resume, and the settings that change; a parameter of this type is the option --resume."""
_Json: TypeAlias = Annotated[bool, _output("--json", help="Print one JSON object instead.")]
_Quiet: TypeAlias = Annotated[bool, _output("--quiet", "-q", help="Print the result, warnings and errors alone.")]
_More: TypeAlias = Annotated[list[str] | None, _option("--set", metavar="KEY=VALUE", help=_SET)]
_Resume: TypeAlias = Annotated[bool, _option("--resume", help="Go on with the stopped run NAME, with its settings.")]
LONGEST_METAVAR = 24  # longer lists of choices are written in the help text


def with_settings(
    base: Any, without: Collection[str] = (), app: typer.Typer | None = None
) -> Callable[..., Callable[..., None]]:
    """Give a command an option for each setting of `base`'s class, its values as defaults, and print what it returns.

    The command takes its settings, a --config file's over `base` and options over that, as `settings`; or it takes only
    what the options say, as `given`, and makes its settings itself. Settings of nested configs, and those of `without`,
    are given by --set. With --resume nothing else may be given but what may change of a run. The command is added to `app`.
    """
    entries = [one for one in list_settings(type(base)) if not one.is_nested and one.name not in without]
    entries.sort(key=lambda one: one.setting.group == RUN)  # the heading of what is the same everywhere comes last

    def decorate(command: Callable[..., Result]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = [
            one if name != "resumed" else _make_parameter(name, _Resume, False)
            for name, one in parameters.items()
            if name not in ("given", "settings")
        ]
        arguments = [one for one in own if _is_argument(one)]
        options = [_make_option(one, getattr(base, one.name, None)) for one in entries]
        others = [one for one in own if not _is_argument(one)]
        has_more = len(entries) < len(list_settings(type(base)))
        shared = [_make_parameter("as_json", _Json, False), _make_parameter("quiet", _Quiet, False)]
        shared = [*([_make_parameter("more", _More)] if has_more else []), *shared]

        @wraps(command)
        def run(as_json: bool, quiet: bool, more: list[str] | None = None, **values: Any) -> None:
            started = time.monotonic()
            set_quiet(quiet)
            given = {one.name: values.pop(one.name) for one in entries}
            given = {
                one.name: parse_option(one, given[one.name]) for one in entries if given[one.name] not in (None, [])
            }
            for text in more or ():
                set_by_path(given, text)
            flags = {one.name: one.flag for one in entries if one.name in given}
            try:
                if "resumed" in parameters:
                    others = {_name(one): values[one.name] for one in own if one.name != "resumed"}
                    values["resumed"] = take_changes(base, given, others) if values["resumed"] else None
                if "settings" in parameters:
                    values["settings"] = overlay(base, values.pop("config", None), given)
                else:
                    values["given"] = given
                result = command(**values)
            except YoloPruneError as error:
                if error.where not in flags:
                    raise
                raise type(error)(error.what, where=flags[error.where], right=error.right) from error
            _print(result, as_json, time.monotonic() - started)

        ordered = (*arguments, *options, *others, *shared)
        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in ordered]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # what Typer reads
        return run if app is None else app.command()(run)

    return decorate


def _print(result: Result, as_json: bool, seconds: float) -> None:
    """Print a result and its summary, in the first process alone; NaN and infinite numbers are null in JSON."""
    if is_first_process():
        if text := json.dumps(replace_nan(result.as_dict())) if as_json else result.stdout:
            print_result(text)
        if (summary := getattr(result, "summary", None)) is not None:
            report_done(
                summary.line, seconds, shlex.join(("yoloprune", *summary.following)) if summary.following else ""
            )
    if isinstance(result, CheckedResult):
        result.raise_on_issues()


def _name(parameter: inspect.Parameter) -> str:
    return parameter.name.upper() if _is_argument(parameter) else f"--{parameter.name.replace('_', '-')}"


def _is_argument(parameter: inspect.Parameter) -> bool:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(one, typer.models.ArgumentInfo) for one in metadata)


def _make_parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name_value(entry: Entry) -> str | None:
    """Return what --help calls the value of an option that Typer knows no good name for."""
    if entry.kind is ImageSize:
        return "SIZE"
    if not entry.is_list:
        return None
    return "NAME,NAME" if str in get_args(entry.kind) else "N,N"


def _make_option(entry: Entry, default: Any) -> inspect.Parameter:
    kind: Any = entry.kind if entry.kind in (int, float, bool, Path) else list[str] if entry.is_list else str
    flag = f"{entry.flag}/--no-{entry.flag.removeprefix('--')}" if kind is bool else entry.flag
    choices = "|".join(entry.choices)
    is_long = len(choices) > LONGEST_METAVAR
    option = typer.Option(
        flag,
        *([f"--{entry.setting.was.replace('_', '-')}"] if entry.setting.was else []),
        help=entry.describe(default, has_choices=is_long),
        metavar="NAME" if is_long else choices or _name_value(entry),
        show_default=False,
        rich_help_panel=entry.setting.group or None,
    )
    annotation = Annotated[kind, option] if entry.is_required else Annotated[kind | None, option]
    return _make_parameter(entry.name, annotation, inspect.Parameter.empty if entry.is_required else None)
