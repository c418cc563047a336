"""One pass over the training images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from yolo_prune.datasets.loader import Batch
from yolo_prune.errors import TrainingError
from yolo_prune.model.assignment import Goals
from yolo_prune.model.decode import normalise
from yolo_prune.pruning.gamma_sparsity import GammaSparsity
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.optimizer import MEAN_SQUARE
from yolo_prune.training.schedule import Pace
from yolo_prune.training.state import Trainee
from yolo_prune.training.teacher import Watch

PARTS = ("loss", "box", "objectness", "classes", "teacher")
READ_EVERY = 20
"""Steps from one look at the losses to the next: on a GPU a look waits until it has caught up."""


@dataclass
class Tally:
    """What an epoch has behind it."""

    losses: Tensor = field(default_factory=lambda: torch.zeros(len(PARTS)))
    """(5,) sums over steps of the parts."""
    steps: int = 0
    images: int = 0
    """Images of all processes."""
    seconds: float = 0.0

    @property
    def means(self) -> dict[str, float]:
        """The mean of every part over the steps."""
        return dict(zip(PARTS, (self.losses / max(1, self.steps)).tolist(), strict=True))

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / max(1e-9, self.seconds)


BetweenSteps = Callable[[Tally], None]


def train_epoch(
    trainee: Trainee,
    batches: Iterable[Batch],
    config: TrainConfig,
    pace_of: Callable[[int], Pace],
    tally: Tally,
    *,
    before_step: BetweenSteps,
    after_look: BetweenSteps,
) -> None:
    """Train on every batch once and enter it in the tally.

    Args:
        batches: this process's; where the tally begins with steps, the ones after those.
        pace_of: the pace of the epoch's step 0, 1, …
        before_step: called before every step; it may raise to stop.
        after_look: called each time the losses were looked at.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    trainee.learn()
    tally.losses = tally.losses.to(trainee.device)
    started, before = time.perf_counter(), tally.seconds
    for batch in batches:
        tally.seconds = before + time.perf_counter() - started
        before_step(tally)
        tally.losses += train_step(trainee, batch, config, pace_of(tally.steps))
        tally.steps += 1
        tally.images += len(batch.images) * trainee.ranks.count
        if tally.steps % READ_EVERY == 0:
            tally.seconds = before + time.perf_counter() - started
            check_loss(tally)
            after_look(tally)
    check_sanity(trainee, tally)
    tally.seconds = before + time.perf_counter() - started
    after_look(tally)


def train_step(trainee: Trainee, batch: Batch, config: TrainConfig, pace: Pace) -> Tensor:
    """Take one optimizer step, then the proximal step of sparsity, and return (5,) the losses named in PARTS.

    The batch is this process's part of the step. Losses are divided by the positives of the whole step, all processes' and
    all passes', so that a step comes out the same however it is cut.
    """
    optimizer, ranks = trainee.optimizer, trainee.ranks
    for group in optimizer.param_groups:
        group["lr"] = pace.learning_rate
    passes = batch.split(config.accumulate)
    goals = [trainee.loss.make_goals(one.targets, len(one.images), *one.images.shape[-2:]) for one in passes]
    (positives,) = ranks.add_up([sum(goal.positives for goal in goals)])
    share = max(1.0, positives) / ranks.count  # gradients are averaged over processes
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(len(PARTS), device=trainee.device)
    for number, (one, goal) in enumerate(zip(passes, goals, strict=True), 1):
        with trainee.hold_back(number < len(passes)):
            losses += _learn_from(trainee, one, goal, share)
    trainee.scaler.unscale_(optimizer)
    held = trainee.zeros.hold() if trainee.zeros is not None else []
    if config.clip_norm > 0:
        clip_grad_norm_(trainee.model.parameters(), config.clip_norm, foreach=True)
    zeros = trainee.sparsity.find_zeros() if trainee.sparsity is not None and pace.keeps_zeros else None
    trainee.scaler.step(optimizer)
    trainee.scaler.update()
    if trainee.zeros is not None:
        trainee.zeros.clear_(held)
    if trainee.sparsity is not None and zeros is not None:
        trainee.sparsity.clear_(zeros)
    if trainee.sparsity is not None and pace.shrinkage > 0:
        trainee.sparsity.shrink_(pace.shrinkage)
    if trainee.silencer is not None and trainee.sparsity is not None and pace.gone > 0:
        trainee.silencer.silence_(pace.gone, _measure_worth(trainee.sparsity, optimizer))
    trainee.average.update(trainee.model)
    return losses


def _measure_worth(sparsity: GammaSparsity, optimizer: Optimizer) -> Tensor | None:
    """Return (N,) what channels are worth by the squared gradients that AdamW keeps; None where none are kept."""
    if not isinstance(optimizer, AdamW):
        return None

    def find_squares(parameter: nn.Parameter) -> Tensor:
        kept: dict[str, Tensor] = optimizer.state.get(parameter, {})
        return kept[MEAN_SQUARE] if MEAN_SQUARE in kept else torch.zeros_like(parameter)  # no head looks at it

    return sparsity.measure_worth(find_squares)


def _learn_from(trainee: Trainee, batch: Batch, goals: Goals, positives: float) -> Tensor:
    """Add one pass's gradients to those that are there, and return its (5,) losses."""
    kind = next(trainee.model.parameters()).dtype
    pixels = normalise(batch.images.to(trainee.device, non_blocking=True), kind)
    images = pixels.to(memory_format=torch.channels_last)
    watch = Watch(trainee.model.network)
    with trainee.autocast():
        heads = trainee.answer(images, watch.visit) if trainee.teacher is not None else trainee.answer(images)
    losses = trainee.loss(heads, goals.to(trainee.device), positives)
    total, taught = losses.total, losses.total.new_zeros(())
    if trainee.teacher is not None:
        with trainee.autocast():
            taught = trainee.teacher.measure(images, heads, watch.maps) / positives
        total = total + taught
    torch.autograd.backward(trainee.scaler.scale(total))
    return torch.stack((total.detach(), losses.box, losses.objectness, losses.classes, taught.detach()))


def check_loss(tally: Tally) -> None:
    """Look at the losses.

    Raises:
        TrainingError: one was no number.
    """
    if not math.isfinite(loss := tally.means["loss"]):
        raise TrainingError(f"the loss became {loss}", right="lower learning_rate, and resume or start again")


def check_sanity(trainee: Trainee, tally: Tally) -> None:
    """Look at the losses and at the weights, which the last step may have spoilt; what is sound may be saved.

    Raises:
        TrainingError: something is no number.
    """
    check_loss(tally)
    norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in trainee.model.parameters()]))
    if not bool(norms.isfinite().all()):
        raise TrainingError("a weight is no longer a number", right="lower learning_rate, and resume or start again")
