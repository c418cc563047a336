"""Settings of the detection loss; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import ConfigError


@dataclass(frozen=True)
class LossConfig:
    """How the parts of the loss are weighed, and which anchors are made responsible."""

    box: float = 6.0
    """Weight of 1 − CIoU, averaged over the positives."""
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


def check_img_size(img_size: int | None) -> None:
    """Refuse a side in pixels that the coarsest head's cells do not divide; None is no wish and passes.

    Raises:
        ConfigError: names the nearest side that would do.
    """
    if img_size is not None and (img_size < 32 or img_size % 32):
        right = f"use {max(32, round(img_size / 32) * 32)}"
        raise ConfigError(f"{img_size} is no multiple of 32", where="img_size", right=right)
