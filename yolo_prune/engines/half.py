"""Detectors in half precision: a dense one, and one that skips the zeros of 1×1 convolutions pruned 2:4, on a GPU."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from yolo_prune.darknet.layers import Conv
from yolo_prune.errors import EngineError
from yolo_prune.model.detector import Detector, Heads, Visit
from yolo_prune.model.fold import fold_batchnorm

ROWS, COLUMNS = 32, 64
"""The rows and columns of a float16 matrix must be multiples of these, so that PyTorch can pack it."""
KEPT, GROUP = 2, 4
"""Of `GROUP` consecutive weights at most `KEPT` are not zero: the pattern that the GPU's sparse units need."""


class HalfDetector(Detector):
    """A detector in float16, or another dtype; its inputs and outputs are float32. Batch norm is folded by default."""

    def __init__(self, model: Detector, dtype: torch.dtype = torch.float16, folds: bool = True) -> None:
        source = fold_batchnorm(model) if folds else model
        with torch.device("meta"):
            super().__init__(source.network)
        state = {name: _cast(tensor, dtype) for name, tensor in source.state_dict().items()}
        self.load_state_dict(state, assign=True)
        self.dtype = dtype
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, visit: Visit | None = None) -> Heads:
        """Map images (B, 3, H, W) in 0 … 1 to raw heads as `Detector` does."""
        return [head.float() for head in super().forward(images.to(self.dtype), visit)]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class SemiStructuredDetector(HalfDetector):
    """A detector in float16 whose 1×1 convolutions, if pruned 2:4, use PyTorch's semi-structured sparse matrices.

    Raises:
        EngineError: there is no such convolution.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__(model)
        self.sparse_layers: list[int] = []
        for index, layer in self.network.convs:
            module = self.get_conv(index)
            if is_semi_structured(layer, module.conv.weight):
                module.register_module("conv", _SemiStructuredConv(module.conv))
                self.sparse_layers.append(index)
        if not self.sparse_layers:
            raise EngineError(
                f"no 1×1 convolution of {COLUMNS}n inputs and {ROWS}n outputs is pruned {KEPT}:{GROUP}",
                where="engine",
                right='prune with --granularity weight --pattern 2:4, or use engine "half"',
            )


def is_semi_structured(layer: Conv, weight: Tensor) -> bool:
    """Return whether a convolution with `weight` (out, in, 1, 1) can run on the GPU's sparse units."""
    if (layer.size, layer.stride, layer.padding, layer.groups) != (1, 1, 0, 1):
        return False
    if weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return False
    return int((weight.reshape(-1, GROUP) != 0).sum(1).max()) <= KEPT


class _SemiStructuredConv(nn.Module):
    """A 1×1 convolution as a product of pixel rows and a matrix, which is packed on first use."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._packed: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, filters, H, W), channels last."""
        if self._packed is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns that this is a prototype
                self._packed = to_sparse_semi_structured(self.weight.flatten(1).contiguous())
        batch, channels, height, width = inputs.shape
        pixels = inputs.permute(0, 2, 3, 1).reshape(-1, channels)
        outputs = functional.linear(pixels, self._packed, self.bias)
        return outputs.view(batch, height, width, -1).permute(0, 3, 1, 2)
