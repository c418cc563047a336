"""One pass over the training pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from tqdm import tqdm

from yolo_prune.datasets.loader import Batch
from yolo_prune.errors import TrainingError
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.sparse import GammaSparsity
from yolo_prune.training.optimizer import WeightAverage, measure_learning_rate, measure_step_size
from yolo_prune.training.settings import TrainConfig
from yolo_prune.training.signals import StopSignal


@dataclass(frozen=True)
class Trainee:
    """Everything that a step changes."""

    model: Detector
    optimizer: Optimizer
    average: WeightAverage
    loss: DetectionLoss
    sparsity: GammaSparsity | None
    """None for a network without batch normalisation that is trained without λ."""


@dataclass(frozen=True)
class EpochResult:
    """Mean losses over one epoch, the last learning rate, and pictures per second."""

    loss: float
    box: float
    objectness: float
    classes: float
    learning_rate: float
    images_per_s: float


def train_epoch(
    trainee: Trainee,
    batches: Iterable[Batch],
    config: TrainConfig,
    *,
    device: torch.device,
    first_step: int,
    steps: int,
    stop: StopSignal,
) -> EpochResult:
    """Train on every batch once.

    Args:
        first_step: the run's number of this epoch's first step; the learning rate follows from it.
        steps: the steps of the whole run.

    Raises:
        TrainingError: the loss is no longer a number.
        Interrupted: a signal came.
    """
    trainee.model.train()
    total = torch.zeros(4, device=device)
    started, count, images, rate = time.perf_counter(), 0, 0, 0.0
    for batch in tqdm(batches, desc="train", unit="batch", leave=False, disable=None):
        stop.check()
        rate = measure_learning_rate(config, first_step + count, steps)
        total += train_step(trainee, batch, config, rate, device)
        count, images = count + 1, images + len(batch.images)
    loss, box, objectness, classes = (total / max(1, count)).tolist()
    if not math.isfinite(loss):
        raise TrainingError(f"the loss became {loss}", right="lower learning_rate, and resume or start again")
    speed = images / (time.perf_counter() - started)
    return EpochResult(loss, box, objectness, classes, rate, speed)


def train_step(
    trainee: Trainee, batch: Batch, config: TrainConfig, learning_rate: float, device: torch.device
) -> torch.Tensor:
    """Take one optimizer step, then the proximal step of sparsity, and return (4,) total, box, objectness, class loss."""
    for group in trainee.optimizer.param_groups:
        group["lr"] = learning_rate
    images = normalise(batch.images.to(device, non_blocking=True)).to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        heads = trainee.model(images)
    losses = trainee.loss.measure(heads, batch.targets, *images.shape[-2:])
    trainee.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(losses.total)
    if config.clip_norm > 0:
        clip_grad_norm_(trainee.model.parameters(), config.clip_norm, foreach=True)
    trainee.optimizer.step()
    if trainee.sparsity is not None and config.sparsity > 0:
        trainee.sparsity.shrink_(measure_step_size(config, learning_rate) * config.sparsity)
    trainee.average.update(trainee.model)
    return torch.stack((losses.total.detach(), losses.box, losses.objectness, losses.classes))
