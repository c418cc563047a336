"""Max pools as every converter and quantizer reads them: without −∞."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_prune.model.detector import MaxPoolLayer


class ReplicatePool(MaxPoolLayer):
    """A max pool that pads with the values at the edges.

    Every window that reaches into the padding has the edge in it, so that the maximum is the same. Of −∞ ncnn's converter
    makes something else, and a range that it is in cannot be quantized.
    """

    def pad(self, inputs: Tensor, before: int, after: int) -> Tensor:
        """Pad height and width with the values at the edges, by concatenation: PyTorch's exporter makes gathers of a padding."""
        wide = torch.cat((*before * [inputs[..., :1]], inputs, *after * [inputs[..., -1:]]), -1)
        return torch.cat((*before * [wide[..., :1, :]], wide, *after * [wide[..., -1:, :]]), -2)


def replace_pools(module: nn.Module) -> None:
    """Replace the max pools of a module that are padded more on one side than on the other, in place."""
    for name, child in module.named_children():
        if isinstance(child, MaxPoolLayer) and child.layer.padding % 2:
            setattr(module, name, ReplicatePool(child.layer))
        else:
            replace_pools(child)
