"""The images with the most loss, on cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolo_prune.datasets.images import read_image
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.matching import GroundTruth, Matches, match
from yolo_prune.evaluation.previews import IGNORED_COLOUR, PALETTE, PAPER
from yolo_prune.evaluation.worst import LONGEST_PX, ImageLoss, draw_beside_truth, find_worst, measure_image_loss

BOX = [0.0, 0.0, 10.0, 10.0]
AWAY = [50.0, 50.0, 60.0, 60.0]


def make_matches(
    found: list[tuple[list[float], float]], truths: list[list[float]], ignore: list[bool] | None = None
) -> Matches:
    boxes = GroundTruth(
        np.array(truths).reshape(-1, 4),
        np.zeros(len(truths), np.int64),
        None if ignore is None else np.array(ignore, np.bool_),
    )
    return match(make_detections([r[0] for r in found], [r[1] for r in found], [0] * len(found)), boxes)


def test_loss_by_hand() -> None:
    assert measure_image_loss(make_matches([], [])) == 0
    assert measure_image_loss(make_matches([], [BOX])) == 1
    assert measure_image_loss(make_matches([(BOX, 0.75)], [BOX])) == pytest.approx(0.25**2)
    assert measure_image_loss(make_matches([(AWAY, 0.75)], [])) == pytest.approx(0.75**2)
    # found at .75, seen twice (.5 is wrong), and one missed
    assert measure_image_loss(make_matches([(BOX, 0.75), (BOX, 0.5)], [BOX, AWAY])) == pytest.approx(0.0625 + 0.25 + 1)
    assert measure_image_loss(make_matches([(BOX, 0.75)], [BOX], [True])) == 0


def test_many_weak_false_alarms_weigh_less_than_a_missed_object() -> None:
    weak = make_matches([(AWAY, 0.03)] * 300, [])
    assert measure_image_loss(weak) < measure_image_loss(make_matches([], [BOX]))


def test_the_worst_come_first_and_perfect_ones_not_at_all() -> None:
    matches = [
        make_matches([], []),
        make_matches([(BOX, 1.0)], [BOX]),
        make_matches([(BOX, 0.5), (AWAY, 0.75)], [BOX]),  # .25 + .5625
        make_matches([(BOX, 0.25)], [BOX, AWAY]),  # .5625 + 1
        make_matches([(AWAY, 0.75)], []),
        make_matches([(AWAY, 0.75)], []),
    ]
    worst = find_worst(matches, confidence=0.5, count=4)
    assert worst == [  # these scores are exact in float32
        ImageLoss(3, 1.5625, 2, 2, 0),
        ImageLoss(2, 0.8125, 1, 0, 1),
        ImageLoss(4, 0.5625, 0, 0, 1),
        ImageLoss(5, 0.5625, 0, 0, 1),
    ]
    assert find_worst(matches, 0.5, 2) == worst[:2]
    assert len(find_worst(matches, 0.5, 100)) == 4
    assert find_worst(matches, 0.5, 0) == find_worst([], 0.5, 3) == []
    assert worst[0].as_dict() == {"loss": pytest.approx(1.5625), "instances": 2, "missed": 2, "false_alarms": 0}


def test_truth_and_detections_are_drawn_beside_each_other(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    cv2.imwrite(str(source), np.full((200, 300, 3), 90, np.uint8))
    boxes = np.array([[20.0, 60, 100, 180], [150, 60, 200, 180]])
    truth = GroundTruth(boxes, np.array([0, 1]), np.array([False, True]))
    found = make_detections([[210.0, 60, 290, 180], boxes[0]], [0.9, 0.3], [1, 0])
    drawn = read_image(draw_beside_truth(tmp_path / "out/b.png", source, truth, found, ("cat", "dog"), 0.5))
    band, gap = 30, 6
    assert drawn.shape == (band + 200 + gap, 2 * (300 + gap) + gap, 3)
    left, right = drawn[band : band + 200, gap : gap + 300], drawn[band : band + 200, 2 * gap + 300 : 2 * gap + 600]
    assert tuple(left[120, 20]) == PALETTE[0]
    assert np.abs(left[120, 150].astype(int) - IGNORED_COLOUR).max() < 40
    assert tuple(left[120, 210]) == (90, 90, 90)
    assert tuple(right[120, 210]) == PALETTE[1]
    assert tuple(right[120, 20]) == (90, 90, 90)  # too weak
    assert (drawn[:band] != PAPER).any()


def test_large_images_are_shrunk_with_their_boxes(tmp_path: Path) -> None:
    source = tmp_path / "large.png"
    cv2.imwrite(str(source), np.full((LONGEST_PX, 2 * LONGEST_PX, 3), 90, np.uint8))
    truth = GroundTruth(np.array([[200.0, 200, 1000, 800]]), np.array([0]))
    drawn = read_image(draw_beside_truth(tmp_path / "b.png", source, truth, make_detections((), (), ()), ("cat",), 0.5))
    band, gap = 96, 19
    assert drawn.shape == (band + LONGEST_PX // 2 + gap, 2 * (LONGEST_PX + gap) + gap, 3)
    assert tuple(drawn[band + 250, gap + 100]) == PALETTE[0]
