"""Batches of pictures and targets, the same for any number of workers and after any restart."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_all_start_methods

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from yolo_prune.datasets.augment import Picture, augment
from yolo_prune.datasets.images import Header, fit_image, letterbox, read_header, read_image
from yolo_prune.datasets.labels import load_objects, locate_objects
from yolo_prune.datasets.settings import AugmentConfig
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError
from yolo_prune.files import count_cores

CACHE_BYTES = 2 << 30
"""How much memory a data set's decoded pictures may take."""


@dataclass(frozen=True)
class Batch:
    """Square pictures and the objects in them."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB, channels last in memory."""
    targets: Tensor
    """(M, 7) float32 rows `index in batch, class, cx, cy, w, h, ignore`, in shares of the square; ignore is 0 or 1."""
    indices: Tensor
    """(B,) int64: each picture's place in the data set's samples."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, without waiting for the copy where memory is pinned."""
        return Batch(*(part.to(device, non_blocking=True) for part in self._parts))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to CUDA are fast."""
        return Batch(*(part.pin_memory() for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.images, self.targets, self.indices


class DetectionDataset(Dataset[Picture]):
    """Samples as square pictures with boxes; decoded pictures, at the size of use, stay in memory.

    Labels and, as far as memory allows, pictures are read at once, so that a bad file shows before training starts.
    """

    augment: AugmentConfig | None
    """How pictures are varied, None for a plain letterbox; it may be changed between epochs."""

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: int,
        img_size: int,
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Read the labels and fill the cache.

        Args:
            cache_bytes: pictures beyond this are read from disk each time; all have a long side of at most `img_size`.

        Raises:
            DatasetError: a label or a picture cannot be read.
        """
        self.samples, self.classes = tuple(samples), classes
        self.img_size, self.augment, self.seed = img_size, augment, seed
        self.labels = tuple(load_objects(sample, classes) for sample in self.samples)
        self._cache: list[Picture] = []
        with ThreadPoolExecutor() as pool:
            for picture in pool.map(self._read, range(len(self.samples) if cache_bytes else 0)):
                cache_bytes -= picture[0].nbytes
                if cache_bytes < 0:
                    break
                self._cache.append(picture)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Picture:
        """Return a picture as `make_item` does in epoch 0."""
        if index >= len(self):
            raise IndexError(index)
        return self.make_item(index)

    def make_item(self, index: int, *, epoch: int = 0, size_px: int | None = None) -> Picture:
        """Return RGB uint8 (S, S, 3) and (N, 6) rows `class x1 y1 x2 y2 ignore` in its pixels; S is `size_px` or `img_size`.

        Whatever is random in it follows from the data set's seed, the epoch and the index.

        Raises:
            DatasetError: a picture outside the cache cannot be read any more.
        """
        size_px = size_px or self.img_size
        picture = self._load(index)
        if self.augment is None:
            image, boxes = picture
            square, box = letterbox(image, size_px)
            return square, np.column_stack((boxes[:, 0], box.to_network(boxes[:, 1:5]), boxes[:, 5]))
        # numpy seeds (seed, epoch) and (seed, epoch, 0) alike, and the first is the order's
        rng = np.random.default_rng((self.seed, epoch, index + 1))
        pictures = [picture]
        if rng.random() < self.augment.mosaic:
            pictures += map(self._load, rng.integers(len(self), size=3).tolist())
        return augment(pictures, size_px, self.augment, rng)

    @cached_property
    def headers(self) -> tuple[Header, ...]:
        """Size and orientation of every picture's file."""
        return tuple(
            read_header(sample.image) for sample in self.samples
        )  # threads, which share Python's lock, are slower

    def _load(self, index: int) -> Picture:
        return self._cache[index] if index < len(self._cache) else self._read(index)

    def _read(self, index: int) -> Picture:
        image = read_image(self.samples[index].image)
        if max(image.shape) > self.img_size:
            image = fit_image(image, self.img_size)
        return image, locate_objects(self.labels[index], image.shape[1], image.shape[0])


@dataclass(frozen=True)
class _Epoch(Dataset["Batch | DatasetError"]):
    """The batches of one epoch; an error is handed over as a value, since DataLoader would wrap it in a traceback."""

    data: DetectionDataset
    epoch: int
    batches: list[list[int]]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | DatasetError:
        indices, size_px = self.batches[number], self.sizes[number]
        try:
            return _collate(
                indices, [self.data.make_item(index, epoch=self.epoch, size_px=size_px) for index in indices]
            )
        except DatasetError as error:
            return error


class Loader:
    """An epoch's batches, as often as they are asked for."""

    def __init__(self, batches: DataLoader[Batch | DatasetError]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            if isinstance(batch, DatasetError):
                raise batch
            yield batch


def make_loader(
    data: DetectionDataset,
    batch_size: int,
    *,
    shuffle: bool,
    epoch: int,
    workers: int = 0,
    drop_last: bool = False,
    sizes: Sequence[int] | None = None,
    pin_memory: bool = False,
) -> Loader:
    """Make the batches of one epoch; their order and sizes follow from the data set's seed and the epoch.

    Args:
        workers: processes that make batches; they share the cache. 0 makes them in this process.
        sizes: sides in pixels of which each batch takes one; without them `img_size`.
    """
    rng = np.random.default_rng((data.seed, epoch))
    order = (rng.permutation(len(data)) if shuffle else np.arange(len(data))).tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    content = _Epoch(data, epoch, batches, rng.choice(sizes or [data.img_size], len(batches)).tolist())
    return Loader(
        DataLoader(
            content,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
            generator=torch.Generator(),  # else DataLoader draws from the training's random numbers
        )
    )


def read_in_order(data: DetectionDataset, batch_size: int) -> Iterator[Batch]:
    """Yield a data set's plain batches, decoded ahead by a thread for each core.

    Raises:
        DatasetError: a picture cannot be read.
    """
    cores = count_cores()
    ahead = cores + batch_size
    with ThreadPoolExecutor(cores) as pool:
        waiting = deque(pool.submit(data.make_item, index) for index in range(min(ahead, len(data))))
        try:
            for start in range(0, len(data), batch_size):
                indices = range(start, min(start + batch_size, len(data)))
                items = []
                for index in indices:
                    items.append(waiting.popleft().result())
                    if index + ahead < len(data):
                        waiting.append(pool.submit(data.make_item, index + ahead))
                yield _collate(indices, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _collate(indices: Sequence[int], items: Sequence[Picture]) -> Batch:
    images = np.stack([image for image, _ in items])
    boxes = np.concatenate([boxes for _, boxes in items])
    kinds, low, high, ignore = np.split(boxes, (1, 3, 5), axis=1)
    places = np.repeat(np.arange(len(items)), [len(boxes) for _, boxes in items])
    shares = np.concatenate(((low + high) / 2, high - low), axis=1) / images.shape[1]
    targets = np.column_stack((places, kinds, shares, ignore)).astype(np.float32)
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(targets), torch.tensor(indices))


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one ends the others
