"""What the processes of a run know of each other's ends.

    a process fails ─► `failure` in the store ─► the others, in a collective or not, end with one line that names it
    a process dies  ─► the kernel tells the other processes of its machine, which record it there for all
    a machine dies  ─► its processes no longer count up `beat/RANK`

The store is the key–value server through which torchrun's processes meet. Each process watches from a thread of its own,
because its main thread may wait in a collective for one that is dead.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.distributed import Store  # type: ignore[attr-defined]  # documented, not in torch's types

from yolo_prune.console import report_end
from yolo_prune.errors import TrainingError
from yolo_prune.launch import Launch
from yolo_prune.training.signals import leave

BEAT_S = 1.0
SILENCE_S = 300.0
"""Seconds without a beat after which a process counts as dead."""
SILENCE_AFTER_ERROR_S = 10.0
"""The same, once a connection between two processes is broken."""
GRACE_S = 10.0
"""Seconds in which a process whose peer has failed may end by itself. torchrun kills it after 30."""
MEETING_S = 300.0
POLL_S = 0.05
RESUME = "then resume the run"


@dataclass(frozen=True)
class Failure:
    """Why a run of several processes ends, as recorded in the store."""

    rank: int
    """Whose end it is."""
    code: int
    """The exit code of that process; of one that was killed 2."""
    text: str
    right: str | None = None
    """What to do, if that is not in the text."""

    @property
    def error(self) -> TrainingError:
        """The error that ends the other processes."""
        return TrainingError(self.text, where=f"rank {self.rank}", right=self.right)

    @property
    def is_stop(self) -> bool:
        """Whether a signal or the time ended it."""
        return self.code > 2


@dataclass(frozen=True)
class _Place:
    """A process, as its number and its machine tell."""

    pid: int
    machine: str
    host: str


class Peers:
    """The other processes of a run, from `meet` to `leave`.

    Args:
        store: a connection that no other thread uses, with keys that no other meeting of processes uses.
        holds_store: whether the store ends with this process.
    """

    def __init__(self, launch: Launch, store: Store, *, holds_store: bool = False) -> None:
        self._launch, self._store, self._holds_store = launch, store, holds_store
        self._machine = _name_machine()
        self._kills_before = _count_memory_kills()
        self._places: dict[int, _Place] = {}
        self._ends: dict[int, int] = {}
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._look_out, name="peers", daemon=True)
        self._heard = -1, time.monotonic()
        self._failure: Failure | None = None
        self._is_teller: bool | None = None
        self._lock = threading.Lock()

    def meet(self) -> None:
        """Wait for the other processes, and begin to watch them.

        Raises:
            TrainingError: one of them failed or did not come.
            Interrupted, TimeUp: one of them was stopped.
        """
        self._wait_for_all()
        self._thread.start()

    def find_failure(self) -> Failure | None:
        """Return what ends the run, if anything does."""
        with self._lock:
            self._note_deaths()
            return self._read_failure()

    def await_failure(self) -> Failure | None:
        """Return what ends the run, when a connection is broken: whose end broke it may be known a little later."""
        deadline = time.monotonic() + SILENCE_AFTER_ERROR_S + 5 * BEAT_S
        with suppress(RuntimeError):
            self._store.set("alarm", "1")
        while (failure := self.find_failure()) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return failure

    def record(self, failure: Failure) -> Failure:
        """Record why the run ends, and return the first that was recorded."""
        try:
            first = self._store.compare_set("failure", "", json.dumps(asdict(failure)))
            self._failure = Failure(**json.loads(first))
        except RuntimeError:  # the store is gone
            self._failure = self._failure or failure
        return self._failure

    def claim_telling(self) -> bool:
        """Return whether this process is the first of its machine that wants to tell the failure."""
        own = str(self._launch.rank)
        with self._lock:
            if self._is_teller is None:
                try:
                    self._is_teller = self._store.compare_set(f"told/{self._machine}", "", own).decode() == own
                except RuntimeError:
                    self._is_teller = True
            return self._is_teller

    def leave(self) -> None:
        """Say that this process leaves in good order, end the watch, and let the others read what they need."""
        self._say_left()
        os.write(self._wake[1], b".")
        if self._thread.is_alive():
            self._thread.join()
        if self._holds_store:
            self._let_others_leave()
        for file in (*self._wake, *self._ends):
            os.close(file)
        self._ends.clear()

    def _say_left(self) -> None:
        with suppress(RuntimeError):
            self._store.set(f"left/{self._launch.rank}", "1")

    def _wait_for_all(self) -> None:
        """Wait until all processes have told who they are."""
        rank, count = self._launch.rank, self._launch.count
        own = _Place(os.getpid(), self._machine, socket.gethostname())
        self._store.set(f"place/{rank}", json.dumps(asdict(own)))
        deadline = time.monotonic() + MEETING_S
        while not self._store.check([f"place/{other}" for other in range(count)]):
            if (failure := self._read_failure()) is not None:
                follow(failure)
            if time.monotonic() > deadline:
                (missing, *_) = (other for other in range(count) if not self._store.check([f"place/{other}"]))
                what = f"did not come within {MEETING_S:.0f} s"
                follow(self.record(Failure(missing, 2, what, "start all processes")))
            time.sleep(POLL_S)
        for other in range(count):
            place = _Place(**json.loads(self._store.get(f"place/{other}")))
            self._places[other] = place
            if other != rank and place.machine == self._machine and hasattr(os, "pidfd_open"):
                self._watch_process(other, place.pid)

    def _watch_process(self, rank: int, pid: int) -> None:
        """Have the kernel tell the end of a process."""
        try:
            self._ends[os.pidfd_open(pid)] = rank
        except ProcessLookupError:
            self._note_death(rank, None)
        except OSError:  # an old kernel: its silence will tell
            return

    def _look_out(self) -> None:
        """Count up this process's beat and look at the others, until this process ends or another has failed."""
        poll = select.poll()
        for file in (self._wake[0], *self._ends):
            poll.register(file, select.POLLIN)
        while True:
            ready = [file for file, _ in poll.poll(BEAT_S * 1000)]
            if self._wake[0] in ready:
                return
            try:
                failure = self.find_failure() or self._listen()
            except RuntimeError:
                failure = self._note_lost_store()
            if failure is None:
                for file in ready:
                    poll.unregister(file)  # it has left in good order
                continue
            is_teller = self.claim_telling()
            self._say_left()  # the one that has failed may end now, which ends collectives with it
            if select.select([self._wake[0]], [], [], GRACE_S)[0]:
                return
            if is_teller:
                report_end(*((failure.text,) if failure.is_stop else (str(failure.error), "error")))
            os._exit(failure.code if failure.is_stop else 2)  # the main thread is in a collective that never ends

    def _note_deaths(self) -> None:
        """Record the end of a process of this machine that has not said that it leaves."""
        if not self._ends:
            return
        poll = select.poll()
        for file in self._ends:
            poll.register(file, select.POLLIN)
        for file, _ in poll.poll(0):
            rank = self._ends[file]
            status = _read_exit_status(self._places[rank].pid)  # before the parent takes it
            if not self._has_left(rank):
                self._note_death(rank, status)

    def _has_left(self, rank: int) -> bool:
        try:
            return bool(self._store.check([f"left/{rank}"]))
        except RuntimeError:
            return False

    def _note_death(self, rank: int, status: int | None) -> None:
        number = None if status is None else os.waitstatus_to_exitcode(status)
        kills = _count_memory_kills()
        by_memory = kills > self._kills_before and number in (None, -signal.SIGKILL)
        right = f"use a smaller batch size or fewer workers, {RESUME}" if by_memory else "resume the run"
        place = self._places.get(rank)
        process = f" (process {place.pid} of {place.host})" if place is not None else ""
        self.record(Failure(rank, 2, f"{_describe_end(number, by_memory)}{process}", right))

    def _read_failure(self) -> Failure | None:
        if self._failure is None:
            with suppress(RuntimeError):
                if self._store.check(["failure"]):
                    self._failure = Failure(**json.loads(self._store.get("failure")))
        return self._failure

    def _listen(self) -> Failure | None:
        """Count up this process's beat, and look whether the next process counts up its own."""
        self._store.add(f"beat/{self._launch.rank}", 1)
        following = (self._launch.rank + 1) % self._launch.count
        beats, now = self._store.add(f"beat/{following}", 0), time.monotonic()
        if beats != self._heard[0]:
            self._heard = beats, now
        limit_s = SILENCE_AFTER_ERROR_S if self._store.check(["alarm"]) else SILENCE_S
        if now - self._heard[1] <= limit_s or self._has_left(following):
            return None
        host = self._places[following].host
        what = f"has not responded for {limit_s:.0f} s: its process is stopped, or its machine {host} cannot be reached"
        return self.record(Failure(following, 2, what, "resume the run"))

    def _note_lost_store(self) -> Failure | None:
        """Return the failure that the end of the store is, unless this process leaves."""
        if self._has_store():
            return None
        what = f"the connection to {self._launch.host}:{self._launch.port}, where the processes met, is broken"
        self._failure = self._failure or Failure(self._launch.rank, 2, what, "resume the run")
        return self._failure

    def _has_store(self) -> bool:
        try:
            self._store.check(["failure"])
        except RuntimeError:
            return False
        return True

    def _let_others_leave(self) -> None:
        deadline = time.monotonic() + GRACE_S
        keys = [f"left/{other}" for other in self._places if other not in self._list_dead()]
        with suppress(RuntimeError):
            while not self._store.check(keys or ["failure"]) and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def _list_dead(self) -> set[int]:
        return set() if self._failure is None or self._failure.is_stop else {self._failure.rank}


def follow(failure: Failure) -> None:
    """Raise what ends a process when another has failed.

    Raises:
        TrainingError: the other failed.
        Interrupted, TimeUp: a signal or the time stopped the other.
    """
    if failure.is_stop:
        leave(failure.code)
    raise failure.error


def _describe_end(number: int | None, by_memory: bool) -> str:
    """Return in words how a process ended without a word; `number` is its exit code, or minus the signal."""
    if by_memory:
        return "was killed by SIGKILL because the memory of the machine ran out"
    if number is None:
        return "ended without a word, as after SIGKILL or a crash"
    if number >= 0:
        return f"ended with exit code {number} before the run was done"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-number).name}"
    return f"was killed by signal {-number}"


def _read_exit_status(pid: int) -> int | None:
    """Return the wait status of a process that has ended and that its parent has not waited for; else None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[-1]) if fields[0] in "ZX" and len(fields) >= 50 else None


def _count_memory_kills() -> int:
    """Return how many processes of this machine were killed because memory ran out."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _name_machine() -> str:
    """Return a name that processes share if the numbers of their processes mean the same."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
