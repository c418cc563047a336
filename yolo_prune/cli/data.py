"""`yoloprune data`: make data sets, check them, and find anchors for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.flags import Json, print_json
from yolo_prune.datasets.config import CheckConfig, SyntheticConfig, VggHandConfig

app = typer.Typer(
    help="Make data sets, check them, and find anchors for them.", no_args_is_help=True, rich_markup_mode=None
)
_DEFAULTS = SyntheticConfig()
_VGG_HAND = VggHandConfig()
_CHECK = CheckConfig()


@app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/synthetic-hands"),
    train: Annotated[int, typer.Option(help="Training pictures.")] = _DEFAULTS.train,
    val: Annotated[int, typer.Option(help="Validation pictures.")] = _DEFAULTS.val,
    test: Annotated[int, typer.Option(help="Test pictures.")] = _DEFAULTS.test,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = _DEFAULTS.size_px,
    max_hands: Annotated[int, typer.Option(help="Most hands in one picture.")] = _DEFAULTS.max_hands,
    seed: Annotated[int, typer.Option(help="Every picture follows from this number.")] = _DEFAULTS.seed,
) -> None:
    """Draw synthetic hands with exact labels, and print the path of their data.yaml."""
    from yolo_prune.console import report_progress
    from yolo_prune.datasets.synthetic.dataset import make_dataset

    config = SyntheticConfig(train=train, val=val, test=test, size_px=size, max_hands=max_hands, seed=seed)
    print(make_dataset(out, config, progress=report_progress("drawing synthetic hands")))


@app.command()
def check(
    data: Annotated[Path | None, typer.Argument(help="A data.yaml.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, contact_sheet.png and boxes.png.", show_default="runs/check"),
    ] = None,
    img_size: Annotated[int, typer.Option(help="Side of the network's square input in pixels.")] = _CHECK.img_size,
    near: Annotated[
        int, typer.Option(help="Most bits of 64 that differ in the hashes of look-alike pictures.")
    ] = _CHECK.near,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode pictures.", show_default="one per core")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a data set holds and what is wrong with it; exit with 2 where there are errors."""
    from yolo_prune.commands.data_check import check_data

    result = check_data(data, out, CheckConfig(img_size=img_size, near=near, workers=workers))
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format(), flush=True)
    result.refuse_faults(strict)


@app.command()
def anchors(
    data: Annotated[Path, typer.Argument(help="A data.yaml.")],
    count: Annotated[
        int | None, typer.Option(help="Anchors to find.", show_default="as many as the cfg's heads use, or 9")
    ] = None,
    img_size: Annotated[int, typer.Option(help="Side of the network's square input in pixels.")] = 416,
    split: Annotated[str, typer.Option(help="Part of the data set whose boxes count.")] = "train",
    cfg: Annotated[Path | None, typer.Option(help="A Darknet cfg file to compare with.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Every random number follows from this one.")] = 0,
    as_json: Json = False,
) -> None:
    """Find anchors for a data set's boxes by k-means on IoU; print them, for cfg make --anchors, and the recall they allow."""
    from yolo_prune.commands.data_anchors import find_data_anchors

    result = find_data_anchors(data, count, img_size, split, cfg, seed)
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format())


@app.command()
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A data.yaml; SPLIT=FILE.json of COCO; SPLIT=LIST.txt or SPLIT=FOLDER of VOC. SPLIT: train, val, test.",
        ),
    ],
    to: Annotated[str, typer.Option(help="yolo, coco or voc.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder where COCO's or VOC's pictures are.", show_default="near the labels")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Classes to take, in this order: hand,foot.", show_default="all")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the pictures instead of copying them.")] = False,
    as_json: Json = False,
) -> None:
    """Turn COCO json, YOLO txt or Pascal VOC xml into another of these, and print the data.yaml's or folder's path."""
    from yolo_prune.commands.data_convert import ConvertConfig, parse_names
    from yolo_prune.commands.data_convert import convert as make_conversion

    chosen = None if names is None else parse_names(names)
    result = make_conversion(sources, ConvertConfig(to, out, images, chosen, link))
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format())


@app.command()
def vgg_hand(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("data/vgg-hand"),
    url: Annotated[
        str,
        typer.Option(
            help="What to download, to hand_dataset.tar.gz beside the folder; it stays there, and is not downloaded again. "
            "A download that broke off goes on where it was."
        ),
    ] = _VGG_HAND.url,
    archive: Annotated[
        Path | None, typer.Option(help="The archive, if you have it: nothing is downloaded.", show_default=False)
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The hash that the archive must have.", show_default=False)
    ] = None,
    trainval: Annotated[
        bool, typer.Option("--trainval", help="Train on the official train and val, as the case study: 4,807 and 821.")
    ] = False,
    any_counts: Annotated[
        bool, typer.Option("--any-counts", help="Go on where the counts are not the published ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a data set of the Visual Geometry Group's hands, with the official splits, and print the path of its data.yaml."""
    from yolo_prune.commands.data_vgg_hand import make_vgg_hand

    result = make_vgg_hand(out, VggHandConfig(url, archive, sha256, trainval, any_counts))
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format())
