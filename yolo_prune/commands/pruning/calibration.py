"""Training images to measure on: not augmented, spread evenly over the split, always the same."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.image_size import AnySize
from yolo_prune.model.decode import normalise
from yolo_prune.pruning.scores.importance import Example

BATCH = 32
"""Images per batch when statistics are measured."""
EXAMPLE_BATCH = 16
"""Images per batch of examples; the criterion taylor takes one gradient per batch."""


def pick_samples(spec: DataSpec, split: str, images: int, img_size: AnySize) -> DetectionDataset:
    """Return up to `images` samples of a split, spread evenly over it.

    Raises:
        DatasetError: there is no such split, or an image or label cannot be read.
    """
    samples = spec.samples(split)
    count = min(images, len(samples))
    chosen = [samples[number * len(samples) // count] for number in range(count)]
    return DetectionDataset(chosen, len(spec.names), img_size)


def iterate_images(data: DetectionDataset, device: torch.device) -> Iterator[Tensor]:
    """Yield batches of images (B, 3, H, W) in 0 … 1."""
    for batch in make_loader(data, BATCH, shuffle=False, epoch=0):
        yield normalise(batch.images.to(device))


def iterate_examples(data: DetectionDataset, device: torch.device) -> Iterator[Example]:
    """Yield batches of images (B, 3, H, W) in 0 … 1 with their targets (M, 7), which stay on the CPU."""
    for batch in make_loader(data, EXAMPLE_BATCH, shuffle=False, epoch=0):
        yield normalise(batch.images.to(device)), batch.targets
