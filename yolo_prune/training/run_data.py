"""The images that a run trains and validates on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from yolo_prune.console import report, warn
from yolo_prune.datasets.loader import CACHE_BYTES, DetectionDataset, Share, count_batches
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.image_size import STRIDE_PX, AnySize, ImageSize, make_size
from yolo_prune.text_tables import pluralize
from yolo_prune.threads import count_cores
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes
from yolo_prune.training.resume import Run

MOST_WORKERS = 16
Datasets: TypeAlias = tuple[DetectionDataset, DetectionDataset]
"""The training and the validation data set."""


def load_datasets(run: Run, is_told: bool = False, cache_bytes: int = CACHE_BYTES) -> Datasets:
    """Load the training and the validation data set of a run; with `is_told` say what is odd about their labels.

    The decoded images of each take up to `cache_bytes` of memory.

    Raises:
        DatasetError: a label or an image cannot be read, or no training image has an object.
    """
    config, classes = run.config, len(run.spec.names)
    if is_told:
        counts = [len(run.spec.splits.get(split, ())) for split in ("train", "val")]
        report(
            f"reading the labels of {counts[0]:,} training and {pluralize(counts[1], 'validation image')}: {run.spec.source}"
        )
    largest = max(list_sizes(run.img_size, config.multi_scale))
    samples = run.spec.samples("train")
    data = DetectionDataset(
        samples, classes, largest, augment=config.augment, seed=config.seed, cache_bytes=cache_bytes
    )
    if not data.count_objects():
        folders = sorted({str(sample.label.parent) for sample in data.samples})
        right = f"put label files there: {', '.join(folders[:3])}{' …' if len(folders) > 3 else ''}"
        raise DatasetError("no image has an object", where=f"{run.spec.source}: train", right=right)
    val = DetectionDataset(_get_validation(run), classes, run.img_size, cache_bytes=cache_bytes)
    if is_told:
        _warn_of_labels(data, val, config)
    return data, val


def _get_validation(run: Run) -> Sequence[Sample]:
    """Return the samples of val; none where there are none and none are needed.

    Raises:
        DatasetError: there are none, and the settings validate.
    """
    if not run.config.val_interval:
        return run.spec.splits.get("val", ())
    try:
        return run.spec.samples("val")
    except DatasetError as error:
        right = f"{error.right}, or leave validation out with --val-interval 0"
        raise DatasetError(error.what, where=error.where, right=right) from None


def _warn_of_labels(data: DetectionDataset, val: DetectionDataset, config: TrainConfig) -> None:
    """Say what of the labels was read otherwise than it is written, and that a score is not possible without objects."""
    for part in (data, val):
        if said := part.repairs.describe():
            warn(said)
    if config.val_interval and not val.count_objects():
        warn("no validation image has an object: AP cannot be measured, and the last epoch counts as the best")


def list_sizes(img_size: AnySize, multi_scale: float) -> list[ImageSize]:
    """Return the input sizes for multi-scale training: multiples of 32 whose long side is within a share of `img_size`'s."""
    size = make_size(img_size)
    low, high = (max(size) * (1 + sign * multi_scale) for sign in (-1, 1))
    return [size.with_long_side(side) for side in range(STRIDE_PX, int(high) + 1, STRIDE_PX) if side >= low]


def count_steps(run: Run, data: DetectionDataset) -> int:
    """Return the number of steps of an epoch.

    Raises:
        ConfigError: no batch has an image for every process.
    """
    config, processes = run.config, run.processes
    steps = count_batches(len(data), config.batch_size, get_share(processes))
    if not steps:
        images = f"{config.batch_size} images a batch, {len(data)} in all"
        right = f"use at least {processes.count}, or fewer processes"
        raise ConfigError(f"{images}, are too few for {processes.count} processes", where="batch_size", right=right)
    return steps


def count_workers(config: TrainConfig, device: torch.device) -> int:
    """Return the number of processes that load images; see `TrainConfig.workers`."""
    if config.workers is not None:
        return config.workers
    return min(MOST_WORKERS, count_cores()) if device.type == "cuda" else 0


def get_share(processes: Processes) -> Share:
    """Return the part of every batch that a process makes."""
    return Share(processes.rank, processes.count)
