from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SIDE

from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import OutputError
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.matching import GroundTruth
from yolo_prune.evaluation.previews import (
    PALETTE,
    PAPER,
    TRUTH_COLOUR,
    Image,
    draw_detections,
    draw_found,
    make_side_by_side,
    pick_evenly,
    save_image,
)
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.report import (
    COLUMNS,
    ROWS,
    make_results_figure,
    save_batch_image,
    save_detections_image,
    save_results,
)

NOTHING = make_detections([], [], [])
BOX = (20.0, 40.0, 70.0, 90.0)


def make_image(height: int = 100, width: int = 120, colour: tuple[int, int, int] = (10, 60, 20)) -> Image:
    return np.full((height, width, 3), colour, np.uint8)


def test_a_detection_is_framed_in_the_colour_of_its_class() -> None:
    image = make_image()
    drawn = draw_detections(image, make_detections([BOX], [0.9], [1]), ("palm", "fist"))
    for x, y in ((45, 90), (20, 65), (70, 65)):  # the label covers the upper edge's left end
        assert tuple(drawn[y, x]) == PALETTE[1]
    assert tuple(drawn[65, 45]) == (10, 60, 20)
    assert tuple(drawn[95, 110]) == (10, 60, 20)
    assert (image == make_image()).all()


def test_weak_detections_are_left_out() -> None:
    found = make_detections([BOX], [0.3], [0])
    assert (draw_detections(make_image(), found, ("palm",), min_score=0.31) == make_image()).all()
    assert (draw_detections(make_image(), found, ("palm",), min_score=0.3) != make_image()).any()


def test_truth_is_white_and_lies_under_detections() -> None:
    truth = GroundTruth(np.array([BOX]), np.array([0]))
    white = draw_detections(make_image(), NOTHING, (), truth)[65, 20].astype(int)
    assert np.abs(white - TRUTH_COLOUR).max() < 30  # a line of one pixel has soft edges
    both = draw_detections(make_image(), make_detections([BOX], [0.9], [0]), ("palm",), truth)
    assert tuple(both[65, 20]) == PALETTE[0]


def test_the_best_is_drawn_last() -> None:
    found = make_detections([BOX, BOX], [0.5, 0.9], [0, 1])
    assert tuple(draw_detections(make_image(), found, ("a", "b"))[65, 20]) == PALETTE[1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4), st.integers(1, 40), st.integers(1, 40)
)
def test_any_box_can_be_drawn_into_any_image(box: list[float], height: int, width: int) -> None:
    image = make_image(height, width)
    drawn = draw_detections(image, make_detections([box], [0.9], [11]), ("x",) * 12)
    assert drawn.shape == image.shape


def test_a_grid_of_hand_worked_places() -> None:
    red, blue = make_image(10, 100, (255, 0, 0)), make_image(20, 60, (0, 0, 255))
    grid = make_side_by_side([("", [red, blue]), ("", [blue])])
    # cells 100 wide, a gap of 2, a band of 24; rows as high as their highest image, images centred
    assert grid.shape == (24 + 20 + 20 + 2 * 2, 2 * 102 + 2, 3)
    expected = np.full(grid.shape, PAPER, np.uint8)
    expected[24 + 5 : 24 + 15, 2:102] = (255, 0, 0)
    expected[24 + 22 : 24 + 42, 22:82] = (0, 0, 255)
    expected[24:44, 104 + 20 : 104 + 80] = (0, 0, 255)
    assert (grid == expected).all()


def test_titles_stand_in_the_band_above_their_column() -> None:
    grid = make_side_by_side([("Original", [make_image()]), ("", [make_image()])])
    assert (grid[:24, :122] != PAPER).any()
    assert (grid[:24, 124:] == PAPER).all()
    assert make_side_by_side([]).ndim == 3


def test_a_saved_image_is_read_back_as_it_was(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = save_image(tmp_path / "new/a.png", image)
    assert (read_image(path) == image).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"a\.png: cannot be written"):
        save_image(tmp_path / "file/a.png", make_image())


@given(st.integers(0, 200), st.integers(1, 20))
def test_images_are_picked_evenly(count: int, wanted: int) -> None:
    picked = list(pick_evenly(count, wanted))
    assert len(picked) <= wanted
    assert len(picked) == count or len(picked) > wanted / 2 or not count
    assert picked == sorted({*picked})
    assert all(0 <= index < count for index in picked)
    assert not count or picked[0] == 0


def test_a_run_shows_what_it_was_shown_and_what_it_found(hands: Path, trained: Path, tmp_path: Path) -> None:
    spec, model = load_spec(hands), load_checkpoint(trained).make_model().eval()
    data = DetectionDataset(spec.samples("train"), 1, SIDE, augment=AugmentConfig())
    batch = cv2.imread(str(save_batch_image(tmp_path, data)))
    plain = DetectionDataset(spec.samples("val"), 1, SIDE)
    found = cv2.imread(str(save_detections_image(tmp_path, model, plain, spec.names, torch.device("cpu"))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_batch.png", "val_detections.png"]
    assert batch is not None
    assert found is not None
    assert batch.shape[1] == found.shape[1] == COLUMNS * (SIDE + 2) + 2
    assert batch.shape[0] == 24 + 3 * (SIDE + 2)
    assert found.shape[0] == 24 + 2 * (SIDE + 2)
    assert ROWS * COLUMNS >= 12


def test_truth_is_drawn_where_nothing_is_found(hands: Path, trained: Path) -> None:
    model, spec = load_checkpoint(trained).make_model().eval(), load_spec(hands)
    data = DetectionDataset(spec.samples("val"), 1, SIDE)
    index = next(index for index, labels in enumerate(data.labels) if len(labels))
    with torch.no_grad():
        for parameter in model.layers[6].parameters():
            parameter.fill_(-20)
    image, boxes = data.make_item(index)
    expected = draw_detections(image, NOTHING, (), GroundTruth(boxes[:, 1:5], boxes[:, 0].astype(np.int64)))
    assert (draw_found(model, data, index, spec.names, torch.device("cpu")) == expected).all()


@pytest.mark.parametrize("below", [0, 5])
def test_results_are_left_as_numbers_and_as_a_plot(tmp_path: Path, below: int) -> None:
    base = {"loss": 3.0, "box": 1.0, "objectness": 1.5, "classes": 0.5, "learning_rate": 1e-3, "images_per_s": 9.0}
    rows = [
        {"epoch": epoch, **base, "val_map50": score, "channels_below": below, "channels": 10}
        for epoch, score in enumerate((None, 0.5), start=1)
    ]
    save_results(tmp_path, rows)
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["epoch"] for row in read] == ["1", "2"]
    assert [row["val_map50"] for row in read] == ["", "0.5"]
    assert read[1].keys() == rows[1].keys()
    assert read_image(tmp_path / "results.png").shape == (320, 1100, 3)


def test_results_show_a_teacher_s_part_and_what_a_prune_would_leave() -> None:
    base = {"box": 1.0, "objectness": 1.5, "classes": 0.5, "learning_rate": 1e-3, "channels_below": 0, "channels": 10}
    plain = [{"epoch": epoch, **base, "val_map50": 0.5} for epoch in (1, 2)]
    sparse = [{**row, "teacher": 0.2 * row["epoch"], "pruned_map50": 0.4} for row in plain]
    assert _read_lines(plain) == {
        "box": [1.0, 1.0], "objectness": [1.5, 1.5], "classes": [0.5, 0.5], "as it is": [0.5, 0.5],
    }  # fmt: skip
    assert _read_lines(sparse) == {**_read_lines(plain), "teacher": [0.2, 0.4], "pruned now": [0.4, 0.4]}


def _read_lines(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    axes = make_results_figure(rows).axes[:2]
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for one in axes for line in one.get_lines()}
