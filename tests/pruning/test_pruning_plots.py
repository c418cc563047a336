"""A plan and a sensitivity table as plots: sizes, bars and their colours."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from networks import make_plan_at_random, make_small_network
from tiny import TINY_CFG

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.layers import Conv, Layer, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.images import read_image
from yolo_prune.errors import OutputError
from yolo_prune.pruning import plots
from yolo_prune.pruning.blocks import drop_blocks, find_blocks
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan, prune_network
from yolo_prune.pruning.plans.plan_file import BlockPlan
from yolo_prune.pruning.plots import ALONE, BEFORE, FROZEN, draw_plan, draw_sensitivity, name_layers
from yolo_prune.pruning.scores.sensitivity import GroupCurve, Sensitivity

TINY = parse_cfg(TINY_CFG)


def make_tiny_plan(*blocks: int) -> BlockPlan:
    """Return a plan that drops the channels 0 and 1 of every group."""
    chosen = tuple(block for block in find_blocks(TINY) if block.shortcut in blocks)
    graph = make_channel_graph(drop_blocks(TINY, chosen))
    keep = np.ones(graph.size, dtype=bool)
    for group in graph.groups:
        keep[group.ids[:2]] = group.frozen
    return BlockPlan(chosen, Plan(keep))


def make_table(rows: int, columns: int, metric: str = "map50") -> Sensitivity:
    ratios = tuple((column + 1) / (columns + 1) for column in range(columns))
    groups = tuple(GroupCurve((row,), 64, tuple(0.7 - row / rows * ratio for ratio in ratios)) for row in range(rows))
    return Sensitivity("", metric, "bn-gamma", "mean", ratios, 0.7, groups)


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that draws and gives back the figure instead of writing it."""

    def draw(what: Any, *arguments: Any) -> Figure:
        drawn: list[Figure] = []
        monkeypatch.setattr(plots, "_save", lambda path, figure: drawn.append(figure))
        what(Path(), *arguments)
        return drawn[0]

    return draw


def read_bars(drawn: Figure) -> list[list[tuple[str, float]]]:
    """Return for every place on the axis the colours and heights of its bars."""
    bars: dict[float, list[tuple[str, float]]] = {}
    for bar in drawn.axes[0].patches:
        x, _ = bar.get_xy()  # type: ignore[attr-defined]  # bars are rectangles
        colour = "cut" if bar.get_hatch() else to_hex(bar.get_facecolor())
        bars.setdefault(round(x, 3), []).append((colour, bar.get_height()))  # type: ignore[attr-defined]  # the same
    return [bars[x] for x in sorted(bars)]


def read_names(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_bars_are_filters_before_and_after(figure: Any) -> None:
    drawn = figure(draw_plan, TINY, make_tiny_plan())
    bars = read_bars(drawn)
    assert [[height for _, height in place] for place in bars] == [[8, 6], [8, 6], [4, 2], [8, 6], [16, 14], [12, 12]]
    assert {place[0][0] for place in bars} == {to_hex(BEFORE)}
    alone, one, _, other, _, head = (place[1][0] for place in bars)
    assert alone == bars[2][1][0] == bars[4][1][0] == to_hex(ALONE)
    assert one == other
    assert head == to_hex(FROZEN)
    assert len({alone, one, head, to_hex(BEFORE)}) == 4
    axes = drawn.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3", "5", "6"]
    assert [text.get_text() for text in axes.texts] == ["6", "6", "2", "6", "14", "12"]
    assert axes.get_title() == "46 of 56 filters stay"
    assert read_names(drawn) == ["before", "after", "detection head", "tied: 1, 3"]


def test_a_cut_block_is_hatched_and_shows_no_count(figure: Any) -> None:
    drawn = figure(draw_plan, TINY, make_tiny_plan(4))
    bars = read_bars(drawn)
    assert bars[2:4] == [[("cut", 4)], [("cut", 8)]]
    assert [len(place) for place in bars] == [2, 2, 1, 1, 2, 2]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["6", "6", "14", "12"]
    assert read_names(drawn) == ["before", "after", "detection head", "cut block"]  # nothing is tied any more


def make_tied_network(groups: int) -> Network:
    layers: list[Layer] = []
    for _ in range(groups):
        layers += [Conv(6, 3, padding=1), Conv(6, 1), Shortcut(len(layers), "linear")]
    return make_small_network(*layers)


@pytest.mark.parametrize("count", [1, 2, 5, 9, 10, 24])
def test_tied_groups_differ_in_colour(figure: Any, count: int) -> None:
    network = make_tied_network(count)
    plan = make_plan_at_random(make_channel_graph(network), 0)
    drawn = figure(draw_plan, network, BlockPlan((), plan))
    colours = [place[1][0] for place in read_bars(drawn)]
    assert colours[0:-1:2] == colours[1:-1:2]
    assert len({*colours, to_hex(BEFORE), to_hex(ALONE)}) == count + 3
    assert read_names(drawn)[3:] == [f"tied: {3 * group}, {3 * group + 1}" for group in range(count)]


@pytest.mark.parametrize("arch", ["yolov3", "yolov4"])
def test_nothing_leaves_the_figure(figure: Any, arch: str) -> None:
    """Names, numbers and the legend lie within it, and upright numbers do not touch their neighbours."""
    network = make_network(arch, width=0.1)
    blocks = find_blocks(network)[::5]
    plan = make_plan_at_random(make_channel_graph(drop_blocks(network, blocks)), 3)
    drawn = figure(draw_plan, network, BlockPlan(blocks, plan))
    drawn.draw_without_rendering()
    width, height = drawn.bbox.width, drawn.bbox.height
    axes = drawn.axes[0]
    boxes = [text.get_window_extent() for text in (*axes.get_xticklabels(), *axes.texts, axes.title)]
    for box in (*boxes, drawn.legends[0].get_window_extent()):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for texts in (axes.get_xticklabels(), axes.texts):
        spans = sorted((text.get_window_extent().x0, text.get_window_extent().x1) for text in texts)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    slim = prune_network(drop_blocks(network, blocks), plan)
    assert [int(text.get_text()) for text in axes.texts] == [conv.filters for _, conv in slim.convs]


def test_a_plan_is_a_png_of_sensible_size(tmp_path: Path) -> None:
    path = draw_plan(tmp_path / "new/plan.png", TINY, make_tiny_plan())
    assert path.read_bytes().startswith(b"\x89PNG")
    image = read_image(path)
    assert image.shape == (504, 960, 3)
    assert (image == (0x1F, 0x77, 0xB4)).all(axis=2).sum() > 1000  # the tied group's bars
    assert [file.name for file in path.parent.iterdir()] == ["plan.png"]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (49, 4), (12, 9)])
def test_a_table_is_a_png_of_sensible_size(tmp_path: Path, rows: int, columns: int) -> None:
    height, width, _ = read_image(draw_sensitivity(tmp_path / "a.png", make_table(rows, columns))).shape
    assert 28 * rows < height < 28 * rows + 300
    assert 90 * columns < width < 90 * columns + 500


def test_a_table_s_cells_are_its_damages(figure: Any) -> None:
    table = make_table(12, 4)
    table = replace(table, groups=(*table.groups[:-1], GroupCurve((1, 3, 5, 7, 9), 8, (0.7,) * 4)))
    drawn = figure(draw_sensitivity, table)
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    damages = [table.measure_damages(curve) for curve in table.groups]
    assert [text.get_text() for text in axes.texts] == [f"{one:.3f}" for row in damages for one in row]
    assert np.asarray(axes.images[0].get_array()).tolist() == np.array(damages).tolist()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [*(f"{row} (64)" for row in range(11)), "1 … 9, 5 layers (8)"]
    assert axes.get_title() == "AP50 lost, bn-gamma; whole: 0.7000"
    for text in (*axes.get_yticklabels(), axes.yaxis.label, axes.title):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y1 <= drawn.bbox.height
    assert {text.get_color() for text in axes.texts} == {"black", "white"}


def test_a_table_of_no_damage_is_drawn(figure: Any) -> None:
    table = Sensitivity("", "loss", "l1", "mean", (0.5,), 1.0, (GroupCurve((0,), 8, (1.0,)),))
    axes = figure(draw_sensitivity, table).axes[0]
    assert axes.texts[0].get_text() == "0.000"
    assert axes.get_title() == "loss gained, l1; whole: 1.0000"


def test_the_worst_loss_fits_its_cell(figure: Any) -> None:
    table = Sensitivity("", "loss", "l1", "mean", (0.5,), 1.0, (GroupCurve((0,), 8, (float("nan"),)),))
    assert figure(draw_sensitivity, table).axes[0].texts[0].get_text() == "1e+06"


@pytest.mark.parametrize(
    ("layers", "name"), [((3,), "3"), ((1, 3), "1, 3"), ((1, 2, 3, 4), "1, 2, 3, 4"), ((1, 3, 5, 7, 9), "1 … 9, 5 layers")]
)  # fmt: skip
def test_a_group_is_named_in_few_letters(layers: tuple[int, ...], name: str) -> None:
    assert name_layers(layers) == name


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"plan\.png: cannot be written"):
        draw_plan(tmp_path / "file/plan.png", TINY, make_tiny_plan())
