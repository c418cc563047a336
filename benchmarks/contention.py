"""What commands still do beside busy processes: python benchmarks/contention.py [--commands train,bench] [--loads alone,one]

Steps of `train`, whole runs of `iterate` (one step of it), `evaluate`, `detect` and `bench` (eager engine), and forward passes of
the sparse engine, alone and beside busy processes, with yolo_prune/contention.py's rule and without it, as PyTorch waits by
itself. Loads: one busy process of the same priority in a session of its own, one in this session (`session`), one of a higher
priority in a session of its own, four in one session, four in one each (`sessions`). With autogroups Linux shares cores between
sessions first: beside four sessions a fair share is a fifth, beside one a half. Each command is a process of its own for each variant, and waits while
others are measured; every round has new processes, since where memory lies makes one process up to a tenth faster than the next for as
long as it lives. A measurement with the rule begins once the rule has had time to act. Ratios are formed, round by round, to the
rate alone and without the rule; what one thread reaches alone stands beside them, which is what a process that gets one core can do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contention_work import COMMANDS

from yolo_prune.commands.train import start_training
from yolo_prune.contention import INTERVAL_S, SETTINGS
from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.threads import count_cores
from yolo_prune.training.config import TrainConfig

LOADS = {"alone": (0, 0), "one": (1, 1), "session": (0, 1), "higher": (1, 1), "four": (1, 4), "sessions": (4, 1)}
"""How many sessions of busy processes, and how many in each; 0 sessions: in this one."""
GOALS = {"alone": 0.96, "one": 0.6, "session": 0.6, "higher": 0.6, "four": 0.3, "sessions": 0.3}
"""The least ratios to the rate alone without the rule."""
RULE, PLAIN, SINGLE = "with the rule", "without", "one thread"
NICE = 10
SETTLE_S = 2 * INTERVAL_S + 0.2
"""Seconds of work before a measurement with the rule."""
BUSY = """
import os, sys
parent = int(sys.argv[2])
for _ in range(int(sys.argv[1]) - 1):
    own = os.getpid()
    if not os.fork():
        parent = own
        break
while os.getppid() == parent:
    for _ in range(1000000): pass
"""
"""It is told its parent, which may have ended before it looks, and ends when it has another."""
WORKER = Path(__file__).resolve().with_name("contention_work.py")

MEASURED = ("rate", "cores", "waited", "others")
"""What a worker measures: units of work per second, cores used, seconds of waiting for a core and of others on the cores, per second."""

Job = argparse.Namespace
"""The command's options, `folder` (data, checkpoint and what commands leave)."""


def prepare(job: Job) -> None:
    """Draw the data set and train the network that all commands work on for a moment, so that it finds few objects."""
    folder = Path(job.folder)
    drawn = SyntheticConfig(train=job.images, val=max(1, job.images // 4), test=1, size_px=max(64, job.img_size))
    data = make_dataset(folder / "hands", drawn, workers=1)
    config = TrainConfig(
        data=data, cfg=job.cfg, img_size=job.img_size, batch_size=job.batch_size, epochs=job.epochs, device="cpu", val_interval=0
    )  # fmt: skip
    start_training(config, folder / "run")


class Worker:
    """A command in a process of its own."""

    def __init__(self, command: str, variant: str, job: Job) -> None:
        """Start it; it imports what it needs, and then waits for `begin`."""
        self.command, self.variant, self._seconds = command, variant, job.seconds
        own = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        own["OMP_NUM_THREADS"] = "1" if variant == SINGLE else str(job.threads)
        own |= dict([variant.split("=", 1)] if "=" in variant else [])
        order = {"command": command, "has_rule": variant == RULE, "folder": job.folder, "batch_size": job.batch_size}
        self._log = Path(job.folder, f"{command} {variant}.log".replace("/", " "))
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=own,
            )

    def begin(self) -> None:
        """Have it do its work once, so that it is warm."""
        self._ask({})

    def measure(self) -> dict[str, float]:
        """Have it work for a while."""
        return self._ask({"settle_s": SETTLE_S if self.variant == RULE else 0.0, "seconds": self._seconds})

    def _ask(self, order: dict[str, float]) -> dict[str, Any]:
        """Return the response to an order.

        Raises:
            SystemExit: it has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(order), file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise SystemExit(f"{self.command}, {self.variant}: {last}")
        return dict(json.loads(line))

    def give_way(self) -> None:
        """Lower the priority of all its threads, for good."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)

    def close(self) -> None:
        """End it: it leaves when its stdin ends."""
        with suppress(BrokenPipeError):
            self.process.communicate()


@contextmanager
def busy(load: str, can_raise: bool) -> Iterator[None]:
    """Keep a load's processes busy, and end them whatever happens; should this process be killed, they end by themselves."""
    sessions, count = LOADS[load]
    is_raised = load == "higher" and can_raise
    has_own = sessions > 0 and (load != "higher" or can_raise)
    with ExitStack() as stack:
        for _ in range(max(1, sessions) if count else 0):
            process = subprocess.Popen(
                [sys.executable, "-c", BUSY, str(count), str(os.getpid())], start_new_session=has_own
            )
            stack.callback(process.wait)
            stack.callback(partial(os.killpg, process.pid, signal.SIGKILL) if has_own else process.kill)
            if is_raised:
                raise_priority(process.pid)
        time.sleep(0.3 if count else 0.0)
        yield


def raise_priority(pid: int) -> None:
    """Give a process, and its session's autogroup, priority over others.

    Raises:
        PermissionError: this user may not.
    """
    os.setpriority(os.PRIO_PROCESS, pid, -NICE)
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(-NICE))


def can_raise_priority() -> bool:
    """Return whether this user may give a process a higher priority."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        try:
            raise_priority(process.pid)
        except PermissionError:
            return False
        finally:
            process.kill()
    return True


def measure_all(job: Job, can_raise: bool) -> list[dict[str, Any]]:
    """Return what was measured, a cell for each command, variant and load, its lists one entry a round.

    Rounds that would end too late are left out, and `job.rounds` is set to those that were made.
    """
    cells = {
        (command, variant, load): {"command": command, "variant": variant, "load": load} | {name: [] for name in MEASURED}
        for command in job.commands
        for variant in list_variants(job)
        for load in job.loads
        if load == "alone" or variant == RULE or (variant != SINGLE and not job.goals_alone)
    }  # fmt: skip
    began = time.monotonic()
    for number in range(job.rounds):
        measure_round(cells, job, can_raise, f"round {number + 1} of {job.rounds}")
        now = time.monotonic()
        if now + (now - began) / (number + 1) > job.end:
            job.rounds = number + 1
            break
    return list(cells.values())


def list_variants(job: Job) -> list[str]:
    """Return the variants of each command; one thread is left out where only what has goals is measured."""
    return [RULE, PLAIN, *job.also, *([SINGLE] if job.threads > 1 and not job.goals_alone else [])]


def measure_round(cells: dict[tuple[str, str, str], dict[str, Any]], job: Job, can_raise: bool, title: str) -> None:
    """Measure every cell once, with new processes."""
    last = [load for load in job.loads if load == "higher" and not can_raise]  # our priority, once lowered, stays so
    with ExitStack() as stack:
        workers = []
        for command, variant in itertools.product(job.commands, list_variants(job)):
            workers.append(Worker(command, variant, job))
            stack.callback(workers[-1].close)
        for worker in workers:
            worker.begin()  # one after the other: together they would keep each other from the cores
        for load in sorted(job.loads, key=last.count):
            print(f"{title}: {load}", file=sys.stderr)
            if load in last:
                for worker in workers:
                    worker.give_way()
            with busy(load, can_raise):
                for worker in workers:
                    if (cell := cells.get((worker.command, worker.variant, load))) is not None:
                        for name, value in worker.measure().items():
                            cell[name].append(value)


def judge(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each cell its ratios to the rate alone without the rule, round by round, and to those with the rule a verdict."""
    base = {cell["command"]: cell["rate"] for cell in cells if (cell["variant"], cell["load"]) == (PLAIN, "alone")}
    for cell in cells:
        cell["ratio"] = [own / alone for own, alone in zip(cell["rate"], base[cell["command"]], strict=True)]
        if cell["variant"] == RULE:
            cell["goal"] = GOALS[cell["load"]]
            cell["is_met"] = bool(np.median(cell["ratio"]) >= cell["goal"])
    return cells


def report(cells: list[dict[str, Any]]) -> None:
    """Print the cells as a table: medians, ratios with the least and most of the rounds."""
    print(f"{'':<52}{'per s':>8}  {'ratio to alone, without':<24}{'cores':>6}{'waited':>8}{'others':>8}")
    for cell in cells:
        middle, low, high = np.percentile(cell["ratio"], (50, 0, 100))
        verdict = ""
        if "goal" in cell:
            verdict = f"  {'met' if cell['is_met'] else 'MISSED'} (goal {cell['goal']})"
        print(
            f"{cell['command']:<10}{cell['load']:<10}{cell['variant']:<32}{np.median(cell['rate']):8.1f}  "
            f"{f'{middle:.2f} [{low:.2f}, {high:.2f}]':<24}{np.median(cell['cores']):6.2f}{np.median(cell['waited']):8.3f}{np.median(cell['others']):8.3f}{verdict}"
        )
    judged = [cell["is_met"] for cell in cells if "goal" in cell]
    print(f"{sum(judged)} of {len(judged)} goals met")


def parse() -> Job:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="What commands still do beside busy processes.")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--loads", default="alone,one,higher,four", help=f"of {', '.join(LOADS)}; alone is always one")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=VALUE", help="also without the rule and with a setting of the environment, such as GOMP_SPINCOUNT=1000 or OMP_WAIT_POLICY=passive")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-minutes", type=float, default=5.5, help="rounds that would end later are left out")
    parser.add_argument("--seconds", type=float, default=1.0, help="the least that each measurement takes")
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--cfg", type=Path, default=Path("configs/demo-hand.cfg"))
    for name, value in {"img-size": 160, "batch-size": 8, "images": 64, "epochs": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--goals-alone",
        action="store_true",
        help="measure what has goals alone: no one thread, and beside others with the rule alone",
    )
    parser.add_argument("--json", action="store_true")
    job = parser.parse_args()
    job.commands = [name for name in COMMANDS if name in job.commands.split(",")]
    job.loads = [name for name in LOADS if name == "alone" or name in job.loads.split(",")]
    if not job.commands or job.rounds < 1 or not all("=" in setting for setting in job.also):
        parser.error("name commands, at least a round, and settings as NAME=VALUE")
    return job


def main() -> None:
    """Measure all commands under all loads and print the figures."""
    job = parse()
    job.end = time.monotonic() + 60 * job.max_minutes
    resize(load_cfg(job.cfg), job.img_size)  # says what is wrong before anything is started
    can_raise = "higher" not in job.loads or can_raise_priority()
    with tempfile.TemporaryDirectory() as job.folder:
        prepare(job)
        cells = judge(measure_all(job, can_raise))
    busy_is = f"nice {-NICE}" if can_raise else f"nice 0, ours {NICE}, measured last and in one session"
    facts = {"torch": torch.__version__, "cores": count_cores(), "higher": busy_is}
    if job.json:
        print(json.dumps({"settings": vars(job), **facts, "cells": cells}, default=str))
        return
    print(
        f"{job.cfg} at {job.img_size} px, batches of {job.batch_size}, {job.threads} threads, {facts['cores']} cores, ",
        end="",
    )
    print(f"{job.rounds} rounds of {job.seconds:g} s; PyTorch {facts['torch']}; higher priority: {busy_is}")
    report(cells)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    main()
