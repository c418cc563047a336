"""Batches of images and targets: the same for any number of workers, and after any restart."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from multiprocessing import get_all_start_methods

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from yolo_prune.datasets.augment import ImageAndBoxes, augment
from yolo_prune.datasets.batches import POLL_S, Batch, Loader, check_sockets, share_
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.images import (
    Header,
    fit_image,
    is_larger,
    letterbox,
    make_letterbox,
    read_header,
    read_image,
    taking_turns,
)
from yolo_prune.datasets.labels import Repairs, load_objects, locate_objects
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError
from yolo_prune.image_size import AnySize, ImageSize, make_size
from yolo_prune.threads import count_cores

CACHE_BYTES = 2 << 30
"""The most memory that a data set's decoded images may take."""


class DetectionDataset(Dataset[ImageAndBoxes]):
    """Samples as images of one size with boxes. Decoded images, resized for use, stay in memory.

    Labels, and images as far as memory allows, are read at once, so that a bad file is reported before training starts.
    """

    augment: AugmentConfig | None
    """How images are augmented; None for plain letterboxing. It may be changed between epochs."""

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: int,
        img_size: AnySize,
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Read the labels and fill the cache.

        Args:
            cache_bytes: images beyond this are read from disk each time; all are stored so that they fit into
                `img_size`.

        Raises:
            DatasetError: a label or an image cannot be read.
        """
        self.samples, self.classes = tuple(samples), classes
        self.img_size, self.augment, self.seed = make_size(img_size), augment, seed
        self.repairs = Repairs()
        self.labels = tuple(load_objects(sample, classes, self.repairs) for sample in self.samples)
        self._cache: list[ImageAndBoxes] = []
        with ThreadPoolExecutor() as pool:
            for item in pool.map(self._read, range(len(self.samples) if cache_bytes else 0)):
                cache_bytes -= item[0].nbytes
                if cache_bytes < 0:
                    break
                self._cache.append(item)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ImageAndBoxes:
        """Return an image as `make_item` does in epoch 0."""
        if index >= len(self):
            raise IndexError(index)
        return self.make_item(index)

    def make_item(
        self, index: int, *, epoch: int = 0, size: AnySize | None = None, rectangular: bool = False
    ) -> ImageAndBoxes:
        """Return RGB uint8 (H, W, 3) and (N, 6) rows `class x1 y1 x2 y2 ignore` in its pixels.

        All randomness is determined by the data set's seed, the epoch and the index.

        Args:
            size: the size, by default `img_size`.
            rectangular: pad only to multiples of `STRIDE_PX`; for a data set without augmentation.

        Raises:
            DatasetError: an image outside the cache can no longer be read.
        """
        size = self.img_size if size is None else make_size(size)
        item = self._load(index)
        if self.augment is None:
            image, boxes = item
            padded, box = letterbox(image, size, rectangular)
            return padded, np.column_stack((boxes[:, 0], box.to_network(boxes[:, 1:5]), boxes[:, 5]))
        # numpy seeds (seed, epoch) and (seed, epoch, 0) equally, and the first is used for the order
        rng = np.random.default_rng((self.seed, epoch, index + 1))
        items = [item]
        if rng.random() < self.augment.mosaic:
            items += map(self._load, rng.integers(len(self), size=3).tolist())
        return augment(items, size, self.augment, rng)

    def count_objects(self) -> int:
        """Return the number of objects, without those to be ignored."""
        return sum(int((rows[:, 5] == 0).sum()) for rows in self.labels)

    @cached_property
    def headers(self) -> tuple[Header, ...]:
        """Size and orientation of every image's file."""
        return tuple(
            read_header(sample.image) for sample in self.samples
        )  # threads would be slower, because of Python's lock

    def _load(self, index: int) -> ImageAndBoxes:
        return self._cache[index] if index < len(self._cache) else self._read(index)

    def _read(self, index: int) -> ImageAndBoxes:
        with taking_turns():
            image = read_image(self.samples[index].image)
            if is_larger(image, self.img_size):
                image = fit_image(image, self.img_size)
        return image, locate_objects(self.labels[index], image.shape[1], image.shape[0])


@dataclass(frozen=True)
class _Epoch(Dataset["Batch | DatasetError"]):
    """The batches of one epoch. An error is returned as a value, because DataLoader would wrap it in a traceback."""

    data: DetectionDataset
    epoch: int
    batches: list[list[int]]
    sizes: list[ImageSize]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | DatasetError:
        indices, size = self.batches[number], self.sizes[number]
        try:
            batch = _collate(indices, [self.data.make_item(index, epoch=self.epoch, size=size) for index in indices])
            if get_worker_info() is not None:
                share_(batch)
        except DatasetError as error:
            return error
        return batch


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes: its images number `rank`, `rank + count`, …"""

    rank: int = 0
    count: int = 1


def count_batches(images: int, batch_size: int, share: Share | None = None) -> int:
    """Return the number of batches per epoch; a batch with fewer images than processes is left out."""
    count = 1 if share is None else share.count
    return (batch_size >= count) * (images // batch_size) + (images % batch_size >= count)


def make_loader(
    data: DetectionDataset,
    batch_size: int,
    *,
    shuffle: bool,
    epoch: int,
    workers: int = 0,
    sizes: Sequence[AnySize] | None = None,
    pin_memory: bool = False,
    start: int = 0,
    share: Share | None = None,
    while_waiting: Callable[[], None] | None = None,
) -> Loader:
    """Make the batches of one epoch; their order and sizes are determined by the data set's seed and the epoch.

    Args:
        workers: number of processes that make batches; they share the cache. 0 makes them in this process.
        sizes: one of these each batch takes; by default `img_size`.
        start: number of the first batch.
        share: which images of every batch to make; by default all.
        while_waiting: see `Loader`.

    Raises:
        ConfigError: the processes cannot make sockets among the temporary files.
    """
    if workers:
        check_sockets()
    rng = np.random.default_rng((data.seed, epoch))
    order = (rng.permutation(len(data)) if shuffle else np.arange(len(data))).tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sizes = list(map(make_size, sizes or [data.img_size]))
    chosen = [sizes[number] for number in rng.choice(len(sizes), len(batches))]
    share = share or Share()
    batches = [batch[share.rank :: share.count] for batch in batches if len(batch) >= share.count]
    content = _Epoch(data, epoch, batches[start:], chosen[start : len(batches)])
    return Loader(
        DataLoader(
            content,
            batch_size=None,
            num_workers=workers,
            timeout=POLL_S if workers else 0,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
            generator=torch.Generator(),  # else DataLoader uses the training's random generator
        ),
        while_waiting,
    )


def read_in_order(
    data: DetectionDataset, batch_size: int, indices: Sequence[int] | None = None, rectangular: bool = False
) -> Iterator[Batch]:
    """Yield a data set's batches without augmentation, decoded ahead by one thread per core.

    Args:
        indices: the images to yield; by default all.
        rectangular: pad images to multiples of `STRIDE_PX`, not to one size; images of one shape share batches.

    Raises:
        DatasetError: an image cannot be read.
    """
    indices = range(len(data)) if indices is None else indices
    batches = _group_by_shape(data, batch_size, indices) if rectangular else _cut(indices, batch_size)
    make = partial(data.make_item, rectangular=rectangular)
    cores = count_cores()
    with ThreadPoolExecutor(cores) as pool:
        to_come = iter([index for batch in batches for index in batch])
        waiting = deque(pool.submit(make, index) for index in islice(to_come, cores + batch_size))
        try:
            for batch in batches:
                items = []
                for _ in batch:
                    items.append(waiting.popleft().result())
                    waiting.extend(pool.submit(make, index) for index in islice(to_come, 1))
                yield _collate(batch, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _group_by_shape(data: DetectionDataset, batch_size: int, indices: Sequence[int]) -> list[Sequence[int]]:
    shapes: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        header = data.headers[index]
        box = make_letterbox(header.width_px, header.height_px, data.img_size, rectangular=True)
        shapes.setdefault((box.height_px, box.width_px), []).append(index)
    return [batch for members in shapes.values() for batch in _cut(members, batch_size)]


def _cut(indices: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _collate(indices: Sequence[int], items: Sequence[ImageAndBoxes]) -> Batch:
    images = np.stack([image for image, _ in items])
    boxes = np.concatenate([boxes for _, boxes in items])
    kinds, low, high, ignore = np.split(boxes, (1, 3, 5), axis=1)
    places = np.repeat(np.arange(len(items)), [len(boxes) for _, boxes in items])
    sides = np.array(images.shape[2:0:-1] * 2, np.float32)
    shares = np.concatenate(((low + high) / 2, high - low), axis=1) / sides
    targets = np.column_stack((places, kinds, shares, ignore)).astype(np.float32)
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(targets), torch.tensor(indices))


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one stops the workers
