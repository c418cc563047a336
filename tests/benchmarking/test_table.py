from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from yolo_prune.benchmarking.latency import Latency
from yolo_prune.benchmarking.table import (
    RUINED_MARK,
    Row,
    Scores,
    find_ruined,
    format_conditions,
    format_markdown,
    format_rows,
    format_text,
)
from yolo_prune.commands.bench import BenchResult, load_bench
from yolo_prune.errors import OutputError
from yolo_prune.files import save_json

ORIGINAL = Row(
    name="Original",
    checkpoint="runs/train/best.pt",
    img_size=416,
    params=61_523_734,
    macs=32_644_775_424,
    flops=65_289_550_848,
    size_bytes=246_305_388,
    latency_ms=Latency(14.1, 15.0, 16.2),
    nms_ms=Latency(0.4, 0.5, 0.6),
    scores=Scores(0.7692, (0.74, 0.7961), None, 0.77, 0.41),
)
PRUNED = Row(
    name="Pruned",
    checkpoint="runs/prune/pruned.pt",
    img_size=416,
    params=6_152_373,
    macs=326_447_754,
    flops=652_895_508,
    size_bytes=24_630_539,
    latency_ms=Latency(7.0, 7.5, 8.0),
    nms_ms=Latency(0.1, 0.25, 0.3),
    scores=Scores(0.7722, (0.745, 0.799), (0.003, -0.0104, 0.0166), 0.77, 0.41),
)
ENVIRONMENT = {"batch_size": 1, "precision": "fp32", "engine": "folded", "runs": 30, "device": "a CPU", "threads": 2}


def test_times_of_several_batch_sizes_are_compared_by_image() -> None:
    twice = replace(ORIGINAL, batch_size=2, latency_ms=Latency(23.0, 24.0, 25.0))
    headings, *cells = format_rows([ORIGINAL, twice])
    assert headings == ("model", "batch", "params", "size", "FLOPs (MACs)", "inference/image", "mAP")
    assert [(line[1], line[5]) for line in cells] == [("1", "15.0ms"), ("2", "12.0ms (-20%)")]
    assert format_rows([twice, twice])[1][4] == "24.0ms"


def test_the_cells_of_a_hand_worked_table() -> None:
    assert format_rows([ORIGINAL, PRUNED]) == [
        ("model", "params", "size", "FLOPs (MACs)", "inference", "mAP"),
        ("Original", "61.5M", "246.3MB", "32.6B", "15.0ms", "0.7692 [0.740, 0.796]"),
        (
            "Pruned",
            "6.15M (-90%)",
            "24.6MB (-90%)",
            "326.4M (-99%)",
            "7.5ms (-50%)",
            "0.7722 [0.745, 0.799] (+0.0030 [-0.010, +0.017])",
        ),
    ]


def test_a_row_that_grew_says_so() -> None:
    _, _, cells = format_rows([PRUNED, replace(ORIGINAL, name="Grown", macs=PRUNED.macs)])
    assert cells[1:5] == ("61.5M (+900%)", "246.3MB (+900%)", "326.4M (+0%)", "15.0ms (+100%)")


def test_small_counts_and_missing_scores() -> None:
    small = replace(ORIGINAL, params=2_556, macs=1_250_000, scores=None)
    assert format_rows([small])[1] == ("Original", "2.6K", "246.3MB", "1.25M", "15.0ms", "–")
    nothing = Scores(float("nan"), (float("nan"),) * 2, None, float("nan"), float("nan"))
    assert format_rows([replace(ORIGINAL, scores=nothing)])[1][-1] == "no ground truth"


def test_text_stands_in_columns() -> None:
    head, rule, *lines = format_text([ORIGINAL, PRUNED]).splitlines()
    starts = [head.index(heading) for heading in ("model", "params", "size", "FLOPs", "inference", "mAP")]
    assert set(rule) == {"─"}
    for line, cells in zip(lines, format_rows([ORIGINAL, PRUNED])[1:], strict=True):
        assert [line[start : start + len(cell)] for start, cell in zip(starts, cells, strict=True)] == list(cells)


def test_markdown_has_the_same_cells() -> None:
    head, rule, *lines = format_markdown([ORIGINAL, PRUNED]).splitlines()
    assert rule == "| --- | --- | --- | --- | --- | --- |"
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in (head, *lines)]
    assert cells == format_rows([ORIGINAL, PRUNED])


def test_conditions_are_printed_once() -> None:
    text = format_conditions(ENVIRONMENT, [ORIGINAL, PRUNED], "test")
    for part in ("batch 1", "folded engine", "416 px", "30 interleaved runs on a CPU (2 threads)", "0.50, 0.25 ms"):
        assert text.count(part) == 1
    assert "multiply–accumulates" in text
    assert "on the test split" in text
    assert "mAP" not in format_conditions(ENVIRONMENT, [ORIGINAL], None)
    mixed = format_conditions(ENVIRONMENT, [ORIGINAL, replace(PRUNED, img_size=320)], None)
    assert "320 and 416 px" in mixed


def test_json_lays_scores_beside_the_rest() -> None:
    row = json.loads(json.dumps(PRUNED.as_dict()))
    assert row["map50"] == 0.7722
    assert row["map50_difference"] == [0.003, -0.0104, 0.0166]
    assert row["latency_ms"] == {"p5": 7.0, "p50": 7.5, "p95": 8.0}
    assert "scores" not in row
    assert replace(PRUNED, scores=None).as_dict().keys() == row.keys()
    assert replace(PRUNED, scores=None).as_dict()["coco_ap"] is None


RUINED = replace(PRUNED, name="Ruined", scores=Scores(0.0768, (0.05, 0.1), (-0.69, -0.73, -0.65), 0.08, 0.02))


@pytest.mark.parametrize(
    ("first", "map50", "is_ruined"),
    [
        (0.8, 0.0799, True),
        (0.8, 0.0801, False),
        (0.8, 0.0, True),
        (0.0, 0.0, False),
        (math.nan, 0.0, False),
        (0.8, math.nan, False),
    ],
)
def test_a_row_below_a_tenth_of_the_first_is_ruined(first: float, map50: float, is_ruined: bool) -> None:
    assert ORIGINAL.scores is not None
    assert PRUNED.scores is not None
    rows = [replace(ORIGINAL, scores=replace(ORIGINAL.scores, map50=first))]
    rows += [PRUNED, replace(PRUNED, name="Other", scores=replace(PRUNED.scores, map50=map50))]
    assert find_ruined(rows) == ([False, False, True] if is_ruined else [False, False, False])


def test_rows_without_scores_are_not_ruined() -> None:
    assert find_ruined([]) == []
    assert find_ruined([replace(ORIGINAL, scores=None), RUINED]) == [False, False]
    assert find_ruined([ORIGINAL, replace(PRUNED, scores=None)]) == [False, False]


@pytest.mark.parametrize("markdown", [False, True])
def test_a_ruined_row_is_marked_and_explained_below_the_table(markdown: bool) -> None:
    result = BenchResult((ORIGINAL, PRUNED, RUINED), ENVIRONMENT, "test")
    lines = result.format(markdown).splitlines()
    rows = lines[2:5]
    assert [RUINED_MARK in row for row in rows] == [False, False, True]
    assert f"0.0768 [0.050, 0.100] (-0.6900 [-0.730, -0.650]) {RUINED_MARK}" in rows[2]
    assert lines[5] == ""
    assert lines[6] == (
        f"{RUINED_MARK} Ruined: mAP is under a tenth of the first row's, as it stands the network is ruined; "
        "prune less, or finetune longer."
    )
    assert lines[7] == ""
    assert lines[8].startswith("Inference: ")
    assert RUINED_MARK not in BenchResult((ORIGINAL, PRUNED), ENVIRONMENT, "test").format(markdown)


def test_json_says_which_rows_are_ruined() -> None:
    result = BenchResult((ORIGINAL, PRUNED, RUINED), ENVIRONMENT, "test")
    assert [row["is_ruined"] for row in result.as_dict()["rows"]] == [False, False, True]
    assert result.as_dict()["advice"].endswith("is ruined; prune less, or finetune longer")
    assert BenchResult((ORIGINAL, PRUNED), ENVIRONMENT, "test").as_dict()["advice"] is None


def test_a_result_is_read_back_an_older_one_too(tmp_path: Path) -> None:
    result = BenchResult((ORIGINAL, PRUNED, RUINED), ENVIRONMENT, "test")
    path = save_json(tmp_path / "bench.json", result.as_dict())
    assert load_bench(path) == result
    older = json.loads(path.read_text())
    del older["advice"]
    for row in older["rows"]:
        for key in ("is_ruined", "file_bytes", "is_stored_sparse"):
            del row[key]
    assert load_bench(save_json(path, older)) == result
    del older["rows"][0]["params"]
    with pytest.raises(OutputError, match=r"bench.json: lacks rows\[0\].params; delete it and run again"):
        load_bench(save_json(path, older))
