"""The network as exporters take it: folded, with decoding, and with the sizes that may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import JoinedOutputs
from yolo_prune.engines.half import HalfDetector
from yolo_prune.export.pools import replace_pools
from yolo_prune.image_size import STRIDE_PX, ImageSize
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector
from yolo_prune.model.fold import fold_batchnorm

MOST = 1024
"""The most images at a time, and the most multiples of 32 px, of a file whose sizes may change."""


def make_module(model: Detector, layout: str, is_half: bool) -> nn.Module:
    """Return the network with batch norm folded and decoding inside, in evaluation mode; `model` is unchanged.

    Args:
        layout: a key of `layout.NAMES`.
        is_half: whether the convolutions compute in float16.
    """
    folded = HalfDetector(model, torch.float16) if is_half else fold_batchnorm(model)
    network = model.network
    strides = [network.height / network.shapes[index].height for index, _ in network.heads]
    replace_pools(folded)
    decoded: nn.Module = DecodedDetector(folded, strides).eval()
    module = decoded if layout == "yoloprune" else JoinedOutputs(decoded)
    return module.to(memory_format=torch.contiguous_format)


def make_example(size: ImageSize, dynamic: str, batch_size: int = 1) -> Tensor:
    """Return images (B, 3, H, W) to trace with; a batch that may change must not be 1 then."""
    return torch.zeros(batch_size if dynamic == "none" else 2, 3, size.height, size.width)


def make_dynamic_shapes(dynamic: str) -> dict[str, dict[int, Any]] | None:
    """Return which sizes may change, for torch.export."""
    if dynamic == "none":
        return None
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MOST)}
    if dynamic == "size":
        for place, name in ((2, "rows"), (3, "columns")):
            sizes[place] = STRIDE_PX * torch.export.Dim(name, min=1, max=MOST)
    return {"images": sizes}
