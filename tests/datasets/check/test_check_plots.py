"""The contact sheet shows the right images with the right boxes, and the plots bear any data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from yolo_prune.datasets.check import plots as check_plots
from yolo_prune.datasets.check.issues import Issue
from yolo_prune.datasets.check.plots import COLUMNS, ROWS, pick_images, save_box_plots, save_contact_sheet
from yolo_prune.datasets.check.scan import Content, Labels, ScannedImage, read_content, read_labels
from yolo_prune.datasets.check.statistics import collect_figures
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.labels import LabelLines
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import OutputError
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.previews import draw_detections, make_side_by_side

TILE = check_plots._TILE_PX
NO_LINES = LabelLines(np.zeros(0, np.int64), np.zeros((0, 5)), ())
NO_LABELS = Labels(NO_LINES, NO_LINES, is_missing=True, issues=())


def make(name: str, *splits: str) -> ScannedImage:
    return ScannedImage(Sample(Path(name), Path(name)), splits, Issue("unreadable_image", name, "no image"), NO_LABELS)


@given(st.lists(st.sampled_from([("train",), ("val",), ("test",), ("train", "val")]), max_size=60), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_images_are_spread_evenly_over_the_splits(splits: list[tuple[str, ...]], wanted: int) -> None:
    images = [make(str(number), *own) for number, own in enumerate(splits)]
    names = ("train", "val", "test")
    chosen = pick_images(images, names, wanted)
    counts = {name: sum(split == name for split, _ in chosen) for name in names}
    has = {name: sum(name in own for own in splits) for name in names}
    assert sum(counts.values()) == min(wanted, sum(has.values()))
    assert [split for split, _ in chosen] == sorted((split for split, _ in chosen), key=names.index)
    for name in names:
        places = [int(image.sample.image.name) for split, image in chosen if split == name]
        assert places == sorted(set(places))
        assert all(name in splits[place] for place in places)
        if counts[name] < has[name]:  # it has more than its share, so no other split has got more than one above it
            assert max(counts.values()) <= counts[name] + 1


def test_picked_images_lie_evenly() -> None:
    images = [make(str(number), "train") for number in range(100)]
    chosen = [int(image.sample.image.name) for _, image in pick_images(images, ["train"], 8)]
    assert chosen == [0, 12, 25, 37, 50, 62, 75, 87]


def draw_image(folder: Path, labels: str, ignored: str = "", size: tuple[int, int] = (300, 200)) -> ScannedImage:
    sample = Sample(folder / "an image with a name that is much too long for its tile.png", folder / "a.txt")
    Image.new("RGB", size, (90, 60, 30)).save(sample.image)
    sample.label.write_text(labels)
    sample.ignored.write_text(ignored)
    content = read_content(sample.image)
    assert isinstance(content, Content)
    return ScannedImage(sample, ("train",), content, read_labels(sample, 3))


def test_boxes_are_drawn_where_the_labels_say(tmp_path: Path) -> None:
    image = draw_image(tmp_path, "0 .25 .5 .3 .6\n2 .7 .5 .2 .2\n", "1 .5 .1 .4 .1\n")
    tile = np.asarray(check_plots._draw_tile(image)).astype(int)
    scale, top = TILE / 300, (TILE - round(200 * TILE / 300)) // 2
    for colour, (x1, y1, x2, y2) in (
        (check_plots._make_colour(0), (30, 40, 120, 160)),
        (check_plots._make_colour(2), (180, 80, 240, 120)),
        (check_plots._IGNORED, (90, 10, 210, 30)),
    ):
        ys, xs = np.nonzero((tile == colour).all(axis=2))
        found = xs.min(), ys.min() - top, xs.max() + 1, ys.max() + 1 - top
        assert np.abs(np.array(found) - np.array((x1, y1, x2, y2)) * scale).max() <= 1.5
        inside = tile[top + round((y1 + y2) / 2 * scale), round((x1 + x2) / 2 * scale)]
        assert abs(inside - (90, 60, 30)).max() <= 2
    ignored = (tile == check_plots._IGNORED).all(axis=2).sum()
    assert ignored < 0.7 * 2 * 2 * (120 + 20) * scale, "the line of ignored boxes is not dashed"


def test_boxes_at_the_edge_and_the_smallest_ones_are_drawn(tmp_path: Path) -> None:
    image = draw_image(tmp_path, "0 .5 .5 1 1\n1 .001 .001 .001 .001\n2 .999 .999 .001 .002\n", size=(200, 200))
    tile = np.asarray(check_plots._draw_tile(image)).astype(int)
    for number in range(3):
        assert (tile == check_plots._make_colour(number)).all(axis=2).any()


def test_boxes_that_count_lie_over_ignored_ones(tmp_path: Path) -> None:
    """Where a large box and a small ignored one share their left edges, that of the large one is seen unbroken."""
    image = draw_image(tmp_path, "0 .5 .5 .8 .8\n", "0 .2 .5 .2 .2\n", size=(200, 200))
    tile = np.asarray(check_plots._draw_tile(image)).astype(int)
    assert (tile[TILE // 10 + 3 : TILE - TILE // 10 - 3, round(TILE * 0.1)] == check_plots._make_colour(0)).all()


def test_neighbouring_classes_have_colours_that_differ() -> None:
    colours = np.array([check_plots._make_colour(number) for number in range(6)])
    gaps = np.abs(colours[:, None] - colours).sum(axis=2) + 999 * np.eye(6, dtype=int)
    assert gaps.min() > 100


def test_names_are_shortened_in_their_middle() -> None:
    font = check_plots._make_font(13)
    assert check_plots._shorten("000001.jpg", font, TILE) == "000001.jpg"
    short = check_plots._shorten("a_very_long_name_" * 5 + "17.jpg", font, TILE)
    assert font.getlength(short) <= TILE
    assert short.startswith("a_very_long")
    assert "…" in short
    assert short.endswith("17.jpg")


def test_a_contact_sheet_has_a_tile_for_every_image(tmp_path: Path) -> None:
    image = draw_image(tmp_path, "0 .5 .5 .5 .5\n")
    names = [f"class number {number}" for number in range(40)]
    path = save_contact_sheet(
        tmp_path / "new" / "sheet.png", [image] * 10 + [make("b", "val")], ["train", "val"], names
    )
    sheet = read_image(path)
    step = TILE + check_plots._GAP_PX
    assert sheet.shape[1] == COLUMNS * step + check_plots._GAP_PX
    assert sheet.shape[0] == check_plots._HEAD_PX + 2 * (step + check_plots._CAPTION_PX)
    x, y = check_plots._GAP_PX + 2 * step, check_plots._HEAD_PX + step + check_plots._CAPTION_PX
    assert (sheet[y + 2, x + 2] == check_plots._EMPTY).all()  # the image that cannot be read
    assert (sheet[y + 2, x + step + 2] == check_plots._PAPER).all()  # past the last
    assert (sheet[:, -check_plots._GAP_PX :] == check_plots._PAPER).all(), "something reaches over the edge"
    many = save_contact_sheet(tmp_path / "many.png", [image] * 99, ["train"], ["hand"])
    assert read_image(many).shape[0] == check_plots._HEAD_PX + ROWS * (step + check_plots._CAPTION_PX)


@pytest.mark.parametrize("img_size", [32, 2048])
def test_plots_bear_any_data(tmp_path: Path, img_size: int) -> None:
    lines = "".join(f"0 {x:.2f} .5 .02 .9\n" for x in np.linspace(0.1, 0.9, 14))
    image, unreadable = draw_image(tmp_path, lines), make("b", "val")
    for images, splits in (([image, unreadable], ["train", "val"]), ([unreadable], ["val"])):
        path = save_box_plots(tmp_path / "boxes.png", collect_figures(images, splits, img_size), img_size)
        plots = read_image(path)
        assert plots.shape == (850, 1200, 3)
        assert len(np.unique(plots)) > 10


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    image = draw_image(tmp_path, "0 .5 .5 .5 .5\n")
    with pytest.raises(OutputError, match="cannot be written"):
        save_contact_sheet(tmp_path / "in_the_way" / "a.png", [image], ["train"], ["hand"])


def test_a_dashed_box_has_gaps_on_all_sides() -> None:
    tile = Image.new("RGB", (60, 50))
    check_plots._draw_box(ImageDraw.Draw(tile), (5, 5, 54, 44), (255, 0, 0), is_dashed=True)
    red = np.asarray(tile)[..., 0] == 255
    for side in (red[5], red[44], red[:, 5], red[:, 54]):
        assert 0.3 < side[5:45].mean() < 0.7


ODD_NAMES = [
    "a\rb",
    "a\nb",
    "a\tb",
    "a\0b",
    "a\x85b",
    "\x1b[31m",
    "\u2028",
    "\u202e",
    "\udcff",
    "\ufeff",
    "手",
    "x" * 2000,
    " ",
    "",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_class_name_and_file_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    scanned = draw_image(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    if name.strip() and "\0" not in name and len(name) < 100:
        image = scanned.sample.image.rename(tmp_path / f"{name}.png")
        scanned = replace(scanned, sample=replace(scanned.sample, image=image))
    path = save_contact_sheet(tmp_path / "sheet.png", [scanned], ["train"], [name])
    assert read_image(path).shape[2] == 3
    found = make_detections([[2, 2, 20, 20]], [0.9], [0])
    drawn = draw_detections(np.zeros((40, 40, 3), np.uint8), found, [name])
    assert make_side_by_side([(name, [drawn])]).any()


def test_of_very_many_boxes_the_largest_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(check_plots, "_draw_box", lambda draw, box, colour, dashed: drawn.append(box))
    monkeypatch.setattr(check_plots, "MOST_DRAWN", 3)
    lines = [f"0 0.5 0.5 {side / 10} {side / 10}\n" for side in (1, 2, 3, 9, 8)]
    check_plots._draw_tile(draw_image(tmp_path, "".join(lines)))
    widths = [right - left for left, _, right, _ in drawn]
    assert len(widths) == 3
    assert widths == sorted(widths, reverse=True)
    assert min(widths) > 0.25 * TILE
