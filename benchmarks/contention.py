"""What commands still do beside busy processes: python benchmarks/contention.py [--commands train,bench] [--loads alone,one]

Steps of `train`, whole runs of `iterate` (one step of it), `evaluate`, `detect` and `bench` (eager engine), and forward passes of
the sparse engine, alone and beside busy processes, with yolo_prune/contention.py's rule and without it, as PyTorch waits by
itself. Loads: one busy process of the same priority in a session of its own (with autogroups Linux shares cores between sessions
first), one in this session, one of a higher priority, four. Each command is a process of its own for each variant, and waits while
others are measured; rounds are interleaved. A measurement begins once the rule has had time to act. Ratios are formed, round by
round, to the rate alone and without the rule; what one thread reaches alone stands beside them, which is what a process that
gets one core can do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_prune.contention import INTERVAL_S, MOST_HOLD_S, DelayMeter, watch_contention
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.layers import resize
from yolo_prune.datasets.loader import Batch, DetectionDataset, make_loader
from yolo_prune.datasets.settings import SyntheticConfig
from yolo_prune.datasets.spec import find_images, load_spec
from yolo_prune.datasets.synthetic import make_dataset
from yolo_prune.evaluation.settings import DetectConfig
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.sparse.engine import SparseDetector
from yolo_prune.stages.bench import bench
from yolo_prune.stages.detect import detect
from yolo_prune.stages.evaluate import evaluate_models
from yolo_prune.stages.iterate import start_iterate
from yolo_prune.stages.iterate_settings import IterateConfig
from yolo_prune.stages.settings import FINETUNE, BenchConfig, EvaluateConfig
from yolo_prune.stages.training import start_training
from yolo_prune.threads import count_cores
from yolo_prune.training.epoch import train_step
from yolo_prune.training.pace import measure_pace
from yolo_prune.training.settings import TrainConfig
from yolo_prune.training.trainee import make_trainee

Unit = Callable[[], int]
"""Do a little of a command, and return how many images (of `iterate` runs) that was."""
LOADS = {"alone": 0, "one": 1, "session": 1, "higher": 1, "four": 4}
"""Busy processes: in sessions of their own, but for `session`, which has one in this session."""
GOALS = {"alone": 0.96, "one": 0.6, "session": 0.6, "higher": 0.6, "four": 0.3}
"""The least ratios to the rate alone without the rule."""
RULE, PLAIN, SINGLE = "with the rule", "without", "one thread"
NICE = 10
SETTLE_S = {RULE: 2 * INTERVAL_S + 0.2, PLAIN: 0.2, SINGLE: 0.2}
"""Time that goes by, working, before a measurement."""
REST_S = MOST_HOLD_S + 3 * INTERVAL_S
"""Time that goes by, idle, before a process with the rule is measured again."""
RUNS = 20
SPARSITY = 0.9
STEPS = 10_000
"""How long the training believes it is, for its schedules."""
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1000000): pass"
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

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


def make_unit(command: str, folder: Path, batch_size: int) -> Unit:
    """Return what a worker repeats."""
    source, data, out = folder / "run/best.pt", folder / "hands/data.yaml", folder / f"out-{os.getpid()}"
    match command:
        case "train":
            return make_train_unit(source, data, batch_size)
        case "iterate":
            steps = IterateConfig(
                step=0.2, target_ratio=0.2, settle_epochs=0, max_drop=1, data=data, device="cpu", finetune=replace(FINETUNE, batch_size=batch_size)
            )  # fmt: skip

            def iterate() -> int:
                shutil.rmtree(out, ignore_errors=True)
                start_iterate(source, steps, out)
                return 1

            return iterate
        case "evaluate":
            config = EvaluateConfig(data=data, device="cpu")
            return lambda: evaluate_models([source], [], config).models[0].evaluation.score.images
        case "detect":
            images = find_images(folder / "hands/images/val")
            return lambda: len(detect(source, images, out, DetectConfig(confidence=0.25), None, "cpu").pictures)
        case "bench":
            timed = BenchConfig(score=False, engine="eager", runs=RUNS, device="cpu")
            return lambda: RUNS * len(bench({"Original": source}, timed).rows)
        case "sparse":
            return make_sparse_unit(source)
    raise AssertionError(command)


COMMANDS = ("train", "iterate", "evaluate", "detect", "bench", "sparse")


def make_train_unit(source: Path, data: Path, batch_size: int) -> Unit:
    """Return a step of a training run that has no end, its batch read and varied by the loader."""
    config, checkpoint, spec = TrainConfig(batch_size=batch_size), load_checkpoint(source), load_spec(data)
    pictures = DetectionDataset(spec.samples("train"), len(spec.names), checkpoint.img_size, augment=config.augment)
    model = Detector(checkpoint.network)
    model.load_state_dict(dict(checkpoint.state))
    trainee = make_trainee(model.to(memory_format=torch.channels_last), config, STEPS)
    trainee.learn()
    pace = measure_pace(config, 0.0, STEPS // 2, STEPS)

    def load() -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from make_loader(pictures, batch_size, shuffle=True, epoch=epoch)

    batches = load()

    def step() -> int:
        batch = next(batches)
        train_step(trainee, batch, config, pace)
        return len(batch.images)

    return step


@torch.inference_mode()
def make_sparse_unit(source: Path) -> Unit:
    """Return some forward passes, batch 1, of the network with most weights zero."""
    checkpoint = load_checkpoint(source)
    model = Detector(checkpoint.network).eval()
    model.load_state_dict(dict(checkpoint.state))
    for index, _ in checkpoint.network.convs:
        module = model.layers[index]
        assert isinstance(module, ConvLayer)
        if index and index not in checkpoint.network.head_convs:
            sizes = module.conv.weight.abs()
            module.conv.weight[sizes <= sizes.flatten().kthvalue(round(SPARSITY * sizes.numel())).values] = 0
    engine, image = SparseDetector(model), torch.rand(1, 3, checkpoint.img_size, checkpoint.img_size)

    def run() -> int:
        for _ in range(RUNS):
            engine(image)
        return RUNS

    return run


def work(order: dict[str, Any]) -> None:
    """Be a worker: make the unit, then read orders from stdin and answer on stdout, a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a command prints is no answer
    with ExitStack() as stack:
        if order["rule"]:
            stack.enter_context(watch_contention())
        unit = make_unit(order["command"], Path(order["folder"]), order["batch_size"])
        unit()
        print(json.dumps({"threads": torch.get_num_threads()}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(measure(unit, **json.loads(line))), file=answers, flush=True)


def measure(unit: Unit, settle_s: float, seconds: float) -> dict[str, float]:
    """Return units of work per second, the cores used, and the share of time that threads waited for a core, all added up."""
    started = time.perf_counter()
    while time.perf_counter() - started < settle_s:
        unit()
    meter, used, done = DelayMeter(), time.process_time(), 0
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < seconds or not done:
        done += unit()
    return {"rate": done / took, "cores": (time.process_time() - used) / took, "waited": meter.measure()[0]}


class Worker:
    """A command in a process of its own."""

    def __init__(self, command: str, variant: str, job: Job) -> None:
        """Start it; `wait` until it is ready."""
        self.command, self.variant, self._seconds = command, variant, job.seconds
        own = {name: value for name, value in os.environ.items() if name not in WAIT_SETTINGS}
        own["OMP_NUM_THREADS"] = "1" if variant == SINGLE else str(job.threads)
        own |= dict([variant.split("=", 1)] if "=" in variant else [])
        order = {"command": command, "rule": variant == RULE, "folder": job.folder, "batch_size": job.batch_size}
        self._log = Path(job.folder, f"{command} {variant}.log".replace("/", " "))
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=own,
            )
        self._rested = 0.0

    def wait(self) -> dict[str, Any]:
        """Return its next answer.

        Raises:
            SystemExit: it has ended.
        """
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise SystemExit(f"{self.command}, {self.variant}: {last}")
        return dict(json.loads(line))

    def measure(self) -> dict[str, float]:
        """Have it work for a while, rested enough for the rule to have forgotten an earlier load."""
        if self.variant == RULE:
            time.sleep(max(0.0, self._rested - time.monotonic()))
        assert self.process.stdin is not None
        order = {"settle_s": SETTLE_S.get(self.variant, SETTLE_S[PLAIN]), "seconds": self._seconds}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.wait()
        self._rested = time.monotonic() + REST_S
        return answer

    def give_way(self) -> None:
        """Lower the priority of all its threads, for good."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)

    def close(self) -> None:
        """End it: it leaves when its stdin ends."""
        self.process.communicate()


@contextmanager
def busy(load: str, can_raise: bool) -> Iterator[None]:
    """Keep a load's processes busy, and end them whatever happens; should this process be killed, they end by themselves."""
    in_session = load == "session" or (load == "higher" and not can_raise)
    with ExitStack() as stack:
        for _ in range(LOADS[load]):
            process = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=not in_session)
            stack.callback(process.wait)
            stack.callback(process.kill)
            if load == "higher" and can_raise:
                raise_priority(process.pid)
        time.sleep(0.3 if LOADS[load] else 0.0)
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
    """Say whether this user may give a process a higher priority."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        try:
            raise_priority(process.pid)
        except PermissionError:
            return False
        finally:
            process.kill()
    return True


def measure_all(workers: list[Worker], loads: list[str], rounds: int, can_raise: bool) -> list[dict[str, Any]]:
    """Return what was measured, a cell for each command, variant and load, its lists one entry a round."""
    cells = {
        (worker, load): {"command": worker.command, "variant": worker.variant, "load": load, "rate": [], "cores": [], "waited": []}
        for load in loads
        for worker in workers
        if worker.variant != SINGLE or load == "alone"
    }  # fmt: skip
    last = [load for load in loads if load == "higher" and not can_raise]  # no way back from a lower priority of ours
    for part in ([load for load in loads if load not in last], last):
        for worker in workers if part == last else ():
            worker.give_way()
        for number, load in itertools.product(range(rounds), part):
            print(f"round {number + 1} of {rounds}: {load}", file=sys.stderr)
            with busy(load, can_raise):
                for worker in workers:
                    if (worker, load) in cells:
                        for name, value in worker.measure().items():
                            cells[worker, load][name].append(value)
    return list(cells.values())


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
    print(f"{'':<52}{'per s':>8}  {'ratio to alone, without':<24}{'cores':>6}{'waited':>8}")
    for cell in cells:
        middle, low, high = np.percentile(cell["ratio"], (50, 0, 100))
        verdict = ""
        if "goal" in cell:
            verdict = f"  {'met' if cell['is_met'] else 'MISSED'} (goal {cell['goal']})"
        print(
            f"{cell['command']:<10}{cell['load']:<10}{cell['variant']:<32}{np.median(cell['rate']):8.1f}  "
            f"{f'{middle:.2f} [{low:.2f}, {high:.2f}]':<24}{np.median(cell['cores']):6.2f}{np.median(cell['waited']):8.3f}{verdict}"
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
    parser.add_argument("--seconds", type=float, default=1.2, help="of each measurement")
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--cfg", type=Path, default=Path("configs/demo-hand.cfg"))
    for name, value in {"img-size": 160, "batch-size": 8, "images": 64, "epochs": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    job = parser.parse_args()
    job.commands = [name for name in COMMANDS if name in job.commands.split(",")]
    job.loads = [name for name in LOADS if name == "alone" or name in job.loads.split(",")]
    if not job.worker and (not job.commands or job.rounds < 1 or not all("=" in setting for setting in job.also)):
        parser.error("name commands, at least a round, and settings as NAME=VALUE")
    return job


def main() -> None:
    """Measure all commands under all loads and print the figures."""
    job = parse()
    if job.worker:
        work(job.worker)
        return
    resize(load_cfg(job.cfg), job.img_size)  # says what is wrong before anything is started
    can_raise = "higher" not in job.loads or can_raise_priority()
    variants = [RULE, PLAIN, *job.also, *([SINGLE] if job.threads > 1 else [])]
    with tempfile.TemporaryDirectory() as job.folder, ExitStack() as stack:
        prepare(job)
        workers = []
        for command, variant in itertools.product(job.commands, variants):
            workers.append(Worker(command, variant, job))
            stack.callback(workers[-1].close)
        for worker in workers:
            worker.wait()
        cells = judge(measure_all(workers, job.loads, job.rounds, can_raise))
    busy_is = f"nice {-NICE}" if can_raise else f"nice 0, ours {NICE}, measured last and in one session"
    facts = {"torch": torch.__version__, "cores": count_cores(), "higher": busy_is}
    if job.json:
        del job.worker
        print(json.dumps({"settings": vars(job), **facts, "cells": cells}, default=str))
        return
    print(
        f"{job.cfg} at {job.img_size} px, batches of {job.batch_size}, {job.threads} threads, {facts['cores']} cores, ",
        end="",
    )
    print(f"{job.rounds} rounds of {job.seconds:g} s; PyTorch {facts['torch']}; higher priority: {busy_is}")
    report(cells)


if __name__ == "__main__":
    main()
