"""Threads that wait asleep while the machine is busy: when, and that nothing else changes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from yolo_prune import contention
from yolo_prune.contention import (
    BUSY_SHARE,
    INTERVAL_S,
    LEAST_HOLD_S,
    MOST_HOLD_S,
    Load,
    LoadMeter,
    SecondPool,
    WaitRule,
    count_free_cores,
    find_libgomp,
    make_second_pool,
    watch_contention,
)

POOL, WATCHER = "yoloprune second pool", "yoloprune contention"
LIBRARY = find_libgomp()

needs_libgomp = pytest.mark.skipif(LIBRARY is None, reason="PyTorch has no libgomp here")
shares = st.floats(0, 4)
loads = st.lists(st.tuples(shares, shares).map(lambda pair: Load(*pair, INTERVAL_S)), max_size=60)
BUSY = Load(BUSY_SHARE, BUSY_SHARE, 1.0)


class TestRule:
    @given(loads)
    def test_a_change_has_a_cause(self, given_loads: list[Load]) -> None:
        rule = WaitRule()
        states = [False, *(rule.update(load) for load in given_loads)]
        asleep_s = 0.0
        for load, before, after in zip(given_loads, states, states[1:], strict=False):
            asleep_s = asleep_s + INTERVAL_S if before else 0.0
            if not before:
                assert after == (load.waited >= BUSY_SHARE and load.others >= BUSY_SHARE)  # at once
            elif load.others < BUSY_SHARE:
                assert not after
            elif not after:
                assert LEAST_HOLD_S <= asleep_s <= MOST_HOLD_S

    def test_a_load_that_stays_is_tried_ever_less_often(self) -> None:
        rule = WaitRule()
        assert list(groups([rule.update(BUSY) for _ in range(200)])) == [8, 1, 16, 1, 32, 1, 64, 1, 64, 1, 11]

    @given(loads, shares, st.floats(0, BUSY_SHARE, exclude_max=True))
    def test_it_ends_with_the_load(self, given_loads: list[Load], more: float, less: float) -> None:
        for waited, others, looks in ((less, more, MOST_HOLD_S / INTERVAL_S), (more, less, 1)):
            rule = WaitRule()
            for load in given_loads:
                rule.update(load)
            assert not [rule.update(Load(waited, others, INTERVAL_S)) for _ in range(round(looks))][-1]

    def test_threads_that_wait_for_each_other_alone_stay_awake(self) -> None:
        rule = WaitRule()
        assert not any(rule.update(Load(1.9, 0.05, INTERVAL_S)) for _ in range(60))

    def test_a_load_that_comes_later_is_a_new_one(self) -> None:
        rule = WaitRule()
        states = [rule.update(load) for load in [*[BUSY] * 80, *[Load(0.0, 0.0, 1.0)] * 20, *[BUSY] * 10]]
        assert list(groups(states[-11:])) == [8, 1, 1]


class TestMeter:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr("yolo_prune.contention.time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2})
        return now

    def test_it_adds_up_what_threads_waited(self, tmp_path: Path, clock: list[float]) -> None:
        write_clocks(tmp_path, {"1": 5e9, "2": 0})
        meter = LoadMeter(tmp_path)
        write_clocks(tmp_path, {"1": 5.5e9, "2": 0.25e9, "3": 0.25e9})
        clock[0] += 2
        assert meter.measure() == (0.5, 0.0, 2.0)
        (tmp_path / "proc/self/task/1/schedstat").unlink()  # it ends
        write_clocks(tmp_path, {"2": 0.5e9})
        clock[0] += 1
        assert meter.measure() == (0.25, 0.0, 1.0)
        assert meter.measure() == (0.0, 0.0, 0.0)

    def test_others_are_what_is_used_of_its_cores_and_not_by_itself(self, tmp_path: Path, clock: list[float]) -> None:
        write_clocks(tmp_path, {"1": 0}, used=[10, 0, 20], ran_s=3)
        meter = LoadMeter(tmp_path)
        write_clocks(tmp_path, {"1": 0}, used=[11.5, 9, 21], ran_s=4)  # core 1 is not this process's
        clock[0] += 2
        assert meter.measure() == (0.0, 0.75, 2.0)
        write_clocks(tmp_path, {"1": 0}, used=[12, 9, 21], ran_s=4.6)  # ticks are late
        clock[0] += 1
        assert meter.measure() == (0.0, 0.0, 1.0)

    def test_a_thread_that_has_ended_is_no_other(self, tmp_path: Path, clock: list[float]) -> None:
        write_clocks(tmp_path, {"1": 0, "2": 0}, used=[10], ran_s=3)
        meter = LoadMeter(tmp_path)
        (tmp_path / "proc/self/task/2/schedstat").unlink()
        write_clocks(tmp_path, {"1": 0}, used=[11], ran_s=4)
        clock[0] += 2
        assert meter.measure() == (0.0, 0.0, 2.0)

    @pytest.mark.parametrize(("others_s", "free"), [(0.0, 2), (0.1, 2), (0.2, 1), (0.5, 1)])
    def test_free_cores_are_those_that_others_leave(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], others_s: float, free: int
    ) -> None:
        def sleep(seconds: float) -> None:
            clock[0] += seconds
            write_clocks(tmp_path, {"1": 0}, used=[10 + others_s, 0, 20])

        monkeypatch.setattr("yolo_prune.contention.time.sleep", sleep, raising=False)
        write_clocks(tmp_path, {"1": 0}, used=[10, 0, 20])
        assert count_free_cores(tmp_path) == free

    def test_a_kernel_without_figures_is_recognised(self, tmp_path: Path) -> None:
        assert not LoadMeter(tmp_path).is_possible
        (tmp_path / "proc/self/task/1").mkdir(parents=True)
        assert not LoadMeter(tmp_path).is_possible
        (tmp_path / "proc/self/task/1/schedstat").write_text("0\n")
        assert not LoadMeter(tmp_path).is_possible
        write_clocks(tmp_path, {"1": 0})
        assert LoadMeter(tmp_path).is_possible
        for line in ("", "7 (x) S 1", "7 (x) S 1 1 1 1 1 1 1 1 1 1 a b 1"):
            (tmp_path / "proc/self/stat").write_text(line)
            assert not LoadMeter(tmp_path).is_possible
        write_clocks(tmp_path, {"1": 0})
        for line in ("", "cpu 1 2 3", "cpu0 1 2 3", "cpu0 a b c d e f g h"):
            (tmp_path / "proc/stat").write_text(line)
            assert not LoadMeter(tmp_path).is_possible

    def test_another_process_is_seen(self) -> None:
        meter = LoadMeter()
        if not meter.is_possible:
            pytest.skip("this kernel does not count")
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
            wait_until(lambda: meter.measure().others > 0.1)
            process.kill()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["/a/torch/lib/libgomp.so.1", "/a/torch/lib/libgomp.so.1", "/a/libc.so.6"], "/a/torch/lib/libgomp.so.1"),
        (["/with a space/libgomp-a34b3233.so.1"], "/with a space/libgomp-a34b3233.so.1"),
        (["/a/libc.so.6"], None),
        (["/a/libgomp.so.1", "/b/libgomp.so.1"], None),
        (["/a/libgomp.so.1", "/b/libiomp5.so"], None),
        (["/a/libgomp.so.1", "/b/libomp.so.5"], None),
    ],
)
def test_the_library_is_found_where_it_is_the_only_one(tmp_path: Path, names: list[str], found: str | None) -> None:
    assert find_libgomp(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = [f"7f8a{number}000-7f8a{number}800 r-xp 00000000 fe:00 12   {name}" for number, name in enumerate(names)]
    (tmp_path / "proc/self/maps").write_text("\n".join(["7f8a0000-7f8a0800 rw-p 00000000 00:00 0 ", *lines, ""]))
    assert find_libgomp(tmp_path) == (None if found is None else Path(found))


def test_of_several_libraries_pytorch_s_own_is_taken(tmp_path: Path) -> None:
    own = Path(torch.__file__).parent / "lib/libgomp.so.1"
    names = (f"{tmp_path}/ncnn.libs/libgomp-e985bcbb.so.1", own)
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = [f"7f8a{number}000-7f8a{number}800 r-xp 00000000 fe:00 12   {name}" for number, name in enumerate(names)]
    (tmp_path / "proc/self/maps").write_text("\n".join(lines))
    assert find_libgomp(tmp_path) == own


@needs_libgomp
class TestPool:
    def test_it_starts_and_ends_with_its_threads(self) -> None:
        assert LIBRARY is not None
        before = list_tasks()
        for size in (2, 5):
            pool = SecondPool(LIBRARY, size)
            assert len(list_tasks() - before) == size
            pool.end()
            wait_until(lambda: not list_tasks() - before)

    def test_another_library_is_an_error(self) -> None:
        for library in ("/nowhere/libgomp.so.1", "libc.so.6"):
            with pytest.raises(OSError, match=r"libgomp|libc|omp_get_thread_num|GOMP"):
                SecondPool(Path(library), 2)
            with pytest.raises(OSError, match=r"libgomp|libc|omp_get_num_procs"):
                contention._count_cores_of(Path(library))

    def test_threads_wait_asleep_and_compute_the_same(self) -> None:
        """In a process of its own, whose OpenMP threads nobody else uses."""
        done = run_code(WAITING)
        assert done.returncode == 0, done.stderr
        slept, digests = (line.split() for line in done.stdout.splitlines())
        assert int(slept[0]) >= 40  # of 50 times
        assert len(digests) == 3
        assert len(set(digests)) == 1

    @pytest.mark.parametrize(
        ("end", "code"),
        [("", 0), ("sys.exit(3)", 3), ("os._exit(4)", 4), ("raise SystemExit('so')", 1), ("fork()", 0)],
    )
    def test_it_is_in_nobodys_way_at_the_end(self, end: str, code: int) -> None:
        done = run_code(f"{WITH_POOL}\n{end}")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


@needs_libgomp
class TestThread:
    @pytest.fixture
    def tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Lay out a kernel's files of a process whose only thread has not waited yet, and look at them often."""
        write_clocks(tmp_path, {"1": 0})
        (tmp_path / "proc/self/maps").symlink_to("/proc/self/maps")
        monkeypatch.setattr(contention, "INTERVAL_S", 0.01)
        monkeypatch.setattr(contention, "LEAST_HOLD_S", 0.1)
        monkeypatch.setattr(contention, "MOST_HOLD_S", 0.1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(contention, "_count_cores_of", lambda library: 2)
        return tmp_path

    def test_the_pool_is_there_while_threads_have_to_wait(self, tree: Path) -> None:
        with watch_contention({}, tree):
            assert list_threads() == [WATCHER]
            for _ in range(2):
                with waiting(tree):
                    wait_until(lambda: list_threads() == [WATCHER, POOL])
                wait_until(lambda: list_threads() == [WATCHER])
            with waiting(tree):
                wait_until(lambda: POOL in list_threads())
        assert list_threads() == []

    @pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
    def test_the_users_setting_wins(self, tree: Path, name: str) -> None:
        with watch_contention({name: "1000"}, tree):
            assert list_threads() == []

    def test_without_the_kernels_figures_nothing_happens(self, tmp_path: Path) -> None:
        with watch_contention({}, tmp_path):
            assert list_threads() == []

    @pytest.mark.parametrize("threads", [1, 3])
    def test_one_thread_and_more_than_cores_need_no_pool(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, threads: int
    ) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert make_second_pool(tree) is None

    def test_fewer_threads_than_cores_need_a_larger_pool(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contention, "_count_cores_of", lambda library: 6)
        before = list_tasks()
        pool = make_second_pool(tree)
        assert pool is not None
        made = list_tasks() - before
        pool.end()
        assert len(made) == 6  # with the one that PyTorch's pool adds to its caller, one more than cores
        monkeypatch.setattr(contention, "_count_cores_of", lambda library: 1000)
        assert make_second_pool(tree) is None

    def test_before_torch_is_there_nothing_happens(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contention, "sys", SimpleNamespace(modules={}))
        looks: list[int] = []
        made: list[Path] = []
        monkeypatch.setattr(contention, "make_second_pool", made.append)

        class CountedMeter(LoadMeter):
            def measure(self) -> Load:
                looks.append(1)
                return super().measure()

        monkeypatch.setattr(contention, "LoadMeter", CountedMeter)
        with watch_contention({}, tree), waiting(tree):
            wait_until(lambda: len(looks) > 20)
        assert made == []

    @pytest.mark.parametrize("error", [OSError, RuntimeError, ImportError])
    def test_a_pool_that_cannot_be_made_ends_the_thread_alone(
        self,
        error: type[Exception],
        tree: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(root: Path) -> SecondPool:
            raise error("cannot be")

        monkeypatch.setattr(contention, "make_second_pool", fail)
        with watch_contention({}, tree), waiting(tree):
            wait_until(lambda: list_threads() == [])
        assert capsys.readouterr() == ("", "")

    def test_a_defect_is_reported(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(root: Path) -> SecondPool:
            raise TypeError("a defect")

        seen: list[type[BaseException]] = []
        monkeypatch.setattr(contention, "make_second_pool", fail)
        monkeypatch.setattr(threading, "excepthook", lambda told: seen.append(told.exc_type))
        with watch_contention({}, tree), waiting(tree):
            wait_until(lambda: seen == [TypeError])

    def test_a_system_without_threads_to_spare_runs_the_command(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        with watch_contention({}, tree):
            pass


def test_the_command_starts_the_thread_and_its_library_does_not() -> None:
    """A command that needs no torch imports none; who imports the package gets no thread and no setting."""
    done = run_code("""
import sys, threading
import yolo_prune.contention, yolo_prune.threads, yolo_prune.cli.main, yolo_prune.training.run
print(threading.active_count(), os.environ.get("OMP_NUM_THREADS"))
""")
    assert done.stdout.split() == ["1", "None"], done.stderr
    done = run_code("""
import sys, threading
from yolo_prune.cli import main
def app(**settings): print([thread.name for thread in threading.enumerate()][1:])
main.app = app
try: main.main()
except SystemExit: print("torch" in sys.modules, threading.active_count())
""")
    assert done.stdout.splitlines() == [f"['{WATCHER}']", "False 1"], done.stderr


def groups(states: list[bool]) -> Iterator[int]:
    """Yield how many states in a row are alike, from the first True on."""
    for number, (state, same) in enumerate(itertools.groupby(states)):
        if number or state:
            yield len(list(same))


def write_clocks(root: Path, waited_ns: dict[str, float], used: Iterable[float] = (0,), ran_s: float = 0) -> None:
    """Lay out for how long each thread has waited, each core was used, and the process has used them."""
    lines = [f"cpu{number} 0 0 {round(100 * seconds)} 0 0 0 0 0 0 0" for number, seconds in enumerate(used)]
    texts = {"stat": "\n".join(["cpu 0 0 0 0 0 0 0 0", *lines, "ctxt 1"])}
    texts["self/stat"] = " ".join(["7 (a (b) c) S", *"1" * 10, str(round(ran_s * 100)), *"0" * 37])
    texts |= {f"self/task/{thread}/schedstat": f"0 {int(waited)} 4\n" for thread, waited in waited_ns.items()}
    for name, text in texts.items():
        path = root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("new").write_text(text)
        path.with_name("new").replace(path)


class waiting:  # reads as a word
    """Have the thread of a tree wait for a core that another process uses all the time, within a block."""

    def __init__(self, root: Path) -> None:
        self._root, self._is_over = root, threading.Event()
        self._writer = threading.Thread(target=self._write, name="writer")

    def __enter__(self) -> None:
        self._writer.start()

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._writer.join()

    def _write(self) -> None:
        while not self._is_over.wait(0.001):
            write_clocks(self._root, {"1": 1e9 * (now := time.monotonic())}, [now])


def list_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("yoloprune")]


def list_tasks() -> set[str]:
    """Return the ids of this process's threads; some that are there may be about to end."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("it does not happen")


WITH_POOL = """
import os, sys, torch

def list_tasks():
    return set(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
before = list_tasks()
torch.zeros(1 << 20).add_(1)
(worker,) = list_tasks() - before
from yolo_prune.contention import SecondPool, find_libgomp
library = find_libgomp()
pool = SecondPool(library, 2 + len(os.sched_getaffinity(0)))

def fork():
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        return
    torch.set_num_threads(1)  # as DataLoader's workers do
    assert float(torch.zeros(1 << 20).add_(1).sum()) == 1 << 20
    os._exit(0)
"""
WAITING = f"""{WITH_POOL}
import hashlib, time
from pathlib import Path

def count_sleeps():
    text = Path("/proc/self/task", worker, "status").read_text()
    return int(text.split("\\nvoluntary_ctxt_switches:")[1].split()[0])

def make_digest():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Conv2d(16, 16, 3))
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()

tensor, slept = torch.zeros(1 << 18), count_sleeps()
for _ in range(50):
    tensor.add_(1)
    time.sleep(0.001)
print(count_sleeps() - slept)
digests = [make_digest()]
pool.end()
digests.append(make_digest())
pool = SecondPool(library, 2 + len(os.sched_getaffinity(0)))
print(*digests, make_digest())
"""


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    return subprocess.run(
        [sys.executable, "-c", f"import os\n{code}"],
        env=ours | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
