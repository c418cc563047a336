"""Load and save COCO results: a JSON list of `image_id category_id bbox score`, with bbox xywh in pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.image_ids import ImageId, ImageIds, find_image
from yolo_prune.files import load_json

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")
RIGHT_RESULT = "write image_id, category_id, bbox [x, y, width, height] in pixels and score"

Entry = tuple[list[float], float, int]


def format_results(
    image_ids: Sequence[ImageId], detections: Sequence[Detections], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return detections as COCO's results list, ready for JSON.

    `category_ids` gives each class its COCO id; without it the class index is written.
    """
    rows = []
    for image_id, found in zip(image_ids, detections, strict=True):
        boxes = _to_xywh(found.boxes_xyxy).tolist()
        for box, score, own in zip(boxes, found.scores.tolist(), found.classes.tolist(), strict=True):
            category_id = own if category_ids is None else category_ids[own]
            rows.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    return rows


def load_results(path: Path, ids: ImageIds) -> list[Detections]:
    """Read a COCO results file into the detections of each image of `ids`, the inverse of `format_results`.

    Detections in images that are not evaluated are left out.

    Raises:
        DatasetError: the file cannot be read, or an entry is malformed or names an unknown image or category.
    """
    rows = load_json(path, DatasetError, "name a COCO results file")
    if not isinstance(rows, list):
        raise DatasetError("holds no list", where=path, right="name a COCO results file, a JSON list of detections")
    classes = {category_id: own for own, category_id in enumerate(ids.classes)}
    found: list[list[Entry]] = [[] for _ in ids.images]
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        image_id, (box, score, category_id) = _parse_result(row, where)
        place = find_image(ids, image_id, where)
        if category_id not in classes:
            right = f"use one of {', '.join(map(str, sorted(classes)))}, or name with --annotations the file of the ids"
            raise DatasetError(f"category_id {category_id} is unknown", where=where, right=right)
        if place is not None:
            found[place].append((box, score, classes[category_id]))
    return list(map(_make_found, found))


def _parse_result(row: Any, where: str) -> tuple[ImageId, Entry]:
    """Return the image, and box (xyxy), score and category, of one entry of a results file."""
    try:
        image_id, category_id, (x, y, width, height), score = (row[key] for key in RESULT_KEYS)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"is no detection ({json.dumps(row)[:120]})", where=where, right=RIGHT_RESULT) from error
    numbers = (x, y, width, height, score)
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise DatasetError(f"bbox {row['bbox']} or score {score!r} is not finite", where=where, right=RIGHT_RESULT)
    if width < 0 or height < 0:
        raise DatasetError(f"bbox {row['bbox']} has a negative side", where=where, right=RIGHT_RESULT)
    if type(image_id) not in (int, str) or type(category_id) is not int:
        what = f"image_id {image_id!r} or category_id {category_id!r} is of the wrong kind"
        raise DatasetError(what, where=where, right=RIGHT_RESULT)
    return image_id, ([x, y, x + width, y + height], score, category_id)


def _make_found(entries: Sequence[Entry]) -> Detections:
    boxes, scores, classes = zip(*entries, strict=True) if entries else ((), (), ())
    return make_detections(boxes, scores, classes)


def _to_xywh(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    boxes = boxes_xyxy.astype(np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
