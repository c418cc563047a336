"""Batches of images and targets, and the wait for those that other processes make."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from yolo_prune.errors import ConfigError, DatasetError

POLL_S = 1.0
"""Seconds between two looks, while a batch is waited for, at whether its process lives and the run is to stop."""
SILENCE_S = 300.0
"""Seconds without a batch, after which the processes that load images count as dead."""
DESCRIPTORS = 6
"""Files that a process opens when it hands a batch over, in a thread that can tell nobody if it cannot."""
LONGEST_TEMPORARY = 75
"""Bytes of that folder's path: a socket's has at most 107, and multiprocessing adds /pymp-12345678/listener-12345678."""
OPEN_FILES = "a batch cannot be handed over: too many files are open"
RIGHT_LIMIT = "raise the limit (ulimit -n), or load without processes (--workers 0)"


@dataclass(frozen=True)
class Batch:
    """Images of one size and their objects."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, channels last in memory."""
    targets: Tensor
    """(M, 7) float32 rows `index in batch, class, cx, cy, w, h, ignore`, in shares of width and height; ignore is 0 or 1."""
    indices: Tensor
    """(B,) int64: each image's index in the data set's samples."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; the copy is asynchronous if memory is pinned."""
        return Batch(*(part.to(device, non_blocking=True) for part in self._parts))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for fast copies to CUDA."""
        return Batch(*(part.pin_memory() for part in self._parts))

    def split(self, parts: int) -> list[Batch]:
        """Return the batch as up to `parts` batches of nearly equal size, in order; none is empty."""
        if parts == 1:
            return [self]
        pieces, first = [], 0
        for images, indices in zip(self.images.tensor_split(parts), self.indices.tensor_split(parts), strict=True):
            place = self.targets[:, 0] - first
            own = self.targets[(place >= 0) & (place < len(images))].clone()
            own[:, 0] -= first
            first += len(images)
            pieces.append(Batch(images, own, indices))
        return [piece for piece in pieces if len(piece.images)]

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.images, self.targets, self.indices


def share_(batch: Batch) -> None:
    """Move a batch to memory that the training process can read. DataLoader would do so where nobody sees an error.

    Raises:
        DatasetError: there is no room, or no more files may be open.
    """
    try:
        for tensor in (batch.images, batch.targets, batch.indices):
            tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch states no type
        for spare in [os.open(os.devnull, os.O_RDONLY) for _ in range(DESCRIPTORS)]:
            os.close(spare)
    except (RuntimeError, OSError) as error:
        if os.strerror(errno.EMFILE) in str(error):
            raise DatasetError(OPEN_FILES, where="workers", right=RIGHT_LIMIT) from error
        what = f"a batch of {batch.images.nbytes / 1e6:.1f} MB cannot be handed over: shared memory (/dev/shm) is full"
        right = (
            "make it larger (docker run --shm-size 1g), use smaller batches, or load without processes (--workers 0)"
        )
        raise DatasetError(what, where="workers", right=right) from error


def check_sockets() -> None:
    """Check that processes can hand batches over by sockets, which lie among the temporary files.

    Raises:
        ConfigError: the path of that folder is too long.
    """
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY:
        what = f"the path of the folder for temporary files has more than {LONGEST_TEMPORARY} bytes"
        raise ConfigError(what, where="workers", right="name a shorter one in TMPDIR, or use --workers 0")


class Loader:
    """The batches of an epoch; can be iterated several times.

    `while_waiting` is called every second that no batch comes; it may raise an exception to stop.
    """

    def __init__(
        self, batches: DataLoader[Batch | DatasetError], while_waiting: Callable[[], None] | None = None
    ) -> None:
        self._batches, self._while_waiting = batches, while_waiting

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        try:
            while (batch := self._wait_for(batches)) is not None:
                if isinstance(batch, DatasetError):
                    raise batch
                yield batch
        finally:
            del (
                batches
            )  # with its processes: together with a traceback it may lose its queues first, and wait 5 s for each

    def _wait_for(self, batches: Iterator[Batch | DatasetError]) -> Batch | DatasetError | None:
        """Return the next batch, or None at the end.

        Raises:
            DatasetError: a process that loads images died, none made a batch for long, or too many files are open.
        """
        right = "resume the run, with fewer workers if memory was short, or with 0"
        for _ in range(round(SILENCE_S / POLL_S)):
            try:
                return next(batches, None)
            except (RuntimeError, OSError) as error:  # DataLoader has no classes for what it raises
                if str(error).startswith("DataLoader worker (pid"):
                    raise DatasetError("a process that loads images died", where="workers", right=right) from error
                if "ancdata" in str(error) or os.strerror(errno.EMFILE) in str(error):
                    raise DatasetError(OPEN_FILES, where="workers", right=RIGHT_LIMIT) from error
                if not str(error).startswith("DataLoader timed out"):
                    raise
            if self._while_waiting is not None:
                self._while_waiting()
        raise DatasetError(f"no batch came for {SILENCE_S / 60:g} minutes", where="workers", right=right)
