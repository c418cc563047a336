"""What the system lacks, or a signal before there is anything to clean: one line and exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import Cli

from yolo_prune.cli.shortages import explain_shortage
from yolo_prune.datasets.batches import Batch, share_
from yolo_prune.engines.exported.packages import TELEMETRY, import_package
from yolo_prune.errors import DatasetError
from yolo_prune.scraps import make_temporary_folder, name_scrap

EMFILE = OSError(errno.EMFILE, "Too many open files", "a.jpg")


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    return fail


def chain(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EMFILE, "a.jpg: Too many open files; raise the limit of open files (ulimit -n)"),
        (
            OSError(errno.EROFS, "Read-only file system", "x"),
            "x: Read-only file system; name a place that can be written",
        ),
        (chain(ValueError("bad"), EMFILE), "a.jpg: Too many open files; raise the limit of open files (ulimit -n)"),
        (
            RuntimeError("write failed: No space left on device (28)"),
            "system: No space left on device; make room there",
        ),
        (
            RuntimeError("can't start new thread"),
            "system: no thread can be started; raise the limit of processes (ulimit -u, docker run --pids-limit), or stop others",
        ),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "system: there is no folder for temporary files; name one that can be written, and has room, in TMPDIR",
        ),
        (ValueError("bad"), None),
        (FileNotFoundError(2, "No such file or directory", "x"), None),
    ],
)
def test_what_the_system_lacks_is_told_from_a_defect(error: Exception, line: str | None) -> None:
    found = explain_shortage(error)
    assert (None if found is None else str(found)) == line


@pytest.mark.parametrize("words", ["evaluate", "plan --ratio 0.5", "data check"])
def test_a_system_without_threads_or_files_is_no_defect(
    cli: Cli, trained: Path, hands: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    target = hands if words == "data check" else trained
    monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
    monkeypatch.setattr("yolo_prune.commands.prune.make_planned", raising(EMFILE))
    done = cli(*words.split(), target)
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.splitlines()[-1].startswith(("error: system: no thread", "error: a.jpg: Too many open files"))
    assert [*Path().rglob("*")] == []


def test_a_system_without_temporary_files_is_no_defect(
    cli: Cli, trained: Path, hands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", raising(FileNotFoundError(2, "No usable temporary directory found")))
    done = cli("detect", trained, hands.parent / "images/test", "--out", "out")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: TMPDIR: no temporary folder can be made (No usable temporary directory found)")
    assert [*Path().rglob("*")] == []


def run_limited(limit: int, most: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `yoloprune` with a limit of the system."""
    return subprocess.run(
        [sys.executable, "-m", "yolo_prune", *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=partial(resource.setrlimit, limit, (most, most)),
    )


@pytest.mark.parametrize(
    "words",
    [("cfg", "make", "--out", "out/hand.cfg"), ("config", "copy", "yolov3-hand.cfg", "--out", "out")],
)
def test_a_file_that_may_not_grow_is_not_left_half_written(workplace: Path, words: tuple[str, ...]) -> None:
    done = run_limited(resource.RLIMIT_FSIZE, 1000, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: out/")
    assert done.stderr.endswith(": cannot be written (File too large)\n")
    assert [path for path in Path().rglob("*") if path.is_file()] == []


def test_a_worker_that_may_open_no_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 7), torch.zeros(1, dtype=torch.int64))
    share_(batch)
    monkeypatch.setattr(os, "open", raising(EMFILE))
    with pytest.raises(DatasetError, match=r"^workers: a batch cannot be handed over: too many files are open; raise"):
        share_(batch)


def test_an_interrupt_while_the_program_is_imported_shows_no_traceback() -> None:
    code = """
import signal, sys, types
import yolo_prune.__main__ as program
module = types.ModuleType("yolo_prune.cli.main")
module.main = lambda: signal.raise_signal(signal.SIGINT)
sys.modules["yolo_prune.cli.main"] = module
program.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_no_package_reports_to_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, TELEMETRY, raising=False)
    import_package("json", "a test")
    assert sys.modules[TELEMETRY] is None


def test_temporary_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    own = name_scrap(tmp_path / "yolo_prune")
    left = own.with_name(own.name.replace(f"-{os.getpid()}.", f"-{ended.pid}."))
    (left / "x").mkdir(parents=True)
    (tmp_path / "somebody's").mkdir()
    with make_temporary_folder() as folder, make_temporary_folder() as other:
        assert folder != other
        assert folder.parent == own
        assert own.stat().st_mode & 0o777 == 0o700
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["somebody's"]


def test_what_a_signal_leaves_between_two_lines_is_removed_at_the_end(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from yolo_prune.scraps import begin_scrap
scrap = begin_scrap(Path(sys.argv[1]) / "a.pt")
scrap.mkdir()
(scrap / "part").touch()
sys.exit(143)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert [*tmp_path.iterdir()] == []
