"""Make threads that wait for each other sleep instead of spin, while other processes need the cores.

PyTorch computes with the threads of libgomp, which wait for each other at the end of every parallel region. They spin
for some milliseconds, then sleep. With spinning, a region begins and ends sooner, as long as each thread has a core. If
another process takes turns on one of the cores, the other threads spin while they wait for the thread that is not
running, and so use up the time in which it could run.

libgomp spins only for an instant while the process has more OpenMP threads than cores. A second pool of sleeping
threads is enough for that: the results, and the number of threads that compute them, do not change. This module makes
the pool while the threads of this process have to wait for cores that other processes use, and removes it when they do
not.

Source: do_spin in GCC's libgomp/config/linux/wait.h, gomp_team_start in team.c; sched-stats.rst of Linux; proc_stat(5),
proc_pid_stat(5).
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from yolo_prune.cgroups import ROOT
from yolo_prune.threads import count_cores

INTERVAL_S = 0.25
"""Seconds between two measurements of how long threads wait for cores."""
BUSY_SHARE = 0.2
"""Sleeping starts if the threads together wait for a core for at least this many seconds per second, and others use
at least as many seconds of the cores. In training, threads wait about this long even if nothing else runs."""
LEAST_HOLD_S, MOST_HOLD_S = 8.0, 64.0
"""How long threads sleep, while others use the cores, before spinning is tried again: at first, and at most.
A process of low priority keeps the cores busy without making others wait."""
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a user sets how threads wait."""
RIVALS = ("libiomp", "libomp")
"""Names of other OpenMP libraries that PyTorch may use instead of libgomp."""
MOST_THREADS = 128
"""The most threads in the second pool: libgomp ends the process if the system gives it too few."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
"""The unit of time in /proc."""
MOST_BYTES = 1 << 16
"""How much of a file is read at a time."""
PATIENCE_S = 1.0
"""How many seconds the end of a command waits for the watching thread."""


class Load(NamedTuple):
    """The load between two measurements."""

    waited: float
    """Seconds for which the threads of this process waited for a core, all together, per second."""
    others: float
    """Seconds of this process's cores that other processes used, per second."""
    seconds: float


@dataclass
class WaitRule:
    """Decides whether threads that wait for each other sleep or spin.

    While threads sleep, their waiting for cores tells little, because they wait each time they are woken. So they spin
    again when other processes hardly use the cores, and from time to time for one measurement.
    """

    asleep: bool = False
    hold_s: float = LEAST_HOLD_S
    """How long to keep sleeping."""
    state_s: float = LEAST_HOLD_S
    """How long the state has been the same; at first, long enough to change."""

    def update(self, load: Load) -> bool:
        """Use the last measurement, and return whether to sleep from now on."""
        self.state_s += load.seconds
        is_shared = load.others >= BUSY_SHARE
        if self.asleep and (self.state_s >= self.hold_s or not is_shared):
            self._enter(asleep=False)
        elif not self.asleep and is_shared and load.waited >= BUSY_SHARE:
            is_same_load = self.state_s < LEAST_HOLD_S
            self.hold_s = min(2 * self.hold_s, MOST_HOLD_S) if is_same_load else LEAST_HOLD_S
            self._enter(asleep=True)
        return self.asleep

    def _enter(self, asleep: bool) -> None:
        self.asleep, self.state_s = asleep, 0.0


class LoadMeter:
    """Measures how long threads of this process wait for cores, and how much of these cores other processes use."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._last = self._read()

    def measure(self) -> Load:
        """Return the load since the last call."""
        before, self._last = self._last, self._read()
        now = self._last
        seconds = now.time_s - before.time_s
        if seconds <= 0:
            return Load(0.0, 0.0, 0.0)
        others_s = _add_up(before.used_s, now.used_s) - (now.own_s - before.own_s)
        return Load(_add_up(before.waited_s, now.waited_s) / seconds, max(0.0, others_s) / seconds, seconds)

    @property
    def is_possible(self) -> bool:
        """Whether this kernel reports the load."""
        return bool(self._last.waited_s and self._last.used_s)

    def _read(self) -> _Clocks:
        waited_s = {}
        folder = f"{self._root}/proc/self/task"
        for thread in _list_names(folder):
            try:
                waited_ns = int(_read(f"{folder}/{thread}/schedstat").split()[1])
            except (OSError, ValueError, IndexError):  # the thread has just ended, or the kernel does not count
                continue
            waited_s[thread] = waited_ns / 1e9
        own_s = _read_own(self._root)
        return _Clocks(time.monotonic(), own_s or 0.0, waited_s, {} if own_s is None else _read_used(self._root))


def count_free_cores(root: Path = ROOT) -> int:
    """Return how many cores of this process others leave free, to the nearest number, at least one.

    This takes a quarter of a second. Where the kernel does not report the load, all cores count as free.
    """
    meter = LoadMeter(root)
    time.sleep(INTERVAL_S)
    return max(1, math.floor(count_cores(root) - meter.measure().others + 0.5))


class _Clocks(NamedTuple):
    time_s: float
    own_s: float
    """For how long the threads of this process ran, those that have ended included."""
    waited_s: dict[str, float]
    """For each thread of this process, by its id."""
    used_s: dict[str, float]
    """For each core that this process may use, by all processes."""


def _read_own(root: Path) -> float | None:
    """Return for how many seconds this process has used cores; None if that is not reported."""
    try:
        user, system = map(int, _read(f"{root}/proc/self/stat").rpartition(b")")[2].split()[11:13])
    except (OSError, ValueError):
        return None
    return (user + system) / TICKS_PER_S


def _read_used(root: Path) -> dict[str, float]:
    """Return for how many seconds each core of this process was busy, by its name; empty if that is not reported."""
    names = {b"cpu%d" % number for number in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    used_s = {}
    try:
        for line in _read(f"{root}/proc/stat").splitlines():
            name, *ticks = line.split() or [b""]
            if name in names:
                user, nice, system, _idle, _waits_for_disk, irq, softirq, stolen = map(int, ticks[:8])
                used_s[name.decode()] = (user + nice + system + irq + softirq + stolen) / TICKS_PER_S
    except (OSError, ValueError):
        return {}
    return used_s


def _add_up(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return the sum of the increases of all clocks; a new one counts from 0."""
    return sum(max(0.0, value - before.get(name, 0.0)) for name, value in now.items())


class SecondPool:
    """A pool of libgomp threads that do nothing. It has its own thread, as it ends with the one that made it."""

    def __init__(self, library: Path, threads: int) -> None:
        """Make a pool of `threads` threads, including the thread that keeps it.

        Raises:
            OSError: libgomp is not loaded from `library`, or is another library.
        """
        nothing = ctypes.cast(_get_function(library, "omp_get_thread_num"), ctypes.c_void_p)
        run = _get_function(library, "GOMP_parallel")
        run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        self._is_made, self._is_over = Event(), Event()

        def keep() -> None:
            run(nothing, None, threads, 0)
            self._is_made.set()
            self._is_over.wait()

        self._keeper = Thread(target=keep, name="yoloprune second pool", daemon=True)
        self._keeper.start()
        self._is_made.wait()

    def end(self) -> None:
        """End the threads of the pool."""
        self._is_over.set()
        self._keeper.join()


@contextmanager
def watch_contention(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> Iterator[None]:
    """Make PyTorch's threads sleep instead of spin while they have to share their cores, until the block is left.

    Nothing happens before torch is imported, if PyTorch has no libgomp or only one thread, if the kernel does not
    report how long threads wait and how much cores are used, or if the user sets how to wait (OMP_WAIT_POLICY or
    GOMP_SPINCOUNT).
    """
    meter = LoadMeter(root)
    if any(environment.get(name) for name in SETTINGS) or not meter.is_possible:
        yield
        return
    is_over = Event()
    watcher = Thread(target=_watch, args=(meter, is_over, root), name="yoloprune contention", daemon=True)
    with suppress(RuntimeError):  # the system gives no more threads
        watcher.start()
    try:
        yield
    finally:
        is_over.set()
        if watcher.is_alive():
            watcher.join(PATIENCE_S)


def _watch(meter: LoadMeter, is_over: Event, root: Path) -> None:
    rule = WaitRule()
    pool: SecondPool | None = None
    try:
        while not is_over.wait(INTERVAL_S):
            load = meter.measure()
            if "torch" not in sys.modules:
                continue
            was_asleep = rule.asleep
            if rule.update(load) and not was_asleep:
                pool = make_second_pool(root)
            elif not rule.asleep and pool is not None:
                pool.end()
                pool = None
    except (
        OSError,
        RuntimeError,
        ImportError,
    ):  # no such libgomp, no more threads, or torch is broken, which its importer reports
        pass
    finally:
        if pool is not None:
            pool.end()


def make_second_pool(root: Path = ROOT) -> SecondPool | None:
    """Make as many threads as libgomp needs to see more threads than cores.

    Return None if PyTorch has one thread, or more threads than cores already, or no libgomp.

    Raises:
        OSError: libgomp cannot be used.
    """
    import torch  # waits until another thread has imported all of it

    threads = torch.get_num_threads()
    if threads == 1 or (library := find_libgomp(root)) is None:
        return None
    cores = _count_cores_of(library)
    size = cores - threads + 2
    return SecondPool(library, size) if threads <= cores and size <= MOST_THREADS else None


def find_libgomp(root: Path = ROOT) -> Path | None:
    """Return the loaded libgomp, of several PyTorch's own; None if there is none, or another OpenMP library as well.

    scikit-learn and ncnn bring a libgomp of their own.
    """
    try:
        lines = (root / "proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    paths = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) > 5}
    found = [path for path in paths if path.name.startswith("libgomp")]
    home = getattr(sys.modules.get("torch"), "__file__", None)
    found = [path for path in found if home is not None and Path(home).parent in path.parents] or found
    has_rival = any(path.name.startswith(RIVALS) for path in paths)
    return found[0] if len(found) == 1 and not has_rival else None


def _count_cores_of(library: Path) -> int:
    return int(_get_function(library, "omp_get_num_procs")())


def _get_function(library: Path, name: str) -> Any:
    """Return a function of a loaded library.

    Raises:
        OSError: the library is not loaded, or has no such function.
    """
    try:
        return getattr(ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_NOW), name)
    except AttributeError as error:
        raise OSError(str(error)) from error


def _list_names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # in one system call
    except OSError:
        return []


def _read(path: str) -> bytes:
    """Return the content of a file in /proc, with few system calls: the GIL changes hands at each.

    Raises:
        OSError: it cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(file, MOST_BYTES), b""))
    finally:
        os.close(file)
