"""Run stages one after the other, each in a process of its own that is ended at its time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpu.job import Job
from yolo_prune.console import report

PATIENCE_S = 3.0
"""How long a stage that is told to end may take to do so."""


@dataclass(frozen=True)
class Stage:
    """A module with a `main` that takes its settings as JSON from the command line."""

    name: str
    module: str
    seconds: float
    """Its share of a budget of 540 s."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    stage: str
    state: str
    """done, failed or out of time."""
    reason: str
    seconds: float
    limit_s: float


CHECK = Stage("check", "gpu.check", 60)
BENCH = Stage("bench", "gpu.bench", 120)
THROUGHPUT = Stage("throughput", "gpu.throughput", 60)
CASE_STUDY = Stage("case-study", "gpu.case_study", 290)
CONTROLS = Stage("controls", "gpu.controls", 200)
STAGES = {stage.name: stage for stage in (CHECK, BENCH, THROUGHPUT, CASE_STUDY, CONTROLS)}
DEFAULT = ("check", "bench", "throughput", "case-study")


def run_stages(stages: Sequence[Stage], job: Job, budget_s: float) -> list[Outcome]:
    """Run all stages within the budget. What a stage leaves of its time goes to those after it."""
    end, outcomes = time.monotonic() + budget_s, []
    for number, stage in enumerate(stages):
        share = stage.seconds / sum(one.seconds for one in stages[number:])
        limit_s = max(0.0, end - time.monotonic()) * share
        report(f"stage {stage.name}: at most {limit_s:.0f} s")
        outcome = run_stage(stage, replace(job, stage=stage.name, seconds=limit_s), limit_s)
        report(f"stage {stage.name}: {outcome.state} after {outcome.seconds:.0f} s {outcome.reason}".rstrip())
        outcomes.append(outcome)
    return outcomes


def run_stage(stage: Stage, job: Job, limit_s: float) -> Outcome:
    """Run a stage in a process of its own; end it, and all that it started, at the limit."""
    log, started = job.folder / f"{stage.name}.log", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", stage.module, job.format()],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit_s)
            state, reason = ("done", "") if process.returncode == 0 else ("failed", explain(process.returncode, log))
        except subprocess.TimeoutExpired:
            state, reason = "out of time", f"ended after {limit_s:.0f} s"
        finally:
            end_session(process)
    return Outcome(stage.name, state, reason, time.monotonic() - started, limit_s)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it started, with force if it does not end by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def explain(code: int, log: Path) -> str:
    """Say why a stage failed: the signal that ended it, or the last line of its log."""
    if code < 0:
        killed = " (killed, perhaps for want of memory)" if code == -signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{killed}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else f"exit code {code}"
