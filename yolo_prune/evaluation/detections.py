"""Turn boxes and scores of a network into the detections of an image: threshold, NMS, and a limit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from yolo_prune.evaluation.config import DetectConfig

MAX_CANDIDATES = 30_000
"""The most candidates of an image, by score, that enter NMS, whose work grows with their square."""


@dataclass(frozen=True)
class Detections:
    """The detections of one image, by falling score."""

    boxes_xyxy: NDArray[np.float32]
    """(N, 4) in pixels."""

    scores: NDArray[np.float32]
    """(N,) objectness times class probability, 0 … 1."""

    classes: NDArray[np.int64]
    """(N,) class indices."""

    def __len__(self) -> int:
        return len(self.scores)

    def with_boxes(self, boxes_xyxy: ArrayLike) -> Detections:
        """Return the same detections with other boxes (N, 4), such as those mapped into the original image."""
        return replace(self, boxes_xyxy=np.asarray(boxes_xyxy, np.float32).reshape(-1, 4))


def make_detections(boxes_xyxy: ArrayLike, scores: ArrayLike, classes: ArrayLike) -> Detections:
    """Make detections from boxes (N, 4) in pixels, scores (N,) and classes (N,) in any order; ties keep their order."""
    values = np.asarray(scores, np.float32).reshape(-1)
    order = np.argsort(-values, kind="stable")
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    return Detections(boxes[order], values[order], np.asarray(classes, np.int64).reshape(-1)[order])


@torch.no_grad()
def suppress(boxes_xyxy: Tensor, scores: Tensor, config: DetectConfig) -> list[Detections]:
    """Turn boxes (B, N, 4) in pixels and scores (B, N, C) into the detections of B images.

    Every class of a box with a sufficient score is a candidate, not only its best one; classes do not suppress each
    other. With `agnostic_nms` a box has its best class alone, and all boxes suppress each other. Ties are ordered by
    box, then by class. A box that is NaN or infinite is dropped.
    """
    return [_suppress_one(*image, config) for image in zip(boxes_xyxy.float(), scores.float(), strict=True)]


def _suppress_one(boxes_xyxy: Tensor, scores: Tensor, config: DetectConfig) -> Detections:
    from torchvision.ops import nms  # takes as long as PyTorch itself, and most commands need it late or never

    wanted = (scores >= config.confidence) & boxes_xyxy.isfinite().all(-1, keepdim=True)
    if config.agnostic_nms:
        best = scores.argmax(1, keepdim=True)
        wanted &= torch.zeros_like(wanted).scatter_(1, best, True)
    rows, classes = wanted.nonzero(as_tuple=True)
    order = scores[rows, classes].argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    rows, classes = rows[order], classes[order]
    boxes, values = boxes_xyxy[rows], scores[rows, classes]
    groups = torch.zeros_like(classes) if config.agnostic_nms else classes
    kept = torch.zeros_like(values, dtype=torch.bool)
    # Per class: batched_nms shifts the classes apart, and next to one huge box float32 would lose the small ones.
    for group in set(groups.tolist()):
        members = (groups == group).nonzero().squeeze(1)
        kept[members[nms(boxes[members], values[members], config.nms_iou)]] = True
    first = kept.nonzero().squeeze(1)[: config.max_detections]
    return make_detections(*(part[first].cpu().numpy() for part in (boxes, values, classes)))
