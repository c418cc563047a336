"""Scores of each class, beside pycocotools and by hand."""

from __future__ import annotations

import contextlib
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.evaluation.average_precision import measure_score
from yolo_prune.evaluation.classes.scores import ClassScore, measure_class_scores, parse_class_scores
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.matching import GroundTruth, match
from yolo_prune.evaluation.results import format_results
from yolo_prune.files import replace_nan

NAMES = ("car", "bus", "tram", "bike", "boat")
EMPTY = 3
"""A class without objects; detections of it are all wrong."""


def make_images(seed: int, count: int) -> list[tuple[Detections, GroundTruth]]:
    """Make images of objects of all classes but one, of detections near them and off them, and of crowds."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        truths, others = int(random.integers(0, 8)), int(random.integers(0, 12))
        corners = random.uniform(0, 300, (truths, 2))
        boxes = np.concatenate((corners, corners + random.uniform(10, 120, (truths, 2))), 1).astype(np.float32)
        classes = random.choice([own for own in range(len(NAMES)) if own != EMPTY], truths)
        near = np.repeat(boxes, 2, 0) + random.normal(0, 8, (2 * truths, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        off = random.uniform(0, 300, (others, 2))
        found = np.concatenate((near, np.concatenate((off, off + 40), 1)))
        right = random.random(2 * truths) < 0.8
        own = np.where(right, np.repeat(classes, 2), random.integers(0, len(NAMES), 2 * truths))
        own = np.concatenate((own, random.integers(0, len(NAMES), others)))
        made.append(
            (
                make_detections(found, random.random(len(found)).round(2), own),
                GroundTruth(boxes, classes, random.random(truths) < 0.15),
            )
        )
    return made


def evaluate_with_coco(images: list[tuple[Detections, GroundTruth]]) -> COCOeval:
    """Return pycocotools's evaluation of the same, of every class by itself, at IoU 0.5."""
    truths, results = COCO(), COCO()
    found = [one for one, _ in images]
    labels = [make_detections(truth.boxes_xyxy, np.ones(len(truth.classes)), truth.classes) for _, truth in images]
    ids = list(range(len(images)))
    crowds = [not counted for _, truth in images for counted in truth.counted]
    for coco, rows in ((truths, format_results(ids, labels)), (results, format_results(ids, found, None, NAMES))):
        for number, row in enumerate(rows, 1):
            row |= {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        coco.dataset = {
            "images": [{"id": image} for image in ids],
            "categories": [{"id": own, "name": name} for own, name in enumerate(NAMES)],
            "annotations": rows,
        }
    for row, is_crowd in zip(truths.dataset["annotations"], crowds, strict=True):
        row["iscrowd"] = int(is_crowd)
    with contextlib.redirect_stdout(io.StringIO()):
        truths.createIndex()
        results.createIndex()
        evaluation = COCOeval(truths, results, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
        evaluation.params.maxDets = [1000]
        evaluation.params.recThrs = np.linspace(0, 1, 100_001)  # so many that their mean is the area at all points
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize(("seed", "count"), [(0, 60), (1, 5), (2, 200)])
def test_ap_of_each_class_agrees_with_pycocotools(seed: int, count: int) -> None:
    images = make_images(seed, count)
    matches = [match(found, truth) for found, truth in images]
    score = measure_score(matches)
    scores = measure_class_scores(matches, score, NAMES)
    evaluation = evaluate_with_coco(images)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    expected = [float(precision[0, :, own, 0, 0].mean()) for own in range(len(NAMES))]
    assert expected[EMPTY] == -1
    assert math.isnan(scores[EMPTY].ap50)
    present = [own for own in range(len(NAMES)) if own != EMPTY]
    assert [scores[own].ap50 for own in present] == pytest.approx([expected[own] for own in present], abs=1e-4)
    assert score.map50 == pytest.approx(np.mean([expected[own] for own in present]), abs=1e-4)
    everything = measure_class_scores(matches, replace_confidence(score, 0.0), NAMES)
    assert [everything[own].recall for own in present] == pytest.approx(recall[0, present, 0, 0].tolist())


def replace_confidence(score: Any, confidence: float) -> Any:
    from dataclasses import replace

    return replace(score, confidence=confidence)


A, B, C = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 10.0], [0.0, 50.0, 10.0, 60.0]


def test_by_hand() -> None:
    # car: found at .9, and a false alarm at .8; bus: one of two found, at .9; tram: missed; bike: no object, a false
    # alarm at .9; boat: no object, no detection. F1 is best at .9: 2 of 3 detections, 2 of 4 objects.
    found = make_detections([A, C, B, C], [0.9, 0.8, 0.9, 0.9], [0, 0, 1, 3])
    truth = GroundTruth(np.array([A, B, C, A]), np.array([0, 1, 1, 2]))
    matches = [match(found, truth)]
    score = measure_score(matches)
    assert score.confidence == pytest.approx(0.9)
    car, bus, tram, bike, boat = measure_class_scores(matches, score, NAMES)
    assert car == ClassScore("car", 1, 1.0, 1.0, 1.0)
    assert bus == ClassScore("bus", 2, 0.5, 1.0, 0.5)
    assert (tram.instances, tram.ap50, tram.recall) == (1, 0.0, 0.0)
    assert math.isnan(tram.precision)
    assert (bike.instances, bike.precision) == (0, 0.0)
    assert math.isnan(bike.ap50)
    assert math.isnan(bike.recall)
    assert all(map(math.isnan, (boat.ap50, boat.precision, boat.recall)))
    assert score.map50 == pytest.approx((1 + 0.5 + 0) / 3)


def test_nothing_to_find_gives_no_numbers() -> None:
    for matches in (
        [],
        [match(make_detections([A], [0.9], [0]), GroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64)))],
    ):
        for one in measure_class_scores(matches, measure_score(matches), NAMES):
            assert one.instances == 0
            assert all(map(math.isnan, (one.ap50, one.precision, one.recall)))


def test_json_and_back() -> None:
    scores = (
        ClassScore("car", 3, 0.5, 0.25, 1.0),
        ClassScore("a name that is longer than any table has room for", 0, math.nan, math.nan, math.nan),
    )
    rows = json.loads(json.dumps(replace_nan([one.as_dict() for one in scores])))
    assert rows[1] == {
        "name": "a name that is longer than any table has room for", "instances": 0, "ap50": None, "precision": None, "recall": None
    }  # fmt: skip
    assert parse_class_scores(rows) == scores
