"""The confusion matrix, on cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.evaluation.average_precision import measure_score
from yolo_prune.evaluation.classes.confusion import ConfusionMatrix, measure_confusion
from yolo_prune.evaluation.classes.scores import measure_class_scores
from yolo_prune.evaluation.detections import Detections, make_detections
from yolo_prune.evaluation.matching import GroundTruth, match

NAMES = ("cat", "dog", "bird")
CAT, DOG, BIRD, NONE = 0, 1, 2, 3
BOX = [0.0, 0.0, 10.0, 10.0]
NEAR = [0.0, 2.0, 10.0, 12.0]  # overlaps BOX by 80 / 120
NEARER = [0.0, 1.0, 10.0, 11.0]  # overlaps BOX by 90 / 110
AWAY = [50.0, 50.0, 60.0, 60.0]

Row = tuple[list[float], float, int]


def measure(images: list[tuple[list[Row], list[tuple[list[float], int, bool]]]], confidence: float) -> ConfusionMatrix:
    """Return the matrix of detections (box, score, class) and objects (box, class, ignore) of some images."""
    found = [make_detections([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]) for rows, _ in images]
    truths = [
        GroundTruth(
            np.array([row[0] for row in rows]).reshape(-1, 4),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.bool_),
        )
        for _, rows in images
    ]
    return measure_confusion(found, truths, list(map(match, found, truths)), NAMES, confidence)


def list_cells(matrix: ConfusionMatrix) -> dict[tuple[int, int], int]:
    """Return the counts that are not 0, by row and column."""
    return {(row, column): int(count) for (row, column), count in np.ndenumerate(matrix.counts) if count}


def test_found_confused_missed_and_false() -> None:
    images = [
        ([(BOX, 0.9, CAT), (AWAY, 0.8, CAT)], [(BOX, CAT, False), (AWAY, DOG, False)]),
        ([(AWAY, 0.9, DOG)], [(BOX, CAT, False)]),
        ([], []),
    ]
    assert list_cells(measure(images, 0.5)) == {(CAT, CAT): 1, (DOG, CAT): 1, (CAT, NONE): 1, (NONE, DOG): 1}


@pytest.mark.parametrize(
    ("confidence", "cells"),
    [
        (0.75, {(CAT, CAT): 1}),
        (0.76, {(CAT, NONE): 1}),
        (math.nan, {(CAT, NONE): 1}),
    ],
)
def test_weaker_detections_do_not_count(confidence: float, cells: dict[tuple[int, int], int]) -> None:
    assert list_cells(measure([([(BOX, 0.75, CAT)], [(BOX, CAT, False)])], confidence)) == cells


def test_the_right_class_goes_before_a_nearer_box_of_a_wrong_one() -> None:
    images = [([(BOX, 0.9, DOG), (NEAR, 0.6, CAT)], [(BOX, CAT, False)])]
    assert list_cells(measure(images, 0.5)) == {(CAT, CAT): 1, (NONE, DOG): 1}
    assert list_cells(measure(images, 0.7)) == {(CAT, DOG): 1}  # of the weaker one nothing is left


def test_of_wrong_classes_the_nearest_box_is_taken_once() -> None:
    images = [([(NEAR, 0.9, DOG), (NEARER, 0.8, BIRD)], [(BOX, CAT, False)])]
    assert list_cells(measure(images, 0.5)) == {(CAT, BIRD): 1, (NONE, DOG): 1}
    same = [([(NEAR, 0.8, DOG), (NEAR, 0.9, BIRD)], [(BOX, CAT, False)])]
    assert list_cells(measure(same, 0.5)) == {(CAT, BIRD): 1, (NONE, DOG): 1}  # of equal IoUs the higher score
    both = [([(NEARER, 0.9, DOG)], [(BOX, CAT, False), (NEAR, CAT, False)])]
    assert list_cells(measure(both, 0.5)) == {(CAT, DOG): 1, (CAT, NONE): 1}


def test_too_little_overlap_is_no_confusion() -> None:
    half = [0.0, 0.0, 10.0, 5.0]  # IoU 1/2, which suffices
    assert list_cells(measure([([(half, 0.9, DOG)], [(BOX, CAT, False)])], 0.5)) == {(CAT, DOG): 1}
    less = [0.0, 0.0, 10.0, 4.9]
    assert list_cells(measure([([(less, 0.9, DOG)], [(BOX, CAT, False)])], 0.5)) == {(CAT, NONE): 1, (NONE, DOG): 1}


def test_ignored_objects_and_what_lies_on_them_are_left_out() -> None:
    images = [([(BOX, 0.9, CAT), (NEAR, 0.8, CAT), (BOX, 0.7, DOG)], [(BOX, CAT, True)])]
    assert list_cells(measure(images, 0.5)) == {(NONE, DOG): 1}


def test_shares_and_json() -> None:
    images = [([(BOX, 0.9, CAT)], [(BOX, CAT, False), (AWAY, CAT, False)])]
    matrix = measure(images, 0.5)
    assert matrix.shares[CAT].tolist() == [0.5, 0, 0, 0.5]
    assert np.isnan(matrix.shares[[DOG, BIRD, NONE]]).all()
    assert matrix.as_dict() == {
        "confidence": 0.5,
        "iou": 0.5,
        "labels": ["cat", "dog", "bird", "background"],
        "counts": [[1, 0, 0, 1], [0] * 4, [0] * 4, [0] * 4],
    }


def make_random(seed: int) -> tuple[list[Detections], list[GroundTruth]]:
    random = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(4):
        count, labels = random.integers(0, 15, 2).tolist()
        corners = [random.integers(0, 12, (number, 2)) * 1.0 for number in (count, labels)]
        boxes = [np.concatenate((low, low + random.integers(4, 9, low.shape)), 1) for low in corners]
        found.append(make_detections(boxes[0], random.random(count).round(1), random.integers(0, 3, count)))
        truths.append(GroundTruth(boxes[1], random.integers(0, 3, labels), random.random(labels) < 0.2))
    return found, truths


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_its_sums_and_its_diagonal_are_those_of_the_scores(seed: int) -> None:
    found, truths = make_random(seed)
    matches = list(map(match, found, truths))
    score = measure_score(matches)
    counts = measure_confusion(found, truths, matches, NAMES, score.confidence).counts
    seen = [each.classes[(each.scores >= score.confidence) & ~each.ignored] for each in matches]
    for own, one in enumerate(measure_class_scores(matches, score, NAMES)):
        assert counts[own].sum() == one.instances
        assert counts[:, own].sum() == sum(int((classes == own).sum()) for classes in seen)
        assert math.isnan(one.recall) or counts[own, own] == pytest.approx(one.recall * one.instances)
    assert counts[-1, -1] == 0
