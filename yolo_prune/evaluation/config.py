"""Settings of detection."""

from __future__ import annotations

from typing import Annotated

from yolo_prune.config import Setting, settings

AGNOSTIC = (
    "NMS over all classes together: of two boxes that overlap, of whatever classes, the lower-scored is dropped, and a box has "
    "its best class alone."
)


@settings
class DetectConfig:
    """Settings of detection; the defaults are those for measuring mAP."""

    confidence: Annotated[float, Setting("Scores below this are dropped.", ge=0, le=1)] = 0.001
    nms_iou: Annotated[
        float,
        Setting("Of two boxes of one class that overlap by more than this, the lower-scored is dropped.", ge=0, le=1),
    ] = 0.5
    max_detections: Annotated[int, Setting("At most so many detections per image.", ge=1)] = 300
    agnostic_nms: Annotated[bool, Setting(AGNOSTIC)] = False
