"""The sentences and figures at the top of the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from yolo_prune.benchmarking.table import Row
from yolo_prune.report.data import Report
from yolo_prune.text_tables import format_count, pluralize


@dataclass(frozen=True)
class Figure:
    """A figure at the top: the change, and below it the two values that it is of, and its interval."""

    title: str
    change: str
    notes: tuple[str, ...] = ()


def list_figures(report: Report) -> list[Figure]:
    """Return the changes from the first row to the last; of one row alone its values."""
    first, last = report.rows[0], report.rows[-1]
    costs = (
        ("Parameters", first.params, last.params, format_count),
        ("MACs", first.macs, last.macs, format_count),
        ("Size", first.size_bytes, last.size_bytes, lambda value: f"{value / 1e6:.2f} MB"),
        ("Latency", first.image_ms, last.image_ms, lambda value: f"{value:.2f} ms"),
    )
    figures = [
        Figure(title, show(after))
        if first is last
        else Figure(title, f"{after / before - 1:+.0%}".replace("-", "−"), (f"{show(before)} → {show(after)}",))
        for title, before, after, show in costs
    ]
    return [*figures, *_list_scores(first, last)]


def _list_scores(first: Row, last: Row) -> list[Figure]:
    if last.scores is None or math.isnan(last.scores.map50):
        return []
    score = last.scores.map50
    if last.scores.map50_difference is None or first.scores is None:
        low, high = last.scores.map50_interval
        return [Figure("mAP", f"{score:.3f}", (f"95 % interval [{low:.3f}, {high:.3f}]",))]
    change, low, high = last.scores.map50_difference
    interval = f"95 % interval [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    return [Figure("mAP", f"{change:+.3f}".replace("-", "−"), (f"{first.scores.map50:.3f} → {score:.3f}", interval))]


def judge(report: Report) -> str:
    """Say what the interval of the difference in mAP shows; empty where there is none."""
    scores = report.rows[-1].scores
    if scores is None or scores.map50_difference is None:
        return ""
    _, low, high = scores.map50_difference
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    images = f"{pluralize(report.images, 'image')} of the {report.split} split"
    if low > 0:
        return f"On {images} the last network detects better than the first: the 95 % interval of the difference lies above 0."
    if high < 0:
        return f"On {images} the last network detects worse than the first: the 95 % interval of the difference lies below 0."
    return (
        f"On {images} no difference in detection is shown: the 95 % interval of the difference contains 0. "
        f"It excludes a loss of more than {-low:.3f}."
    )


def describe_models(report: Report) -> str:
    """Return the files that the page compares, in a line."""
    paths = list(dict.fromkeys(row.checkpoint for row in report.rows))
    ends = paths if len(paths) < 2 else [paths[0], paths[-1]]
    return " → ".join(_shorten(path) for path in ends)


def _shorten(path: str) -> str:
    """Return the last three parts of a path."""
    return str(Path(*Path(path).parts[-3:]))
