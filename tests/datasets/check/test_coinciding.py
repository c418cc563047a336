"""Boxes that coincide are found as by comparing all pairs, without comparing all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from yolo_prune.datasets.check import coinciding
from yolo_prune.datasets.check.issues import SAME_BOX_IOU

MOST = 2_000


def make_rows(count: int, clusters: int, spread: float, seed: int) -> NDArray[np.float64]:
    """Return boxes of two classes that lie around a few ones, more or less near."""
    rng = np.random.default_rng(seed)
    sides, centres = np.exp(rng.uniform(-7, -1, (clusters, 2))), rng.uniform(0.2, 0.8, (clusters, 2))
    own = rng.integers(clusters, size=count)
    near = sides[own] * np.exp(rng.normal(0, spread, (count, 2)))
    return np.column_stack(
        (rng.integers(2, size=count), centres[own] + rng.normal(0, spread, (count, 2)) * sides[own], near)
    )


@given(st.integers(0, 80), st.integers(1, 4), st.sampled_from([1e-9, 0.02, 0.05, 0.1]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_each_box_that_coincides_with_an_earlier_one_is_in_one_pair(
    count: int, clusters: int, spread: float, seed: int
) -> None:
    rows = make_rows(count, clusters, spread, seed)
    iou = np.array([coinciding._measure_iou(row, rows) for row in rows]).reshape(count, count)
    is_pair = np.tril((iou > SAME_BOX_IOU) & (rows[:, 0] == rows[:, :1]), -1)
    pairs = list(coinciding.find_coinciding(rows))
    assert [later for _, later, _ in pairs] == np.flatnonzero(is_pair.any(1)).tolist()
    for earlier, later, found in pairs:
        assert is_pair[later, earlier]
        assert found == pytest.approx(iou[later, earlier])


@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.02, 0.1])
def test_few_pairs_are_compared(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, compared = coinciding._measure_iou, 0

    def count_pairs(row: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal compared
        compared += len(rows)
        return measure(row, rows)

    monkeypatch.setattr(coinciding, "_measure_iou", count_pairs)
    rows = make_rows(MOST, 1, spread, 0)
    rows[:, 0] = 0
    assert len(list(coinciding.find_coinciding(rows))) > MOST / 2
    assert compared < MOST**2 / 8
