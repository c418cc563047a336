"""The training state: everything that a training step uses and changes, and what a resumed run needs of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from yolo_prune.errors import ConfigError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import AUTO
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity
from yolo_prune.pruning.sparsity.zeroing import GradualZeroing, Removal, begin_removal
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes
from yolo_prune.training.optimizer import Moments, WeightAverage, make_optimizer, put_moments_
from yolo_prune.training.teacher import Teacher
from yolo_prune.training.zero_mask import KeptZeros

Forward = Callable[..., list[Tensor]]


@dataclass
class TrainingState:
    """A detector with everything that a step needs and changes; removing channels replaces some of it."""

    model: Detector
    optimizer: Optimizer
    average: WeightAverage
    loss: DetectionLoss
    scaler: torch.amp.GradScaler
    sparsity: GammaSparsity | None
    """None for a network without batch normalisation that is trained without γ sparsity."""
    forward: Forward
    """The model to call in training: compiled if wanted, and synchronised with other processes."""
    dtype: torch.dtype
    """The dtype in which convolutions are computed."""
    zeros: KeptZeros | None = None
    """With `keep_zeros`."""
    zeroing: GradualZeroing | None = None
    """With `sparsity: auto`."""
    teacher: Teacher | None = None
    processes: Processes = field(default_factory=Processes)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def learn(self) -> None:
        """Set the model to training mode, but its frozen layers to evaluation mode."""
        self.model.train()
        for module in self.model.layers:
            if isinstance(module, ConvLayer) and not module.conv.weight.requires_grad:
                module.eval()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for mixed precision in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def hold_back(self, more_to_come: bool) -> AbstractContextManager[Any]:
        """Return a context without gradient exchange between processes, if more passes of the same step follow."""
        if more_to_come and isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def format_state(self) -> dict[str, Any]:
        """Return what `restore` needs, and the removal; the model's state is not included."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state,
            "average_updates": self.average.updates,
            "scaler": self.scaler.state_dict(),
            "removal": None if self.zeroing is None else self.zeroing.removal.format_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `format_state` returned; the removal must be given to `make_training_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        for name, tensor in state["average"].items():
            self.average.state[name].copy_(tensor)
        self.average.updates = state["average_updates"]
        self.scaler.load_state_dict(state["scaler"])


def make_training_state(
    model: Detector,
    config: TrainConfig,
    steps: int,
    *,
    class_counts: Sequence[int] | None = None,
    teacher: Teacher | None = None,
    processes: Processes | None = None,
    moments: Moments | None = None,
    removal: Removal | None = None,
) -> TrainingState:
    """Make the training state of a model, which is changed in place, for a run of `steps` steps.

    Args:
        class_counts: number of objects of each class in the training images.
        moments: moments of an optimizer of the same kind for the same parameters.
        removal: which channels `sparsity: auto` has removed from the model already; none by default.

    Raises:
        ConfigError: `freeze` leaves no layer to train.
        PlanError: a network without batch normalisation is to be trained with γ sparsity, or its target is out of
            reach.
    """
    processes = processes or Processes()
    device = next(model.parameters()).device
    model = prepare(model, config, processes)
    has_gammas = any(layer.batch_normalize for _, layer in model.network.convs)
    dtype = choose_dtype(config.precision, device)
    optimizer = make_optimizer(model, config)
    if moments is not None:
        put_moments_(optimizer, model, moments)
    zeroing = None
    if config.sparsity == AUTO:
        removal = removal or begin_removal(model.network)
        zeroing = GradualZeroing(model, removal, config.removal_plan)
    return TrainingState(
        model,
        optimizer,
        WeightAverage(model, config.ema_fraction * steps),
        DetectionLoss(model.network, config.loss, class_counts).to(device),
        torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        GammaSparsity(model, make_channel_graph(model.network)) if has_gammas or config.is_sparse else None,
        make_forward(model, config, processes),
        dtype,
        KeptZeros(model) if config.keep_zeros else None,
        zeroing,
        teacher,
        processes,
    )


def prepare(model: Detector, config: TrainConfig, processes: Processes) -> Detector:
    """Freeze layers in place, and synchronise batch norm if there are several CUDA processes; return the model.

    Raises:
        ConfigError: nothing would be left to train.
    """
    freeze_(model, config.freeze)
    if processes.count > 1 and next(model.parameters()).device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model


def make_forward(model: Detector, config: TrainConfig, processes: Processes) -> Forward:
    """Return the model to call in training: compiled if wanted, and synchronised with other processes."""
    device = next(model.parameters()).device
    forward: Any = model
    if processes.count > 1:
        places = [device] if device.type == "cuda" else None
        has_unused = any(index not in model.network.reached for index, _ in model.network.convs)
        forward = DistributedDataParallel(
            forward, device_ids=places, gradient_as_bucket_view=True, find_unused_parameters=has_unused
        )
    compiled: Forward = torch.compile(forward) if config.compile else forward
    return compiled


def freeze_(model: Detector, layers: int) -> None:
    """Freeze the first `layers` layers of a model in place.

    Raises:
        ConfigError: nothing would be left to train.
    """
    if layers and layers >= len(model.layers):
        right = f"use less than {len(model.layers)}, the layers there are"
        raise ConfigError(f"{layers} leaves nothing to train", where="freeze", right=right)
    for module in model.layers[:layers]:
        module.requires_grad_(False)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which convolutions are computed on a device; see `TrainConfig.precision`."""
    if precision != AUTO:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
