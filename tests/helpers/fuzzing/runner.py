"""Run cases in forked children: each is timed, its memory is measured, and a crash or a hang ends the child alone."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from fuzzing.case import Case, Target
from fuzzing.child import LONGEST_TRACE, Task, work
from fuzzing.grammars import draw_cases
from fuzzing.readers import Names

BATCH = 40
"""Cases of a child."""
LONGEST_S, MOST_BYTES = 20.0, 2 << 30
GRAMMAR_TURN = 3
"""Every so many batches one is drawn from the grammar, where a target has one."""
KEPT_OF_A_KIND = 3
MAKING, SOUND, SLACK_S = 10.0, 10.0, 5.0
"""A child may take so many times the limit of a case to make one, and for a sound one, whose calls are recorded; and so long more."""


@dataclass(frozen=True)
class Limits:
    """What a case may cost."""

    seconds: float = LONGEST_S
    most_bytes: int = MOST_BYTES


@dataclass
class Tally:
    """What came of the cases of a target."""

    target: str
    cases: int = 0
    ok: int = 0
    refused: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """How often each kind of failure was met."""

    @property
    def row(self) -> tuple[str, ...]:
        """The row of a table."""
        counts = (self.cases, self.ok, self.refused, self.failed)
        return (self.target, *map(str, counts), f"{self.slowest_s:.1f}", f"{self.most_bytes / 1e6:.0f}")

    def add(self, other: Tally) -> None:
        """Add the counts of another."""
        self.cases += other.cases
        self.ok += other.ok
        self.refused += other.refused
        self.failed += other.failed
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.most_bytes = max(self.most_bytes, other.most_bytes)
        self.failures.update(other.failures)


class Runner:
    """Runs targets over one base, and keeps what failed in a folder."""

    def __init__(self, base: Path, kept: Path, seed: int = 0, limits: Limits | None = None) -> None:
        self.base, self.kept, self.seed, self.limits = base, kept, seed, limits or Limits()
        self.found: Counter[str] = Counter()
        self.reached: Names = set()
        self._deadline_s = 0.0

    def run_batch(self, target: Target, number: int, until: float = float("inf"), count: int = BATCH) -> Tally:
        """Run a batch of a target, the same cases for the same seed and number; stop it when the time is up."""
        tally, begin = Tally(target.name), 0
        while begin < count and time.monotonic() < until:
            begin = self._run_task(Task(target, self._make_cases(target, number, count), begin, until), tally)
        return tally

    def run_case(self, target: Target, case: Case) -> Tally:
        """Run one case."""
        tally = Tally(target.name)
        self._run_task(Task(target, iter([case])), tally)
        return tally

    def run_sound(self, target: Target, readers: Names) -> Tally:
        """Run the sound inputs of a target, which must be read; `reached` gets the readers among `readers` that read them."""
        tally = Tally(target.name)
        self._run_task(Task(target, iter(target.sound(self.base)), readers=readers), tally)
        return tally

    def _make_cases(self, target: Target, number: int, count: int) -> Iterator[Case]:
        if target.draw is not None and number % GRAMMAR_TURN == GRAMMAR_TURN - 1:
            yield from draw_cases(target.draw(self.base), f"{self.seed}-{target.name}-{number}", count)
            return
        for index in range(count):
            yield target.make(Random(f"{self.seed}-{target.name}-{number}-{index}"), self.base)

    def _run_task(self, task: Task, tally: Tally) -> int:
        """Run cases in a child, and return the number of the case to go on with."""
        folder = self.base.parent / f"cases-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            work(task, folder, self.base, os.fdopen(writer, "wb", buffering=0))
        os.close(writer)
        try:
            with os.fdopen(reader, "rb") as told:
                return self._watch(task, pid, told, folder, tally)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            shutil.rmtree(folder, ignore_errors=True)

    def _watch(self, task: Task, pid: int, told: BinaryIO, folder: Path, tally: Tally) -> int:
        index, started = None, 0.0
        patience = 1.0 if task.readers is None else SOUND
        self._wait(MAKING)
        for line in _read_lines(told, lambda: self._deadline_s):
            if "done" in line:
                return sys.maxsize
            if "begun" in line:
                index, started = line["begun"], time.monotonic()
                self._wait(patience)
                continue
            assert index is not None
            self._count(task.target, line, folder / f"{index}.json", tally, patience)
            index = None
            self._wait(MAKING)
        what = "hang" if time.monotonic() >= self._deadline_s else _describe_end(pid)
        log = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
        if index is None:
            raise RuntimeError(f"{task.target.name}: a case cannot be made ({what}): {log}")
        facts = {
            "failure": what,
            "trace": log[-LONGEST_TRACE:],
            "seconds": time.monotonic() - started,
            "bytes": 0,
            "code": -1,
        }
        self._count(task.target, facts, folder / f"{index}.json", tally, patience)
        return int(index) + 1

    def _wait(self, share: float) -> None:
        """Set the time after which a child that has not told anything hangs."""
        self._deadline_s = time.monotonic() + share * self.limits.seconds + SLACK_S

    def _count(self, target: Target, found: dict[str, Any], case: Path, tally: Tally, patience: float) -> None:
        self.reached |= set(found.get("called", ()))
        failure = found["failure"]
        if not failure and found["seconds"] > self.limits.seconds * patience:
            failure = f"slow {found['seconds']:.0f} s"
        if not failure and found["bytes"] > self.limits.most_bytes:
            failure = f"memory {found['bytes'] / 1e6:.0f} MB"
        tally.cases += 1
        tally.ok += not failure and found["code"] == 0
        tally.refused += not failure and found["code"] != 0
        tally.slowest_s = max(tally.slowest_s, found["seconds"])
        tally.most_bytes = max(tally.most_bytes, found["bytes"])
        if failure:
            tally.failed += 1
            tally.failures[failure] += 1
            if self.found[f"{target.name} {failure}"] < KEPT_OF_A_KIND:
                self._keep(target, failure, found["trace"], case)
            self.found[f"{target.name} {failure}"] += 1

    def _keep(self, target: Target, failure: str, trace: str, case: Path) -> None:
        """Keep a case that failed, and how."""
        self.kept.mkdir(parents=True, exist_ok=True)
        path = self.kept / f"{target.name}-{sum(1 for _ in self.kept.iterdir())}.json"
        facts = {"target": target.name, "failure": failure, "trace": trace}
        path.write_text(json.dumps({**facts, **json.loads(case.read_text())}))


def _read_lines(told: BinaryIO, deadline_s: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Yield what a child tells, until it ends or the time is up."""
    rest = b""
    while select.select([told], [], [], max(0.0, deadline_s() - time.monotonic()))[0]:
        if not (part := os.read(told.fileno(), 1 << 16)):
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from map(json.loads, lines)


def _describe_end(pid: int) -> str:
    code = os.waitpid(pid, 0)[1]
    return f"crash {signal.Signals(os.WTERMSIG(code)).name}" if os.WIFSIGNALED(code) else f"exit {code >> 8}"
