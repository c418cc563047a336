from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.evaluation.average_precision import Ranking, measure_score, rank
from yolo_prune.evaluation.bootstrap import map50_interval, paired_difference, resample_ap, resample_map50
from yolo_prune.evaluation.matching import Matches


def make_matches(seed: int, images: int, skill: float = 0.7, classes: int = 2) -> list[Matches]:
    """Make images with 0 to 4 ground truths each, every one found with the chance `skill`, and some misses."""
    random = np.random.default_rng(seed)
    truths = [random.integers(0, classes, random.integers(0, 5)) for _ in range(images)]
    made = []
    for own in truths:
        found, misses = random.random(len(own)) < skill, int(random.integers(0, 8))
        hits = np.array([True] * int(found.sum()) + [False] * misses, np.bool_)
        scores = np.where(hits, random.beta(3, 2, len(hits)), random.beta(1, 3, len(hits))).astype(np.float32)
        own_classes = np.concatenate((own[found], random.integers(0, classes, misses)))
        order = np.argsort(-scores)
        truths_found = np.where(found, 0.5, -np.inf).astype(np.float32)
        none = np.zeros(len(hits), np.bool_)
        made.append(Matches(scores[order], own_classes[order], hits[order], none, own, truths_found, np.ones(len(own))))
    return made


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 12))
def test_weighting_images_equals_repeating_them(seed: int, images: int) -> None:
    matches = make_matches(seed, images)
    draws = np.sort(np.random.default_rng(seed + 1).integers(images, size=images))
    weights = np.bincount(draws, minlength=images).astype(np.float64)[:, None]
    score = measure_score([matches[draw] for draw in draws])
    weighted = {own: float(resample_ap(each, weights)[0]) for own, each in rank(matches).items()}
    assert {own: ap for own, ap in weighted.items() if not math.isnan(ap)} == pytest.approx(score.ap50, abs=1e-12)


def test_weights_by_hand() -> None:
    # H (×2), M (×0), H (×1), of 4: precision 2/2, 3/3, so the area is 3/4; with M (×3) it is 2/4 × 1 + 1/4 × 3/6.
    # Without the first two, the last is all there is: 1/1 of 1. The fourth image has no detection.
    ranking = Ranking(np.array([0, 1, 2]), np.array([True, False, True]), np.array([1, 0, 1, 1]))
    draws = np.array([[2, 0, 1, 1], [2, 3, 1, 1], [0, 0, 1, 0], [0, 5, 0, 0]], np.float64).T
    assert resample_ap(ranking, draws) == pytest.approx(np.array([3 / 4, 5 / 8, 1, math.nan]), abs=1e-15, nan_ok=True)


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = make_matches(2, 30)
    whole = resample_map50(matches, 40)
    monkeypatch.setattr("yolo_prune.evaluation.bootstrap.BLOCK", 200)
    assert np.array_equal(resample_map50(matches, 40), whole)


def test_resamples_equal_ap_of_the_images_drawn() -> None:
    matches = make_matches(3, 20)
    random = np.random.default_rng(5)
    expected = [measure_score([matches[draw] for draw in random.integers(20, size=20)]).map50 for _ in range(30)]
    assert resample_map50(matches, 30, seed=5) == pytest.approx(np.array(expected), abs=1e-12)


def test_interval_is_the_percentiles_of_the_resamples() -> None:
    matches = make_matches(0, 30)
    samples = np.sort(resample_map50(matches, 101, seed=1))
    assert map50_interval(matches, 101, seed=1, level=0.8) == pytest.approx((samples[10], samples[90]), abs=1e-12)


def test_the_same_seed_gives_the_same_interval() -> None:
    matches = make_matches(0, 40)
    assert map50_interval(matches, 100, seed=4) == map50_interval(matches, 100, seed=4)
    assert map50_interval(matches, 100, seed=4) != map50_interval(matches, 100, seed=5)


@pytest.mark.parametrize("seed", range(5))
def test_interval_holds_the_estimate_and_narrows_with_images(seed: int) -> None:
    few, many = make_matches(seed, 40), make_matches(seed, 640)
    for matches in (few, many):
        low, high = map50_interval(matches, 200)
        assert low < measure_score(matches).map50 < high
    (low, high), (many_low, many_high) = map50_interval(few, 200), map50_interval(many, 200)
    assert many_high - many_low < (high - low) / 2  # 16 times the images: about a quarter


def test_a_model_does_not_differ_from_itself() -> None:
    matches = make_matches(0, 30)
    assert paired_difference(matches, matches, 50) == (0, 0, 0)


def test_difference_is_b_less_a_and_pairing_narrows_it() -> None:
    a = make_matches(0, 200)
    b = [replace(each, hits=each.hits & (each.scores > 0.3)) for each in a]  # some of the finds are lost
    difference, low, high = paired_difference(a, b, 200)
    assert difference == pytest.approx(measure_score(b).map50 - measure_score(a).map50)
    assert low < difference < high < 0
    a_low, a_high = map50_interval(a, 200)
    assert high - low < (a_high - a_low) / 2
    assert paired_difference(b, a, 200) == pytest.approx((-difference, -high, -low))


def test_no_ground_truth_gives_nan() -> None:
    nothing = [
        replace(each, truth_classes=each.truth_classes[:0], hits=each.hits & False) for each in make_matches(0, 5)
    ]
    for matches in ([], nothing):
        assert all(map(math.isnan, map50_interval(matches, 10)))
        assert all(map(math.isnan, paired_difference(matches, matches, 10)))


def test_resamples_without_ground_truth_are_left_out() -> None:
    one, *rest = make_matches(1, 3)
    matches = [replace(one, truth_classes=np.zeros(1, np.int64), hits=one.hits & False)]
    matches += [replace(each, truth_classes=each.truth_classes[:0], hits=each.hits & False) for each in rest]
    assert np.isnan(resample_map50(matches, 50)).any()
    assert map50_interval(matches, 50) == (0, 0)


def test_bad_settings_are_named() -> None:
    matches = make_matches(0, 5)
    with pytest.raises(ConfigError, match=r"^resamples: 0 is out of range"):
        map50_interval(matches, 0)
    with pytest.raises(ConfigError, match=r"^level: 95 is out of range"):
        map50_interval(matches, 10, level=95)
    for other in (matches[:4], matches[::-1]):
        with pytest.raises(DatasetError, match="not evaluated on the same images"):
            paired_difference(matches, other, 10)
