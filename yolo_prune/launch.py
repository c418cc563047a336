"""How this process was started: alone, or as one of several, which torchrun tells by environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

from yolo_prune.errors import ConfigError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_TOLD, _RANK = "is_told_by_another", "failed_rank"
"""Attributes that `mark_failure` gives an error."""


@dataclass(frozen=True)
class Launch:
    """The place of one of several processes, and where they meet."""

    rank: int
    count: int
    local_rank: int
    """The rank among the processes of this machine."""
    host: str
    port: int


def is_launched() -> bool:
    """Return whether torchrun, or what works alike, started this process."""
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ


def read_launch() -> Launch | None:
    """Return this process's place among those that were started together; None if it was started alone.

    Raises:
        ConfigError: an environment variable is missing, or its value is not possible.
    """
    if not is_launched():
        return None
    present = next(name for name in ("RANK", "WORLD_SIZE") if name in os.environ)
    right = "start the processes with torchrun, or unset RANK and WORLD_SIZE"
    for name in NAMES:
        if not os.environ.get(name, "").strip():
            raise ConfigError(f"is not set, but {present} is", where=name, right=right)
    count = _read_number("WORLD_SIZE", 1, None, right)
    rank = _read_number("RANK", 0, count, right)
    local_rank = _read_number("LOCAL_RANK", 0, count, right)
    _read_number(RESTARTS, 0, None, right)
    port = _read_number("MASTER_PORT", 0, 1 << 16, right)
    return Launch(rank, count, local_rank, os.environ["MASTER_ADDR"].strip(), port)


def _read_number(name: str, least: int, end: int | None, right: str) -> int:
    text = os.environ.get(name, "0").strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < least:
        raise ConfigError(f"{text!r:.40} is no whole number from {least}", where=name, right=right)
    if end is not None and number >= end:
        limit = f"WORLD_SIZE, which is {end}" if name != "MASTER_PORT" else f"{end}"
        raise ConfigError(f"{number} is not below {limit}", where=name, right=right)
    return number


def count_restarts() -> int:
    """Return how often torchrun has restarted this run's processes because one of them failed."""
    return int(os.environ.get(RESTARTS, "0"))


def check_alone(command: str) -> None:
    """Check that a command which works in one process was not started in several.

    Raises:
        ConfigError: it was, or an environment variable of torchrun is wrong.
    """
    launch = read_launch()
    if launch is not None and launch.count > 1:
        right = "run it without torchrun; of the commands train and finetune run in several"
        raise ConfigError(f"{command} runs in one process, not in {launch.count}", where="torchrun", right=right)


def mark_failure(error: BaseException, rank: int | None, *, is_told: bool) -> None:
    """Record with an error of one of several processes whose it is, and whether another process tells it."""
    setattr(error, _RANK, rank)
    setattr(error, _TOLD, is_told)


def is_told_by_another(error: BaseException, *, is_common: bool) -> bool:
    """Return whether another process tells this error; of one that is common to all, the first of a machine does."""
    is_one_of_several = all(os.environ.get(name) for name in NAMES)
    told: bool = getattr(error, _TOLD, is_common and is_one_of_several and os.environ["LOCAL_RANK"] != "0")
    return told


def name_rank(error: BaseException) -> str:
    """Return the beginning of a line that tells an error of one of several processes; empty for others."""
    rank = getattr(error, _RANK, None)
    return "" if rank is None else f"rank {rank}: "
