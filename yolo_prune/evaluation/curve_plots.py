"""Plot precision, recall and F1 of one or several models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yolo_prune.evaluation.evaluate import Evaluation
from yolo_prune.files import open_atomically
from yolo_prune.own_files import name_maker

PLAIN = ("-", "--", ":", "-.")
"""Line styles, so that overlapping lines of several models can be told apart."""


def draw_curves(path: Path, evaluations: Mapping[str, Evaluation]) -> Path:
    """Draw three panels into a PNG file, and return its path.

    Precision over recall, with the point of best F1, for all classes together. Precision, recall and F1 over the
    confidence threshold. Recall by the size of objects: pale for any detection, full for those at the best threshold.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    area, thresholds, sizes = figure.subplots(1, 3)
    bars = 0.8 / max(1, len(evaluations))
    for number, (name, evaluation) in enumerate(evaluations.items()):
        colour, line = f"C{number % 10}", PLAIN[number % len(PLAIN)]
        curve, score = evaluation.curve, evaluation.score
        low, high = evaluation.map50_interval
        label = f"{name}: mAP {score.map50:.3f} [{low:.3f}, {high:.3f}]"
        recalls = np.append(np.zeros_like(curve.recall[:1]), curve.recall)  # no point without detections
        area.plot(recalls, np.append(curve.precision[:1], curve.precision), line, color=colour, label=label)
        area.plot(score.recall, score.precision, "o", color=colour)
        thresholds.plot(
            curve.confidence, curve.f1, line, color=colour, label=f"{name}: F1 {score.f1:.3f} at {score.confidence:.2f}"
        )
        if len(evaluations) == 1:
            thresholds.plot(curve.confidence, curve.precision, "--", color="C1", label="precision")
            thresholds.plot(curve.confidence, curve.recall, ":", color="C2", label="recall")
        thresholds.plot(score.confidence, score.f1, "o", color=colour)
        places = np.arange(len(evaluation.size_recalls)) + (number - (len(evaluations) - 1) / 2) * bars
        sizes.bar(places, [one.recall for one in evaluation.size_recalls], bars, color=colour, alpha=0.35)
        sizes.bar(places, [one.recall_at_confidence for one in evaluation.size_recalls], bars, color=colour)
    area.set(
        title="precision over recall (point: best F1)", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02)
    )
    area.legend(loc="lower left", fontsize=8)
    title = "over the confidence threshold" if len(evaluations) == 1 else "F1 over the confidence threshold"
    thresholds.set(title=title, xlabel="confidence", xlim=(0, 1), ylim=(0, 1.02))
    thresholds.legend(loc="lower left" if len(evaluations) == 1 else "lower center", fontsize=8)
    bins = next(iter(evaluations.values())).size_recalls
    names = [f"{one.low_px:g}–{one.high_px:g}" if one.high_px < np.inf else f">= {one.low_px:g}" for one in bins]
    sizes.set_xticks(range(len(bins)), [f"{name}\n{one.instances}" for name, one in zip(names, bins, strict=True)])
    sizes.set(
        title="recall by size (full: at best F1, pale: any score)",
        xlabel="side √(w·h) of the object in px, and how many there are",
        ylabel="recall",
        ylim=(0, 1.02),
    )
    for axes in (area, thresholds, sizes):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata=name_maker(".png"))
    return path
