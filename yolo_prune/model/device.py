"""Make the device that a setting names."""

from __future__ import annotations

import torch

from yolo_prune.errors import ConfigError


def make_device(name: str) -> torch.device:
    """Return the device; `auto` takes the first CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name}", where="device", right="use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name}", where="device", right="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{name} is not there: {torch.cuda.device_count()} CUDA devices found", where="device", right="use cpu"
        )
    return device
