"""Max pools as every converter and quantizer reads them: without −∞."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.layers import MaxPool
from yolo_prune.model.detector import MaxPoolLayer


class ReplicatePool(nn.Module):
    """A max pool that pads with the values at the edges, where `MaxPoolLayer` pads with −∞.

    Every window that reaches into the padding has the edge in it, so that the maximum is the same. Of −∞ ncnn's converter
    makes something else, and a range that it is in cannot be quantized.
    """

    def __init__(self, layer: MaxPool) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W')."""
        before = self.layer.padding // 2
        after = self.layer.padding - before
        return functional.max_pool2d(_repeat_edges(inputs, before, after), self.layer.size, self.layer.stride)


def _repeat_edges(images: Tensor, before: int, after: int) -> Tensor:
    """Pad height and width with the values at the edges, by concatenation: PyTorch's exporter makes gathers of a padding."""
    wide = torch.cat((*before * [images[..., :1]], images, *after * [images[..., -1:]]), -1)
    return torch.cat((*before * [wide[..., :1, :]], wide, *after * [wide[..., -1:, :]]), -2)


def replace_pools(module: nn.Module) -> None:
    """Replace the max pools of a module that are padded more on one side than on the other, in place."""
    for name, child in module.named_children():
        if isinstance(child, MaxPoolLayer) and child.layer.padding % 2:
            setattr(module, name, ReplicatePool(child.layer))
        else:
            replace_pools(child)
