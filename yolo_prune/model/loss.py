"""The detection loss: box, class and objectness losses of a network's raw outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.layers import Yolo
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError
from yolo_prune.model.assignment import Assignment, BatchTargets, assign_targets
from yolo_prune.model.config import LossConfig
from yolo_prune.model.decode import MAX_LOG_SCALE, decode_boxes, make_grid, split_head
from yolo_prune.model.detector import Heads

IGNORED_SHARE = 0.5
"""A prediction with this share of its area inside a box to ignore has no objectness loss, as in COCO's matching."""


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


def measure_offsets(values: Tensor, boxes_cxcywh: Tensor, grid: Tensor, anchors: Tensor, stride: float) -> Tensor:
    """Return (P,) the squared error of raw x, y, w, h (P, 4) as in YOLOv3: σ(x), σ(y) in cells, w, h as logarithms.

    Source: Redmon and Farhadi, "YOLOv3" (2018), §2.1.
    """
    centres = values[:, :2].sigmoid() - (boxes_cxcywh[:, :2] / stride - grid)
    sizes = values[:, 2:4].clamp(max=MAX_LOG_SCALE) - (boxes_cxcywh[:, 2:] / anchors).log()
    return centres.square().sum(1) + sizes.square().sum(1)


def measure_class_weights(counts: Sequence[int], balance: float) -> list[float]:
    """Return a weight per class: its count to the power of −`balance`, scaled to a mean weight of 1 over all objects.

    A class without objects gets the largest weight of the others.
    """
    powers = [count**-balance if count else 0.0 for count in counts]
    powers = [power or max(powers, default=0.0) or 1.0 for power in powers]
    total = sum(count * power for count, power in zip(counts, powers, strict=True))
    return [power * sum(counts) / total if total else 1.0 for power in powers]


@dataclass(frozen=True)
class Losses:
    """The loss of one batch and its weighted parts, each a scalar tensor."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor


class DetectionLoss(nn.Module):
    """YOLOv3's loss with CIoU for boxes and several positives per box, divided by the number of positives."""

    anchors: Tensor
    class_weights: Tensor

    def __init__(
        self, network: Network, config: LossConfig | None = None, class_counts: Sequence[int] | None = None
    ) -> None:
        """Make the loss of a network.

        Args:
            class_counts: the number of training objects of each class, for `config.class_balance`; all equal by
                default.

        Raises:
            ConfigError: the box loss is not one for the network's heads.
        """
        import torchvision.ops  # noqa: F401  # what assignments need, before a step is timed

        super().__init__()
        self.config = config or LossConfig()
        self.yolos = tuple(yolo for _, yolo in network.heads)
        if self.config.box_loss == "mse" and any(yolo.new_coords for yolo in self.yolos):
            right = "use ciou"
            raise ConfigError("mse knows no heads with new_coords=1", where="loss.box_loss", right=right)
        self._cells = [
            (network.height / network.shapes[head].height, network.width / network.shapes[head].width)
            for head, _ in network.heads
        ]
        counts = class_counts if class_counts is not None else [1] * network.classes
        weights = measure_class_weights(counts, self.config.class_balance)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float64), persistent=False)
        anchors = [anchor for yolo in self.yolos for anchor in yolo.own_anchors]
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float64), persistent=False)

    def assign_targets(self, targets: Tensor, batch: int, height: int, width: int) -> BatchTargets:
        """Assign the targets of `batch` images of `height` by `width` pixels; see `assignment.assign_targets`."""
        grids = [(round(height / rows), round(width / columns)) for rows, columns in self._cells]
        return assign_targets(
            targets,
            self.yolos,
            grids,
            batch=batch,
            height=height,
            width=width,
            anchor_ratio=self.config.anchor_ratio,
        )

    def measure(self, heads: Heads, targets: Tensor, height: int, width: int) -> Losses:
        """Compute the loss of raw head maps for one batch's targets (M, 6 or 7); see `assign_targets` and `forward`."""
        return self.forward(heads, self.assign_targets(targets, len(heads[0]), height, width).to(heads[0].device))

    def forward(self, heads: Heads, assigned: BatchTargets, positives: Tensor | float | None = None) -> Losses:
        """Compute the loss of raw head maps (B, A·(5+C), H/s, W/s) for a batch's assigned targets on the same device.

        Args:
            positives: the divisor of the sums, by default the batch's number of positives. If a step has several
                batches or processes, all must use the same divisor.
        """
        heads = [raw.to(torch.promote_types(raw.dtype, torch.float32)) for raw in heads]
        anchors = torch.split(self.anchors.to(heads[0]), [len(yolo.mask) for yolo in self.yolos])
        parts = [
            self._compare(split_head(raw, yolo), yolo, own, assignment, assigned)
            for raw, yolo, own, assignment in zip(heads, self.yolos, anchors, assigned.assignments, strict=True)
        ]
        count = max(1, assigned.positives) if positives is None else positives
        weights = (self.config.box, self.config.objectness, self.config.classes)
        box, objectness, classes = (
            torch.stack(part).sum() / count * weight
            for part, weight in zip(zip(*parts, strict=True), weights, strict=True)
        )
        return Losses(box + objectness + classes, box.detach(), objectness.detach(), classes.detach())

    def _compare(
        self, values: Tensor, yolo: Yolo, anchors: Tensor, positives: Assignment, assigned: BatchTargets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed box, objectness and class losses of one head; `values` is (B, A, H, W, 5+C)."""
        rows, columns = values.shape[2:4]
        stride = assigned.height / rows
        grid = make_grid(rows, columns, values)
        chosen, cells, own = values[positives.cells], grid[positives.row, positives.column], anchors[positives.anchor]
        boxes = decode_boxes(chosen[:, :4], cells, own, stride, yolo.scale_x_y, yolo.new_coords)
        ciou, iou = measure_ciou(boxes, positives.boxes_cxcywh)
        if self.config.box_loss == "mse":
            box = measure_offsets(chosen[:, :4], positives.boxes_cxcywh, cells, own, stride)
        else:
            box = 1 - ciou
        share = self.config.objectness_iou
        wanted = values.new_zeros(values.shape[:-1])
        slots = torch.arange(wanted.numel(), device=wanted.device).view_as(wanted)[positives.cells]
        target = (1 - share + share * iou.detach().clamp(0, 1)).to(wanted)
        wanted.view(-1).scatter_reduce_(
            0, slots, target, "amax"
        )  # if boxes share an anchor, the highest IoU counts, in whatever order they come
        with torch.no_grad():
            priors = anchors.view(-1, 1, 1, 2)
            every = decode_boxes(values[..., :4], grid, priors, stride, yolo.scale_x_y, yolo.new_coords)
            counted = _measure_best_overlap(every, assigned.truth) < self.config.ignore_iou
            counted &= _measure_best_overlap(every, assigned.unsure, of_own_area=True) < IGNORED_SHARE
            counted.view(-1).index_fill_(0, slots, True)
        objectness = functional.binary_cross_entropy_with_logits(
            values[..., 4], wanted, weight=counted.to(values), reduction="sum"
        )
        return box.sum(), objectness, self._judge_classes(chosen[:, 5:], positives.target_class)

    def _judge_classes(self, logits: Tensor, target_class: Tensor) -> Tensor:
        """Return the summed cross-entropy of class logits (P, C), each object weighted by the weight of its class."""
        smoothing = self.config.label_smoothing
        labels = torch.zeros_like(logits).scatter_(1, target_class[:, None], 1.0)
        labels = labels * (1 - smoothing) + smoothing / 2
        weights = self.class_weights.to(logits)[target_class, None].expand_as(logits)
        return functional.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")


def _measure_best_overlap(boxes_cxcywh: Tensor, truth: Tensor, of_own_area: bool = False) -> Tensor:
    """Return (B, A, H, W) the largest overlap of boxes (B, A, H, W, 4) with the same image's boxes `truth` (B, K, 4).

    `truth` holds boxes_xyxy. The overlap is the IoU, or with `of_own_area` the share of the box's own area.
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
