"""The processes of a run: one, or as many as torchrun started.

torchrun names each process's rank and their number in the environment. Gradients travel by NCCL between GPUs and by gloo between
CPUs; what the processes have to agree on besides (stop now? how many positives?) always travels by gloo, from memory to
memory, so that no GPU has to be waited for.
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
    """This process's place among those of its run; alone unless told otherwise."""

    rank: int = 0
    count: int = 1
    control: distributed.ProcessGroup | None = None
    """The gloo group for what processes agree on."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Return the sums of every process's numbers."""
        return self._reduce(values, distributed.ReduceOp.SUM)

    def find_largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest of every process's numbers."""
        return self._reduce(values, distributed.ReduceOp.MAX)

    def share(self, value: T) -> T:
        """Return the first process's value, whatever the others give."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, 0, self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank."""
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
    """Say whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_speaker() -> bool:
    """Say whether this is the process that writes to stdout: the first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def count_restarts() -> int:
    """Return how often torchrun has started this run's processes again after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Yield which of the processes this is, and its device; under torchrun the processes find each other first, and take one GPU each.

    Raises:
        ConfigError: the device is not there, or is one GPU's number while there are several processes.
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
    """Find the other processes; what an earlier attempt has left in torchrun's store, addresses of the dead, is not read."""
    store, rank, count = next(rendezvous("env://"))
    name = f"attempt {count_restarts()}, {next(_MEETINGS)}"
    fresh = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]  # torch lists it nowhere, but documents it
    distributed.init_process_group(backend, store=fresh, rank=rank, world_size=count)


def broadcast(tensors: Sequence[Tensor], processes: Processes) -> None:
    """Give every process the first one's tensors, in place."""
    for tensor in tensors if processes.count > 1 else ():
        distributed.broadcast(tensor, 0)
