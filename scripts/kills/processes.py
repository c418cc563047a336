"""Run a command in a process of its own, and find what it leaves running.

The process is forked from this one, which has imported what takes long: kills hit the work, not the imports. Otherwise it
is `python -m yolo_prune`, and with `is_new` it is that in all respects.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

IMPORTED = (
    *("commands.runs", "commands.run", "commands.bench", "commands.report", "commands.export", "commands.detect"),
    *("commands.evaluate", "commands.profile", "commands.import_darknet", "commands.datasets.check"),
    *("commands.datasets.convert", "commands.datasets.vgg_hand", "report.page", "cli.main"),
)
POLL_S = 0.002
GRACE_S = 12.0
"""In so long all processes of a killed run must have ended: PyTorch's workers look every 5 s whether they are alone."""
COMMAND = (sys.executable, "-m", "yolo_prune")
MARK = "YOLO_PRUNE_KILL_MARK"
"""The environment variable by which the processes of a run are found."""


def import_all() -> None:
    """Import what commands import, but for packages that start threads."""
    for name in IMPORTED:
        import_module(f"yolo_prune.{name}")
    for name in (
        "matplotlib.pyplot",
        "scipy.io",
        "imagehash",
        "jpeglib",
        "vl_convert",
        "torchvision.ops",
        "torch.utils.data",
        "torch.multiprocessing",
    ):
        import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "only a process of one thread may be forked"


@dataclass
class Run:
    """A process that runs a command, and leads a session of its own."""

    pid: int
    output: Path
    """A folder in which its stdout and stderr are files."""
    code: int | None = None
    """The exit code, −N if signal N ended it; None while it runs."""

    def wait(self, seconds: float) -> bool:
        """Wait at most so long, and return whether the process has ended."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                break
            else:
                time.sleep(POLL_S)
        return self.code is not None

    def send(self, signum: signal.Signals) -> None:
        """Send a signal: Ctrl-C reaches all processes of a terminal's job, others the one that was started."""
        (os.killpg if signum == signal.SIGINT else os.kill)(self.pid, signum)

    def read(self, name: str) -> str:
        """Return what it has written to stdout or stderr."""
        return (self.output / name).read_text(errors="replace")


def start(words: Sequence[str], place: Path, environment: dict[str, str], output: Path, is_new: bool) -> Run:
    """Start `yoloprune` with these words in a folder."""
    output.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        while os.getpgid(pid) != pid:  # until it leads its session
            time.sleep(POLL_S)
        return Run(pid, output)
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # bash ignores it for a script's background
        for number, name in enumerate((Path("/dev/null"), output / "stdout", output / "stderr")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
            os.dup2(os.open(name, flags, 0o600), number)
        os.closerange(3, 1024)
        os.chdir(place)
        if is_new:
            os.execve(COMMAND[0], [*COMMAND, *words], environment)
        os._exit(_run(words, environment))
    finally:
        os._exit(70)  # nothing of this program's own may run in the forked process


def _run(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run the command as `python -m yolo_prune` does, to the interpreter's end, and return the exit code."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # this program's folders are not this process's
    sys.argv = ["yoloprune", *words]
    code = 0
    try:
        runpy.run_module("yolo_prune", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001  # the interpreter would show it
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def wait_for_none(run: Run, mark: str) -> list[str]:
    """Wait until nothing is left of a run that has ended; return the processes that are left in the end, killed."""
    deadline = time.monotonic() + GRACE_S
    while (found := _find_left(run.pid, mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [*found.values()]


def _find_left(session: int, mark: str) -> dict[int, str]:
    """Return the command lines of all processes of a session, and of those that have a mark in their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and (int(its_session) == session or mark.encode() in (path / "environ").read_bytes()):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found
