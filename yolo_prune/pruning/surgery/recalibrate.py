"""Recalibrate batch-norm statistics without training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from yolo_prune.model.detector import Detector


@torch.no_grad()
def recalibrate_(model: Detector, batches: Iterable[Tensor], device: torch.device) -> int:
    """Replace all running means and variances by their plain averages over batches of images, in place.

    `batches` are (B, 3, H, W) in 0 … 1. Return the number of images.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 2.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    was_training, count = model.training, 0
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # makes PyTorch compute a cumulative average
    model.to(device).train()
    for images in batches:
        model(images.to(device).to(memory_format=torch.channels_last))
        count += len(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
    return count
