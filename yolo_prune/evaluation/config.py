"""Settings of detection; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import ConfigError


@dataclass(frozen=True)
class DetectConfig:
    """What counts as a detection; the defaults are those of an mAP measurement."""

    confidence: float = 0.001
    """Scores below this are dropped."""

    nms_iou: float = 0.5
    """Of two boxes of one class that overlap by more than this, the lower-scored is dropped."""

    max_detections: int = 300
    """At most so many detections per picture."""

    def __post_init__(self) -> None:
        for key in ("confidence", "nms_iou"):
            if not 0 <= (value := getattr(self, key)) <= 1:
                raise ConfigError(f"{value} is out of range", where=key, right="give a number from 0 to 1")
        if self.max_detections < 1:
            raise ConfigError(f"{self.max_detections} is out of range", where="max_detections", right="give 1 or more")
