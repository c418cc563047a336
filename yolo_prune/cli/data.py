"""`yoloprune data`: make data sets, check them, and find anchors for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import Given, Json, overlay, print_json, with_settings
from yolo_prune.datasets.config import CheckConfig, ConvertConfig, SyntheticConfig, VggHandConfig

app = typer.Typer(help="Make data sets, check them, and find anchors for them.", rich_markup_mode="markdown")


@app.command()
@with_settings(SyntheticConfig(), has_more=False)
def synthetic(
    given: Given, out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/synthetic-hands")
) -> None:
    """Draw synthetic hands with exact labels, and print the path of their data.yaml."""
    from yolo_prune.console import report_progress
    from yolo_prune.datasets.synthetic.dataset import make_dataset

    config = overlay(SyntheticConfig(), None, given)
    print(make_dataset(out, config, progress=report_progress("drawing synthetic hands")))


@app.command()
@with_settings(CheckConfig(), has_more=False)
def check(
    given: Given,
    data: Annotated[Path | None, typer.Argument(help="A data.yaml.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, contact_sheet.png and boxes.png.", show_default="runs/check"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a data set holds and what is wrong with it; exit with 2 where there are errors."""
    from yolo_prune.commands.data_check import check_data

    result = check_data(data, out, overlay(CheckConfig(), None, given))
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format(), flush=True)
    result.raise_on_issues(strict)


@app.command()
def anchors(
    data: Annotated[Path, typer.Argument(help="A data.yaml.")],
    count: Annotated[
        int | None, typer.Option(help="Anchors to find.", show_default="as many as the cfg's heads use, or 9")
    ] = None,
    img_size: Annotated[int, typer.Option(help="Side of the network's square input in pixels.")] = 416,
    split: Annotated[str, typer.Option(help="Split whose boxes count.")] = "train",
    cfg: Annotated[Path | None, typer.Option(help="A Darknet cfg file to compare with.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="All random numbers follow from it.")] = 0,
    as_json: Json = False,
) -> None:
    """Find anchors for a data set's boxes by k-means on IoU; print them, for cfg make --anchors, and the recall they allow."""
    from yolo_prune.commands.data_anchors import find_data_anchors

    result = find_data_anchors(data, count, img_size, split, cfg, seed)
    print_json(result.as_dict()) if as_json else print(result.format())


@app.command()
@with_settings(ConvertConfig(to="yolo", out=Path("out")), has_more=False)
def convert(
    given: Given,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A data.yaml; SPLIT=FILE.json of COCO; SPLIT=LIST.txt or SPLIT=FOLDER of VOC. SPLIT: train, val, test.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Turn COCO json, YOLO txt or Pascal VOC xml into another of these, and print the data.yaml's or folder's path."""
    from yolo_prune.commands.data_convert import convert as make_conversion

    result = make_conversion(sources, overlay(ConvertConfig(to=given["to"], out=given["out"]), None, given))
    print_json(result.as_dict()) if as_json else print(result.format())


@app.command()
@with_settings(VggHandConfig(), has_more=False)
def vgg_hand(
    given: Given,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/vgg-hand"),
    as_json: Json = False,
) -> None:
    """Make a data set of the Visual Geometry Group's hands, with the official splits, and print the path of its data.yaml."""
    from yolo_prune.commands.data_vgg_hand import make_vgg_hand

    result = make_vgg_hand(out, overlay(VggHandConfig(), None, given))
    print_json(result.as_dict()) if as_json else print(result.format())
