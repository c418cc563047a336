"""Settings of the losses; importing them costs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yolo_prune.errors import ConfigError


@dataclass(frozen=True)
class LossConfig:
    """How the parts of the loss are weighed, and which anchors are made responsible."""

    box: float = 6.0
    """Weight of the box loss, averaged over the positives."""
    objectness: float = 1.0
    """Weight of the objectness cross-entropy, summed over all anchors and divided by the number of positives."""
    classes: float = 0.5
    """Weight of the class cross-entropy, averaged over the positives."""
    anchor_ratio: float = 4.0
    """An anchor is positive for a box if neither its width nor its height is off by more than this factor; the best one always is."""
    ignore_iou: float = 0.7
    """Anchors whose box overlaps some object this much are not taught that they see none."""
    objectness_iou: float = 1.0
    """Share of the box's own IoU in a positive's objectness target; the rest is 1."""
    box_loss: str = "ciou"
    """ciou: 1 − complete IoU; mse: squared errors of the raw x, y, w, h, as YOLOv3 was first taught."""
    label_smoothing: float = 0.0
    """How far class targets 0 and 1 are moved, together, towards ½ each: 0 leaves them, 0.1 makes them 0.05 and 0.95."""
    class_balance: float = 0.0
    """Objects weigh their class's count to the power of minus this in the class loss: 0 all alike, 1 all classes alike."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a value is out of range.
        """
        for name in ("box", "objectness", "classes"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number from 0")
        for name in ("ignore_iou", "objectness_iou", "label_smoothing", "class_balance"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number from 0 to 1")
        if not 1 <= self.anchor_ratio < math.inf:
            right = "use a number from 1, where the best anchor alone is positive"
            raise ConfigError(f"{self.anchor_ratio} is out of range", where="anchor_ratio", right=right)
        if self.box_loss not in ("ciou", "mse"):
            raise ConfigError(f"unknown box loss {self.box_loss}", where="box_loss", right="use ciou or mse")


@dataclass(frozen=True)
class DistillConfig:
    """How much a teacher counts beside the labels."""

    weight: float = 1.0
    """Weight of the difference to the teacher's answers."""
    features: float = 0.0
    """Weight of the difference to where the teacher looks: the energy of the maps that its heads read."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a weight is out of range.
        """
        for name in ("weight", "features"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"{value} is out of range", where=name, right="use a number from 0")


def check_img_size(img_size: int | None) -> None:
    """Refuse a side in pixels that the coarsest head's cells do not divide; None is no wish and passes.

    Raises:
        ConfigError: names the nearest side that would do.
    """
    if img_size is not None and (img_size < 32 or img_size % 32):
        right = f"use {max(32, round(img_size / 32) * 32)}"
        raise ConfigError(f"{img_size} is no multiple of 32", where="img_size", right=right)
