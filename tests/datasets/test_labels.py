from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.datasets.labels import Objects, format_labels, load_labels, load_objects, parse_labels, save_objects
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError

BOX = st.tuples(st.floats(0, 0.49), st.floats(0.51, 1), st.floats(0, 0.49), st.floats(0.51, 1))


def test_parse_labels_of_a_hand_worked_text() -> None:
    rows = parse_labels("1 0.5 0.25 0.5 0.5\n\n  0 0.1 0.9 0.2 0.1  \n1 .5 .25 .5 .5\n", "a.txt", classes=2)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array([[1, 0.5, 0.25, 0.5, 0.5], [0, 0.1, 0.9, 0.2, 0.1]], np.float32))


def test_no_text_means_no_objects() -> None:
    assert parse_labels(" \n", "a.txt", classes=1).shape == (0, 5)


def test_a_small_overshoot_is_clipped() -> None:
    ((_, cx, cy, w, h),) = parse_labels("0 0.8995 0.1 0.202 0.2008", "a.txt", classes=1).astype(float).tolist()
    assert (cx, w) == pytest.approx(((0.7985 + 1) / 2, 1 - 0.7985))
    assert (cy, h) == pytest.approx((0.2004 / 2, 0.2004))


def test_labels_are_written_as_centres_and_sizes_in_shares() -> None:
    boxes = np.array([[10, 20, 30, 60], [0, 0, 100, 200]], np.float32)
    assert format_labels(np.array([3, 0]), boxes, 100, 200) == (
        "3 0.200000 0.200000 0.200000 0.200000\n0 0.500000 0.500000 1.000000 1.000000\n"
    )
    assert format_labels(np.zeros(0, np.int64), np.zeros((0, 4)), 100, 200) == ""


@given(st.lists(st.tuples(st.integers(0, 6), BOX), max_size=5), st.integers(1, 9999), st.integers(1, 9999))
@settings(max_examples=100, deadline=None)
def test_boxes_survive_a_round_trip_through_text(
    objects: list[tuple[int, tuple[float, float, float, float]]], width: int, height: int
) -> None:
    shares = np.array([(x1, y1, x2, y2) for _, (x1, x2, y1, y2) in objects]).reshape(-1, 4)
    kinds = np.array([kind for kind, _ in objects], np.int64)
    text = format_labels(kinds, shares * (width, height, width, height), width, height)
    rows = parse_labels(text, "a.txt", 7).astype(np.float64)
    found = np.column_stack((rows[:, 0], rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2))
    wanted = np.column_stack((kinds, shares))
    for row in wanted:  # rows alike after rounding are one
        assert abs(found - row).max(axis=1).min() < 2e-6
    assert format_labels(rows[:, 0].astype(np.int64), found[:, 1:], 1, 1) == "".join(
        dict.fromkeys(text.splitlines(True))
    )


def test_ignored_boxes_have_a_file_of_their_own(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "images/a.b.jpg", tmp_path / "labels/a.b.txt")
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 10], [-5, 5, 20, 30], [30, 0, 40, 10]], np.float64)
    objects = Objects(np.array([1, 0, 1, 0]), boxes, np.array([False, True, False, False])).clip(20, 20)
    save_objects(sample, objects, 20, 20)
    assert {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "labels").iterdir()} == {
        "a.b.txt": 2,
        "a.b.ignore.txt": 1,
    }
    expected = [[1, 0.25, 0.25, 0.5, 0.5, 0], [1, 0.5, 0.625, 1, 0.75, 0], [0, 0.625, 0.375, 0.75, 0.25, 1]]
    assert load_objects(sample, 2).tolist() == expected
    save_objects(
        Sample(sample.image, tmp_path / "b.txt"),
        Objects(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.bool_)),
        9,
        9,
    )
    assert (tmp_path / "b.txt").read_text() == ""
    assert not (tmp_path / "b.ignore.txt").exists()


@given(st.text(st.sampled_from("0123456789.-+einaf \n\t")), st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_boxes_inside_the_image_or_a_dataset_error(text: str, box: list[float]) -> None:
    for candidate in (text, f"2 {' '.join(map(str, box))}"):
        with suppress(DatasetError):
            rows = parse_labels(candidate, "a.txt", classes=3)
            assert np.isin(rows[:, 0], (0, 1, 2)).all()
            assert (rows[:, 3:] > 0).all()
            assert (rows[:, 1:3] - rows[:, 3:] / 2 > -1e-5).all()
            assert (rows[:, 1:3] + rows[:, 3:] / 2 < 1 + 1e-5).all()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0 0.5 0.5 0.2", "five numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "five numbers"),
        ("0 0.5 0.5 0.2 wide", "five numbers"),
        ("0 nan 0.5 0.2 0.2", "five numbers"),
        ("0 0.5 inf 0.2 0.2", "five numbers"),
        ("2 0.5 0.5 0.2 0.2", "class 2 is out of range"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 is out of range"),
        ("0.5 0.5 0.5 0.2 0.2", r"class 0\.5 is out of range"),
        ("0 0.5 0.5 0 0.2", "is empty"),
        ("0 0.5 0.5 0.2 -0.2", "is empty"),
        ("0 0.95 0.5 0.2 0.2", r"from 0\.85 to 1\.05 lies outside the image"),
        ("0 0.5 0.05 0.2 0.2", "outside the image"),
        ("0 320 240 64 48", "outside the image"),
        ("0 1.0004 0.5 0.0002 0.2", "outside the image"),
    ],
)
def test_a_bad_line_is_named(line: str, what: str) -> None:
    with pytest.raises(DatasetError, match=f"^hand.txt:2: .*{what}.*; ") as caught:
        parse_labels(f"0 0.5 0.5 0.2 0.2\n{line}\n", "hand.txt", classes=2)
    assert "\n" not in str(caught.value)


def test_load_labels_takes_a_missing_file_for_an_image_without_objects(tmp_path: Path) -> None:
    assert load_labels(tmp_path / "none.txt", classes=1).shape == (0, 5)


def test_load_labels_reads_past_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf0 0.5 0.5 1 1\r\n")
    assert load_labels(path, classes=1).tolist() == [[0, 0.5, 0.5, 1, 1]]


def test_load_labels_rejects_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DatasetError, match="labels cannot be read") as caught:
            load_labels(path, classes=1)
        assert caught.value.where == str(path)
