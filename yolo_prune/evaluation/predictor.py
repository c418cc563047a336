"""From images to detections: letterbox, network with decoding, suppression, boxes back in the image's pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from yolo_prune.darknet.network import Network
from yolo_prune.datasets.images import ImageArray, Letterbox, letterbox, read_image, taking_turns
from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import Detections, suppress
from yolo_prune.image_size import ImageSize
from yolo_prune.model.decode import normalise
from yolo_prune.model.free_memory import check_evaluation

ImageLike: TypeAlias = Path | str | NDArray[np.uint8] | Image.Image
"""A file, RGB uint8 (H, W, 3), grey (H, W), or a PIL image."""
READERS = 2
"""Threads that read images ahead of the network."""
A = TypeVar("A")
B = TypeVar("B")


class Predictor:
    """A detector that takes images and gives detections.

    Args:
        engine: maps images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C).
        img_size: the size of its input.
        names: the classes' names.
        config: what counts as a detection.
        device: where it runs.
        only: the classes to detect; all if it is empty.
        network: what the engine runs, where it is known: batches that do not fit into memory are an error then.
    """

    def __init__(
        self,
        engine: nn.Module,
        img_size: ImageSize,
        names: Sequence[str] = (),
        config: DetectConfig | None = None,
        device: torch.device | str = "cpu",
        only: Sequence[int] = (),
        network: Network | None = None,
    ) -> None:
        import torchvision.ops  # noqa: F401  # what detections need, before a stream is opened whose frames do not wait

        self._measured, self._checked = network, 0
        self.img_size, self.names = img_size, tuple(names)
        self.config, self.device = config or DetectConfig(), torch.device(device)
        self.engine, self.only = engine, tuple(only)

    @overload
    def __call__(self, images: ImageLike) -> Detections: ...  # type: ignore[overload-overlap]  # str is a path, not a sequence

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Detections]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Detections | list[Detections]:
        """Detect objects in one image, or in each of several; boxes are in the pixels of the images.

        Raises:
            DatasetError: a file is no image.
            ConfigError: an array is not of a shape or type that an image has.
        """
        if isinstance(images, Path | str | np.ndarray | Image.Image):
            return self._detect([_Prepared.of(images, self.img_size)])[0]
        all_found = []
        for found in self.detect_each(images):
            if isinstance(found, DatasetError):
                raise found
            all_found.append(found)
        return all_found

    def detect_each(self, images: Iterable[ImageLike], batch_size: int = 1) -> Iterator[Detections | DatasetError]:
        """Yield the detections of each image, in their order, or the error of a file that is no image.

        Images are read ahead in threads, and go through the network `batch_size` at a time.

        Raises:
            ConfigError: an array is not of a shape or type that an image has.
        """
        with ThreadPoolExecutor(READERS) as pool:
            ahead = _map_ahead(
                pool, lambda image: _Prepared.of_file(image, self.img_size), images, READERS + batch_size
            )
            while batch := list(islice(ahead, batch_size)):
                found = iter(self._detect([one for one in batch if isinstance(one, _Prepared)]))
                yield from (one if isinstance(one, DatasetError) else next(found) for one in batch)

    def detect_batch(self, images: Sequence[ImageLike]) -> list[Detections]:
        """Detect objects in images that go through the network together.

        Raises:
            DatasetError, ConfigError: as for a call.
        """
        return self._detect([_Prepared.of(image, self.img_size) for image in images])

    @torch.inference_mode()
    def detect_letterboxed(self, images: Tensor) -> list[Detections]:
        """Detect objects in a batch of letterboxed images, uint8 (B, 3, H, W); boxes are in the network's pixels.

        Raises:
            InsufficientMemoryError: the batch does not fit into memory.
        """
        if self._measured is not None and images.numel() > self._checked:
            height, width = images.shape[-2:]
            check_evaluation(self._measured, len(images), ImageSize(width, height), self.device)
            self._checked = images.numel()
        pixels = normalise(images.to(self.device)).to(memory_format=torch.channels_last)
        boxes, scores = self.engine(pixels)
        if self.only:
            others = [one for one in range(scores.shape[-1]) if one not in self.only]
            scores = scores.clone()
            scores[..., others] = -1  # below any threshold
        return suppress(boxes, scores, self.config)

    def _detect(self, prepared: Sequence[_Prepared]) -> list[Detections]:
        if not prepared:
            return []
        batch = torch.from_numpy(np.stack([one.padded for one in prepared])).permute(0, 3, 1, 2)
        found = self.detect_letterboxed(batch)
        return [
            map_to_image(each, one.box, one.width_px, one.height_px) for each, one in zip(found, prepared, strict=True)
        ]


@dataclass(frozen=True)
class _Prepared:
    """An image as the network reads it, and where it lies in the input."""

    padded: ImageArray
    box: Letterbox
    width_px: int
    height_px: int

    @staticmethod
    def of(image: ImageLike, size: ImageSize) -> _Prepared:
        pixels = read_pixels(image)
        return _Prepared(*letterbox(pixels, size), pixels.shape[1], pixels.shape[0])

    @staticmethod
    def of_file(image: ImageLike, size: ImageSize) -> _Prepared | DatasetError:
        """Return the error instead of raising it."""
        try:
            with taking_turns():
                return _Prepared.of(image, size)
        except DatasetError as error:
            return error


def _map_ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], values: Iterable[A], ahead: int) -> Iterator[B]:
    """Yield the results of a function in the order of the values, computing at most `ahead` before they are asked for."""
    waiting: deque[Future[B]] = deque()
    for value in values:
        waiting.append(pool.submit(function, value))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def map_to_image(found: Detections, box: Letterbox, width_px: int, height_px: int) -> Detections:
    """Return detections in the network's pixels with their boxes in those of the image, clipped at its edges."""
    return found.with_boxes(box.to_image(found.boxes_xyxy, width_px, height_px))


def read_pixels(image: ImageLike) -> ImageArray:
    """Return an image as RGB uint8 (H, W, 3).

    Raises:
        DatasetError: a file is no image.
        ConfigError: an array is not of a shape or type that an image has.
    """
    if isinstance(image, Path | str):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"), np.uint8)
    pixels: NDArray[Any] = image
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        what = f"an array of shape {pixels.shape} and type {pixels.dtype} is no image"
        raise ConfigError(what, where="images", right="use RGB uint8 (H, W, 3)")
    return np.ascontiguousarray(pixels)
