"""What a terminal shows: bars that move, colours, lines that fit, and a summary with the next command."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

SHOWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Sequences that set colours and move the cursor."""
SMALL = ("--epochs", "2", "--batch-size", "6", "--device", "cpu")


def run_on_terminal(
    *words: object,
    columns: int = 80,
    act: Callable[[int, str], None] | None = None,
    variables: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Run `yoloprune` on a terminal, and return its exit code and all that the terminal got.

    `act` is called with the process id and the text so far, whenever there is more of it.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unset = ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **(variables or {})}
    command = [sys.executable, "-m", "yolo_prune", *map(str, words)]
    shown = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        while piece := _read(ours):
            shown += piece
            if act is not None:
                act(process.pid, shown.decode(errors="replace"))
        process.wait(timeout=60)
    os.close(ours)
    return process.returncode, shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


def list_lines(shown: str) -> list[str]:
    """Return the lines without colours; each drawing of a bar counts as a line."""
    return [line for line in re.split(r"[\r\n]+", SHOWN.sub("", shown)) if line.strip()]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_training_fits_its_terminal_and_says_what_follows(
    workplace: Path, hands: Path, tiny_cfg: Path, columns: int
) -> None:
    code, shown = run_on_terminal("train", "--data", hands, "--cfg", tiny_cfg, *SMALL, columns=columns)
    assert code == 0, shown
    lines = list_lines(shown)
    assert max(map(cell_len, lines)) <= columns
    assert sum("━" in line for line in lines) >= 2
    assert any(re.search(r"━.* \d+% .*epoch [12]/2, loss \d", line) for line in lines)
    assert "runs/train/best.pt" in lines
    assert any(re.fullmatch(r"done in .*: best epoch [12] of 2, val AP50 0\.\d{4}; plots are in runs/train", line) for line in lines)  # fmt: skip
    assert lines[-1] == "next: yoloprune prune runs/train/best.pt --ratio 0.8"
    assert "\x1b[1;32mnext: " in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor is shown again


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_off_where_they_are_not_wanted(
    workplace: Path, hands: Path, tiny_cfg: Path, variables: dict[str, str]
) -> None:
    code, shown = run_on_terminal("train", "--data", hands, "--cfg", tiny_cfg, *SMALL, variables=variables)
    assert code == 0, shown
    assert not re.search(r"\x1b\[[0-9;]*m", shown)
    assert "\x1b" not in shown or variables != {"TERM": "dumb"}


def test_quiet_shows_the_result_alone(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    code, shown = run_on_terminal("train", "--data", hands, "--cfg", tiny_cfg, *SMALL, "--quiet")
    assert (code, shown) == (0, "runs/train/best.pt\r\n")


def test_a_stop_names_the_command_that_goes_on(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    (Path("runs") / "train").mkdir(parents=True)
    (Path("runs") / "train" / "best.pt").touch()  # the new run is train-2
    sent: list[float] = []

    def stop(pid: int, shown: str) -> None:
        if "epoch 1/" in shown and not sent:
            sent.append(time.monotonic())
            os.kill(pid, signal.SIGINT)

    words = ("train", "--data", hands, "--cfg", tiny_cfg, "--epochs", 500, "--device", "cpu", "--batch-size", 6)
    code, shown = run_on_terminal(*words, act=stop)
    assert code == 130
    assert sent
    assert shown.rstrip().endswith("the run can be resumed: yoloprune train --resume --name train-2")


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(workplace: Path, trained: Path, hands: Path, columns: int) -> None:
    names = ["a-rather-long-name", "another-name-that-is-long"]
    for name in names:
        Path(name).mkdir()
        (Path(name) / "best.pt").write_bytes(trained.read_bytes())
    code, shown = run_on_terminal("bench", *names, "--runs", 2, "--data", hands, "--device", "cpu", columns=columns)
    assert code == 0, shown
    lines = list_lines(shown)
    assert max(map(cell_len, lines)) <= columns
    assert all(any(name in line for line in lines) for name in names)
    code, shown = run_on_terminal("data", "check", hands, columns=columns)
    assert code == 0, shown
    assert max(map(cell_len, list_lines(shown))) <= columns
