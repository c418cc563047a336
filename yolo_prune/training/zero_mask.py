"""Keep weights that are zero at zero while the others are trained."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_prune.model.detector import ConvLayer, Detector


class KeptZeros:
    """Keeps exact zeros in a model's convolution kernels at zero.

    No mask is stored: before each step the zeros are found in the weights, so that a resumed run finds the same ones. A
    weight that a step happens to set to exactly zero stays zero as well.
    """

    def __init__(self, model: Detector) -> None:
        modules = (module for module in model.layers if isinstance(module, ConvLayer))
        self._kernels = [module.conv.weight for module in modules if module.conv.weight.requires_grad]

    def count(self) -> int:
        """Return how many weights are zero."""
        return sum(kernel.numel() - int(kernel.count_nonzero()) for kernel in self._kernels)

    @torch.no_grad()
    def hold(self) -> list[Tensor]:
        """Set the gradients of zero weights to 0, for clipping and the optimizer; return the masks of these weights."""
        zeros = [kernel == 0 for kernel in self._kernels]
        for kernel, is_zero in zip(self._kernels, zeros, strict=True):
            if kernel.grad is not None:
                kernel.grad.masked_fill_(is_zero, 0)
        return zeros

    @torch.no_grad()
    def clear_(self, zeros: list[Tensor]) -> None:
        """Set the weights that `hold` found to be zero to +0, in place."""
        for kernel, is_zero in zip(self._kernels, zeros, strict=True):
            kernel.masked_fill_(is_zero, 0)
