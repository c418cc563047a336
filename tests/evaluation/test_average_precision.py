from __future__ import annotations

import contextlib
import io
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_prune.evaluation.average_precision import average_precision, measure_score
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.matching import GroundTruth, Matches, match, measure_iou

Image = tuple[Detections, GroundTruth]

BOX = [0.0, 0.0, 10.0, 10.0]
SHIFTED = [0.0, 2.0, 10.0, 12.0]  # overlaps BOX by 80 / 120
AWAY = [50.0, 50.0, 60.0, 60.0]


def make_truth(
    boxes: list[list[float]], classes: list[int] | None = None, ignore: list[bool] | None = None
) -> GroundTruth:
    return GroundTruth(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([0] * len(boxes) if classes is None else classes, np.int64),
        None if ignore is None else np.array(ignore, np.bool_),
    )


def make_matches(scores: list[float], hits: list[bool], truths: int) -> Matches:
    return Matches(
        np.array(scores, np.float32),
        np.zeros(len(scores), np.int64),
        np.array(hits, np.bool_),
        np.zeros(len(scores), np.bool_),
        np.zeros(truths, np.int64),
        np.full(truths, -np.inf, np.float32),
        np.zeros(truths),
    )


def test_area_by_hand() -> None:
    # Hits and misses    H    M    H    M    H   of 4 ground truths
    # precision          1   1/2  2/3  2/4  3/5
    # recall            1/4  1/4  2/4  2/4  3/4
    # envelope at hits   1        2/3       3/5
    # area = 1/4 × 1 + 1/4 × 2/3 + 1/4 × 3/5 = 17/30
    assert average_precision(np.array([True, False, True, False, True]), 4) == pytest.approx(17 / 30, abs=1e-15)


def test_the_envelope_lifts_an_early_miss() -> None:
    # Hits and misses    M    H    H    H   of 3 ground truths
    # precision          0   1/2  2/3  3/4, envelope 3/4 everywhere, recall reaches 1
    assert average_precision(np.array([False, True, True, True]), 3) == pytest.approx(3 / 4, abs=1e-15)


def test_area_without_detections_or_ground_truth() -> None:
    assert average_precision(np.zeros(0, np.bool_), 3) == 0
    assert math.isnan(average_precision(np.array([False]), 0))


def test_iou_by_hand() -> None:
    iou = measure_iou(np.array([BOX, AWAY, [3.0, 3.0, 3.0, 3.0]]), make_truth([SHIFTED, SHIFTED], ignore=[False, True]))
    assert iou == pytest.approx(np.array([[80 / 120, 80 / 100], [0, 0], [0, 0]]))


def test_a_duplicate_is_a_miss() -> None:
    found = match(make_detections([BOX, SHIFTED, AWAY], [0.8, 0.9, 0.7], [0, 0, 0]), make_truth([BOX]))
    assert found.hits.tolist() == [True, False, False]  # the higher score comes first, though it overlaps less


def test_a_detection_takes_the_best_box_that_is_free() -> None:
    found = match(make_detections([BOX, BOX], [0.9, 0.8], [0, 0]), make_truth([SHIFTED, BOX]))
    assert found.hits.tolist() == [True, True]
    rest = match(make_detections([BOX, AWAY], [0.9, 0.8], [0, 0]), make_truth([SHIFTED, AWAY]), iou_threshold=0.7)
    assert rest.hits.tolist() == [False, True]


def test_of_equal_overlaps_the_last_is_taken() -> None:
    above, below = [0.0, -2.0, 10.0, 8.0], SHIFTED  # each overlaps BOX by 80 / 120
    found = make_detections([BOX, below], [0.9, 0.8], [0, 0])
    assert match(found, make_truth([below, above])).hits.tolist() == [True, True]
    assert match(found, make_truth([above, below])).hits.tolist() == [True, False]


def test_the_threshold_itself_suffices() -> None:
    half = [0.0, 0.0, 10.0, 5.0]  # 50 / 100
    assert match(make_detections([half], [0.9], [0]), make_truth([BOX])).hits.tolist() == [True]


def test_classes_do_not_mix() -> None:
    found = match(make_detections([BOX, BOX], [0.9, 0.8], [1, 0]), make_truth([BOX], [0]))
    assert found.hits.tolist() == [False, True]


def test_ignored_boxes_absorb_any_number_but_never_a_hit() -> None:
    truth = make_truth([BOX, BOX], ignore=[True, False])
    found = match(make_detections([BOX] * 4 + [AWAY], [0.9, 0.8, 0.7, 0.6, 0.5], [0] * 5), truth)
    assert found.hits.tolist() == [True, False, False, False, False]
    assert found.ignored.tolist() == [False, True, True, True, False]
    assert found.truth_classes.tolist() == [0]
    assert measure_score([found]).map50 == 1


def test_score_by_hand() -> None:
    # Two images, 3 ground truths: H .9, M .8, H .7, M .7 (tied, so one threshold takes both), M .2
    # F1 = 2 × hits / (detections + 3): .9 → 2/4, .8 → 2/5, .7 → 4/7, .2 → 4/8; the best is 4/7 at .7
    # AP = 1/3 × 1 + 1/3 × 2/3 = 5/9
    score = measure_score(
        [make_matches([0.9, 0.7, 0.2], [True, True, False], 2), make_matches([0.8, 0.7], [False, False], 1)]
    )
    assert score.map50 == pytest.approx(5 / 9)
    assert score.ap50 == {0: pytest.approx(5 / 9)}
    assert (score.precision, score.recall, score.f1) == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    assert score.confidence == pytest.approx(0.7)
    assert (score.images, score.instances) == (2, 3)


def test_map_is_over_the_classes_with_ground_truth() -> None:
    detections = make_detections([BOX, BOX, AWAY], [0.9, 0.8, 0.7], [0, 3, 5])
    score = measure_score([match(detections, make_truth([BOX, AWAY, BOX], [0, 7, 5], [False, False, True]))])
    assert score.ap50 == {0: 1.0, 7: 0.0}
    assert score.map50 == 0.5


def test_score_of_nothing() -> None:
    for matches in ([], [match(make_detections([BOX], [0.9], [0]), make_truth([]))]):
        score = measure_score(matches)
        assert all(map(math.isnan, (score.map50, score.precision, score.recall, score.f1, score.confidence)))
        assert (score.ap50, score.images, score.instances) == ({}, len(matches), 0)
    missed = measure_score([match(make_detections((), (), ()), make_truth([BOX]))])
    assert (missed.map50, missed.precision, missed.recall, missed.f1, missed.confidence) == (0, 0, 0, 0, 1)


def evaluate_with_coco(images: list[Image], iou_threshold: float) -> dict[tuple[int, int], dict[str, Any]]:
    """Return COCOeval's own record of each (image, class)."""
    truths, results = COCO(), COCO()
    for coco in (truths, results):
        coco.dataset = {
            "images": [{"id": image} for image in range(len(images))],
            "categories": [{"id": own} for own in range(3)],
            "annotations": [],
        }
    for image, (found, truth) in enumerate(images):
        for box, own, counted in zip(truth.boxes_xyxy.tolist(), truth.classes.tolist(), truth.counted, strict=True):
            truths.dataset["annotations"].append(make_annotation(image, own, box) | {"iscrowd": int(not counted)})
        for box, own, score in zip(
            found.boxes_xyxy.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True
        ):
            results.dataset["annotations"].append(make_annotation(image, own, box) | {"iscrowd": 0, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        for coco in (truths, results):
            for number, row in enumerate(coco.dataset["annotations"], 1):
                row["id"] = number
            coco.createIndex()
        evaluation = COCOeval(truths, results, "bbox")
        evaluation.params.iouThrs = np.array([iou_threshold])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
        evaluation.params.maxDets = [300]
        evaluation.evaluate()
    return {(row["image_id"], row["category_id"]): row for row in evaluation.evalImgs if row}


def make_annotation(image: int, own: int, box: list[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image, "category_id": own, "bbox": bbox, "area": bbox[2] * bbox[3]}


def reference_ap(rows: list[dict[str, Any]]) -> float:
    """Compute the all-point area from COCOeval's match flags, one point after the other; nan without ground truth."""
    flags = [
        (score, bool(matched))
        for row in rows
        for score, matched, ignored in zip(row["dtScores"], row["dtMatches"][0], row["dtIgnore"][0], strict=True)
        if not ignored
    ]
    positives = sum(int(np.count_nonzero(row["gtIgnore"] == 0)) for row in rows)
    if not positives:
        return float("nan")
    hits = [hit for _, hit in sorted(flags, key=lambda flag: -flag[0])]
    precision = [sum(hits[:end]) / end for end in range(1, len(hits) + 1)]
    return sum(max(precision[at:]) for at, hit in enumerate(hits) if hit) / positives


boxes = st.builds(
    lambda x, y, width, height: [x / 2, y / 2, (x + width) / 2, (y + height) / 2],
    *(st.integers(0, 6), st.integers(0, 6), st.integers(0, 7), st.integers(0, 7)),
)
classes = st.integers(0, 2)
scores = st.sampled_from([0.1, 0.25, 0.5, 0.5000001, 0.9])
images = st.builds(
    lambda found, truths: (
        make_detections([row[0] for row in found], [row[1] for row in found], [row[2] for row in found]),
        make_truth([row[0] for row in truths], [row[1] for row in truths], [row[2] for row in truths]),
    ),
    st.lists(st.tuples(boxes, scores, classes), max_size=10),
    st.lists(st.tuples(boxes, classes, st.sampled_from([False, False, True])), max_size=6),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(images, min_size=1, max_size=4), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_agrees_with_pycocotools(sets: list[Image], iou_threshold: float) -> None:
    check_against_coco(sets, iou_threshold)


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_pycocotools_on_crowded_images(seed: int) -> None:
    random = np.random.default_rng(seed)
    check_against_coco(
        [make_image(random, int(random.integers(0, 60)), int(random.integers(0, 15))) for _ in range(6)], 0.5
    )


def make_image(random: np.random.Generator, found: int, truths: int) -> Image:
    """Make detections near and off the ground truths; some scores tie, some boxes are duplicates, some ignored."""
    corners = random.uniform(0, 300, (truths, 2))
    true_boxes = np.concatenate((corners, corners + random.uniform(5, 150, (truths, 2))), axis=1).astype(np.float32)
    true_classes = random.integers(0, 3, truths)
    truth = GroundTruth(true_boxes, true_classes, random.random(truths) < 0.2)
    if not truths:
        corners = random.uniform(0, 300, (found, 2))
        return make_detections(np.concatenate((corners, corners + 20), 1), random.random(found), np.zeros(found)), truth
    source = random.integers(0, truths, found)
    near = true_boxes[source] + random.normal(0, 12, (found, 4)) * random.integers(0, 2, (found, 1))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    own = np.where(random.random(found) < 0.8, true_classes[source], random.integers(0, 3, found))
    return make_detections(near, random.random(found).round(int(random.integers(1, 4))), own), truth


def check_against_coco(sets: list[Image], iou_threshold: float) -> None:
    records = evaluate_with_coco(sets, iou_threshold)
    matches = [match(found, truth, iou_threshold) for found, truth in sets]
    for (image, own), record in records.items():
        mine = matches[image].classes == own
        assert matches[image].ignored[mine].tolist() == record["dtIgnore"][0].tolist()
        assert (matches[image].hits | matches[image].ignored)[mine].tolist() == (record["dtMatches"][0] > 0).tolist()
    score = measure_score(matches)
    expected = {own: reference_ap([row for (_, of), row in records.items() if of == own]) for own in range(3)}
    expected = {own: ap for own, ap in expected.items() if not math.isnan(ap)}
    assert score.ap50 == pytest.approx(expected, abs=1e-9)
    assert score.map50 == pytest.approx(np.mean(list(expected.values())) if expected else math.nan, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(images, min_size=1, max_size=3))
def test_best_f1_is_the_best_of_all_thresholds(sets: list[Image]) -> None:
    matches = [match(found, truth) for found, truth in sets]
    score = measure_score(matches)
    points = {}
    for threshold in {float(value) for each in matches for value in each.scores[~each.ignored]}:
        taken = [(each.scores >= threshold) & ~each.ignored for each in matches]
        hits = sum(int(each.hits[own].sum()) for each, own in zip(matches, taken, strict=True))
        seen = sum(int(own.sum()) for own in taken)
        if score.instances:
            points[threshold] = (hits / seen, hits / score.instances, 2 * hits / (seen + score.instances))
    if points:
        assert score.f1 == pytest.approx(max(f1 for _, _, f1 in points.values()))
        assert (score.precision, score.recall, score.f1) == pytest.approx(points[score.confidence])


def test_needs_no_torch() -> None:
    modules = "yolo_prune.evaluation.average_precision, yolo_prune.evaluation.bootstrap, yolo_prune.evaluation.curves"
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert 'torch' not in sys.modules"], check=True)
