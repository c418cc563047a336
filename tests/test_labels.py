from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.datasets.labels import format_labels, load_labels, parse_labels
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


@given(st.lists(st.tuples(st.integers(0, 6), BOX), max_size=5, unique=True))
@settings(max_examples=100, deadline=None)
def test_rows_survive_the_way_through_text(objects: list[tuple[int, tuple[float, float, float, float]]]) -> None:
    boxes = [(kind, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for kind, (x1, x2, y1, y2) in objects]
    rows = np.array(boxes, np.float32).reshape(-1, 5)
    rows = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
    np.testing.assert_array_equal(parse_labels(format_labels(rows), "a.txt", 7), rows)


@given(st.text(st.sampled_from("0123456789.-+einaf \n\t")), st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_boxes_inside_the_picture_or_a_dataset_error(text: str, box: list[float]) -> None:
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
        ("0 0.95 0.5 0.2 0.2", r"from 0\.85 to 1\.05 lies outside the picture"),
        ("0 0.5 0.05 0.2 0.2", "outside the picture"),
        ("0 320 240 64 48", "outside the picture"),
        ("0 1.0004 0.5 0.0002 0.2", "outside the picture"),
    ],
)
def test_a_bad_line_is_named(line: str, what: str) -> None:
    with pytest.raises(DatasetError, match=f"^hand.txt:2: .*{what}.*; ") as caught:
        parse_labels(f"0 0.5 0.5 0.2 0.2\n{line}\n", "hand.txt", classes=2)
    assert "\n" not in str(caught.value)


def test_load_labels_takes_a_missing_file_for_a_picture_without_objects(tmp_path: Path) -> None:
    assert load_labels(tmp_path / "none.txt", classes=1).shape == (0, 5)


def test_load_labels_reads_past_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf0 0.5 0.5 1 1\r\n")
    assert load_labels(path, classes=1).tolist() == [[0, 0.5, 0.5, 1, 1]]


def test_load_labels_refuses_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DatasetError, match="labels cannot be read") as caught:
            load_labels(path, classes=1)
        assert caught.value.where == str(path)
