"""The processes of a run: one, or as many as torchrun started.

torchrun sets each process's rank and the number of processes in the environment. Gradients are exchanged by NCCL
between GPUs and by gloo between CPUs. Other values that the processes share (whether to stop, the number of positives)
always use gloo and CPU memory, so that no process waits for a GPU.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # documented, not in its types

from yolo_prune.errors import ConfigError, Interrupted, Terminated, YoloPruneError
from yolo_prune.launch import Launch, count_restarts, mark_failure, read_launch
from yolo_prune.model.device import make_device
from yolo_prune.training.peers import Failure, Peers, follow

T = TypeVar("T")
CONNECT_S = 60.0
"""Seconds in which the address where the processes meet must respond."""
POLL_S = 0.05
BROKEN = ("onnection", "gloo", "NCCL", "imed out", "Broken pipe")
"""What PyTorch's errors of a connection hold: it has no class for all of them."""
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


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Yield this process's place in the run, and its device.

    Under torchrun the processes connect to each other first, and each takes a GPU of its own. When one fails, or is
    killed, all others end with an error that names its rank; a process that waits for it in vain is ended.

    Raises:
        ConfigError: an environment variable of torchrun is wrong, the device does not exist, or it names one GPU while
            there are several processes.
        TrainingError: another process failed, was killed, or does not respond.
        Interrupted, TimeUp: another process was stopped.
    """
    launch = read_launch()
    if launch is None or launch.count == 1:
        yield Processes(), make_device(device)
        return
    if device.startswith("cuda:"):
        right = "use cuda, and each process takes its own"
        raise ConfigError(f"{device} cannot serve {launch.count} processes", where="device", right=right)
    meeting = f"attempt {count_restarts()}, {next(_MEETINGS)}"
    try:
        peers = Peers(launch, _connect(launch, meeting), holds_store=_holds_store(launch))
    except ConfigError as error:
        mark_failure(error, launch.rank, is_told=False)
        raise
    try:
        peers.meet()
        place = make_device(device)
        if place.type == "cuda":
            place = make_device(f"cuda:{launch.local_rank}")
            torch.cuda.set_device(place)
        store, backend = _connect(launch, f"{meeting}, collectives"), "nccl" if place.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.count)
        control = distributed.new_group(backend="gloo")
        assert isinstance(control, distributed.ProcessGroup)  # every process is a member
        yield Processes(launch.rank, launch.count, control), place
    except BaseException as error:
        settled = _settle(error, peers, launch.rank)  # before the connections close
        if settled is error:
            raise
        raise settled from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        peers.leave()


def _settle(error: BaseException, peers: Peers, rank: int) -> BaseException:
    """Return the error that this process ends with: its own, or that of a process that failed before."""
    if isinstance(error, GeneratorExit):
        return error
    failure = peers.find_failure()
    is_broken = isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)
    if failure is None and is_broken:
        failure = peers.await_failure()
    if failure is None:
        own = Failure(rank, *_describe(error))
        is_teller = peers.claim_telling()  # before others know of the failure
        failure = peers.record(own)
        if failure == own:
            mark_failure(error, None if own.is_stop else rank, is_told=not is_teller)
            return error
    settled = error
    if not (failure.is_stop and isinstance(error, Interrupted | KeyboardInterrupt | Terminated)):
        try:
            follow(failure)
        except (YoloPruneError, Interrupted) as others:
            settled = others
    mark_failure(settled, None, is_told=not peers.claim_telling())
    return settled


def _describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the text of an error for the other processes."""
    if isinstance(error, Interrupted):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped"
    if isinstance(error, Terminated):
        return 143, "stopped"
    if isinstance(error, YoloPruneError):
        return 2, str(error)
    return 1, f"failed by a defect ({type(error).__name__}: {error})"


def _connect(launch: Launch, name: str) -> Store:
    """Connect to the store where the processes meet.

    Keys get a prefix of their own, because torchrun's store may still hold the keys of an earlier attempt's processes.
    """
    if _holds_store(launch):
        _serve(launch.port, launch.count)
    try:
        socket.getaddrinfo(launch.host, launch.port)
    except (OSError, UnicodeError):
        right = "name the machine of the process of rank 0"
        raise ConfigError(f"{launch.host} cannot be resolved", where="MASTER_ADDR", right=right) from None
    found: list[Store] = []

    def connect() -> None:
        try:
            patience = timedelta(seconds=2 * CONNECT_S)  # it ends after the process, if nobody responds
            store = TCPStore(launch.host, launch.port, launch.count, False, patience, wait_for_workers=False)
        except RuntimeError:
            return
        found.append(PrefixStore(name, store))

    thread = threading.Thread(target=connect, daemon=True)  # TCPStore waits for ever for what accepts and says nothing
    thread.start()
    deadline = time.monotonic() + CONNECT_S
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(POLL_S)
    if not found:
        what = f"no process of the run responds at {launch.host}:{launch.port} within {CONNECT_S:.0f} s"
        right = "start the process of rank 0 there, or correct address and port"
        raise ConfigError(what, where="MASTER_ADDR", right=right)
    return found[0]


def _holds_store(launch: Launch) -> bool:
    """Return whether the store is this process's: torchrun holds it itself."""
    return launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)


@cache
def _serve(port: int, count: int) -> Store:
    """Open the store where the processes meet; it lasts as long as this process.

    Raises:
        ConfigError: the port cannot be used.
    """
    try:
        return TCPStore("localhost", port, count, True, wait_for_workers=False)
    except RuntimeError as error:
        taken = "in use by another process" if "EADDRINUSE" in str(error) else "not to be had"
        raise ConfigError(f"{port} is {taken}", where="MASTER_PORT", right="choose another port") from error


def broadcast(tensors: Sequence[Tensor], processes: Processes) -> None:
    """Copy the first process's tensors to all others, in place."""
    for tensor in tensors if processes.count > 1 else ():
        distributed.broadcast(tensor, 0)
