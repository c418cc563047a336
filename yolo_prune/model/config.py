"""Settings of the losses."""

from __future__ import annotations

from typing import Annotated, Literal

from yolo_prune.config import Setting, settings


@settings
class LossConfig:
    """How the parts of the loss are weighted, and which anchors are assigned to a box."""

    box: Annotated[float, Setting("Weight of the box loss, averaged over the positives.", ge=0)] = 6.0
    objectness: Annotated[
        float,
        Setting(
            "Weight of the objectness cross-entropy, summed over all anchors and divided by the number of positives.",
            ge=0,
        ),
    ] = 1.0
    classes: Annotated[float, Setting("Weight of the class cross-entropy, averaged over the positives.", ge=0)] = 0.5
    anchor_ratio: Annotated[
        float,
        Setting(
            "An anchor is positive for a box if neither its width nor its height is off by more than this factor; the best one "
            "always is, and with 1 it alone.",
            ge=1,
        ),
    ] = 4.0
    ignore_iou: Annotated[
        float,
        Setting("Anchors whose predicted box overlaps an object more than this have no objectness loss.", ge=0, le=1),
    ] = 0.7
    objectness_iou: Annotated[
        float, Setting("Share of the predicted box's IoU in a positive's objectness target; the rest is 1.", ge=0, le=1)
    ] = 1.0
    box_loss: Annotated[
        Literal["ciou", "mse"],
        Setting("ciou: 1 − complete IoU; mse: squared errors of the raw x, y, w, h, as in the YOLOv3 paper."),
    ] = "ciou"
    label_smoothing: Annotated[
        float,
        Setting(
            "How far class targets 0 and 1 are moved, together, towards ½ each: 0 leaves them, 0.1 makes them 0.05 and 0.95.",
            ge=0,
            le=1,
        ),
    ] = 0.0
    class_balance: Annotated[
        float,
        Setting(
            "Objects weigh their class's count to the power of minus this in the class loss: 0: all objects alike, 1: all classes alike.",
            ge=0,
            le=1,
        ),
    ] = 0.0


@settings
class DistillConfig:
    """How much a teacher counts beside the labels."""

    weight: Annotated[float, Setting("Weight of the difference to the teacher's outputs.", ge=0)] = 1.0
    features: Annotated[
        float,
        Setting("Weight of the difference between attention maps: the energy of the maps that the heads read.", ge=0),
    ] = 0.0
