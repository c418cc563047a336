"""Decode raw head maps into boxes as Darknet does: σ(x)+cell, σ(y)+cell, anchor·exp(w), anchor·exp(h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolo_prune.darknet.layers import Yolo
from yolo_prune.model.detector import Detector, Heads

MAX_LOG_SCALE = 8.0
"""w and h are limited to this, so that an extreme output gives a large box (e^8 anchors) instead of infinity."""


def split_head(raw: Tensor, head: Yolo) -> Tensor:
    """Rearrange a raw map (B, A·(5+C), H, W) to (B, A, H, W, 5+C)."""
    batch, _, height, width = raw.shape
    return raw.view(batch, len(head.mask), 5 + head.classes, height, width).permute(0, 1, 3, 4, 2)


def make_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Return the (x, y) of every cell as (H, W, 2) in cells."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=like.dtype),
        torch.arange(width, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return torch.stack((x, y), -1)


def decode_boxes(
    values: Tensor, grid: Tensor, anchors: Tensor, stride: float, scale_x_y: float = 1.0, new_coords: bool = False
) -> Tensor:
    """Decode raw (…, 4) x, y, w, h into boxes_cxcywh (…, 4) in pixels; `grid` (…, 2) in cells, `anchors` (…, 2) in pixels.

    With `new_coords`, sizes are anchor·(2σ)² as in Scaled-YOLOv4.

    Source: forward_yolo_layer and get_yolo_box in Darknet's yolo_layer.c.
    """
    centres = (values[..., :2].sigmoid() * scale_x_y - (scale_x_y - 1) / 2 + grid) * stride
    if new_coords:
        factors = (2 * values[..., 2:4].sigmoid()).square()
    else:
        factors = values[..., 2:4].clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat((centres, factors * anchors), -1)


def decode_heads(
    heads: Heads, yolos: tuple[Yolo, ...], img_height: int, strides: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Decode all heads into boxes_xyxy (B, N, 4) in pixels of the network's input and scores (B, N, C) in 0 … 1.

    A score is objectness times class probability. Boxes come head by head, anchor by anchor, row by row.

    Args:
        strides: pixels per cell of each head, where `img_height` must not be divided: it may change after tracing.
    """
    boxes, scores = [], []
    for number, (raw, yolo) in enumerate(zip(heads, yolos, strict=True)):
        values = split_head(raw, yolo)
        batch, anchors, height, width, _ = values.shape
        sizes = values.new_tensor(yolo.own_anchors).view(anchors, 1, 1, 2)
        stride = img_height / height if strides is None else strides[number]
        grid = make_grid(height, width, values)
        cxcywh = decode_boxes(values[..., :4], grid, sizes, stride, yolo.scale_x_y, yolo.new_coords)
        centres, halves = cxcywh[..., :2], cxcywh[..., 2:] / 2
        boxes.append(torch.cat((centres - halves, centres + halves), -1).reshape(batch, -1, 4))
        scores.append((values[..., 4:5].sigmoid() * values[..., 5:].sigmoid()).reshape(batch, -1, yolo.classes))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map uint8 images 0 … 255 to floats 0 … 1."""
    return images.to(dtype) / 255


class DecodedDetector(nn.Module):
    """A detector with its decoding in one module, for timing, compiling and export."""

    def __init__(self, detector: Detector, strides: Sequence[float] | None = None) -> None:
        """Take a detector; `strides` as for `decode_heads`."""
        super().__init__()
        self.detector, self.strides = detector, strides
        self.yolos = tuple(yolo for _, yolo in detector.network.heads)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        return self.decode(self.detector(images), images.shape[-2])

    def decode(self, heads: Heads, img_height: int) -> tuple[Tensor, Tensor]:
        """Map the detector's raw heads to boxes and scores."""
        return decode_heads(heads, self.yolos, img_height, self.strides)
