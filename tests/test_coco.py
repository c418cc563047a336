from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.average_precision import GroundTruth, match, measure_score
from yolo_prune.evaluation.coco import coco_scores, format_results, load_results
from yolo_prune.evaluation.detections import Detections, make_detections

BOX = [0.0, 0.0, 100.0, 100.0]
NOTHING = make_detections((), (), ())
NO_TRUTH = GroundTruth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
GOOD: dict[str, Any] = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def make_truth(boxes: list[list[float]]) -> GroundTruth:
    return GroundTruth(np.array(boxes, np.float32), np.zeros(len(boxes), np.int64))


def make_pictures(seed: int, images: int = 8) -> tuple[list[Detections], list[GroundTruth]]:
    random = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        count = int(random.integers(1, 7))
        corners = random.uniform(0, 200, (count, 2))
        boxes = np.concatenate((corners, corners + random.uniform(40, 120, (count, 2))), axis=1).astype(np.float32)
        classes = random.integers(0, 2, count)
        rows = random.integers(0, count, 12)
        near = boxes[rows] + random.normal(0, 6, (12, 4))
        detections.append(make_detections(near, random.random(12), classes[rows]))
        truths.append(GroundTruth(boxes, classes, random.random(count) < 0.1))
    return detections, truths


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_summary_of_pycocotools(seed: int) -> None:
    detections, truths = make_pictures(seed)
    annotations = [
        {"id": 0, "image_id": image, "category_id": int(own), "area": float(np.prod(box[2:] - box[:2]))}
        | {"bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()], "iscrowd": int(not counted)}
        for image, truth in enumerate(truths)
        for box, own, counted in zip(truth.boxes_xyxy, truth.classes, truth.counted, strict=True)
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(truths))],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": [row | {"id": number} for number, row in enumerate(annotations, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(format_results(range(len(truths)), detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert coco_scores(detections, truths) == pytest.approx((evaluation.stats[1], evaluation.stats[0]), abs=1e-5)


def test_scores_by_hand() -> None:
    # IoU 62 / 100 passes the thresholds 0.50, 0.55 and 0.60 of ten.
    found = make_detections([[0.0, 0.0, 100.0, 62.0]], [0.9], [0])
    assert coco_scores([found], [make_truth([BOX])]) == pytest.approx((1, 0.3))
    assert coco_scores([make_detections([BOX], [0.9], [0])], [make_truth([BOX])]) == pytest.approx((1, 1))


@pytest.mark.parametrize("seed", range(3))
def test_lies_near_all_point_ap(seed: int) -> None:
    detections, truths = make_pictures(seed, images=60)
    score = measure_score([match(found, truth) for found, truth in zip(detections, truths, strict=True)])
    assert coco_scores(detections, truths)[0] == pytest.approx(score.map50, abs=0.01)


def test_no_detections_and_no_ground_truth() -> None:
    found = make_detections([BOX], [0.9], [0])
    assert coco_scores([NOTHING, NOTHING], [make_truth([BOX]), NO_TRUTH]) == (0, 0)
    for detections, truths in (([], []), ([found], [NO_TRUTH]), ([NOTHING], [NO_TRUTH])):
        assert all(map(math.isnan, coco_scores(detections, truths)))
    crowd = GroundTruth(np.array([BOX], np.float32), np.zeros(1, np.int64), np.ones(1, np.bool_))
    assert all(map(math.isnan, coco_scores([found], [crowd])))


def test_a_box_beyond_all_areas_still_counts_as_a_miss() -> None:
    # pycocotools's own largest area is 1e10 and would leave the higher-scored wrong box out.
    found = make_detections([[-1e6, -1e6, 1e6, 1e6], BOX], [0.9, 0.8], [0, 0])
    assert coco_scores([found], [make_truth([BOX])])[0] == pytest.approx(0.5)


def test_stdout_stays_empty(capfd: pytest.CaptureFixture[str]) -> None:
    coco_scores(*make_pictures(0))
    assert capfd.readouterr() == ("", "")


def test_format_by_hand() -> None:
    found = make_detections([[1.0, 2.0, 4.0, 8.0], [0.5, 0.0, 1.0, 1.0]], [0.25, 0.5], [0, 1])
    assert format_results([42, 43], [found, NOTHING], category_ids=[18, 90]) == [
        {"image_id": 42, "category_id": 90, "bbox": [0.5, 0, 0.5, 1], "score": 0.5},
        {"image_id": 42, "category_id": 18, "bbox": [1, 2, 3, 6], "score": 0.25},
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), mapped=st.booleans())
def test_load_is_the_inverse_of_format(tmp_path_factory: pytest.TempPathFactory, seed: int, mapped: bool) -> None:
    detections, _ = make_pictures(seed, images=3)
    image_ids: list[int | str] = ["a.jpg", 5, "c"]
    category_ids = [90, 18] if mapped else None
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(format_results(image_ids, [*detections[:2], NOTHING], category_ids)))
    for found, expected in zip(load_results(path, image_ids, category_ids), [*detections[:2], NOTHING], strict=True):
        assert np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert np.array_equal(found.scores, expected.scores)
        assert np.array_equal(found.classes, expected.classes)
        assert found.classes.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r":1: is not JSON .*; correct that line"),
        ("{}", "holds no list"),
        (json.dumps([GOOD, 3]), r"\[1\]: is no detection"),
        (json.dumps([GOOD, {"image_id": 7}]), r"\[1\]: is no detection .*category_id"),
        (json.dumps([GOOD | {"bbox": [1, 2, 3]}]), r"\[0\]: is no detection"),
        (json.dumps([GOOD | {"bbox": [1, 2, -3, 4]}]), r"\[0\]: bbox .* has a negative side; write"),
        (json.dumps([GOOD | {"score": math.nan}]), r"\[0\]: bbox .* or score nan is not finite"),
        (json.dumps([GOOD | {"score": None}]), r"\[0\]: bbox .* or score None is not finite"),
        (json.dumps([GOOD | {"bbox": "1234"}]), r"\[0\]: bbox 1234 or"),
        (json.dumps([GOOD | {"image_id": [7]}]), r"\[0\]: image_id \[7\] or category_id 1 is of the wrong kind"),
        (json.dumps([GOOD | {"category_id": 1.5}]), r"\[0\]: image_id 7 or category_id 1\.5 is of the wrong kind"),
        (json.dumps([GOOD | {"image_id": 8}]), r"\[0\]: image_id 8 is not in the data set"),
        (json.dumps([GOOD | {"category_id": 2}]), r"\[0\]: category_id 2 is unknown; use one of 1, 5"),
    ],
)
def test_a_bad_results_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=f"results.json.*{message}"):
        load_results(path, [7], category_ids=[5, 1])


def test_a_missing_results_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.json: cannot be read"):
        load_results(tmp_path / "none.json", [])
