"""A setting is stated once: from its field follow YAML, options, help, the JSON schema and the reference page."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import typer
from conftest import make_command
from paths import ROOT
from tiny import Cli
from typer.testing import CliRunner

from yolo_prune.cli import darknet, data, measure, prune, train
from yolo_prune.cli.options import with_settings
from yolo_prune.commands import config_files
from yolo_prune.commands.measure_config import BenchConfig
from yolo_prune.commands.results import Result, TextResult
from yolo_prune.config import Setting, describe, list_settings, parse_config, settings
from yolo_prune.errors import ConfigError
from yolo_prune.files import load_yaml

BASES = {**config_files.OF_FILES, **config_files.OF_OPTIONS}


@settings
class PaintedConfig(BenchConfig):
    """The settings of bench, and one more."""

    colour: Annotated[Literal["red", "blue"], Setting("Colour of the bars.", group="Results")] = "red"
    gloss: Annotated[float, Setting("How much they shine.", ge=0, lt=1, unit="shares")] = 0.25


def run_painted(*words: str) -> tuple[int, str, PaintedConfig | None]:
    """Run a command of these settings; return its exit code, its output and the config that it was given."""
    made: list[PaintedConfig] = []

    @with_settings(PaintedConfig())
    def paint(settings: PaintedConfig) -> Result:
        """Paint."""
        made.append(settings)
        return TextResult("")

    app = typer.Typer()
    app.command()(paint)
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    return result.exit_code, result.output, made[0] if made else None


def test_a_new_field_is_an_option_with_help_range_and_default() -> None:
    assert run_painted("--colour", "blue", "--gloss", "0.5")[2] == PaintedConfig(colour="blue", gloss=0.5)
    _, text, _ = run_painted("--help")
    assert "Colour of the bars. (default: red)" in text
    assert "red|blue" in text
    assert "How much they shine. (shares; from 0 to below 1; default: 0.25)" in text
    assert "Results" in text


def test_a_new_field_is_a_yaml_key() -> None:
    assert parse_config(PaintedConfig(), {"colour": "blue"}, "a.yaml").colour == "blue"
    with pytest.raises(ConfigError, match=r"^a.yaml: colour: unknown colour green; use red or blue$"):
        parse_config(PaintedConfig(), {"colour": "green"}, "a.yaml")
    with pytest.raises(ConfigError, match=r"^a.yaml: gloss: 1 is out of range; use a number from 0 to below 1$"):
        parse_config(PaintedConfig(), {"gloss": 1}, "a.yaml")


def test_a_new_field_is_in_the_schema_and_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_files.OF_FILES, "bench", PaintedConfig())
    schema = config_files.make_schema("bench")["properties"]["colour"]
    assert (schema["enum"], schema["default"], schema["description"]) == (["red", "blue"], "red", "Colour of the bars.")
    assert "| `colour` | red or blue | red | Colour of the bars. |" in config_files.make_reference()


def test_the_page_is_what_the_command_prints(cli: Cli) -> None:
    assert cli("config", "reference").out == (ROOT / "docs/settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", config_files.OF_FILES)
def test_a_schema_is_one_and_takes_the_defaults(command: str) -> None:
    schema = config_files.make_schema(command)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors({}))
    assert list(validator.iter_errors({"no_such_key": 1}))
    assert list(validator.iter_errors({"seed" if command != "bench" else "runs": -1}))


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_a_shipped_file_fits_the_schema(path: Path) -> None:
    jsonschema.validate(dict(load_yaml(path)), config_files.make_schema("run"))


def test_a_command_without_a_file_has_no_schema(cli: Cli) -> None:
    outcome = cli("config", "schema", "detect")
    assert outcome.code == 2
    assert outcome.err.startswith("error: COMMAND: detect takes no file; use one of run, train")


def list_options(words: str) -> dict[str, Any]:
    """Return the options of a command by their names."""
    command: Any = make_command()
    for word in words.split():
        command = command.commands[word]
    return {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("command", BASES)
def test_every_setting_is_reachable_and_told(command: str) -> None:
    base = BASES[command]
    options = list_options(command)
    for entry in list_settings(base if isinstance(base, type) else type(base)):
        assert entry.setting.help, f"{command}: {entry.name} has no help"
        assert entry.setting.help.endswith("."), entry.name
        own = options.get(entry.flag)
        assert own is not None or "--set" in options, f"{command}: {entry.name} is out of reach"
        if own is not None:
            assert entry.setting.help in own.help


COMMANDS: dict[str, Any] = {
    **{name: getattr(module, name) for module, names in (
        (train, ("train", "finetune", "run")),
        (prune, ("prune", "plan", "sensitivity", "iterate")),
        (measure, ("bench", "report", "profile", "evaluate", "detect")),
    ) for name in names},
    **{f"data {name.replace('_', '-')}": getattr(data, name)
       for name in ("synthetic", "check", "anchors", "convert", "vgg_hand")},
    **{"cfg make": darknet.make, "cfg show": darknet.show, "import": darknet.import_, "export": darknet.export},
}  # fmt: skip


@pytest.mark.parametrize("command", BASES)
def test_no_option_is_written_by_hand_that_is_a_setting(command: str) -> None:
    base = BASES[command]
    own = inspect.signature(inspect.unwrap(COMMANDS[command])).parameters
    assert {"given", "settings"} & own.keys()
    assert not own.keys() & {one.name for one in list_settings(base if isinstance(base, type) else type(base))}


@pytest.mark.parametrize(
    ("kind", "setting", "said"),
    [
        (int, Setting("", ge=1), "a whole number from 1"),
        (int, Setting("", ge=0, le=64), "a whole number from 0 to 64"),
        (float, Setting("", gt=0), "a number above 0"),
        (float, Setting("", gt=0, le=1), "a number above 0, up to 1"),
        (float, Setting("", gt=0, lt=1), "a number between 0 and 1"),
        (float, Setting("", lt=1), "a number to below 1"),
        (bool, Setting(""), "true or false"),
        (tuple[int, ...], Setting(""), "a list of whole numbers"),
        (Literal["a", "b", "c"], Setting(""), "a, b or c"),
        (float | Literal["auto"], Setting("", ge=0), "a number from 0, or auto"),
    ],
)
def test_what_a_setting_takes_is_said_in_words(kind: Any, setting: Setting, said: str) -> None:
    assert describe(kind, setting) == said


@pytest.mark.parametrize("text", ["box", "=1", "loss.=1", ".box=1"])
def test_what_is_no_key_and_value_is_an_error(cli: Cli, text: str) -> None:
    outcome = cli("train", "--set", text)
    assert (outcome.code, outcome.err) == (2, f"error: --set: {text!r} is no KEY=VALUE; write loss.box=2.0\n")


def test_nested_settings_are_set_by_their_path(cli: Cli) -> None:
    outcome = cli("train", "--set", "loss.box=-1")
    assert outcome.err == "error: --set loss.box: -1 is out of range; use a number from 0\n"
    outcome = cli("train", "--set", "loss.bocks=1")
    assert outcome.err.startswith("error: --set: unknown key loss.bocks; did you mean loss.box?")


def test_an_older_name_is_still_read() -> None:
    assert parse_config(config_files.OF_FILES["prune"], {"pictures": 8}, "a.yaml").images == 8


@pytest.mark.parametrize("key", ["loss.box", "no_such_key"])
def test_a_resumed_run_takes_no_other_setting_by_its_key(cli: Cli, key: str) -> None:
    outcome = cli("train", "--resume", "--set", f"{key}=1")
    said = f"error: --set {key.partition('.')[0]}: a resumed run keeps its settings; "
    assert (outcome.code, outcome.err[: len(said)]) == (2, said)


WRONG = ("three", -1, 2.5, None, True, ["x"], [None], {"a": 1}, float("nan"), 10**400)
"""Values of which most settings can take none, and no setting all."""


@pytest.mark.parametrize("command", [name for name, base in BASES.items() if not isinstance(base, type)])
def test_a_wrong_value_of_any_setting_is_an_error_in_our_words(command: str) -> None:
    """In Python 3.10 `tuple[int, ...]` passes for a class, so what tells types apart must hold there too."""
    base = BASES[command]
    for entry in list_settings(type(base)):
        errors = [error for value in WRONG if (error := _find_error(base, entry.name, value)) is not None]
        assert errors, entry.name
        for error in errors:
            assert (error.where or "").startswith("a.yaml"), error
            assert entry.name in str(error), error
            assert error.right, error


def _find_error(base: Any, name: str, value: Any) -> ConfigError | None:
    try:
        parse_config(base, {name: value}, "a.yaml")
    except ConfigError as error:
        return error
    return None
