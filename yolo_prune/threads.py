"""The number of cores that this process may use: its affinity, and the CPU quota of its cgroups.

A container with a quota of two cores on a machine of 64 sees 64 cores. 64 threads would be stopped most of the time,
and always in the middle of a parallel region.

Source: Linux's cgroup-v2 (cpu.max), CFS bandwidth control (cpu.cfs_quota_us, cpu.cfs_period_us).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from yolo_prune.cgroups import ROOT, list_cgroups, read_lines

OMP_NUM_THREADS = "OMP_NUM_THREADS"


def count_cores(root: Path = ROOT) -> int:
    """Return the number of processor cores that this process may use; a fraction counts as one.

    Args:
        root: the folder that holds the kernel's folders proc and sys.
    """
    affinity, quota = _count_affinity(), read_quota(root)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def limit_threads(environment: MutableMapping[str, str] = os.environ, root: Path = ROOT) -> None:
    """Limit the OpenMP threads to the quota, if that is lower than the default; call this before torch is imported.

    If the user has set OMP_NUM_THREADS, it is not changed.
    """
    cores = count_cores(root)
    if cores < _count_affinity() and not environment.get(OMP_NUM_THREADS) and "torch" not in sys.modules:
        environment[OMP_NUM_THREADS] = str(cores)


def read_quota(root: Path = ROOT) -> float | None:
    """Return the lowest CPU quota, in cores, of this process's cgroups and the visible ones above; None without one."""
    quotas = [quota for folder in list_cgroups("cpu", root) if (quota := _read_cgroup_quota(folder)) is not None]
    return min(quotas, default=None)


def _count_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_cgroup_quota(folder: Path) -> float | None:
    """Return a cgroup's own CPU quota in cores, None without one."""
    numbers = " ".join(read_lines(folder / "cpu.max")).split()
    if not numbers:
        numbers = [*read_lines(folder / "cpu.cfs_quota_us"), *read_lines(folder / "cpu.cfs_period_us")]
    try:
        quota_us, period_us = map(int, numbers)
    except ValueError:  # cpu.max says `max`, or there is no file
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None
