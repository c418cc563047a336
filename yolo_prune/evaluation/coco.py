"""COCO's own scores by pycocotools, and COCO's results format in and out."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.average_precision import GroundTruth
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.files import load_json

MAX_DETECTIONS = 100
"""COCO counts so many detections per picture and class."""

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")
RIGHT_RESULT = "write image_id, category_id, bbox [x, y, width, height] in pixels and score"

ImageId = int | str
Entry = tuple[list[float], float, int]


def coco_scores(detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> tuple[float, float]:
    """Return COCO's AP at IoU 0.5 and its AP over IoU 0.50 … 0.95, one entry of each argument per picture.

    Ignored ground truths are handed on as crowds. (nan, nan) where no ground truth counts.
    """
    if not any(truth.counted.any() for truth in truths):
        return math.nan, math.nan
    truth_rows = [row for image, truth in enumerate(truths) for row in _list_truths(image, truth)]
    result_rows = [
        {**row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for row in format_results(range(len(detections)), detections)
    ]
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress, and stdout is for results
        evaluation = COCOeval(_make_coco(truth_rows, len(truths)), _make_coco(result_rows, len(truths)), "bbox")
        evaluation.params.catIds = sorted({row["category_id"] for row in truth_rows})
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, cap), -1 for a class without ground truth
    return _measure_mean(precision[:1]), _measure_mean(precision)


def format_results(
    image_ids: Sequence[ImageId], detections: Sequence[Detections], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return detections as COCO's results list, ready for JSON: `image_id category_id bbox score`, bbox xywh in pixels.

    `category_ids` gives each class its COCO id; without it a class is written as its index.
    """
    rows = []
    for image_id, found in zip(image_ids, detections, strict=True):
        boxes = _to_xywh(found.boxes_xyxy).tolist()
        for box, score, own in zip(boxes, found.scores.tolist(), found.classes.tolist(), strict=True):
            category_id = own if category_ids is None else category_ids[own]
            rows.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    return rows


def load_results(
    path: Path, image_ids: Sequence[ImageId], category_ids: Sequence[int] | None = None
) -> list[Detections]:
    """Read a COCO results file into the detections of each picture of `image_ids`, the inverse of `format_results`.

    Raises:
        DatasetError: the file cannot be read, or an entry is malformed or names an unknown picture or category.
    """
    rows = load_json(path, DatasetError, "name a COCO results file")
    if not isinstance(rows, list):
        raise DatasetError("holds no list", where=path, right="name a COCO results file, a JSON list of detections")
    classes = None if category_ids is None else {category_id: own for own, category_id in enumerate(category_ids)}
    found: dict[ImageId, list[Entry]] = {image_id: [] for image_id in image_ids}
    for number, row in enumerate(rows):
        image_id, entry = _parse_result(row, f"{path}[{number}]")
        if image_id not in found:
            right = "name the data set that these results were made on"
            raise DatasetError(f"image_id {image_id!r} is not in the data set", where=f"{path}[{number}]", right=right)
        if classes is not None and entry[2] not in classes:
            right = f"use one of {', '.join(map(str, sorted(classes)))}"
            raise DatasetError(f"category_id {entry[2]} is unknown", where=f"{path}[{number}]", right=right)
        found[image_id].append(entry if classes is None else (*entry[:2], classes[entry[2]]))
    return [_make_found(found[image_id]) for image_id in image_ids]


def _parse_result(row: Any, where: str) -> tuple[ImageId, Entry]:
    """Return the picture, and box (xyxy), score and category, of one entry of a results file."""
    try:
        image_id, category_id, (x, y, width, height), score = (row[key] for key in RESULT_KEYS)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"is no detection ({json.dumps(row)[:120]})", where=where, right=RIGHT_RESULT) from error
    numbers = (x, y, width, height, score)
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise DatasetError(f"bbox {row['bbox']} or score {score!r} is not finite", where=where, right=RIGHT_RESULT)
    if width < 0 or height < 0:
        raise DatasetError(f"bbox {row['bbox']} has a negative side", where=where, right=RIGHT_RESULT)
    if not isinstance(image_id, (int, str)) or not isinstance(category_id, int):
        what = f"image_id {image_id!r} or category_id {category_id!r} is of the wrong kind"
        raise DatasetError(what, where=where, right=RIGHT_RESULT)
    return image_id, ([x, y, x + width, y + height], score, category_id)


def _make_found(entries: Sequence[Entry]) -> Detections:
    boxes, scores, classes = zip(*entries, strict=True) if entries else ((), (), ())
    return make_detections(boxes, scores, classes)


def _list_truths(image: int, truth: GroundTruth) -> list[dict[str, Any]]:
    boxes = _to_xywh(truth.boxes_xyxy).tolist()
    rows = zip(boxes, truth.classes.tolist(), truth.counted.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": own, "bbox": box, "area": box[2] * box[3], "iscrowd": int(not counted)}
        for box, own, counted in rows
    ]


def _to_xywh(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    boxes = boxes_xyxy.astype(np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def _make_coco(rows: Sequence[dict[str, Any]], images: int) -> COCO:
    """Make what COCO.loadRes refuses to make of an empty list."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": own} for own in sorted({row["category_id"] for row in rows})],
        # From 1, because COCOeval reads a match with id 0 as no match.
        "annotations": [{**row, "id": number} for number, row in enumerate(rows, 1)],
    }
    coco.createIndex()
    return coco


def _measure_mean(precision: NDArray[np.float64]) -> float:
    return float(precision[precision > -1].mean())
