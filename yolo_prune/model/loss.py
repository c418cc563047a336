"""The detection loss: which anchors answer for which box, and how far their answers are off."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from yolo_prune.darknet.layers import Network, Yolo
from yolo_prune.model.decode import decode_boxes, make_grid, split_head
from yolo_prune.model.detector import Heads
from yolo_prune.model.settings import LossConfig

IGNORED_SHARE = 0.5
"""A box that lies in an ignored one by this share of its area counts neither way, as in COCO's matching."""


@dataclass(frozen=True)
class Assignment:
    """The positives of one head, P of them: which cell and anchor answers for which box.

    image, anchor, row, column, class are (P,) int64; boxes_cxcywh (P, 4) in pixels of the network's input.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target_class: Tensor
    boxes_cxcywh: Tensor


def assign(
    targets: Tensor, yolos: tuple[Yolo, ...], grids: list[tuple[int, int]], height: int, width: int, anchor_ratio: float
) -> list[Assignment]:
    """Make every well-shaped anchor, of any head, at a box's centre cell responsible for that box.

    Args:
        targets: (M, 6) rows image, class, cx, cy, w, h, the box normalised to 0 … 1.
        yolos: the detection heads.
        grids: each head's (rows, columns).
        height, width: the network's input in pixels.
        anchor_ratio: see `LossConfig`.

    Returns:
        One `Assignment` per head. A box's best anchor by IoU of shapes is positive whatever its ratio.
    """
    scale = targets.new_tensor([width, height, width, height])
    boxes = targets[:, 2:6] * scale
    anchors = targets.new_tensor([anchor for yolo in yolos for anchor in yolo.own_anchors])
    ratio = boxes[:, None, 2:] / anchors[None]
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < anchor_ratio
    if len(boxes):
        corners = functional.pad(boxes[:, 2:], (2, 0)), functional.pad(anchors, (2, 0))
        fits[torch.arange(len(boxes), device=fits.device), box_iou(*corners).argmax(1)] = True
    assignments, first = [], 0
    for yolo, (rows, columns) in zip(yolos, grids, strict=True):
        box, anchor = fits[:, first : first + len(yolo.mask)].nonzero(as_tuple=True)
        first += len(yolo.mask)
        chosen = targets[box]
        column = (chosen[:, 2] * columns).long().clamp(0, columns - 1)
        row = (chosen[:, 3] * rows).long().clamp(0, rows - 1)
        assignments.append(Assignment(chosen[:, 0].long(), anchor, row, column, chosen[:, 1].long(), boxes[box]))
    return assignments


def measure_ciou(boxes_cxcywh: Tensor, targets_cxcywh: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Return the complete IoU and the plain IoU of paired boxes (P, 4), each (P,).

    Source: Zheng et al., "Distance-IoU Loss" (2020), eq. 8–11; the weight α is held constant in the backward pass.
    """
    centre, size, centre_t, size_t = (part for boxes in (boxes_cxcywh, targets_cxcywh) for part in boxes.chunk(2, 1))
    low, high = centre - size / 2, centre + size / 2
    low_t, high_t = centre_t - size_t / 2, centre_t + size_t / 2
    overlap = (torch.minimum(high, high_t) - torch.maximum(low, low_t)).clamp(min=0).prod(1)
    iou = overlap / (size.prod(1) + size_t.prod(1) - overlap + eps)
    hull = torch.maximum(high, high_t) - torch.minimum(low, low_t)
    distance = (centre - centre_t).square().sum(1) / (hull.square().sum(1) + eps)
    angle = torch.atan(size_t[:, 0] / (size_t[:, 1] + eps)) - torch.atan(size[:, 0] / (size[:, 1] + eps))
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        alpha = aspect / (1 - iou + aspect + eps)
    return iou - distance - alpha * aspect, iou


@dataclass(frozen=True)
class Losses:
    """The loss of one batch and its weighted parts, each a scalar tensor."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor


class DetectionLoss(nn.Module):
    """YOLOv3's loss with CIoU boxes, several positives per box and one normaliser, the number of positives."""

    def __init__(self, network: Network, config: LossConfig | None = None) -> None:
        super().__init__()
        self.config = config or LossConfig()
        self.yolos = tuple(yolo for _, yolo in network.heads)

    def forward(self, heads: Heads, targets: Tensor, height: int, width: int) -> Losses:
        """Compare raw head maps (B, A·(5+C), H/s, W/s) with targets (M, 6): image, class, cx, cy, w, h in 0 … 1.

        A seventh column, where there is one, is 1 for boxes to ignore: what lies in them by half or more is not taught
        that it sees nothing. `height` and `width` are the network's input in pixels.
        """
        heads = [raw.to(torch.promote_types(raw.dtype, torch.float32)) for raw in heads]
        is_ignored = targets[:, 6:].any(1)
        targets, ignored = targets[~is_ignored], targets[is_ignored]
        grids = [(raw.shape[2], raw.shape[3]) for raw in heads]
        assignments = assign(targets, self.yolos, grids, height, width, self.config.anchor_ratio)
        truth, unsure = (_pad_truth(boxes, heads[0].shape[0], height, width) for boxes in (targets, ignored))
        parts = [
            self._compare(split_head(raw, yolo), yolo, assignment, truth, unsure, height)
            for raw, yolo, assignment in zip(heads, self.yolos, assignments, strict=True)
        ]
        positives = max(1, sum(len(assignment.image) for assignment in assignments))
        box, objectness, classes = (torch.stack(part).sum() / positives for part in zip(*parts, strict=True))
        box, objectness, classes = (
            box * self.config.box,
            objectness * self.config.objectness,
            classes * self.config.classes,
        )
        return Losses(box + objectness + classes, box.detach(), objectness.detach(), classes.detach())

    def _compare(
        self, values: Tensor, yolo: Yolo, positives: Assignment, truth: Tensor, unsure: Tensor, height: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed box, objectness and class losses of one head; `values` is (B, A, H, W, 5+C)."""
        rows, columns = values.shape[2:4]
        anchors = values.new_tensor(yolo.own_anchors)
        stride = height / rows
        grid = make_grid(rows, columns, values)
        where = (positives.image, positives.anchor, positives.row, positives.column)
        chosen = values[where]
        boxes = decode_boxes(
            chosen[:, :4], grid[positives.row, positives.column], anchors[positives.anchor], stride, yolo.scale_x_y
        )
        ciou, iou = measure_ciou(boxes, positives.boxes_cxcywh)
        share = self.config.objectness_iou
        wanted = values.new_zeros(values.shape[:-1])
        slots = torch.arange(wanted.numel(), device=wanted.device).view_as(wanted)[where]
        goals = (1 - share + share * iou.detach().clamp(0, 1)).to(wanted)
        wanted.view(-1).scatter_reduce_(
            0, slots, goals, "amax"
        )  # boxes that share an anchor: the best one, in any order
        with torch.no_grad():
            every = decode_boxes(values[..., :4], grid, anchors.view(-1, 1, 1, 2), stride, yolo.scale_x_y)
            counted = _measure_best_overlap(every, truth) < self.config.ignore_iou
            counted &= _measure_best_overlap(every, unsure, of_own_area=True) < IGNORED_SHARE
            counted[where] = True
        objectness = functional.binary_cross_entropy_with_logits(
            values[..., 4], wanted, weight=counted.to(values), reduction="sum"
        )
        labels = functional.one_hot(positives.target_class, yolo.classes).to(values)
        classes = functional.binary_cross_entropy_with_logits(chosen[:, 5:], labels, reduction="sum")
        return (1 - ciou).sum(), objectness, classes


def _pad_truth(targets: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Return the boxes as (B, K, 4) xyxy in pixels, K the most that any picture has; the rest are empty boxes."""
    image = targets[:, 0].long()
    counts = torch.bincount(image, minlength=batch)
    order = torch.argsort(image, stable=True)
    starts = counts.cumsum(0) - counts
    slots = torch.arange(len(targets), device=targets.device) - starts[image[order]]
    truth = targets.new_zeros(batch, int(counts.max()) if len(targets) else 0, 4)
    boxes = targets[order, 2:6] * targets.new_tensor([width, height, width, height])
    truth[image[order], slots] = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    return truth


def _measure_best_overlap(boxes_cxcywh: Tensor, truth: Tensor, of_own_area: bool = False) -> Tensor:
    """Return for boxes (B, A, H, W, 4) their best overlap with the same picture's truth (B, K, 4 xyxy): (B, A, H, W).

    It is the IoU, or the share of the box's own area.
    """
    best = boxes_cxcywh.new_zeros(boxes_cxcywh.shape[:-1])
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    low, high, area = centre - size / 2, centre + size / 2, size.prod(-1)
    for box in truth.unbind(1):
        box = box.view(-1, 1, 1, 1, 4)
        overlap = (torch.minimum(high, box[..., 2:]) - torch.maximum(low, box[..., :2])).clamp(min=0).prod(-1)
        whole = area if of_own_area else area + (box[..., 2:] - box[..., :2]).prod(-1) - overlap
        best = torch.maximum(best, overlap / whole.clamp(min=1e-7))
    return best
