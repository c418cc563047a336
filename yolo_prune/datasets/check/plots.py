"""Plots of a data set: a contact sheet with its boxes, and the sizes, shapes and positions of the boxes."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

from yolo_prune.console import escape
from yolo_prune.datasets.check.scan import Content, ScannedImage
from yolo_prune.datasets.check.statistics import COCO_BOUNDS_PX, Figures, join_figures
from yolo_prune.datasets.images import letterbox, read_image
from yolo_prune.datasets.labels import locate_objects
from yolo_prune.files import open_atomically
from yolo_prune.image_size import AnySize, make_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[int, int, int]

COLUMNS, ROWS = 8, 6
_TILE_PX, _GAP_PX, _HEAD_PX, _CAPTION_PX = 208, 12, 64, 40
_PAPER, _INK, _FAINT, _EMPTY = (250, 250, 250), (30, 30, 30), (110, 110, 110), (225, 225, 225)
_IGNORED: Colour = (200, 200, 200)
_DASH_PX = 5
MOST_DRAWN = 1_000
"""Boxes of an image that are drawn, the largest ones: more cannot be told apart."""


def pick_images(images: Sequence[ScannedImage], splits: Sequence[str], wanted: int) -> list[tuple[str, ScannedImage]]:
    """Return up to `wanted` images with their split: equally many of each split if possible, spread evenly over it."""
    of_split = {split: [image for image in images if split in image.splits] for split in splits}
    counts, left = {}, wanted
    for done, split in enumerate(sorted(splits, key=lambda split: len(of_split[split]))):
        counts[split] = min(len(of_split[split]), left // (len(splits) - done))
        left -= counts[split]
    return [
        (split, of_split[split][place * len(of_split[split]) // counts[split]])
        for split in splits
        for place in range(counts[split])
    ]


def save_contact_sheet(path: Path, images: Sequence[ScannedImage], splits: Sequence[str], names: Sequence[str]) -> Path:
    """Write a PNG of 48 images, equally many of each split, with their boxes, file names and splits; return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    chosen = pick_images(images, splits, COLUMNS * ROWS)
    rows = -(-len(chosen) // COLUMNS)
    width, height = COLUMNS * (_TILE_PX + _GAP_PX) + _GAP_PX, _HEAD_PX + rows * (_TILE_PX + _CAPTION_PX + _GAP_PX)
    sheet = Image.new("RGB", (width, height), _PAPER)
    listed = sum(len(image.splits) for image in images)
    _draw_head(sheet, f"{len(chosen)} of {listed} images", names)
    for place, (split, image) in enumerate(chosen):
        row, column = divmod(place, COLUMNS)
        corner = _GAP_PX + column * (_TILE_PX + _GAP_PX), _HEAD_PX + row * (_TILE_PX + _CAPTION_PX + _GAP_PX)
        sheet.paste(_draw_tile(image), corner)
        _draw_caption(sheet, (corner[0], corner[1] + _TILE_PX + 4), split, image)
    with open_atomically(path) as file:
        sheet.save(file, format="PNG")
    return path


def save_box_plots(path: Path, figures: Mapping[str, Figures], img_size: AnySize) -> Path:
    """Write a PNG of the boxes' sizes, shapes and positions and of the objects per image; return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 8.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    (sides, aspects), (places, counts) = figure.subplots(2, 2)
    _plot_sides(sides, figures, img_size)
    _plot_aspects(aspects, figures)
    _plot_places(places, join_figures(figures))
    _plot_counts(counts, figures)
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return path


def _make_font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)


def _make_colour(number: int) -> Colour:
    """Return a bright colour for a class; hues of consecutive classes differ by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb((0.4 + number * 0.618) % 1, 0.9, 1)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_head(sheet: Image.Image, title: str, names: Sequence[str]) -> None:
    """Write the title and the legend: ignored boxes, then as many classes as fit."""
    draw, big, font = ImageDraw.Draw(sheet), _make_font(22), _make_font(16)
    middle = _HEAD_PX // 2
    draw.text((_GAP_PX, middle), title, _INK, big, anchor="lm")
    x = _GAP_PX + round(big.getlength(title)) + 40
    keys = [(escape(name, kept=""), _make_colour(number), False) for number, name in enumerate(names)]
    for name, colour, is_dashed in [("ignored", _IGNORED, True), *keys]:
        end = x + 34 + round(font.getlength(name))
        if end > sheet.width - 60:
            draw.text((x, middle), "…", _INK, font, anchor="lm")
            break
        _draw_box(draw, (x, middle - 9, x + 26, middle + 9), colour, is_dashed)
        draw.text((x + 34, middle), name, _INK, font, anchor="lm")
        x = end + 28


def _draw_tile(scanned: ScannedImage) -> Image.Image:
    if not isinstance(scanned.content, Content):
        tile = Image.new("RGB", (_TILE_PX, _TILE_PX), _EMPTY)
        centre = (_TILE_PX // 2, _TILE_PX // 2)
        ImageDraw.Draw(tile).multiline_text(
            centre, "cannot\nbe read", _FAINT, _make_font(18), anchor="mm", align="center"
        )
        return tile
    image = read_image(scanned.sample.image)
    square, box = letterbox(image, _TILE_PX)
    tile = Image.fromarray(square)
    draw = ImageDraw.Draw(tile)
    objects = scanned.labels.objects.astype(np.float32)
    objects = objects[np.argsort(-objects[:, 3:5].prod(axis=1), kind="stable")[:MOST_DRAWN]]
    order = np.lexsort((-objects[:, 3:5].prod(axis=1), -objects[:, 5]))  # small boxes on top, and ignored ones below
    rows = locate_objects(objects[order], image.shape[1], image.shape[0])
    for row, (x1, y1, x2, y2) in zip(rows, box.to_network(rows[:, 1:5]).round().astype(int).tolist(), strict=True):
        x1, y1 = min(x1, _TILE_PX - 2), min(y1, _TILE_PX - 2)
        edges = (x1, y1, max(x1 + 1, x2 - 1), max(y1 + 1, y2 - 1))  # even the smallest is two pixels wide and high
        _draw_box(draw, edges, _IGNORED if row[5] else _make_colour(int(row[0])), bool(row[5]))
    return tile


def _draw_box(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, is_dashed: bool) -> None:
    """Draw a rectangle two pixels wide within a dark border, so that it is visible on any background."""
    x1, y1, x2, y2 = box
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_INK)
    if x2 - x1 > 8 and y2 - y1 > 8:
        draw.rectangle((x1 + 2, y1 + 2, x2 - 2, y2 - 2), outline=_INK)
    if not is_dashed:
        draw.rectangle(box, outline=colour, width=2)
        return
    draw.rectangle(box, outline=_INK, width=2)
    for x in range(x1, x2, 2 * _DASH_PX):
        for y in (y1, y2 - 1):
            draw.rectangle((x, y, min(x + _DASH_PX - 1, x2), y + 1), fill=colour)
    for y in range(y1, y2, 2 * _DASH_PX):
        for x in (x1, x2 - 1):
            draw.rectangle((x, y, x + 1, min(y + _DASH_PX - 1, y2)), fill=colour)


def _draw_caption(sheet: Image.Image, corner: tuple[int, int], split: str, image: ScannedImage) -> None:
    draw, font = ImageDraw.Draw(sheet), _make_font(13)
    counted = int((image.labels.objects[:, 5] == 0).sum())
    state = "no label file" if image.labels.is_missing else f"{counted or 'no'} object{'' if counted == 1 else 's'}"
    draw.text(corner, _shorten(escape(image.sample.image.name, kept=""), font, _TILE_PX), _INK, font)
    draw.text((corner[0], corner[1] + 17), f"{split} · {state}", _FAINT, font)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """Cut a text in its middle until it fits."""
    kept = len(text)
    short = text
    while font.getlength(short) > width_px and kept > 2:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _plot_sides(axes: Axes, figures: Mapping[str, Figures], img_size: AnySize) -> None:
    longest = max(make_size(img_size))
    edges = np.geomspace(2, longest, 49)
    for split, part in figures.items():
        _plot_shares(axes, part.box_sides_at_img_size_px, edges, split)
    top = max(1.0, axes.get_ylim()[1])  # without boxes the axis has no range
    lows, highs = (2, *COCO_BOUNDS_PX), (*COCO_BOUNDS_PX, longest)
    for low, high, name in zip(lows, highs, ("small", "medium", "large"), strict=True):
        if low < longest:
            axes.axvline(low, color="dimgrey", linestyle=":")
            axes.text(np.sqrt(low * min(high, longest)), top * 1.03, name, ha="center", color="dimgrey")
    ticks = [tick for tick in (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024) if tick <= longest]
    axes.set(xscale="log", xlim=(2, longest), ylim=(0, top * 1.1))
    _set_ticks(axes, ticks, list(map(str, ticks)))
    axes.set(title=f"box side √(width · height) at {img_size} px", xlabel="px", ylabel="% of the split's boxes")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.93))


def _plot_aspects(axes: Axes, figures: Mapping[str, Figures]) -> None:
    ticks, limit = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8), 3.2
    edges = np.linspace(-limit, limit, 53)
    for split, part in figures.items():
        _plot_shares(axes, np.log2(part.aspect_ratios), edges, split)
    axes.axvline(0, color="dimgrey", linestyle=":")
    _set_ticks(axes, np.log2(ticks).tolist(), ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    axes.set(
        title="box width : height", xlabel="taller ← → wider", ylabel="% of the split's boxes", xlim=(-limit, limit)
    )
    axes.legend()


def _plot_shares(axes: Axes, values: np.ndarray, edges: np.ndarray, label: str) -> None:
    """Draw a split's histogram as an outline; values beyond the edges count in the outer bins."""
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    axes.stairs(100 * counts / max(1, len(values)), edges, label=f"{label} ({len(values)})", linewidth=1.6)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=(1, 2, 5, 10)))


def _set_ticks(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())


def _plot_places(axes: Axes, everything: Figures) -> None:
    x, y = everything.centres.T
    grid, _, _ = np.histogram2d(y, x, bins=32, range=((0, 1), (0, 1)))
    shown = axes.imshow(grid, extent=(0, 1, 1, 0), cmap="viridis", aspect="auto", vmin=0, vmax=max(1, grid.max()))
    axes.set(title=f"box centres, all {len(x)}", xlabel="x, share of the width", ylabel="y, share of the height")
    axes.figure.colorbar(shown, ax=axes, label="boxes in 1/32 × 1/32 of the image")


def _plot_counts(axes: Axes, figures: Mapping[str, Figures]) -> None:
    highest = max(int(part.objects_per_image.max()) for part in figures.values())
    last = min(10, highest)
    width = 0.8 / len(figures)
    for place, (split, part) in enumerate(figures.items()):
        shares = np.bincount(part.objects_per_image.clip(max=last), minlength=last + 1) / len(part.objects_per_image)
        offsets = np.arange(last + 1) + (place - (len(figures) - 1) / 2) * width
        axes.bar(offsets, 100 * shares, width, label=f"{split} ({len(part.objects_per_image)})")
    labels = [str(count) for count in range(last)] + [f"{last}+" if highest > last else str(last)]
    axes.set_xticks(range(last + 1), labels)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=(1, 2, 5, 10)))
    axes.set(title="objects per image", xlabel="objects", ylabel="% of the split's images")
    axes.legend()
