"""JSON lines: one object for each frame of a video, or each image, with what was found in it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from yolo_prune.evaluation.detections import Detections


def format_line(
    source: str, found: Detections, names: Sequence[str], frame: int | None = None, time_s: float | None = None
) -> str:
    """Return detections as one line of JSON: source, frame, time_s, and a list of box_xyxy, score, class and name.

    Boxes are in pixels of the frame, with two decimals. An image has no number and no time.
    """
    boxes, scores = found.boxes_xyxy.astype(float).round(2).tolist(), found.scores.astype(float).round(4).tolist()
    detections = [
        {"box_xyxy": box, "score": score, "class": own, "name": names[own]}
        for box, score, own in zip(boxes, scores, found.classes.tolist(), strict=True)
    ]
    time = None if time_s is None else round(time_s, 3)
    return json.dumps({"source": source, "frame": frame, "time_s": time, "detections": detections})
