"""What happens to two processes of a run, without torchrun: rank_faults.py OUT HANDS CFG writes OUT/outcomes.json.

PyTorch is imported once, and the processes are forked. What they do is a `Fault`, by name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as the command line does before it imports torch

import torch
from tiny import DRAW_RESULTS, before_step

from yolo_prune.cli import main as command_line
from yolo_prune.commands import runs  # noqa: F401  # imported once, not in every process
from yolo_prune.training import distributed, peers
from yolo_prune.training import epoch as epoch_module

LIMIT_S = 60.0


@dataclass(frozen=True)
class Fault:
    """What goes wrong in two processes that train."""

    act: Callable[[int, ExitStack], object] = lambda rank, stack: None
    """Called with the rank before the command runs."""
    words: Callable[[int], Sequence[str]] = lambda rank: ()
    """More words of the command."""
    signals: tuple[signal.Signals, ...] = ()
    """What all processes get in their second step, one right after the other."""
    ranks: tuple[int, ...] = (0, 1)
    """The processes that are started."""
    has_agent: bool = False
    """Whether all others get SIGTERM when one has failed, as from torchrun."""
    environment: tuple[tuple[str, str], ...] = ()


def at_step(rank: int, act: Callable[[], object], number: int = 2) -> Callable[[int, ExitStack], object]:
    """Return what makes a process do something before a step."""
    return lambda own, stack: stack.enter_context(before_step(number, act)) if own == rank else None


def kill() -> None:
    """End this process as the system does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """End this process as a crash does."""
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def wait_for_signals(ready: Path) -> None:
    """Say that they may come, and stay in the step until they have."""
    ready.touch()
    time.sleep(0.5)


def raise_defect() -> None:
    """Raise what nobody expects."""
    raise KeyError("odd")


def make_nan(rank: int, stack: ExitStack) -> None:
    """Make the loss of rank 1 NaN, and of it alone."""
    if rank == 1:
        check = epoch_module.check_loss

        def spoil(stats: Any) -> None:
            stats.losses += float("nan")
            check(stats)

        epoch_module.check_loss = spoil


def be_deaf(rank: int, stack: ExitStack) -> None:
    """Have rank 0 work for long, while rank 1 is killed."""
    peers.GRACE_S = 0.5
    at_step(rank, kill if rank else lambda: time.sleep(LIMIT_S))(rank, stack)


def stand_still(rank: int, stack: ExitStack) -> None:
    """Stop rank 1 as Ctrl-Z does."""
    peers.SILENCE_S, peers.BEAT_S, peers.GRACE_S = 2.0, 0.2, 0.5
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGSTOP))(rank, stack)


def miss_one(rank: int, stack: ExitStack) -> None:
    """Do not wait long for a process that is not started."""
    peers.MEETING_S = 1.0


def reach_nobody(rank: int, stack: ExitStack) -> None:
    """Do not try long."""
    distributed.CONNECT_S = 1.0


FAULTS = {
    "nothing": Fault(),
    "nan": Fault(make_nan),
    "killed": Fault(at_step(1, kill)),
    "killed, torchrun": Fault(at_step(1, kill), has_agent=True),
    "first killed": Fault(at_step(0, kill)),
    "crash": Fault(at_step(1, crash)),
    "defect": Fault(at_step(1, raise_defect), has_agent=True),
    "no data": Fault(words=lambda rank: ("--data", "nowhere.yaml") if rank == 1 else (), has_agent=True),
    "no data at all": Fault(words=lambda rank: ("--data", "nowhere.yaml")),
    "bad flag": Fault(words=lambda rank: ("--epochs", "many")),
    "deaf": Fault(be_deaf),
    "still": Fault(stand_still),
    "missing": Fault(miss_one, ranks=(0,)),
    "no first": Fault(reach_nobody, ranks=(1,)),
    "unknown host": Fault(reach_nobody, ranks=(1,), environment=(("MASTER_ADDR", "nowhere.invalid"),)),
    "silent host": Fault(reach_nobody, ranks=(1,), environment=(("MASTER_PORT", "SILENT"),)),
    "port in use": Fault(reach_nobody, ranks=(0,), environment=(("MASTER_PORT", "SILENT"),)),
    "terminated": Fault(signals=(signal.SIGTERM,)),
    "interrupted": Fault(signals=(signal.SIGINT, signal.SIGINT)),
    "one terminated": Fault(at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))),
}


@dataclass
class Outcome:
    """How the processes ended."""

    codes: list[int]
    out: list[str]
    err: list[str]
    seconds: float


def find_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run_child(fault: Fault, rank: int, place: Path, words: Sequence[str], environment: dict[str, str]) -> None:
    """Be one of the processes; does not return."""
    code = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT), number)
        os.chdir(place)
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        sys.argv = ["yoloprune", *words, *fault.words(rank)]
        with ExitStack() as stack:
            if fault.signals:
                at_step(rank, partial(wait_for_signals, place / f"ready.{rank}"))(rank, stack)
            fault.act(rank, stack)
            command_line.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def wait_for(pids: dict[int, int], fault: Fault) -> list[int]:
    """Wait until all have ended, as torchrun does, and return their exit codes; 98 for one that never ends."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_S / 2
    while len(codes) < len(pids):
        time.sleep(0.1)
        for rank, pid in pids.items():
            if rank in codes:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
            elif (fault.has_agent and any(codes.values())) or (
                "still" in FAULTS and fault is FAULTS["still"] and codes
            ):
                os.kill(pid, signal.SIGTERM if fault.has_agent else signal.SIGKILL)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[rank] = 98
    return [codes[rank] for rank in pids]


def inflict(fault: Fault, place: Path, words: Sequence[str]) -> Outcome:
    """Start the processes, and return how they ended."""
    place.mkdir()
    started = time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port()), **dict(fault.environment)}
        if environment["MASTER_PORT"] == "SILENT":
            environment["MASTER_PORT"] = str(silent.getsockname()[1])
        pids = {}
        for rank in fault.ranks:
            if (pid := os.fork()) == 0:
                run_child(fault, rank, place, words, environment)
            pids[rank] = pid
        while fault.signals and not all((place / f"ready.{rank}").exists() for rank in pids):
            time.sleep(0.02)
        for signum in fault.signals:
            for pid in pids.values():
                os.kill(pid, signum)
            time.sleep(0.1)
        codes = wait_for(pids, fault)
    texts = {name: [(place / f"{name}.{rank}").read_text() for rank in pids] for name in ("out", "err")}
    return Outcome(codes, texts["out"], texts["err"], time.monotonic() - started)


def main() -> None:
    """Inflict all faults."""
    out, hands, cfg = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    module, _, name = DRAW_RESULTS.rpartition(".")
    setattr(sys.modules[module], name, lambda path, rows: None)
    words: tuple[str, ...] = (
        "train",
        "--cfg",
        str(cfg),
        "--epochs",
        "3",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    words = (*words, "--data", str(hands), "--set", "ema_fraction=0.5")
    outcomes = {}
    chosen = sys.argv[4:] or FAULTS
    for name in chosen:
        outcomes[name] = asdict(inflict(FAULTS[name], out / name, words))
        with suppress(OSError):
            (out / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
