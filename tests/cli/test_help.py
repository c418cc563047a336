"""Help: every command has examples that its own parser takes, fits 80 columns, and suggests what was probably meant."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from tiny import Cli

from yolo_prune.cli.main import app

LEAST_EXAMPLES = 2


def list_commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it; groups are passed over."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from list_commands(inner, (*words, name))
    if not getattr(command, "commands", None):
        yield words, command


TREE: Any = typer.main.get_command(app)
COMMANDS = dict(list_commands(TREE))


def list_examples(text: str) -> list[list[str]]:
    """Return the words of the lines of a help text that call yoloprune, up to a pipe."""
    lines = (line.strip() for line in text.splitlines())
    return [shlex.split(line.split("|")[0].split(">")[0]) for line in lines if line.startswith("yoloprune ")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_examples_that_parse(words: tuple[str, ...]) -> None:
    examples = list_examples(COMMANDS[words].help)
    assert len(examples) >= LEAST_EXAMPLES
    assert any(example[1 : 1 + len(words)] == list(words) for example in examples)
    for _, *example in examples:
        called = max((one for one in COMMANDS if example[: len(one)] == list(one)), key=len)
        COMMANDS[called].make_context(" ".join(called), example[len(called) :])  # raises at an unknown option


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=lambda words: " ".join(words) or "yoloprune")
def test_help_fits_80_columns(words: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = cli(*words, "--help").out
    assert max(map(cell_len, text.splitlines())) <= 80
    for line in list_examples(text):
        assert len(line) > 1


def test_summaries_are_one_line_each(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("--help").out.splitlines()
    for name, command in TREE.commands.items():
        assert sum(line.startswith(f"│ {name} ") and command.short_help in line for line in lines) == 1


def test_alone_it_shows_where_to_start(cli: Cli) -> None:
    outcome = cli()
    assert (outcome.code, outcome.out) == (2, "")
    assert "yoloprune run demo" in outcome.err


@pytest.mark.parametrize(
    ("words", "suggested", "helped"),
    [
        (("prune", "--rato", 0.5), "--ratio", "yoloprune prune --help"),
        (("data", "chek", "x.yaml"), "check", "yoloprune data --help"),
        (("trian",), "train", "yoloprune --help"),
        (("bench", "--engines", "eager"), "--engine", "yoloprune bench --help"),
    ],
)
def test_a_near_word_is_suggested(cli: Cli, words: tuple[object, ...], suggested: str, helped: str) -> None:
    outcome = cli(*words)
    assert outcome.code == 2
    assert suggested in outcome.err
    assert outcome.err.rstrip().endswith(f"see {helped}")
    assert outcome.err.count("\n") == 1


def test_completion_can_be_installed() -> None:
    """Ask for the completion of `yoloprune pr`, as bash does once `--install-completion` has run."""
    variables = {"_YOLOPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "yoloprune pr", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "yolo_prune"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=False)
    assert done.stdout.split() == ["prune", "profile"]
