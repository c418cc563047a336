from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import make_images

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import Yolo
from yolo_prune.model.decode import DecodedDetector, decode_boxes, decode_heads, make_grid, normalise, split_head
from yolo_prune.model.detector import Detector

ANCHORS = ((10.0, 20.0), (30.0, 15.0), (50.0, 60.0))


def test_a_cell_decoded_by_hand() -> None:
    raw = torch.zeros(1, 7, 2, 3)
    raw[0, :, 1, 2] = torch.tensor([0, np.log(3), np.log(2), 0, np.log(3), 0, -np.log(4)])
    boxes, scores = decode_heads([raw], (Yolo((0,), ANCHORS, 2),), img_height=16)
    assert boxes.shape == (1, 6, 4)
    centre_x, centre_y, width, height = (2 + 0.5) * 8, (1 + 0.75) * 8, 10 * 2, 20 * 1
    corners = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
    assert boxes[0, 5].tolist() == pytest.approx(corners)
    assert scores[0, 5].tolist() == pytest.approx([0.75 * 0.5, 0.75 * 0.2])
    assert boxes[0, 0].tolist() == pytest.approx([4 - 5, 4 - 10, 4 + 5, 4 + 10])
    assert scores[0, 0].tolist() == pytest.approx([0.25, 0.25])


def test_scale_x_y_stretches_about_the_middle_of_a_cell() -> None:
    values, grid, anchors = torch.tensor([[0.0, 50, 0, 0]]), torch.tensor([[3.0, 4]]), torch.tensor([[10.0, 20]])
    x, y, *_ = decode_boxes(values, grid, anchors, 8, scale_x_y=1.2)[0].tolist()
    assert x == pytest.approx((0.5 + 3) * 8)
    assert y == pytest.approx((1.1 + 4) * 8)


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_equals_an_independent_derivation(scale: float) -> None:
    random = np.random.default_rng(3)
    yolos = (Yolo((1, 2), ANCHORS, 2, scale), Yolo((0,), ANCHORS, 2, scale))
    heads = [random.normal(0, 2, (2, 14, 3, 4)), random.normal(0, 2, (2, 7, 6, 8))]
    boxes, scores = [], []
    for raw, yolo in zip(heads, yolos, strict=True):
        _, _, rows, columns = raw.shape
        for anchor, (wide, high) in enumerate(yolo.own_anchors):
            for row, column in np.ndindex(rows, columns):
                cell = raw[:, 7 * anchor : 7 * anchor + 7, row, column]
                squashed = 1 / (1 + np.exp(-cell))
                x = (squashed[:, 0] * scale - 0.5 * (scale - 1) + column) / columns * 128
                y = (squashed[:, 1] * scale - 0.5 * (scale - 1) + row) / rows * 96
                w, h = wide * np.exp(cell[:, 2]), high * np.exp(cell[:, 3])
                boxes.append(np.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1))
                scores.append(squashed[:, 4:5] * squashed[:, 5:])
    found = decode_heads([torch.from_numpy(raw) for raw in heads], yolos, img_height=96)
    np.testing.assert_allclose(found[0].numpy(), np.stack(boxes, 1), rtol=1e-12)
    np.testing.assert_allclose(found[1].numpy(), np.stack(scores, 1), rtol=1e-12)


def test_a_huge_output_stays_finite() -> None:
    raw = torch.full((1, 6, 2, 2), 1e4)
    boxes, scores = decode_heads([raw], (Yolo((0,), ANCHORS, 1),), 64)
    assert boxes.isfinite().all()
    assert scores.eq(1).all()


def test_splitting_keeps_anchors_apart() -> None:
    raw = torch.arange(2 * 12 * 2 * 3).view(2, 12, 2, 3)
    split = split_head(raw, Yolo((0, 1), ANCHORS, 1))
    assert split.shape == (2, 2, 2, 3, 6)
    assert split[1, 1, 0, 2, 4] == raw[1, 6 + 4, 0, 2]


def test_the_grid_counts_columns_then_rows() -> None:
    grid = make_grid(2, 3, torch.zeros(1, dtype=torch.float64))
    assert grid.dtype == torch.float64
    assert grid[1, 2].tolist() == [2, 1]


def test_images_become_floats_up_to_one() -> None:
    assert normalise(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_the_decoded_detector_is_detector_then_decoding() -> None:
    model = Detector(make_network("yolov3-tiny", classes=2, width=0.1)).eval()
    images = make_images(model, 64)
    with torch.no_grad():
        boxes, scores = DecodedDetector(model)(images)
        expected = decode_heads(model(images), tuple(yolo for _, yolo in model.network.heads), 64)
    assert torch.equal(boxes, expected[0])
    assert torch.equal(scores, expected[1])
    assert boxes.shape == (2, 3 * (2 * 2 + 4 * 4), 4)
