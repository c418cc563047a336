"""How sure an mAP is: percentile bootstrap over the pictures, for one model and for the difference of two.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.evaluation.average_precision import FloatArray, Matches, measure_map, rank

RESAMPLES = 1000
"""Bootstrap resamples."""

LEVEL = 0.95
"""The share of resamples that an interval holds."""


def resample_map50(matches: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """Return the mAP of each of (R,) resamples of the pictures, drawn with replacement.

    The draws depend on the seed and the number of pictures alone, so two models matched on the same pictures get the
    same ones. A resample without any ground truth gives nan.

    Raises:
        ConfigError: fewer than one resample.
    """
    if resamples < 1:
        raise ConfigError(f"{resamples} is out of range", where="resamples", right="give 1 or more")
    rankings, random, images = rank(matches), np.random.default_rng(seed), len(matches)
    if not rankings:
        return np.full(resamples, np.nan)
    draws = (np.bincount(random.integers(images, size=images), minlength=images) for _ in range(resamples))
    return np.array([measure_map(rankings, draw.astype(np.float64)) for draw in draws])


def map50_interval(
    matches: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Return the ends of the interval of the mAP; (nan, nan) where no picture has ground truth.

    Raises:
        ConfigError: fewer than one resample, or a level outside (0, 1).
    """
    return _measure_interval(resample_map50(matches, resamples, seed), level)


def paired_difference(
    a: Sequence[Matches], b: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float, float]:
    """Return how much the mAP of `b` exceeds that of `a`, and the ends of its interval, both resampled alike.

    Raises:
        DatasetError: `a` and `b` were not matched on the same pictures.
        ConfigError: fewer than one resample, or a level outside (0, 1).
    """
    alike = (np.array_equal(one.truth_classes, two.truth_classes) for one, two in zip(a, b, strict=False))
    if len(a) != len(b) or not all(alike):
        right = "evaluate both on the same split"
        raise DatasetError("two models were not evaluated on the same pictures", right=right)
    change = resample_map50(b, resamples, seed) - resample_map50(a, resamples, seed)
    return measure_map(rank(b)) - measure_map(rank(a)), *_measure_interval(change, level)


def _measure_interval(samples: FloatArray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ConfigError(f"{level} is out of range", where="level", right="give a number between 0 and 1")
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
