"""Weights at zero that stay there while the others are trained."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_prune.model.detector import ConvLayer, Detector


class KeptZeros:
    """The exact zeros of a model's convolution kernels, as they are before each step.

    Nothing needs to be remembered from step to step: what is zero now stays so, and a run that is taken up finds the same
    zeros in its weights. A weight that a step happens to bring to exactly zero stays there as well.
    """

    def __init__(self, model: Detector) -> None:
        modules = (module for module in model.layers if isinstance(module, ConvLayer))
        self._kernels = [module.conv.weight for module in modules if module.conv.weight.requires_grad]

    def count(self) -> int:
        """Return how many weights are zero."""
        return sum(kernel.numel() - int(kernel.count_nonzero()) for kernel in self._kernels)

    @torch.no_grad()
    def hold(self) -> list[Tensor]:
        """Take the gradient away from zeros, so that neither its norm nor the optimizer sees it; return where they are."""
        zeros = [kernel == 0 for kernel in self._kernels]
        for kernel, is_zero in zip(self._kernels, zeros, strict=True):
            if kernel.grad is not None:
                kernel.grad.masked_fill_(is_zero, 0)
        return zeros

    @torch.no_grad()
    def clear_(self, zeros: list[Tensor]) -> None:
        """Set weights to +0, in place, where `hold` found zeros."""
        for kernel, is_zero in zip(self._kernels, zeros, strict=True):
            kernel.masked_fill_(is_zero, 0)
