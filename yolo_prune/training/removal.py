"""Remove zeroed channels from a network during training, and from the optimizer's state and the averaged weights."""

from __future__ import annotations

import torch

from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity
from yolo_prune.pruning.sparsity.zeroing import GradualZeroing
from yolo_prune.pruning.surgery.rebuild import rebuild, slice_tensors
from yolo_prune.pruning.surgery.verify import verify
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.optimizer import get_moments, make_optimizer, put_moments_, slice_moments
from yolo_prune.training.state import TrainingState, make_forward, prepare
from yolo_prune.training.zero_mask import KeptZeros


def remove_zeroed_(training: TrainingState, config: TrainConfig, least_share: float = 0.0) -> bool:
    """Remove the zeroed channels, in place, if they are more than `least_share` of the prunable ones.

    The outputs do not change; they are compared in float64. Return whether channels were removed.

    Raises:
        PlanError: the outputs differ by more than rounding errors; nothing has been changed.
    """
    if (zeroing := training.zeroing) is None:
        return False
    model, plan = training.model, zeroing.find_zeroed()
    zeroed, prunable = int((~plan.keep).sum()), int(make_channel_graph(model.network).prunable.sum())
    if zeroed <= least_share * prunable:
        return False
    slim = rebuild(model, plan).train(model.training).to(memory_format=torch.channels_last)
    slim = prepare(slim, config, training.processes)
    difference = verify(model, slim, "the network in training")
    moments = get_moments(training.optimizer.state_dict(), model)
    training.optimizer = make_optimizer(slim, config)
    put_moments_(training.optimizer, slim, slice_moments(model.network, plan, moments))
    training.average.state = slice_tensors(model.network, plan, training.average.state)
    training.model, training.forward = slim, make_forward(slim, config, training.processes)
    training.sparsity = GammaSparsity(slim, make_channel_graph(slim.network))
    training.zeroing = GradualZeroing(slim, zeroing.removal.after(plan, difference), config.removal_plan)
    training.zeros = KeptZeros(slim) if config.keep_zeros else None
    return True
