"""The parts of the page, from plain data: figures, sentences, tables and plots."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from yolo_prune.benchmarking.latency import Latency
from yolo_prune.benchmarking.table import Row, Scores
from yolo_prune.evaluation.classes.scores import ClassScore
from yolo_prune.report.data import (
    CurvePoint,
    LayerTime,
    LayerWidth,
    Report,
    ScoreCurve,
    ShortcutGroup,
    Stage,
)
from yolo_prune.report.layer_plots import make_groups_table, make_times, make_widths
from yolo_prune.report.page import render
from yolo_prune.report.plots import make_frontier, make_precision_recall
from yolo_prune.report.summary import Figure, judge, list_figures
from yolo_prune.report.tables import Cell, make_class_table, make_results_table
from yolo_prune.report.training_plots import make_gamma_plots, make_training_plots
from yolo_prune.report.vega import pick_colours
from yolo_prune.training.report import BINS, count_gammas

NAN = float("nan")
ORIGINAL = Row(
    name="Original",
    checkpoint="runs/train/best.pt",
    img_size=416,
    params=60_000_000,
    macs=32_000_000_000,
    flops=64_000_000_000,
    size_bytes=240_000_000,
    latency_ms=Latency(14.0, 15.0, 16.0),
    nms_ms=Latency(0.4, 0.5, 0.6),
    scores=Scores(0.75, (0.70, 0.80), None, 0.77, 0.41),
    engine="folded",
    precision="fp32",
    threads=1,
)
PRUNED = replace(
    ORIGINAL,
    name="Pruned",
    params=6_000_000,
    macs=8_000_000_000,
    size_bytes=24_000_000,
    latency_ms=Latency(5.0, 6.0, 7.0),
    scores=Scores(0.745, (0.69, 0.79), (-0.005, -0.014, 0.004), 0.77, 0.41),
)
ENVIRONMENT = {
    "batch_size": [1],
    "precision": "fp32",
    "engine": "folded",
    "runs": 30,
    "device": "a CPU",
    "threads": [1],
}


def make_report(*rows: Row) -> Report:
    stages = tuple(Stage(row.name, "train", row.checkpoint, "0" * 64, "", "", "", "") for row in rows)
    return Report("A report", "2026-01-02", "1.0", rows, ENVIRONMENT, "test", 400, 600, stages)


def test_the_figures_are_changes_from_the_first_row_to_the_last() -> None:
    figures = list_figures(make_report(ORIGINAL, PRUNED))
    assert figures[0] == Figure("Parameters", "−90%", ("60.0M → 6.00M",))
    assert [figure.change for figure in figures] == ["−90%", "−75%", "−90%", "−60%", "−0.005"]
    assert figures[-1].notes == ("0.750 → 0.745", "95 % interval [−0.014, +0.004]")


def test_one_row_has_values_alone() -> None:
    report = make_report(ORIGINAL)
    assert [figure.change for figure in list_figures(report)] == ["60.0M", "32.0B", "240.00 MB", "15.00 ms", "0.750"]
    assert judge(report) == ""


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-0.014, 0.004), "no difference in detection is shown: the 95 % interval of the difference contains 0. It excludes a loss of more than 0.014."),
        ((0.001, 0.02), "the last network detects better than the first"),
        ((-0.03, -0.01), "the last network detects worse than the first"),
    ],
)  # fmt: skip
def test_the_verdict_is_what_the_interval_shows(interval: tuple[float, float], said: str) -> None:
    row = replace(PRUNED, scores=replace(ORIGINAL.scores, map50_difference=(0.0, *interval)))  # type: ignore[type-var]
    assert said in judge(make_report(ORIGINAL, row))


def test_cells_are_sorted_by_their_values() -> None:
    table = make_results_table([ORIGINAL, PRUNED])
    assert table.headings == ("model", "params", "size", "FLOPs (MACs)", "inference", "mAP")
    assert table.rows[1][1] == Cell("6.00M", "(−90%)", 6_000_000)
    assert table.rows[1][5] == Cell("0.7450", "[0.690, 0.790] (−0.0050 [−0.014, +0.004])", 0.745)
    blank = replace(PRUNED, scores=Scores(NAN, (NAN, NAN), (NAN, NAN, NAN), NAN, NAN))
    assert make_results_table([blank]).rows[0][5] == Cell("no ground truth", value=-1.0)
    assert make_results_table([replace(PRUNED, scores=None)]).rows[0][5] == Cell("–", value=-1.0)


def test_the_frontier_has_a_point_and_intervals_for_each_row() -> None:
    params, _, latency = make_frontier(make_report(ORIGINAL, PRUNED, replace(PRUNED, name="Finetuned")))
    data = [layer["data"]["values"][0] for layer in params.spec["layer"]]
    assert [(one["name"], one["x"], one["low"], one["high"]) for one in data[::2]] == [
        ("Original", 60.0, 0.7, 0.8),
        ("Pruned", 6.0, 0.69, 0.79),
        ("Finetuned", 6.0, 0.69, 0.79),
    ]
    shifts = [layer["mark"]["xOffset"] for layer in params.spec["layer"][::2]]
    assert shifts[0] == 0
    assert shifts[1] == -shifts[2] != 0
    assert {(one["from"], one["to"]) for one in (layer["data"]["values"][0] for layer in latency.spec["layer"])} == {
        (14.0, 16.0),
        (5.0, 7.0),
    }
    assert make_frontier(make_report(replace(ORIGINAL, scores=None))) == []


def test_grey_is_the_first_model_and_the_accent_the_last() -> None:
    assert pick_colours(1) == ["var(--accent)"]
    assert pick_colours(2) == ["var(--before)", "var(--accent)"]
    assert len(set(pick_colours(5))) == 5


def test_channels_and_groups() -> None:
    widths = (
        LayerWidth(0, 32, 8, ""),
        LayerWidth(1, 64, 16, "A"),
        LayerWidth(3, 64, 16, "A"),
        LayerWidth(5, 16, 0, ""),
    )
    groups = (ShortcutGroup("A", (1, 3)),)
    plot = make_widths(widths, groups)
    values = plot.spec["data"]["values"]
    assert [one["left"] for one in values] == ["32 → 8 (-75%)", "64 → 16 (-75%)", "64 → 16 (-75%)", "16 → 0 (-100%)"]
    assert [one["tied"] for one in values] == ["–", "1, 3", "1, 3", "–"]
    assert plot.description == "176 channels of 4 convolutions before, 40 after."
    assert [cell.text for cell in make_groups_table(widths, groups).rows[0]] == ["A", "1, 3", "64 → 16 (-75%)"]
    alone = make_widths((LayerWidth(0, None, 8, ""),), ())
    assert alone.description == "8 channels of 1 convolution."


def test_times_of_one_network_and_of_two() -> None:
    both = make_times((LayerTime(0, "conv", 2.0, 1.0), LayerTime(1, "add", 0.5, None)))
    assert both.description == "All layers together: 2.50 ms before, 1.00 ms after."
    assert [(one["layer"], one["when"]) for one in both.spec["data"]["values"]] == [
        (0, "before"),
        (0, "after"),
        (1, "before"),
    ]
    assert make_times((LayerTime(0, "conv", None, 1.0),)).description == "All layers together: 1.00 ms."


def test_gammas_below_the_threshold_are_counted_as_training_counts_them() -> None:
    epochs = [np.full(10, 0.5), np.array([0.0, 1e-7, 0.003, 0.0099, *[0.5] * 6])]
    stage = replace(make_report(ORIGINAL).stages[0], gammas=tuple(tuple(count_gammas(one)) for one in epochs))
    assert len(stage.gammas[0]) == BINS
    (plot,) = make_gamma_plots([stage])
    assert [cell.text for row in plot.table.rows for cell in row] == ["1", "0.0%", "2", "40.0%"]  # type: ignore[union-attr]
    assert sum(one["share"] for one in plot.spec["layer"][0]["data"]["values"] if one["epoch"] == 2) == pytest.approx(1)


def test_a_long_training_is_thinned_out() -> None:
    stage = replace(make_report(ORIGINAL).stages[0], gammas=tuple(tuple(count_gammas(np.ones(4))) for _ in range(500)))
    (plot,) = make_gamma_plots([stage])
    values = plot.spec["layer"][0]["data"]["values"]
    assert len(values) == 60
    assert (values[0]["from"], values[-1]["to"]) == (0.5, 500.5)
    assert all(before["to"] == after["from"] for before, after in pairwise(values))


def test_epochs_without_a_validation_leave_gaps_and_no_zeros() -> None:
    epochs = ({"epoch": 1.0, "loss": 3.0, "val_map50": None}, {"epoch": 2.0, "loss": 2.0, "val_map50": 0.5})
    stages = [replace(make_report(ORIGINAL).stages[0], epochs=epochs)]
    loss, score = make_training_plots(stages, ["Original"])
    assert len(loss.spec["data"]["values"]) == 2
    assert [one["value"] for one in score.spec["data"]["values"]] == [0.5]
    unscored = [replace(stages[0], epochs=epochs[:1])]
    assert [plot.key for plot in make_training_plots(unscored, ["Original"])] == ["loss"]


def test_the_table_of_a_curve_reads_the_first_threshold_that_reaches_a_recall() -> None:
    points = (CurvePoint(0.15, 1.0, 0.9), CurvePoint(0.2, 0.8, 0.8), CurvePoint(0.55, 0.6, 0.1))
    table = make_precision_recall([ScoreCurve("A", points, points[1], 0.32)]).table
    assert table is not None
    assert [row[1].text for row in table.rows][:7] == [
        "1.000",
        "1.000",
        "0.800",
        "0.600",
        "0.600",
        "0.600",
        "not reached",
    ]


def test_a_class_table_has_the_change_from_the_first_model_to_the_last() -> None:
    def give(row: Row, *ap50: float) -> Row:
        classes = tuple(ClassScore(f"class {own}", 3 - own, ap, 0.5, 0.5) for own, ap in enumerate(ap50))
        return replace(row, scores=replace(row.scores, classes=classes))  # type: ignore[type-var]

    middle = replace(PRUNED, name="Middle")
    table = make_class_table(
        [give(ORIGINAL, 0.5, 0.4, 0.1, NAN), give(middle, *[0.1] * 4), give(PRUNED, 0.75, 0.3, 0.1, NAN)]
    )
    assert table is not None
    assert table.headings == ("class", "objects", "Original", "Middle", "Pruned", "change")
    assert [row[-1] for row in table.rows] == [
        Cell("+0.2500", value=0.25),
        Cell("−0.1000", value=0.3 - 0.4),
        Cell("+0.0000", value=0.0),
    ]
    assert [row[1].value for row in table.rows] == [3, 2, 1]
    assert make_class_table([give(ORIGINAL, 0.5)]) is None
    assert make_class_table([replace(ORIGINAL, scores=None)]) is None


def test_a_page_without_anything_says_so() -> None:
    reasons = {
        name: f"No {name}." for name in ("widths", "times", "gammas", "epochs", "curves", "comparisons", "mistakes")
    }
    blank = replace(make_report(replace(ORIGINAL, scores=None)), split=None, images=0, objects=0, reasons=reasons)
    text = render(blank)
    for reason in reasons.values():
        assert reason in text
    assert "data-plot" not in text.partition("<script")[0]


def test_a_json_value_cannot_end_its_script() -> None:
    name = "</script><script>alert(1)</script>"
    text = render(make_report(ORIGINAL, replace(PRUNED, name=name)))
    assert text.count("<script") == 3
    assert name not in text
    assert "\\u003c/script\\u003e" in text
