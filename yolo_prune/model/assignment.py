"""Anchor assignment: which anchors are positive for which boxes. It depends on the targets alone, not on outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from yolo_prune.darknet.layers import Yolo


@dataclass(frozen=True)
class Assignment:
    """The positives of one head, P of them: the cells and anchors that must predict a box, and that box.

    image, anchor, row, column, target_class are (P,) int64; boxes_cxcywh is (P, 4) in pixels of the network's input.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target_class: Tensor
    boxes_cxcywh: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The positives' indices into a map (B, A, H, W)."""
        return self.image, self.anchor, self.row, self.column

    def to(self, device: torch.device) -> Assignment:
        """Move the positives to a device."""
        parts = (self.image, self.anchor, self.row, self.column, self.target_class, self.boxes_cxcywh)
        return Assignment(*(_move(part, device) for part in parts))


@dataclass(frozen=True)
class BatchTargets:
    """The targets of one batch, in the form that the loss compares with the network's outputs.

    They are made on the CPU, where the labels are loaded, so that a step on a GPU never waits to count the positives.
    """

    assignments: tuple[Assignment, ...]
    """One per head."""
    truth: Tensor
    """(B, K, 4) boxes_xyxy in pixels. K is the most objects in any image; images with fewer get empty boxes."""
    unsure: Tensor
    """The boxes to ignore, in the same form."""
    height: int
    """Height of the network's input in pixels."""

    @property
    def positives(self) -> int:
        """The number of positives over all heads."""
        return sum(map(len, self.assignments))

    def to(self, device: torch.device) -> BatchTargets:
        """Move the targets to a device."""
        moved = tuple(assignment.to(device) for assignment in self.assignments)
        return replace(self, assignments=moved, truth=_move(self.truth, device), unsure=_move(self.unsure, device))


def assign_targets(
    targets: Tensor,
    yolos: tuple[Yolo, ...],
    grids: list[tuple[int, int]],
    *,
    batch: int,
    height: int,
    width: int,
    anchor_ratio: float,
) -> BatchTargets:
    """Assign a batch's targets to anchors.

    Args:
        targets: (M, 6) rows image, class, cx, cy, w, h, the box normalised to 0 … 1. In an optional seventh column, 1
            marks a box to ignore: predictions with at least half of their area inside it have no objectness loss.
        yolos: the detection heads.
        grids: (rows, columns) of each head.
        batch: number of images.
        height, width: size of the network's input in pixels.
        anchor_ratio: see `LossConfig`.
    """
    is_ignored = targets[:, 6:].any(1)
    targets, ignored = targets[~is_ignored], targets[is_ignored]
    assignments = assign(targets, yolos, grids, height, width, anchor_ratio)
    truth, unsure = (_pad_truth(boxes, batch, height, width) for boxes in (targets, ignored))
    return BatchTargets(tuple(assignments), truth, unsure, height)


def assign(
    targets: Tensor, yolos: tuple[Yolo, ...], grids: list[tuple[int, int]], height: int, width: int, anchor_ratio: float
) -> list[Assignment]:
    """Assign each box to all anchors of similar shape, in any head, at the cell that holds the box's centre.

    The arguments are those of `assign_targets`, with no boxes to ignore among the targets.

    Returns:
        One `Assignment` per head. The anchor with the highest shape IoU is always positive, even beyond `anchor_ratio`.
    """
    from torchvision.ops import box_iou  # takes as long as PyTorch itself, and most commands assign nothing

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


def _pad_truth(targets: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Return the boxes as boxes_xyxy (B, K, 4) in pixels; K is the most of any image, the others get empty boxes."""
    image = targets[:, 0].long()
    counts = torch.bincount(image, minlength=batch)
    order = torch.argsort(image, stable=True)
    starts = counts.cumsum(0) - counts
    slots = torch.arange(len(targets), device=targets.device) - starts[image[order]]
    truth = targets.new_zeros(batch, int(counts.max()) if len(targets) else 0, 4)
    boxes = targets[order, 2:6] * targets.new_tensor([width, height, width, height])
    truth[image[order], slots] = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    return truth


def _move(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()  # only copies from pinned memory are asynchronous
    return values.to(device, non_blocking=True)
