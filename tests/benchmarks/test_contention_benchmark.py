"""The benchmark of commands beside busy processes, rehearsed on a tiny network: what it measures and prints, not how fast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import contention as benchmark
import pytest
from contention_work import COMMANDS, make_unit, measure
from tiny import SIDE

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")


@pytest.fixture
def folder(tmp_path: Path, hands: Path, trained: Path) -> Path:
    """Lay out what the benchmark prepares."""
    shutil.copytree(hands.parent, tmp_path / "hands")
    (tmp_path / "run").mkdir()
    shutil.copy(trained, tmp_path / "run/best.pt")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_work(command: str, folder: Path, undrawn: None) -> None:
    unit = make_unit(command, folder, batch_size=4)
    counts = [unit(), unit()]
    assert counts[0] == counts[1] > 0
    figures = measure(unit, settle_s=0.0, seconds=0.0)
    assert set(figures) == {"rate", "cores", "waited", "others"}
    assert figures["rate"] > 0


def test_the_whole_is_measured_and_nothing_is_left(
    tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = f"mark = {str(tmp_path)!r}\n"
    monkeypatch.setattr(benchmark, "BUSY", mark + benchmark.BUSY)
    words = f"--commands sparse --loads four --rounds 2 --seconds 0 --threads 2 --cfg {tiny_cfg} --img-size {SIDE} --images 4"
    monkeypatch.setattr(sys, "argv", ["contention.py", *words.split(), "--epochs", "1", "--batch-size", "2", "--json"])
    benchmark.main()
    result = json.loads(capfd.readouterr().out)
    cells = {(cell["load"], cell["variant"]): cell for cell in result["cells"]}
    assert set(cells) == {
        *((load, variant) for load in ("alone", "four") for variant in ("with the rule", "without")),
        ("alone", "one thread"),
    }
    for (load, variant), cell in cells.items():
        assert cell["command"] == "sparse"
        assert [len(cell[name]) for name in ("rate", "cores", "waited", "others", "ratio")] == [2] * 5
        assert ("is_met" in cell) == (variant == "with the rule")
        assert cell.get("goal", benchmark.GOALS[load]) == benchmark.GOALS[load]
    assert cells["alone", "without"]["ratio"] == [1.0, 1.0]
    wait_until(lambda: not list_processes(mark))


def test_a_verdict_is_by_the_median_of_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    def make(variant: str, load: str, *rates: float) -> dict[str, Any]:
        return {"command": "train", "variant": variant, "load": load, "rate": rates, "cores": [1.0] * 3, "waited": [0.1] * 3, "others": [0.5] * 3}  # fmt: skip

    cells = [
        make("without", "alone", 100, 100, 50),
        make("with the rule", "alone", 97, 95, 49),
        make("without", "one", 25, 25, 25),
        make("with the rule", "one", 59, 59, 40),
    ]
    judged = benchmark.judge(cells)
    assert [cell.get("is_met") for cell in judged] == [None, True, None, False]
    assert judged[1]["ratio"] == pytest.approx([0.97, 0.95, 0.98])
    benchmark.report(judged)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("0.97 [0.95, 0.98]         1.00   0.100   0.500  met (goal 0.96)")
    assert lines[4].endswith("0.59 [0.59, 0.80]         1.00   0.100   0.500  MISSED (goal 0.6)")
    assert lines[-1] == "1 of 2 goals met"


class FakeWorker:
    log: ClassVar[list[str]] = []

    def __init__(self, command: str, variant: str, job: Namespace) -> None:
        self.command, self.variant = command, variant

    def begin(self) -> None:
        self.log.append(f"begin {self.variant}")

    def measure(self) -> dict[str, float]:
        self.log.append(self.variant)
        return {"rate": 1.0, "cores": 1.0, "waited": 0.0, "others": 0.0}

    def give_way(self) -> None:
        self.log.append("give way")

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done with workers and loads, in order."""
    log: list[str] = []
    monkeypatch.setattr(FakeWorker, "log", log)
    monkeypatch.setattr(benchmark, "Worker", FakeWorker)
    monkeypatch.setattr(benchmark, "busy", lambda load, can_raise: FakeLoad(load, log))
    return log


def make_job(loads: list[str], goals_alone: bool = False, end_s: float = 1e9) -> Namespace:
    end = time.monotonic() + end_s
    return Namespace(commands=["train"], also=[], threads=2, loads=loads, rounds=2, end=end, goals_alone=goals_alone)


@pytest.mark.parametrize(("end_s", "rounds"), [(1e9, 2), (0.0, 1)])
def test_every_round_has_new_processes_and_lowers_our_priority_last(log: list[str], end_s: float, rounds: int) -> None:
    job = make_job(["alone", "higher", "four"], end_s=end_s)
    cells = benchmark.measure_all(job, can_raise=False)
    ours = ["with the rule", "without", "one thread"]
    one = [f"begin {variant}" for variant in ours] + ["alone", *ours, "four", *ours[:2]]
    one += [*["give way"] * 3, "higher", *ours[:2], *["close"] * 3]
    assert log == one * rounds
    assert (job.rounds, {len(cell["rate"]) for cell in cells}) == (rounds, {rounds})


def test_with_the_right_to_a_higher_priority_loads_keep_their_order(log: list[str]) -> None:
    benchmark.measure_all(make_job(["alone", "higher", "four"], end_s=0), can_raise=True)
    assert [one for one in log if one in ("alone", "higher", "four", "give way")] == ["alone", "higher", "four"]


def test_goals_alone_leave_out_what_has_none(log: list[str]) -> None:
    benchmark.measure_all(make_job(["alone", "one"], goals_alone=True, end_s=0), can_raise=True)
    assert [one for one in log if not one.startswith(("begin", "close"))] == [
        *["alone", "with the rule", "without"],
        *["one", "with the rule"],
    ]


class FakeLoad:
    def __init__(self, load: str, log: list[str]) -> None:
        log.append(load)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize(("load", "count"), [("alone", 0), ("session", 1), ("higher", 1), ("four", 4), ("sessions", 4)])
def test_busy_processes_are_ended(load: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"mark = {str(tmp_path)!r}\n"
    monkeypatch.setattr(benchmark, "BUSY", mark + benchmark.BUSY)
    with ExitStack() as stack:
        stack.enter_context(benchmark.busy(load, benchmark.can_raise_priority()))
        wait_until(lambda: len(list_processes(mark)) == count)
        theirs = [os.getsid(process) for process in list_processes(mark)]
    is_ours = load == "session" or (load == "higher" and not benchmark.can_raise_priority())
    assert set(theirs) <= {os.getsid(0)} if is_ours else os.getsid(0) not in theirs
    assert len(set(theirs)) == {"four": 1}.get(load, count)
    wait_until(lambda: not list_processes(mark))


def test_busy_processes_end_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    mark = f"mark = {str(tmp_path)!r}\n"
    busy = f"[sys.executable, '-c', {mark + benchmark.BUSY!r}, '2', str(os.getpid())]"
    code = f"import os, subprocess, sys; subprocess.Popen({busy}); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    wait_until(lambda: not list_processes(mark))


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("it does not happen")


def list_processes(mark: str) -> list[int]:
    """Return the processes that run a text with a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(errors="replace").split("\0")
        except OSError:
            continue
        if words[1:2] == ["-c"] and words[2].startswith(mark):
            found.append(int(path.parent.name))
    return found
