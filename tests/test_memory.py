from __future__ import annotations

import errno
import gc
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from paths import ROOT

from yolo_prune import memory
from yolo_prune.errors import DatasetError, InsufficientMemoryError
from yolo_prune.memory import (
    explain_out_of_memory,
    find_available_bytes,
    format_bytes,
    is_out_of_memory,
    naming_out_of_memory,
    without_collector,
)

MEMINFO = "MemTotal:       24660000 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\n"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
MEMORY = "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
HUGE = 1 << 55


def make_tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a kernel's files; `files` are below sys/fs/cgroup."""
    texts = {"proc/self/cgroup": f"{cgroup}\n", "proc/self/mountinfo": f"{mounts}\n", "proc/meminfo": MEMINFO}
    for name, text in {**texts, **{f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 2_048_000_000),
        ({"job/memory.max": "max", "job/memory.current": "5"}, 2_048_000_000),
        ({"job/memory.max": "1000000", "job/memory.current": "400000"}, 600_000),
        ({"job/memory.max": "1000000", "job/memory.current": "900000", "job/memory.stat": "anon 1\ninactive_file 7"}, 100_007),
        ({"memory.max": "500000", "memory.current": "100000", "job/memory.max": "1000000", "job/memory.current": "0"}, 400_000),
        ({"job/memory.max": "1000", "job/memory.current": "2000"}, 0),
        ({"job/memory.max": "a lot", "job/memory.current": "1"}, 2_048_000_000),
        ({"job/memory.max": "1000"}, 2_048_000_000),
    ],
)  # fmt: skip
def test_a_limit_of_version_2_counts(tmp_path: Path, files: dict[str, str], available: int) -> None:
    assert find_available_bytes(make_tree(tmp_path, "0::/job", UNIFIED, files)) == available


def test_a_limit_of_version_1_counts(tmp_path: Path) -> None:
    files = {"memory/job/memory.limit_in_bytes": "1000000", "memory/job/memory.usage_in_bytes": "300000"}
    files["memory/job/memory.stat"] = "cache 9\ntotal_inactive_file 50000"
    assert find_available_bytes(make_tree(tmp_path, "4:memory:/job", MEMORY, files)) == 750_000


def test_without_the_kernels_files_nothing_is_known(tmp_path: Path) -> None:
    assert find_available_bytes(tmp_path) is None


def test_this_machines_memory_is_found() -> None:
    found = find_available_bytes()
    assert found is None or 0 < found < 1 << 50


def test_a_limit_of_the_address_space_counts() -> None:
    script = (
        "import resource; from yolo_prune.memory import find_available_bytes;"
        "before = find_available_bytes(); resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29));"
        "print(before > 3 << 29, 0 < find_available_bytes() < 3 << 29)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "True True\n"


def _catch(library: str) -> Exception:
    try:
        match library:
            case "torch":
                torch.empty(HUGE, dtype=torch.uint8)
            case "numpy":
                np.empty(HUGE, np.uint8)
            case "opencv":
                cv2.resize(np.zeros((4, 4), np.uint8), (1 << 30, 1 << 30))
            case "python":
                bytearray(HUGE)
    except (RuntimeError, MemoryError, cv2.error) as error:
        return error
    raise AssertionError(f"{library} allocates {HUGE} bytes")


@pytest.mark.parametrize(
    ("library", "asked"), [("torch", "36,029 TB"), ("numpy", "36,029 TB"), ("opencv", "1,152,922 TB"), ("python", "")]
)
def test_the_error_of_every_library_is_recognised(library: str, asked: str) -> None:
    error = _catch(library)
    assert is_out_of_memory(error), error
    line = explain_out_of_memory(error, 3_000_000_000)
    assert line.startswith("out of memory ("), line
    assert line.endswith("3 GB available)"), line
    assert asked in line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which "
                "1.50 GiB is free. Including non-PyTorch memory, this process has 138 GiB memory in use."
            ),
            "out of memory (21.5 GB asked for, 1.61 GB available)",
        ),
        (
            RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 2000"),
            "out of memory (2 kB asked for, 7 B available)",
        ),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), "out of memory (7 B available)"),
        (RuntimeError("std::bad_alloc"), "out of memory (7 B available)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory (7 B available)"),
    ],
)
def test_errors_of_other_devices_and_engines_are_recognised(error: Exception, line: str) -> None:
    assert is_out_of_memory(error)
    assert explain_out_of_memory(error, 7) == line


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "No space left"), KeyError("memory")])
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_an_error_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_available_bytes", lambda: 5_000)
    with (
        pytest.raises(InsufficientMemoryError, match=r"^a step: out of memory \(5 kB available\); use less$"),
        naming_out_of_memory("a step", "use less"),
    ):
        raise MemoryError
    with pytest.raises(ZeroDivisionError), naming_out_of_memory("a step", "use less"):
        raise ZeroDivisionError
    with pytest.raises(DatasetError), naming_out_of_memory("a step", "use less"):
        raise DatasetError("out of memory")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (999_600, "1 MB"), (1_384_000_000, "1.38 GB"), (25_600_000_000, "25.6 GB")],
)  # fmt: skip
def test_bytes_are_written_in_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_is_afterwards_as_it_was_before(is_enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        with without_collector():
            assert not gc.isenabled()
        assert gc.isenabled() is is_enabled
        with pytest.raises(KeyError), without_collector():
            raise KeyError
        assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if before else gc.disable)()
