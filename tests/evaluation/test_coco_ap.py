from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.evaluation.average_precision import measure_score
from yolo_prune.evaluation.coco_ap import measure_coco_ap
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.matching import GroundTruth, match

BOX = [0.0, 0.0, 100.0, 100.0]
NOTHING = make_detections((), (), ())
NO_TRUTH = GroundTruth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
Image = tuple[Detections, GroundTruth]


def make_truth(boxes: list[list[float]]) -> GroundTruth:
    return GroundTruth(np.array(boxes, np.float32), np.zeros(len(boxes), np.int64))


def make_images(seed: int, images: int = 8, most: int = 30) -> tuple[list[Detections], list[GroundTruth]]:
    """Make boxes near and off the truth; scores tie, boxes repeat, some truths are ignored, some images have none."""
    random = np.random.default_rng(seed)
    detections, truths = [], []
    digits = int(random.integers(1, 5))
    for _ in range(images):
        count, found = int(random.integers(0, 7)), int(random.integers(0, most))
        corners = random.uniform(0, 200, (count, 2))
        boxes = np.concatenate((corners, corners + random.uniform(20, 120, (count, 2))), axis=1).astype(np.float32)
        classes = random.integers(0, 3, count)
        truths.append(GroundTruth(boxes, classes, random.random(count) < 0.2))
        if count == 0:
            detections.append(make_detections([BOX] * found, random.random(found).round(digits), [1] * found))
            continue
        rows = random.integers(0, count, found)
        near = boxes[rows] + random.normal(0, 8, (found, 4)) * random.integers(0, 2, (found, 1))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        own = np.where(random.random(found) < 0.8, classes[rows], random.integers(0, 4, found))
        detections.append(make_detections(near, random.random(found).round(digits), own))
    return detections, truths


def list_annotations(image: int, boxes: NDArray[np.floating], classes: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for (x1, y1, x2, y2), own in zip(boxes.astype(np.float64).tolist(), classes, strict=True):
        bbox = [x1, y1, x2 - x1, y2 - y1]
        rows.append({"image_id": image, "category_id": int(own), "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
    return rows


def make_coco(rows: list[dict[str, Any]], images: int, categories: Sequence[int]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": own} for own in categories],
        "annotations": [row | {"id": number} for number, row in enumerate(rows, 1)],
    }
    coco.createIndex()
    return coco


def evaluate_with_coco(detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> tuple[float, float]:
    """Return AP50 and AP50:95 of pycocotools, over the classes that have ground truth."""
    truth_rows, result_rows = [], []
    for image, (found, truth) in enumerate(zip(detections, truths, strict=True)):
        rows = list_annotations(image, truth.boxes_xyxy, truth.classes.tolist())
        truth_rows += [row | {"iscrowd": int(not own)} for row, own in zip(rows, truth.counted.tolist(), strict=True)]
        rows = list_annotations(image, found.boxes_xyxy, found.classes.tolist())
        result_rows += [row | {"score": score} for row, score in zip(rows, found.scores.tolist(), strict=True)]
    categories = sorted({row["category_id"] for row in truth_rows if not row["iscrowd"]})
    if not categories:
        return math.nan, math.nan
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            make_coco(truth_rows, len(truths), categories), make_coco(result_rows, len(truths), categories), "bbox"
        )
        evaluation.params.catIds = categories
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[0].mean()), float(precision.mean())


@pytest.mark.parametrize("seed", range(300))
def test_equals_pycocotools(seed: int) -> None:
    detections, truths = make_images(seed)
    expected = evaluate_with_coco(detections, truths)
    assert measure_coco_ap(detections, truths) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools_beyond_a_hundred_detections(seed: int) -> None:
    detections, truths = make_images(seed, images=4, most=400)
    assert max(map(len, detections)) > 100
    assert measure_coco_ap(detections, truths) == pytest.approx(evaluate_with_coco(detections, truths), abs=1e-9)


BOXES = st.builds(
    lambda x, y, width, height: [x / 2, y / 2, (x + width) / 2, (y + height) / 2],
    *(st.integers(0, 6), st.integers(0, 6), st.integers(0, 7), st.integers(0, 7)),
)
IMAGES = st.builds(
    lambda found, truths: (
        make_detections([row[0] for row in found], [row[1] for row in found], [row[2] for row in found]),
        GroundTruth(
            np.array([row[0] for row in truths], np.float32).reshape(-1, 4),
            np.array([row[1] for row in truths], np.int64),
            np.array([row[2] for row in truths], np.bool_),
        ),
    ),
    st.lists(st.tuples(BOXES, st.sampled_from([0.1, 0.25, 0.5, 0.5000001, 0.9]), st.integers(0, 2)), max_size=10),
    st.lists(st.tuples(BOXES, st.integers(0, 2), st.sampled_from([False, False, True])), max_size=6),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(IMAGES, min_size=1, max_size=4))
def test_equals_pycocotools_on_the_smallest_cases(sets: list[Image]) -> None:
    detections, truths = zip(*sets, strict=True)
    assert measure_coco_ap(detections, truths) == pytest.approx(
        evaluate_with_coco(detections, truths), abs=1e-9, nan_ok=True
    )


@pytest.mark.parametrize("seed", range(5))
def test_equals_what_pycocotools_prints(seed: int) -> None:
    """As a user would call it: loadRes, the stated areas and caps, summarize."""
    detections, truths = make_images(seed, images=20)
    truth_rows = []
    for image, truth in enumerate(truths):
        rows = list_annotations(image, truth.boxes_xyxy, truth.classes.tolist())
        truth_rows += [row | {"iscrowd": int(not own)} for row, own in zip(rows, truth.counted.tolist(), strict=True)]
    results = []
    for image, found in enumerate(detections):
        rows = list_annotations(image, found.boxes_xyxy, found.classes.tolist())
        results += [row | {"score": score} for row, score in zip(rows, found.scores.tolist(), strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_coco = make_coco(truth_rows, len(truths), range(3))
        evaluation = COCOeval(truth_coco, truth_coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert measure_coco_ap(detections, truths) == pytest.approx((evaluation.stats[1], evaluation.stats[0]), abs=1e-9)


def test_scores_by_hand() -> None:
    # IoU 62 / 100 passes the thresholds 0.50, 0.55 and 0.60 of ten.
    found = make_detections([[0.0, 0.0, 100.0, 62.0]], [0.9], [0])
    assert measure_coco_ap([found], [make_truth([BOX])]) == pytest.approx((1, 0.3))
    assert measure_coco_ap([make_detections([BOX], [0.9], [0])], [make_truth([BOX])]) == pytest.approx((1, 1))
    # Right, wrong, right of 2: precision 1 up to recall 0.5, the 51 points 0 … 0.50, and 2/3 at the 50 beyond.
    away = [200.0, 200.0, 300.0, 300.0]
    found = make_detections([BOX, [500.0, 0.0, 600.0, 100.0], away], [0.9, 0.8, 0.7], [0, 0, 0])
    assert measure_coco_ap([found], [make_truth([BOX, away])])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("seed", range(3))
def test_lies_near_all_point_ap(seed: int) -> None:
    detections, truths = make_images(seed, images=80)
    score = measure_score(list(map(match, detections, truths)))
    assert measure_coco_ap(detections, truths)[0] == pytest.approx(score.map50, abs=0.01)


def test_no_detections_and_no_ground_truth() -> None:
    found = make_detections([BOX], [0.9], [0])
    assert measure_coco_ap([NOTHING, NOTHING], [make_truth([BOX]), NO_TRUTH]) == (0, 0)
    crowd = GroundTruth(np.array([BOX], np.float32), np.zeros(1, np.int64), np.ones(1, np.bool_))
    for detections, truths in (([], []), ([found], [NO_TRUTH]), ([NOTHING], [NO_TRUTH]), ([found], [crowd])):
        assert all(map(math.isnan, measure_coco_ap(detections, truths)))


def test_a_box_beyond_all_areas_still_counts_as_a_miss() -> None:
    # pycocotools's own largest area is 1e10 and would leave the higher-scored wrong box out.
    found = make_detections([[-1e6, -1e6, 1e6, 1e6], BOX], [0.9, 0.8], [0, 0])
    assert measure_coco_ap([found], [make_truth([BOX])])[0] == pytest.approx(0.5)
