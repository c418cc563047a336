from __future__ import annotations

import math

import numpy as np
import pytest

from yolo_prune.evaluation.curves import find_best, measure_curve, measure_size_recalls
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.matching import GroundTruth, Matches, match


def make_square(side: float, left: float = 0.0) -> list[float]:
    return [left, 0.0, left + side, side]


def make_matches(found: list[tuple[list[float], float]], truths: list[list[float]], ignore: list[bool]) -> Matches:
    boxes, scores = zip(*found, strict=True) if found else ((), ())
    truth = GroundTruth(
        np.array(truths, np.float32).reshape(-1, 4), np.zeros(len(truths), np.int64), np.array(ignore, np.bool_)
    )
    return match(make_detections(boxes, scores, [0] * len(found)), truth)


def test_a_curve_by_hand() -> None:
    # three to find: right .9, wrong .8, right and wrong tied at .5, one on an ignored box at .7 that is no point at all
    matches = [
        make_matches([(make_square(10), 0.9), (make_square(10, 500), 0.8)], [make_square(10)], [False]),
        make_matches(
            [(make_square(20), 0.5), (make_square(20, 600), 0.5), (make_square(20, 100), 0.7)],
            [make_square(20), make_square(20, 100), make_square(20, 200)],
            [False, True, False],
        ),
    ]
    curve = measure_curve(matches)
    assert curve.confidence == pytest.approx([0.9, 0.8, 0.5])
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 4])
    assert curve.recall == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert curve.f1 == pytest.approx([2 / 4, 2 / 5, 4 / 7])
    precision, confidence = curve.sample(np.array([0, 1 / 3, 0.5, 2 / 3, 0.7]))
    assert precision == pytest.approx(np.array([1, 1, 1 / 2, 1 / 2, math.nan]), nan_ok=True)
    assert confidence == pytest.approx(np.array([0.9, 0.9, 0.5, 0.5, math.nan]), nan_ok=True)
    best = find_best(curve)
    assert (best.confidence, best.precision, best.recall, best.f1) == pytest.approx((0.5, 1 / 2, 2 / 3, 4 / 7))


def test_of_two_equal_points_the_more_confident_is_taken() -> None:
    # F1 1/2 at .9 (1 of 1, 3 to find) and again at .8, .7 … (2 of 5: 4/8)
    found = [(make_square(10), 0.9), *((make_square(10, 900 + 20 * n), 0.8 - n / 10) for n in range(3))]
    matches = make_matches(
        [*found, (make_square(10, 50), 0.4)], [make_square(10), make_square(10, 50), make_square(10, 99)], [False] * 3
    )
    curve = measure_curve([matches])
    assert curve.f1[0] == curve.f1[-1] == 0.5
    assert find_best(curve).confidence == pytest.approx(0.9)


def test_nothing_detected_and_nothing_to_find() -> None:
    assert find_best(measure_curve([make_matches([], [make_square(5)], [False])])).f1 == 0
    for matches in ([], [make_matches([(make_square(5), 0.5)], [], [])], [make_matches([], [make_square(5)], [True])]):
        assert math.isnan(find_best(measure_curve(matches)).f1)
        assert np.isnan(measure_curve(matches).sample(np.array([0, 0.5]))).all()


def test_recall_by_size_by_hand() -> None:
    sides = [8, 16, 31.9, 32, 80, 96, 400]
    truths = [make_square(side, 500 * number) for number, side in enumerate(sides)]
    found = [(truths[1], 0.9), (truths[3], 0.3), (truths[5], 0.8), (truths[6], 0.2)]
    bins = measure_size_recalls([make_matches(found, truths, [False] * len(truths))], confidence=0.3)
    assert [(one.low_px, one.high_px, one.instances) for one in bins] == [
        (0, 16, 1),
        (16, 32, 2),
        (32, 64, 1),
        (64, 96, 1),
        (96, math.inf, 2),
    ]
    assert [one.recall for one in bins] == [0, 0.5, 1, 0, 1]
    assert [one.recall_at_confidence for one in bins] == [0, 0.5, 1, 0, 0.5]


def test_ignored_boxes_have_no_size_and_an_empty_bin_no_recall() -> None:
    bins = measure_size_recalls([make_matches([(make_square(50), 0.9)], [make_square(50)], [True])], confidence=0.5)
    assert [one.instances for one in bins] == [0] * 5
    assert all(math.isnan(one.recall) and math.isnan(one.recall_at_confidence) for one in bins)
