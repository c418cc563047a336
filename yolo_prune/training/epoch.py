"""Train for one epoch, a pass over the training images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from yolo_prune.datasets.batches import Batch
from yolo_prune.errors import TrainingError
from yolo_prune.model.assignment import BatchTargets
from yolo_prune.model.decode import normalise
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.optimizer import MEAN_SQUARE
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState
from yolo_prune.training.teacher import FeatureHook

PARTS = ("loss", "box", "objectness", "classes", "teacher")
NEW_START = "start again with a lower learning_rate, from the run's best.pt if it has one: --weights best.pt"
READ_EVERY = 20
"""Steps between two reads of the losses on a GPU, where each read waits until all steps are computed."""


@dataclass
class EpochStats:
    """Sums over the steps of an epoch so far."""

    losses: Tensor = field(default_factory=lambda: torch.zeros(len(PARTS)))
    """(5,) sums over the steps of the losses named in PARTS."""
    steps: int = 0
    images: int = 0
    """Images of all processes."""
    seconds: float = 0.0

    @property
    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps."""
        return dict(zip(PARTS, (self.losses / max(1, self.steps)).tolist(), strict=True))

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / max(1e-9, self.seconds)


BetweenSteps = Callable[[EpochStats], None]


def train_epoch(
    training: TrainingState,
    batches: Iterable[Batch],
    config: TrainConfig,
    rates_of: Callable[[int], StepRates],
    stats: EpochStats,
    *,
    before_step: BetweenSteps,
    after_step: BetweenSteps,
    after_look: BetweenSteps,
) -> None:
    """Train on every batch once and update `stats`.

    Args:
        batches: this process's batches. If `stats` already counts some steps, the batches after those.
        rates_of: returns the scheduled rates of the epoch's step 0, 1, …
        before_step: called before every step; it may raise an exception to stop.
        after_step: called after every step; it does not read the losses.
        after_look: called after every read of the losses.

    Raises:
        TrainingError: a loss or a weight became NaN or infinite.
    """
    training.learn()
    stats.losses = stats.losses.to(training.device)
    read_every = 1 if training.device.type == "cpu" else READ_EVERY
    started, before = time.perf_counter(), stats.seconds
    for batch in batches:
        stats.seconds = before + time.perf_counter() - started
        before_step(stats)
        stats.losses += train_step(training, batch, config, rates_of(stats.steps))
        stats.steps += 1
        stats.images += len(batch.images) * training.processes.count
        after_step(stats)
        if stats.steps % read_every == 0:
            stats.seconds = before + time.perf_counter() - started
            check_loss(stats)
            after_look(stats)
    check_sanity(training, stats)
    stats.seconds = before + time.perf_counter() - started
    after_look(stats)


def train_step(training: TrainingState, batch: Batch, config: TrainConfig, rates: StepRates) -> Tensor:
    """Take one optimizer step, then the proximal step of γ sparsity, and return (5,) the losses named in PARTS.

    The batch is this process's part of the step. The losses are divided by the number of positives in the whole step,
    over all processes and passes, so that the result does not depend on how the step is split.
    """
    optimizer, processes = training.optimizer, training.processes
    for group in optimizer.param_groups:
        group["lr"] = rates.learning_rate
    passes = batch.split(config.accumulate)
    assigned = [training.loss.assign_targets(one.targets, len(one.images), *one.images.shape[-2:]) for one in passes]
    (positives,) = processes.add_up([sum(one_assigned.positives for one_assigned in assigned)])
    share = max(1.0, positives) / processes.count  # gradients are averaged over processes
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(len(PARTS), device=training.device)
    for number, (one, one_assigned) in enumerate(zip(passes, assigned, strict=True), 1):
        with training.hold_back(number < len(passes)):
            losses += _learn_from(training, one, one_assigned, share)
    training.scaler.unscale_(optimizer)
    held = training.zeros.hold() if training.zeros is not None else []
    if config.clip_norm > 0:
        clip_grad_norm_(training.model.parameters(), config.clip_norm, foreach=True)
    zeros = training.sparsity.find_zeros() if training.sparsity is not None and rates.keeps_zeros else None
    training.scaler.step(optimizer)
    training.scaler.update()
    if training.zeros is not None:
        training.zeros.clear_(held)
    if training.sparsity is not None and zeros is not None:
        training.sparsity.clear_(zeros)
    if training.sparsity is not None and rates.shrinkage > 0:
        training.sparsity.shrink_(rates.shrinkage)
    if training.zeroing is not None and training.sparsity is not None and rates.zeroed > 0:
        training.zeroing.zero_channels_(rates.zeroed, _measure_worth(training.sparsity, optimizer))
    training.average.update(training.model)
    return losses


def _measure_worth(sparsity: GammaSparsity, optimizer: Optimizer) -> Tensor | None:
    """Return (N,) the channels' worth by the squared gradients that AdamW keeps; None for other optimizers."""
    if not isinstance(optimizer, AdamW):
        return None

    def find_squares(parameter: nn.Parameter) -> Tensor:
        kept: dict[str, Tensor] = optimizer.state.get(parameter, {})
        return kept[MEAN_SQUARE] if MEAN_SQUARE in kept else torch.zeros_like(parameter)  # no head uses it

    return sparsity.measure_worth(find_squares)


def _learn_from(training: TrainingState, batch: Batch, assigned: BatchTargets, positives: float) -> Tensor:
    """Add the gradients of one pass to the present ones, and return its (5,) losses."""
    kind = next(training.model.parameters()).dtype
    pixels = normalise(batch.images.to(training.device, non_blocking=True), kind)
    images = pixels.to(memory_format=torch.channels_last)
    hook = FeatureHook(training.model.network)
    with training.autocast():
        heads = training.forward(images, hook.visit) if training.teacher is not None else training.forward(images)
    losses = training.loss(heads, assigned.to(training.device), positives)
    total, distillation = losses.total, losses.total.new_zeros(())
    if training.teacher is not None:
        with training.autocast():
            distillation = training.teacher.measure(images, heads, hook.maps) / positives
        total = total + distillation
    torch.autograd.backward(training.scaler.scale(total))
    return torch.stack((total.detach(), losses.box, losses.objectness, losses.classes, distillation.detach()))


def check_loss(stats: EpochStats) -> None:
    """Check that the loss is finite.

    Raises:
        TrainingError: it is NaN or infinite.
    """
    if not math.isfinite(loss := stats.means["loss"]):
        raise TrainingError(f"the loss became {loss}", right=NEW_START)


def check_sanity(training: TrainingState, stats: EpochStats) -> None:
    """Check that the loss and the weights are finite, before they are saved.

    The weights need their own check: the last step may have made them infinite after a finite loss.

    Raises:
        TrainingError: the loss or a weight is NaN or infinite.
    """
    check_loss(stats)
    norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in training.model.parameters()]))
    if not bool(norms.isfinite().all()):
        raise TrainingError("a weight is NaN or infinite", right=NEW_START)
