from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from yolo_prune.errors import ConfigError
from yolo_prune.evaluation import detections as subject
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import Detections, make_detections, suppress

BOX = [0.0, 0.0, 10.0, 10.0]
SHIFTED = [0.0, 2.0, 10.0, 12.0]  # overlaps BOX by 80 / 120
ASIDE = [0.0, 6.0, 10.0, 16.0]  # overlaps BOX by 40 / 160, SHIFTED by 60 / 140


def suppress_one(boxes: list[list[float]], scores: list[list[float]], config: DetectConfig) -> Detections:
    (found,) = suppress(torch.tensor([boxes]), torch.tensor([scores]), config)
    return found


def reference(boxes: Tensor, scores: Tensor, config: DetectConfig) -> list[tuple[int, int]]:
    """Suppress one image's pairs (box, class) by the definition, one after the other."""
    pairs = [(row, own) for row in range(scores.shape[0]) for own in range(scores.shape[1])]
    pairs = [pair for pair in pairs if scores[pair] >= config.confidence]
    kept: list[tuple[int, int]] = []
    for row, own in sorted(pairs, key=lambda pair: -float(scores[pair])):
        if all(own != other or overlap(boxes[row], boxes[first]) <= config.nms_iou for first, other in kept):
            kept.append((row, own))
    return kept[: config.max_detections]


def overlap(one: Tensor, two: Tensor) -> float:
    sides = (torch.minimum(one[2:], two[2:]) - torch.maximum(one[:2], two[:2])).clamp(min=0)
    shared = float(sides.prod())
    return shared / (float((one[2:] - one[:2]).prod()) + float((two[2:] - two[:2]).prod()) - shared)


def test_suppresses_by_hand() -> None:
    found = suppress_one([ASIDE, BOX, SHIFTED], [[0.3], [0.9], [0.8]], DetectConfig())
    assert found.boxes_xyxy.tolist() == [BOX, ASIDE]
    assert found.scores == pytest.approx([0.9, 0.3])
    assert found.classes.tolist() == [0, 0]
    assert [part.dtype.name for part in (found.boxes_xyxy, found.scores, found.classes)] == [
        "float32",
        "float32",
        "int64",
    ]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 25),
    classes=st.integers(1, 4),
    confidence=st.sampled_from([0.0, 0.2, 0.5]),
    nms_iou=st.sampled_from([0.0, 0.35, 0.5, 1.0]),
    max_detections=st.sampled_from([1, 5, 300]),
)
def test_equals_the_definition(
    seed: int, rows: int, classes: int, confidence: float, nms_iou: float, max_detections: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (2, rows, 2), generator=random).float()
    boxes = torch.stack((torch.cat((corners[0], corners[0] + corners[1] + 1), -1),) * 2)
    scores = torch.randint(0, 8, (2, rows, classes), generator=random) / 8  # few values, so that many tie
    config = DetectConfig(confidence, nms_iou, max_detections)
    for found, own_boxes, own_scores in zip(suppress(boxes, scores, config), boxes, scores, strict=True):
        expected = reference(own_boxes, own_scores, config)
        assert found.classes.tolist() == [own for _, own in expected]
        assert found.boxes_xyxy.tolist() == [own_boxes[row].tolist() for row, _ in expected]
        assert found.scores.tolist() == [float(own_scores[pair]) for pair in expected]


def test_every_class_of_a_box_counts_and_none_suppresses_another() -> None:
    found = suppress_one([BOX, SHIFTED], [[0.9, 0.7, 0.0005], [0.8, 0.75, 0.6]], DetectConfig())
    assert found.classes.tolist() == [0, 1, 2]
    assert found.boxes_xyxy.tolist() == [BOX, SHIFTED, SHIFTED]


def test_a_huge_box_does_not_blur_the_small_ones() -> None:
    huge = [-1e9, -1e9, 1e9, 1e9]
    found = suppress_one([huge, BOX, ASIDE], [[0.9, 0.0], [0.0, 0.8], [0.0, 0.7]], DetectConfig())
    assert found.boxes_xyxy.tolist() == [huge, BOX, ASIDE]


def test_a_box_that_is_not_finite_is_no_detection() -> None:
    boxes = [[float("-inf"), 0.0, float("inf"), 1.0], [float("nan")] * 4, BOX]
    assert suppress_one(boxes, [[0.9], [0.8], [0.7]], DetectConfig()).boxes_xyxy.tolist() == [BOX]
    assert len(suppress_one([BOX], [[float("nan")]], DetectConfig())) == 0


def test_the_highest_scores_survive_the_cap_before_suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_CANDIDATES", 2)
    apart = [[20.0 * row, 0.0, 20.0 * row + 10, 10.0] for row in range(4)]
    found = suppress_one(apart, [[0.1], [0.4], [0.2], [0.3]], DetectConfig())
    assert found.scores == pytest.approx([0.4, 0.3])


def test_half_precision_is_accepted() -> None:
    (found,) = suppress(torch.tensor([[BOX, SHIFTED]]).half(), torch.tensor([[[0.5], [0.75]]]).half(), DetectConfig())
    assert found.boxes_xyxy.tolist() == [SHIFTED]
    assert found.scores.tolist() == [0.75]


def test_make_detections_sorts_and_keeps_ties_in_order() -> None:
    found = make_detections([BOX, SHIFTED, ASIDE], [0.5, 0.75, 0.5], [0, 1, 2])
    assert found.classes.tolist() == [1, 0, 2]
    assert make_detections((), (), ()).boxes_xyxy.shape == (0, 4)


def test_with_boxes_replaces_only_the_boxes() -> None:
    found = make_detections([BOX, ASIDE], [0.5, 0.75], [0, 1])
    moved = found.with_boxes(found.boxes_xyxy * 2)
    assert moved.boxes_xyxy.tolist() == [[2 * value for value in ASIDE], [2 * value for value in BOX]]
    assert moved.boxes_xyxy.dtype == np.float32
    assert moved.classes.tolist() == [1, 0]
    assert found.boxes_xyxy.tolist() == [ASIDE, BOX]


@pytest.mark.parametrize(
    ("key", "value"), [("confidence", -0.1), ("confidence", float("nan")), ("nms_iou", 1.5), ("max_detections", 0)]
)
def test_a_setting_out_of_range_is_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: .* is out of range; use"):
        DetectConfig(**{key: value})  # type: ignore[arg-type]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 25),
    classes=st.integers(1, 4),
    nms_iou=st.sampled_from([0.0, 0.35, 0.5, 0.99]),
    confidence=st.sampled_from([0.0, 0.3]),
)
def test_agnostic_equals_torchvision_on_all_boxes_at_once(
    seed: int, rows: int, classes: int, nms_iou: float, confidence: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (2, rows, 2), generator=random).float()
    boxes = torch.cat((corners[0], corners[0] + corners[1] + 1), -1)
    scores = torch.rand((rows, classes), generator=random)
    (found,) = suppress(boxes[None], scores[None], DetectConfig(confidence, nms_iou, 300, agnostic_nms=True))
    every, values = boxes.repeat_interleave(classes, 0), scores.flatten()
    kept = [place for place in nms(every, values, nms_iou).tolist() if values[place] >= confidence]
    assert found.classes.tolist() == [place % classes for place in kept]
    assert found.boxes_xyxy.tolist() == every[kept].tolist()
    assert found.scores.tolist() == values[kept].tolist()


def test_agnostic_by_hand() -> None:
    boxes, scores = [BOX, SHIFTED, ASIDE], [[0.9, 0.7], [0.2, 0.8], [0.3, 0.3]]
    found = suppress_one(boxes, scores, DetectConfig(agnostic_nms=True))
    assert found.boxes_xyxy.tolist() == [BOX, ASIDE]
    assert found.classes.tolist() == [0, 0]  # of equal scores the first class
    kept = suppress_one(boxes, scores, DetectConfig())
    assert sorted(kept.classes.tolist()) == [0, 0, 1, 1]


def test_agnostic_gives_a_box_one_class_whatever_overlap_is_allowed() -> None:
    found = suppress_one([BOX, SHIFTED], [[0.9, 0.7], [0.2, 0.8]], DetectConfig(nms_iou=1.0, agnostic_nms=True))
    assert found.classes.tolist() == [0, 1]
    assert found.boxes_xyxy.tolist() == [BOX, SHIFTED]
