"""What the suite takes for a failure: an exception, a crash, a hang, too much memory, what is left or written."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from fuzzing.case import Case, Outcome, Target, parse_case
from fuzzing.child import Task
from fuzzing.grammars import cfg_texts, draw_cases
from fuzzing.runner import Limits, Runner
from hypothesis import strategies as st

from yolo_prune.errors import ConfigError


def make_runner(folder: Path, **limits: float) -> Runner:
    (folder / "base").mkdir()
    return Runner(folder / "base", folder / "kept", limits=Limits(**limits))  # type: ignore[arg-type]


def make(chance: Random, base: Path) -> Case:
    return Case((str(chance.random()),), {"a/b.txt": chance.randbytes(9)}, stdin=b"\xff")


def make_target(run: Callable[[Case], Outcome]) -> Target:
    return Target("a", make, lambda base: [make(Random(0), base)], run)


def read(case: Case) -> Outcome:
    assert Path("a/b.txt").read_bytes() == case.files["a/b.txt"]
    return Outcome(0)


def allocate(case: Case) -> Outcome:
    content = b"x" * (1 << 27)
    return Outcome(len(content) & 0)


def hang(case: Case) -> Outcome:
    time.sleep(1000)
    return Outcome(0)


def crash(case: Case) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome(0)


def leave(case: Case) -> Outcome:
    Path("a/.b.txt.0a0a0a0a-1.tmp").touch()
    return Outcome(0)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (read, ""),
        (lambda case: Outcome(2, "error: a\n"), ""),
        (lambda case: Outcome(1), "code 1"),
        (lambda case: Outcome(2), "refused without a word"),
        (lambda case: Outcome(2, "error: \x1b[31m"), "control characters on stderr"),
        (lambda case: Outcome(2, "x" * 30_000), "an error without an end"),
        (lambda case: Outcome(1, "", 'Traceback\n  File "/x/yolo_prune/a.py", line 3, in b\nKeyError: 1'), "KeyError a.py, line 3, in b"),
        (allocate, "memory 1.. MB"),
        (hang, "hang"),
        (crash, "crash SIGSEGV"),
        (leave, "scraps 1"),
    ],
)  # fmt: skip
def test_what_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Case], Outcome], kind: str
) -> None:
    monkeypatch.setattr("fuzzing.runner.SLACK_S", 0.0)
    runner = make_runner(tmp_path, seconds=0.5 if run is hang else 30, most_bytes=1 << 26)
    tally = runner.run_batch(make_target(run), 0, count=2)
    assert tally.cases == 2
    assert tally.failed == (2 if kind else 0)
    assert [kind.replace("..", name[8:10]) for name in tally.failures] == list(tally.failures)
    if kind:
        name, case = parse_case(min(runner.kept.iterdir()).read_text())
        assert (name, case) == ("a", make(Random("0-a-0-0"), tmp_path))


def test_memory_that_was_free_before_counts(tmp_path: Path) -> None:
    """A free block of the heap below one that is not free stays this process's, and its children's."""
    small, held = 1 << 16, []
    held += [b"x" * small for _ in range(3 << 11)]
    held[:-1] = []
    tally = make_runner(tmp_path, seconds=30, most_bytes=1 << 26).run_batch(make_target(allocate), 0, count=1)
    assert tally.failed == 1
    assert held


def test_an_exception_of_the_package_alone_is_no_failure(tmp_path: Path) -> None:
    from fuzzing.command import run_function

    def refuse() -> None:
        raise ConfigError("is wrong", where="a")

    assert run_function(refuse) == Outcome(2, "a: is wrong")
    assert "ZeroDivisionError" in run_function(lambda: 1 // 0).trace


def test_a_seed_gives_the_same_cases(tmp_path: Path) -> None:
    drawn = cfg_texts().map(lambda text: Case((text,)))
    assert draw_cases(drawn, "1", 9) == draw_cases(drawn, "1", 9) != draw_cases(drawn, "2", 9)
    runner, target = make_runner(tmp_path), make_target(read)
    assert [*runner._make_cases(target, 3, 5)] == [*runner._make_cases(target, 3, 5)]
    assert [*runner._make_cases(target, 3, 5)] != [*runner._make_cases(target, 4, 5)]


def test_cases_that_cannot_be_made_end_the_suite(tmp_path: Path) -> None:
    def fail() -> Iterator[Case]:
        yield Case(files={"a/b.txt": b""})
        raise KeyError("nothing")

    runner = make_runner(tmp_path)
    with pytest.raises(RuntimeError, match="a case cannot be made"):
        runner._run_task(Task(make_target(read), fail()), runner.run_batch(make_target(read), 0, count=1))


def test_a_sound_input_must_be_read(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    assert runner.run_sound(make_target(read), {"files:is_text"}).failed == 0
    tally = runner.run_sound(make_target(lambda case: Outcome(2, "error: a")), set())
    assert list(tally.failures) == ["a sound input is refused"]


@pytest.mark.parametrize("words", [("a", "\ud800", "\udcff"), ()])
def test_a_case_comes_back_from_its_file(words: tuple[str, ...]) -> None:
    case = Case(words, {"a": bytes(range(256))}, ("b",), b"\0", {"HOME": "/"})
    assert parse_case(case.format(target="t")) == ("t", case)
    assert json.loads(case.format(target="t"))["shown"] == [repr(word) for word in words]


@pytest.mark.parametrize("text", [st.just("a")])
def test_fewer_cases_than_asked_for_are_fine(text: st.SearchStrategy[str]) -> None:
    assert len(draw_cases(text.map(lambda one: Case((one,))), "1", 5)) >= 1
