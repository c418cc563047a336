"""How long scoring takes beside pycocotools: python benchmarks/evaluation_speed.py [--images 821] [--per-image 300]

Both get the same random detections, and ground truth as dense as VGG Hand's test split. Ours: matching, AP50 of all
points with its bootstrap interval of 1,000 resamples, COCO's AP50 and AP, best F1, recall by size. pycocotools: index,
evaluate and accumulate, for AP50 and AP alone. Runs are interleaved; times are medians with the fastest and slowest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.evaluate import score_detections
from yolo_prune.evaluation.matching import GroundTruth
from yolo_prune.evaluation.results import format_results

HANDS_PER_IMAGE = 2031 / 821


def main() -> None:
    """Time both and print the table."""
    parser = argparse.ArgumentParser(description="Scoring beside pycocotools.")
    parser.add_argument("--images", type=int, default=821)
    parser.add_argument("--per-image", type=int, default=300, help="detections in each image")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    found, truths = make_images(arguments.images, arguments.per_image)
    truth_rows, result_rows = list_rows(found, truths)
    print(f"{arguments.images} images, {len(result_rows)} detections, {len(truth_rows)} objects, {arguments.runs} runs")
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []

    def score() -> None:
        evaluation = score_detections(found, truths)
        ours.append((evaluation.coco_ap50, evaluation.coco_ap))

    def score_by_pycocotools() -> None:
        theirs.append(evaluate_with_coco(truth_rows, result_rows, arguments.images))

    calls: dict[str, Callable[[], None]] = {"yolo_prune": score, "pycocotools": score_by_pycocotools}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:<12} {np.median(seconds):6.2f} s  [{min(seconds):.2f}, {max(seconds):.2f}]")
    print(f"pycocotools takes {np.median(times['pycocotools']) / np.median(times['yolo_prune']):.1f} times as long")
    print(f"largest difference of AP50 and AP: {np.abs(np.array(ours) - np.array(theirs)).max():.1e}")


def make_images(images: int, per_image: int) -> tuple[list[Detections], list[GroundTruth]]:
    """Make detections of which a few lie near the truth, several on one object, with higher scores in the mean."""
    random = np.random.default_rng(0)
    found, truths = [], []
    for _ in range(images):
        count = int(random.poisson(HANDS_PER_IMAGE))
        boxes, true_boxes = make_boxes(random, per_image), make_boxes(random, count)
        scores = random.beta(0.3, 3, per_image)
        for truth in true_boxes:
            rows = random.integers(per_image, size=random.integers(0, 6))
            boxes[rows] = truth + random.normal(0, 5, (len(rows), 4))
            scores[rows] = random.random(len(rows))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        found.append(make_detections(boxes, scores, np.zeros(per_image)))
        truths.append(GroundTruth(true_boxes.astype(np.float32), np.zeros(count, np.int64)))
    return found, truths


def make_boxes(random: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (count, 4) boxes_xyxy of 10 to 100 px."""
    corners = random.uniform(0, 300, (count, 2))
    return np.concatenate((corners, corners + random.uniform(10, 100, (count, 2))), axis=1)


def list_rows(
    found: Sequence[Detections], truths: Sequence[GroundTruth]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return ground truth and detections as COCO's rows."""
    as_found = [make_detections(truth.boxes_xyxy, np.ones(len(truth.classes)), truth.classes) for truth in truths]
    rows = format_results(range(len(truths)), as_found), format_results(range(len(found)), found)
    for row in (row for part in rows for row in part):
        row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    return rows


def evaluate_with_coco(
    truth_rows: list[dict[str, Any]], result_rows: list[dict[str, Any]], images: int
) -> tuple[float, float]:
    """Return AP50 and AP50:95 of pycocotools."""
    both = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in (truth_rows, result_rows):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": image} for image in range(images)],
                "categories": [{"id": 0}],
                "annotations": [{**row, "id": number} for number, row in enumerate(rows, 1)],
            }
            coco.createIndex()
            both.append(coco)
        evaluation = COCOeval(*both, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[0].mean()), float(precision.mean())


if __name__ == "__main__":
    main()
