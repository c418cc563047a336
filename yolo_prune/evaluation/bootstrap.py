"""The uncertainty of an mAP: percentile bootstrap over the images, for one model and for the difference of two.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from yolo_prune.arrays import Float64Array
from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.evaluation.average_precision import Ranking, measure_map, rank
from yolo_prune.evaluation.matching import Matches

RESAMPLES = 1000
"""Number of bootstrap resamples."""

LEVEL = 0.95
"""The share of resamples that an interval contains."""

BLOCK = 1 << 24
"""Approximate limit of the numbers of a resampled ranking that are in memory at once."""


def resample_map50(matches: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0) -> Float64Array:
    """Return the mAP of R resamples of the images, drawn with replacement, as (R,).

    The draws depend only on the seed and the number of images, so two models matched on the same images get the same
    ones. A resample without any ground truth gives nan.

    Raises:
        ConfigError: fewer than one resample.
    """
    if resamples < 1:
        raise ConfigError(f"{resamples} is out of range", where="resamples", right="give 1 or more")
    rankings, random, images = rank(matches), np.random.default_rng(seed), len(matches)
    if not rankings:
        return np.full(resamples, np.nan)
    draws = np.empty((images, resamples))
    for resample in range(resamples):
        draws[:, resample] = np.bincount(random.integers(images, size=images), minlength=images)
    values = np.stack([resample_ap(ranking, draws) for ranking in rankings.values()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample without ground truth has no mean
        return np.asarray(np.nanmean(values, axis=0))


def resample_ap(ranking: Ranking, draws: Float64Array) -> Float64Array:
    """Return the AP of a class in each of R resamples, the columns of `draws` (I, R); nan for one without ground truth.

    A column holds how often each image counts. Precision is needed only at the hits, so the detections between one hit
    and the next are summed with a sparse matrix of hits and images, for all draws at once.
    """
    positives = ranking.positives @ draws
    ends = np.flatnonzero(ranking.hits)
    if not len(ends):
        return np.where(positives > 0, 0.0, np.nan)
    upto = int(ends[-1]) + 1
    rows = np.searchsorted(ends, np.arange(upto))
    steps = csr_array((np.ones(upto), (rows, ranking.images[:upto])), shape=(len(ends), len(draws)))
    area = np.empty_like(positives)
    width = max(1, BLOCK // len(ends))
    for start in range(0, draws.shape[1], width):
        part = np.ascontiguousarray(draws[:, start : start + width])
        found, seen = part[ranking.images[ends]], (steps @ part).cumsum(axis=0)
        precision = np.divide(found.cumsum(axis=0), seen, out=np.zeros_like(seen), where=seen > 0)
        area[start : start + width] = (found * np.maximum.accumulate(precision[::-1])[::-1]).sum(axis=0)
    return np.divide(area, positives, out=np.full_like(area, np.nan), where=positives > 0)


def map50_interval(
    matches: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Return the ends of the interval of the mAP; (nan, nan) if no image has ground truth.

    Raises:
        ConfigError: fewer than one resample, or a level outside (0, 1).
    """
    return _measure_interval(resample_map50(matches, resamples, seed), level)


def paired_difference(
    a: Sequence[Matches], b: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float, float]:
    """Return the mAP of `b` minus that of `a`, and the ends of its interval, with the same resamples for both.

    Raises:
        DatasetError: `a` and `b` were not matched on the same images.
        ConfigError: fewer than one resample, or a level outside (0, 1).
    """
    alike = (np.array_equal(one.truth_classes, two.truth_classes) for one, two in zip(a, b, strict=False))
    if len(a) != len(b) or not all(alike):
        right = "evaluate both on the same split"
        raise DatasetError("two models were not evaluated on the same images", right=right)
    change = resample_map50(b, resamples, seed) - resample_map50(a, resamples, seed)
    return measure_map(rank(b)) - measure_map(rank(a)), *_measure_interval(change, level)


def _measure_interval(samples: Float64Array, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ConfigError(f"{level} is out of range", where="level", right="give a number between 0 and 1")
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
