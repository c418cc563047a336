"""On what was measured: the device, its driver and clocks, and the versions of packages."""

from __future__ import annotations

import csv
import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

from yolo_prune.benchmarking.latency import describe_environment

QUERIES = (
    *("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem"),
    *("power.draw", "power.limit", "temperature.gpu"),
)
PACKAGES = ("torch", "torchvision", "triton", "numpy", "opencv-python", "opencv-python-headless", "typer", "pydantic")


def describe(device: torch.device) -> dict[str, Any]:
    """Return the device's name, memory, driver, clocks, and versions; what is not known is left out."""
    known = describe_environment(device, "")
    found: dict[str, Any] = {name: known[name] for name in ("device", "threads", "system", "python")}
    found["packages"] = {name: version for name in PACKAGES if (version := find_version(name))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            **query_driver(),
        }
    return {**found, "machine": platform.machine()}


def find_version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def query_driver() -> dict[str, str]:
    """Return what nvidia-smi says of the first device; empty without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader", "--id=0"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = next(csv.reader([result.stdout.strip()]), [])
    return {name: value.strip() for name, value in zip(QUERIES, values, strict=False)}
