"""Tables that fit a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from yolo_prune.text_tables import fit_table, format_count, format_table

CELLS = [
    ("model", "params", "mAP"),
    ("Original", "8.67M", "0.6053 [0.580, 0.630]"),
    ("Pruned", "0.49M (-94%)", "0.6071 [0.585, 0.629] (+0.0018 [-0.010, +0.014])"),
]


def test_a_table_without_a_terminal_has_a_line_for_each_row() -> None:
    assert format_table(CELLS).split("\n") == [
        "model     params        mAP",
        "─" * 72,
        "Original  8.67M         0.6053 [0.580, 0.630]",
        "Pruned    0.49M (-94%)  0.6071 [0.585, 0.629] (+0.0018 [-0.010, +0.014])",
    ]


def test_what_does_not_fit_is_broken_before_brackets() -> None:
    assert fit_table(CELLS, 60).split("\n") == [
        "model     params  mAP",
        "─" * 44,
        "Original  8.67M   0.6053 [0.580, 0.630]",
        "Pruned    0.49M   0.6071 [0.585, 0.629]",
        "          (-94%)  (+0.0018 [-0.010, +0.014])",
    ]


def test_numbers_are_aligned_at_the_right() -> None:
    assert fit_table([("layer", "n"), ("a", "5"), ("b", "1,000")], None, numbers=[1]).split("\n")[2:] == [
        "a          5",
        "b      1,000",
    ]


def test_a_table_that_may_turn_has_its_rows_as_columns() -> None:
    cells = [("model", *"abcdef"), ("one", *(["123456"] * 6)), ("two", *(["654321"] * 6))]
    lines = fit_table(cells, 24, can_turn=True).split("\n")
    assert lines[0].split() == ["model", "one", "two"]
    assert [line.split() for line in lines[2:]] == [[name, "123456", "654321"] for name in "abcdef"]


def test_names_cannot_command_a_terminal() -> None:
    assert "\x1b" not in format_table([("model",), ("\x1b[2J",)])
    assert r"\x1b[2J" in format_table([("model",), ("\x1b[2J",)])


@given(
    st.lists(st.tuples(*[st.text("ab手 ([])", max_size=20)] * 4), min_size=2, max_size=5),
    st.integers(30, 120),
    st.booleans(),
)
def test_no_table_is_wider_than_its_terminal(cells: list[tuple[str, ...]], columns: int, can_turn: bool) -> None:
    assert max(map(cell_len, fit_table(cells, columns, can_turn=can_turn).split("\n"))) <= columns


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0K"),
        (14_300, "14.3K"),
        (999_999, "1000.0K"),
        (8_670_000, "8.67M"),
        (61_500_000, "61.5M"),
        (32.8e9, "32.8B"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert format_count(value) == text
