"""The processes of a run: one, or as many as torchrun started.

torchrun sets each process's rank and the number of processes in the environment. Gradients are exchanged by NCCL
between GPUs and by gloo between CPUs. Other values that the processes share (whether to stop, the number of positives)
always use gloo and CPU memory, so that no process waits for a GPU.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from yolo_prune.errors import ConfigError
from yolo_prune.model.device import make_device

T = TypeVar("T")
_MEETINGS = itertools.count()


@dataclass(frozen=True)
class Processes:
    """This process's rank among the processes of its run; by default it is the only one."""

    rank: int = 0
    count: int = 1
    control: distributed.ProcessGroup | None = None
    """The gloo group for everything but gradients."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, element by element."""
        return self._reduce(values, distributed.ReduceOp.SUM)

    def find_largest(self, values: Sequence[float]) -> list[float]:
        """Return the maxima over all processes, element by element."""
        return self._reduce(values, distributed.ReduceOp.MAX)

    def share(self, value: T) -> T:
        """Return the first process's value in every process."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, 0, self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        distributed.all_gather_object(values, value, self.control)
        return values  # type: ignore[return-value]  # every None has been replaced

    def _reduce(self, values: Sequence[float], how: distributed.ReduceOp.RedOpType) -> list[float]:
        if self.count == 1:
            return list(values)
        packed = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(packed, how, self.control)
        return [float(value) for value in packed]


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def count_restarts() -> int:
    """Return how often torchrun has restarted this run's processes because one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Yield this process's place in the run, and its device.

    Under torchrun the processes connect to each other first, and each takes a GPU of its own.

    Raises:
        ConfigError: the device does not exist, or names one GPU while there are several processes.
    """
    if not is_launched():
        yield Processes(), make_device(device)
        return
    count = int(os.environ["WORLD_SIZE"])
    if device.startswith("cuda:") and count > 1:
        right = "use cuda, and each process takes its own"
        raise ConfigError(f"{device} cannot serve {count} processes", where="device", right=right)
    place = make_device(device)
    if place.type == "cuda":
        place = make_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    _meet("nccl" if place.type == "cuda" else "gloo")
    try:
        control = distributed.new_group(backend="gloo")
        assert isinstance(control, distributed.ProcessGroup)  # every process is a member
        yield Processes(distributed.get_rank(), distributed.get_world_size(), control), place
    finally:
        distributed.destroy_process_group()


def _meet(backend: str) -> None:
    """Connect to the other processes.

    Keys get a prefix of their own, because torchrun's store may still hold the addresses of an earlier attempt's
    processes.
    """
    store, rank, count = next(rendezvous("env://"))
    name = f"attempt {count_restarts()}, {next(_MEETINGS)}"
    fresh = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]  # documented, not in torch's types
    distributed.init_process_group(backend, store=fresh, rank=rank, world_size=count)


def broadcast(tensors: Sequence[Tensor], processes: Processes) -> None:
    """Copy the first process's tensors to all others, in place."""
    for tensor in tensors if processes.count > 1 else ():
        distributed.broadcast(tensor, 0)
