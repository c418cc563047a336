"""SIGTERM, and SIGKILL, of every command that writes: what is left, what the exit code is, and what the next run does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ENDLESS = ("--train", "100000", "--val", "1", "--test", "1", "--size", "64")
PATIENCE_S = 120
"""A busy machine may need so long."""


def start(*words: object) -> subprocess.Popen[str]:
    """Run `yoloprune` in a process of its own."""
    command = [sys.executable, "-m", "yolo_prune", *map(str, words)]
    listen = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **listen}
    )


def wait_for(is_so: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something is so, while a process runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[str], signum: signal.Signals) -> tuple[int, str, str]:
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def count_images() -> int:
    return len(list(Path("data").glob(".hands.*/images/train/*.jpg")))


def find_workers(pid: int) -> set[int]:
    """Return the processes that a process has started, and those that they have."""
    tree: dict[int, set[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            tree.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), set()).add(int(stat.parent.name))
        except OSError:
            continue
    found, new = set(), {pid}
    while new := {child for parent in new for child in tree.get(parent, ())}:
        found |= new
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("workplace")
def test_sigterm_of_data_synthetic_leaves_nothing() -> None:
    process = start("data", "synthetic", "--out", "data/hands", *ENDLESS)
    wait_for(lambda: count_images() > 8, process)
    assert end(process, signal.SIGTERM) == (
        143,
        "",
        "drawing 100,002 images of synthetic hands into data/hands\nstopped\n",
    )
    assert list(Path("data").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found by /proc")
@pytest.mark.usefixtures("workplace")
def test_workers_die_with_the_process_that_started_them() -> None:
    process = start("data", "synthetic", "--out", "data/hands", *ENDLESS)
    wait_for(lambda: count_images() > 8, process)
    workers = find_workers(process.pid)
    assert workers
    code, _, _ = end(process, signal.SIGKILL)
    assert code == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if is_alive(pid)]
    assert len(list(Path("data").iterdir())) == 1
    again = start(
        "data", "synthetic", "--out", "data/hands", "--train", "2", "--val", "1", "--test", "1", "--size", "64"
    )
    out, err = again.communicate(timeout=PATIENCE_S)
    assert (again.returncode, out) == (0, "data/hands/data.yaml\n"), err
    assert [path.name for path in Path("data").iterdir()] == ["hands"]


HANG = """
import sys, time
from pathlib import Path
import yolo_prune.{module} as module

def hang(*arguments, **named):
    Path("begun").touch()
    while True:
        time.sleep(0.01)

module.{function} = hang
from yolo_prune.cli.main import main
sys.argv = ["yoloprune", *sys.argv[1:]]
main()
"""
HANGING = {
    "convert": ("commands.datasets.convert", "_report_losses", "data convert {data} --to coco --out coco"),
    "check": ("commands.datasets.check", "save_box_plots", "data check {data} --out checked"),
    "plan": ("commands.prune", "draw_plan", "plan {trained} --ratio 0.5"),
    "prune": ("commands.prune", "rebuild", "prune {trained} --one-shot --ratio 0.5"),
    "evaluate": ("commands.evaluate", "load_data_of", "evaluate {trained}"),
    "export": ("commands.export", "measure_parity", "export {trained} --out hand.pt2"),
    "train": ("commands.train", "make_start", "train --data {data} --name mine"),
}
"""By command: a function to hang in, late in its work, and its command line."""


@pytest.mark.parametrize(
    ("name", "signum"),
    [*((name, signal.SIGTERM) for name in HANGING), ("convert", signal.SIGINT), ("export", signal.SIGINT)],
)
def test_a_signal_leaves_nothing_half_written(
    workplace: Path, hands: Path, trained: Path, name: str, signum: signal.Signals
) -> None:
    module, function, words = HANGING[name]
    code = HANG.format(module=module, function=function)
    line = words.format(data=hands, trained=trained).split()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job is deaf to it
    )
    wait_for(Path("begun").exists, process)
    code_of_exit, out, err = end(process, signum)
    assert (code_of_exit, out) == (128 + signum, ""), err
    assert "Traceback" not in err
    assert signum == signal.SIGINT or err.splitlines()[-1] == "stopped"
    left = {path.as_posix() for path in Path().rglob("*")} - {"begun"}
    expected = {"check": {"checked"}}
    assert left == expected.get(name, set())


def test_a_second_sigterm_ends_a_process_that_does_not_stop(workplace: Path) -> None:
    code = """
import sys, time
from pathlib import Path
import yolo_prune.commands.cfg as module

def hang(*arguments):
    try:
        Path("begun").touch()
        time.sleep(600)
    finally:
        Path("asked").touch()
        time.sleep(600)

module.make_network = hang
from yolo_prune.cli.main import main
sys.argv = ["yoloprune", "cfg", "make"]
main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for mark in ("begun", "asked"):
        wait_for(Path(mark).exists, process)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGTERM
