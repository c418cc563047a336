"""How a training step's time is spent: python benchmarks/train_profile.py [--data data.yaml] [--img-size 192]

Times the parts of real steps (next batch, forward, loss, backward, optimizer and the rest) and prints each one's share,
the median over steps with its quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yolo_prune.commands.data import load_data
from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import Detector
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.state import TrainingState, make_training_state

PARTS = ("next batch", "forward", "loss", "backward", "optimizer, sparsity, average")
WARMUP = 3
SPARSITY = 0.1


def main() -> None:
    """Time steps of a fresh network and print the shares."""
    parser = argparse.ArgumentParser(description="How a training step's time is spent.")
    parser.add_argument("--data", type=Path, help="a data.yaml (default: the synthetic hands)")
    parser.add_argument("--cfg", type=Path, help="a Darknet cfg (default: the quarter-width YOLOv3)")
    parser.add_argument("--img-size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    network = load_cfg(arguments.cfg) if arguments.cfg else make_network("yolov3", 1, 0.25)
    spec = load_data(arguments.data)
    samples = spec.samples("train")[: arguments.batch_size * (arguments.steps + WARMUP)]
    data = DetectionDataset(samples, len(spec.names), arguments.img_size, augment=AugmentConfig())
    config = TrainConfig(sparsity=SPARSITY)
    model = Detector(resize(network, arguments.img_size)).to(memory_format=torch.channels_last).train()
    training = make_training_state(model, config, 5000)
    batches = iter(make_loader(data, arguments.batch_size, shuffle=True, epoch=0))
    times = np.array([measure_step(training, batches, config) for _ in range(len(samples) // arguments.batch_size)])
    report(times[WARMUP:], arguments.batch_size)


def measure_step(training: TrainingState, batches: Iterator[Batch], config: TrainConfig) -> list[float]:
    """Return the seconds that each of PARTS takes in one step."""
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    batch = next(batches)
    images = normalise(batch.images).to(memory_format=torch.channels_last)
    mark()
    heads = training.model(images)
    mark()
    losses = training.loss.measure(heads, batch.targets, *images.shape[-2:])
    mark()
    training.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(losses.total)
    mark()
    training.optimizer.step()
    assert training.sparsity is not None
    training.sparsity.shrink_(config.learning_rate * SPARSITY)
    training.average.update(training.model)
    mark()
    return [end - start for start, end in pairwise(marks)]


def report(times: NDArray[np.float64], batch_size: int) -> None:
    """Print each part's median time and share, and the share of network and loss."""
    shares = times / times.sum(1, keepdims=True)
    for name, seconds, share in zip(PARTS, times.T, shares.T, strict=True):
        low, middle, high = np.percentile(share, (25, 50, 75))
        print(f"{name:<30} {1e3 * np.median(seconds):7.1f} ms  {middle:6.1%}  [{low:.1%}, {high:.1%}]")
    inside = np.median(shares[:, 1:4].sum(1))
    print(f"network and loss {inside:.1%} of a step; {batch_size / np.median(times.sum(1)):.0f} images/s")


if __name__ == "__main__":
    main()
