"""What is told on stderr: levels, escapes, durations, and bars on a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from yolo_prune import console


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    console.set_quiet(False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def on_terminal(**variables: str) -> Iterator[Terminal]:
    """Make stderr a terminal of 60 columns. Not a fixture: pytest captures stderr anew when a test begins."""
    made = (console._console, console._bars)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream := Terminal())
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", **variables}.items():
            patch.setenv(name, value)
        for one in made:
            one.cache_clear()
        yield stream
    for one in made:
        one.cache_clear()


LONG = "word " * 30


def test_a_file_gets_whole_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.report(LONG)
    console.warn("[bold]odd[/bold] :smile: 3.5")
    console.report_done("all of it", 75, "yoloprune bench")
    assert capsys.readouterr().err == (
        f"{LONG}\nwarning: [bold]odd[/bold] :smile: 3.5\ndone in 1 min: all of it\nnext: yoloprune bench\n"
    )


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(True)
    console.report("a line")
    console.report_done("all of it", 1, "yoloprune bench")
    console.warn("a warning")
    console.report_end("an end", "error")
    assert capsys.readouterr().err == "warning: a warning\nerror: an end\n"


def test_other_processes_tell_nothing_but_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    console.report("a line")
    console.warn("a warning")
    console.report_end("an end", "error")
    assert capsys.readouterr().err == "error: an end\n"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("\x1b[2J\x07name", r"\x1b[2J\x07name"), ("a\rb", r"a\rb"), ("\udce9", r"\udce9"), ("é 手\nb", "é 手\nb")],
)
def test_control_characters_are_escaped(text: str, escaped: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.escape(text) == escaped
    console.report(text)
    assert capsys.readouterr().err == f"{escaped}\n"


def test_a_terminal_gets_colours_and_wrapped_lines() -> None:
    with on_terminal() as terminal:
        console.report(LONG)
        console.warn("odd")
        console.report_done("it is done", 1, "yoloprune " + "x" * 80)
    lines = terminal.getvalue().split("\n")
    assert max(map(len, lines[:3])) <= 60
    assert "\x1b[1;33mwarning: \x1b[0modd" in lines
    assert lines[-2].endswith("x" * 80)  # a command to paste is not broken


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_turned_off(name: str, value: str) -> None:
    with on_terminal(**{name: value}) as terminal:
        console.warn("odd")
        console.report_end("bad", "error")
    assert terminal.getvalue() == "warning: odd\nerror: bad\n"


def test_bars_move_and_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "REFRESH_S", 0.0)
    with on_terminal() as terminal:
        with console.Bar("reading", 2000) as bar, console.Bar("inside", unit="bytes") as inner:
            bar.show(500)
            inner.show(1_500_000, 3_000_000)
            console.report("a line above")
        assert not console._bars().tasks
        shown = terminal.getvalue()
    for text in ("500 of 2,000 images", "25%", "1.5 of 3.0 MB", "a line above\n"):
        assert text in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor is shown again


@pytest.mark.parametrize("case", ["a file", "dumb", "quiet"])
def test_elsewhere_there_is_no_bar(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(case == "quiet")
    with on_terminal(TERM="dumb" if case == "dumb" else "xterm") if case != "a file" else nullcontext() as terminal:
        with console.Bar("reading", 2) as bar:
            bar.show(1)
        assert terminal is None or terminal.getvalue() == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 0 min"), (7500, "2 h 5 min")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert console.format_duration(seconds) == words
