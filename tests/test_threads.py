from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from yolo_prune import threads
from yolo_prune.threads import OMP_NUM_THREADS, count_cores, limit_threads, read_quota

UNIFIED = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
OTHERS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
a line that is cut"""


@pytest.fixture(autouse=True)
def _has_eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def make_tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a kernel's files; `files` are below sys/fs/cgroup."""
    texts = {"proc/self/cgroup": f"{cgroup}\n", "proc/self/mountinfo": f"{OTHERS}\n{mounts}\n"}
    for name, text in {**texts, **{f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"job/cpu.max": "max 100000"}, 8),
        ({"job/cpu.max": "200000 100000"}, 2),
        ({"job/cpu.max": "150000 100000"}, 2),
        ({"job/cpu.max": "1000 100000"}, 1),
        ({"job/cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "300000 100000", "job/cpu.max": "max 100000"}, 3),
        ({"cpu.max": "300000 100000", "job/cpu.max": "50000 10000"}, 3),
        ({"other/cpu.max": "100000 100000"}, 8),
        ({"job/cpu.max": "a lot"}, 8),
        ({"job/cpu.max": "100000 0"}, 8),
        ({"job/cpu.max": ""}, 8),
    ],
)
def test_a_quota_of_version_2_counts(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert count_cores(make_tree(tmp_path, "0::/job", UNIFIED, files)) == cores


@pytest.mark.parametrize(
    ("quota_us", "period_us", "cores"), [("-1", "100000", 8), ("250000", "100000", 3), ("0", "100000", 8)]
)
def test_a_quota_of_version_1_counts(tmp_path: Path, quota_us: str, period_us: str, cores: int) -> None:
    files = {f"cpu,cpuacct/job/cpu.cfs_{name}_us": text for name, text in (("quota", quota_us), ("period", period_us))}
    tree = make_tree(tmp_path, "3:cpuset:/other\n2:cpu,cpuacct:/job\n0::/", CPU, files)
    assert count_cores(tree) == cores


@given(quotas=st.lists(st.none() | st.integers(1, 4_000_000), min_size=1, max_size=5), at=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_the_least_quota_at_or_above_the_process_counts(
    tmp_path_factory: pytest.TempPathFactory, quotas: list[int | None], at: int
) -> None:
    at = min(at, len(quotas) - 1)
    folders = ["/".join(["sub"] * depth) for depth in range(len(quotas))]
    files = {
        f"{folder}/cpu.max".lstrip("/"): f"{'max' if quota is None else quota} 100000"
        for folder, quota in zip(folders, quotas, strict=True)
    }
    tree = make_tree(tmp_path_factory.mktemp("tree"), f"0::/{folders[at]}", UNIFIED, files)
    seen = [Fraction(quota, 100_000) for quota in quotas[: at + 1] if quota is not None]
    assert read_quota(tree) == (float(min(seen)) if seen else None)
    assert count_cores(tree) == (min(8, math.ceil(min(seen))) if seen else 8)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/docker/abc", "/docker/abc"),  # a container that sees the host's path
        ("/docker/abc/sub", "/docker/abc"),
        ("/", "/docker/abc"),
        ("/../other", "/"),  # a process that was moved out of its namespace
        ("/docker/abcdef", "/docker/abc"),
        ("/missing", "/"),  # a folder that is not shown
    ],
)
def test_what_a_container_shows_is_enough(tmp_path: Path, path: str, source: str) -> None:
    mount = UNIFIED.replace("0:38 / ", f"0:38 {source} ")
    assert count_cores(make_tree(tmp_path, f"0::{path}", mount, {"cpu.max": "200000 100000"})) == 2


@pytest.mark.parametrize("cgroup", ["", "no colons", "0::", "\udcff"])
def test_a_kernel_that_says_nothing_leaves_the_affinity(tmp_path: Path, cgroup: str) -> None:
    assert count_cores(tmp_path) == 8
    make_tree(tmp_path, "", UNIFIED, {})
    (tmp_path / "proc/self/cgroup").write_bytes(os.fsencode(cgroup))
    assert count_cores(tmp_path) == 8


def test_without_an_affinity_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert count_cores(tmp_path) == 6


class TestLimit:
    @pytest.fixture(autouse=True)
    def _has_no_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "sys", type("WithoutTorch", (), {"modules": {}}))

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        return make_tree(tmp_path, "0::/job", UNIFIED, {"job/cpu.max": "150000 100000"})

    def test_openmp_takes_what_the_quota_has(self, tree: Path) -> None:
        environment: dict[str, str] = {}
        limit_threads(environment, tree)
        assert environment == {OMP_NUM_THREADS: "2"}

    def test_the_users_number_stays(self, tree: Path) -> None:
        environment = {OMP_NUM_THREADS: "5"}
        limit_threads(environment, tree)
        assert environment == {OMP_NUM_THREADS: "5"}

    def test_without_a_quota_nothing_is_reported(self, tmp_path: Path) -> None:
        environment: dict[str, str] = {}
        limit_threads(environment, make_tree(tmp_path, "0::/job", UNIFIED, {"job/cpu.max": "max 100000"}))
        limit_threads(environment, make_tree(tmp_path, "0::/job", UNIFIED, {"job/cpu.max": "900000 100000"}))
        assert environment == {}

    def test_it_is_too_late_once_torch_is_there(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "sys", sys)
        assert "torch" in sys.modules
        environment: dict[str, str] = {}
        limit_threads(environment, tree)
        assert environment == {}


def test_torch_takes_the_cores_of_the_quota(tmp_path: Path) -> None:
    """The real thing but for the files of the kernel."""
    tree = make_tree(tmp_path, "0::/job", UNIFIED, {"job/cpu.max": "100000 100000"})
    code = f"""
import os
from pathlib import Path
from yolo_prune.threads import limit_threads
os.sched_getaffinity = lambda process: set(range(8))
limit_threads(root=Path({str(tree)!r}))
import torch
print(torch.get_num_threads())
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in (OMP_NUM_THREADS, "MKL_NUM_THREADS")
    }
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
