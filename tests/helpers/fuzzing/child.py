"""The child that runs cases one after another, and tells its parent what came of each."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from fuzzing.case import BASE, Case, Outcome, Target
from fuzzing.readers import Names, recording
from yolo_prune.commands.datasets import check
from yolo_prune.training import report

LONGEST_ERR = 20_000
"""Characters on stderr."""
LONGEST_TRACE = 4_000
"""Characters of a traceback, from its end, that are kept."""
ROOM_BYTES = 4 << 30
"""What a child may allocate beyond what it has at its begin: a runaway ends there, and the machine goes on."""


@dataclass(frozen=True)
class Task:
    """What a child has to do."""

    target: Target
    cases: Iterator[Case]
    begin: int = 0
    """The first case to run; those before are made, and left out."""
    until: float = float("inf")
    """The time of the monotonic clock after which none is begun."""
    readers: Names | None = None
    """Readers to listen for; the cases are sound then, and must be read without an error."""


def work(task: Task, folder: Path, base: Path, told: BinaryIO) -> NoReturn:
    """Run cases in this process, which is a child, write a line of JSON for the begin and the end of each, and exit."""
    code = 1
    try:
        os.setsid()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable(log)  # a crash says where
        room = _read_status("VmData") + ROOM_BYTES
        resource.setrlimit(
            resource.RLIMIT_DATA, (room, room)
        )  # V8, which draws plots, reserves more addresses than that
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _leave_out_plots()
        with suppress(AttributeError):  # of glibc: memory that is free would be used without being counted
            ctypes.CDLL(None).malloc_trim(0)
        usual = _read_status("VmRSS")
        for index, case in enumerate(task.cases):
            if time.monotonic() > task.until:
                break
            if index >= task.begin:
                (folder / f"{index}.json").write_text(case.format())
                _tell(told, begun=index)
                _run(task, case, _make_place(folder / f"{index}", base, case), usual, told)
        _tell(told, done=True)
        code = 0
    except BaseException:  # noqa: BLE001  # whatever it is, a child must not go on as its parent
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _run(task: Task, case: Case, place: Path, usual_bytes: int, told: BinaryIO) -> None:
    os.chdir(place)
    os.environ |= {"HOME": str(place), "XDG_CACHE_HOME": str(place), "no_proxy": "*"}
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    called: Names = set()
    start = time.monotonic()
    with nullcontext(called) if task.readers is None else recording(task.readers) as called:
        outcome = task.target.run(case)
    seconds, peak = time.monotonic() - start, max(0, _read_status("VmHWM") - usual_bytes)
    failure = judge(outcome, place)
    if not failure and task.readers is not None and outcome.code:
        failure = "a sound input is refused"
    _tell(
        told,
        code=outcome.code,
        seconds=seconds,
        bytes=peak,
        failure=failure,
        trace=(outcome.trace or outcome.err)[-LONGEST_TRACE:],
        called=sorted(called & (task.readers or set())),
    )
    os.chdir(place.parent)
    shutil.rmtree(place, ignore_errors=True)


def _tell(told: BinaryIO, **facts: object) -> None:
    told.write(json.dumps(facts).encode() + b"\n")


def _make_place(place: Path, base: Path, case: Case) -> Path:
    place.mkdir()
    (place / BASE).symlink_to(base)
    for name in case.copies:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (base / name).is_dir():
            shutil.copytree(base / name, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(base / name, target)
    for name, content in case.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def _leave_out_plots() -> None:
    """Leave out what takes long to draw and reads nothing."""
    report._draw_results = lambda path, rows: None
    for name in ("save_box_plots", "save_contact_sheet"):
        setattr(check, name, lambda *_: None)


def judge(outcome: Outcome, place: Path) -> str:
    """Return what is wrong with an outcome; empty if nothing is."""
    if outcome.trace:
        return _name_place(outcome.trace)
    if outcome.code not in outcome.allowed:
        return f"code {outcome.code}"
    if outcome.code == 2 and not outcome.err.strip():
        return "refused without a word"
    if len(outcome.err) > LONGEST_ERR:
        return "an error without an end"
    if any(not char.isprintable() and char not in "\n\t" for char in outcome.err):
        return "control characters on stderr"
    if scraps := [path.name for path in place.rglob(".*.tmp*") if BASE not in path.parts]:
        return f"scraps {len(scraps)}"
    return ""


def _name_place(trace: str) -> str:
    """Return the last place in the package that a traceback names, and the exception."""
    lines = trace.strip().splitlines()
    places = [line.strip() for line in lines if "/yolo_prune/" in line and line.strip().startswith("File")]
    where = places[-1].split("/yolo_prune/", 1)[1].replace('"', "") if places else "?"
    last = next((line for line in reversed(lines) if line[:1].strip()), "")
    return f"{last.partition(':')[0][:60]} {where}"


def _read_status(name: str) -> int:
    """Return a number of bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)
