"""`yoloprune data`: make data sets, check them, and find anchors for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from yolo_prune.cli.options import with_settings
from yolo_prune.commands.results import Result
from yolo_prune.datasets.config import AnchorsConfig, CheckConfig, ConvertConfig, SyntheticConfig, VggHandConfig

Out: TypeAlias = Annotated[Path, typer.Option(help="Folder to make.")]
_DATA = typer.Argument(help="A data.yaml.", show_default=False)
_SOURCE = "A data.yaml; SPLIT=FILE.json of COCO; SPLIT=LIST.txt or SPLIT=FOLDER of VOC. SPLIT: train, val, test."

app = typer.Typer(help="Make data sets, check them, and find anchors for them.", rich_markup_mode="markdown")


@with_settings(SyntheticConfig(), app=app)
def synthetic(settings: SyntheticConfig, out: Out = Path("data/synthetic-hands")) -> Result:
    """Draw synthetic hands with exact labels, and print the path of their data.yaml.

    ```
    yoloprune data synthetic
    yoloprune data synthetic --out hands --train 500 --val 100 --test 100
    ```
    """
    from yolo_prune.commands.data import draw_hands_at

    return draw_hands_at(out, settings)


@with_settings(CheckConfig(), app=app)
def check(settings: CheckConfig, data: Annotated[Path | None, _DATA] = None) -> Result:
    """Print what a data set holds and what is wrong with it; exit with 2 where there are errors.

    ```
    yoloprune data check hands/data.yaml
    yoloprune data check hands/data.yaml --strict --json
    ```
    """
    from yolo_prune.commands.datasets.check import check_data

    return check_data(data, settings)


@with_settings(AnchorsConfig(), app=app)
def anchors(settings: AnchorsConfig, data: Annotated[Path, _DATA]) -> Result:
    """Find anchors for a data set's boxes by k-means on IoU; print them, for cfg make --anchors, and the recall they allow.

    ```
    yoloprune data anchors hands/data.yaml --img-size 416
    yoloprune data anchors hands/data.yaml --cfg yolov3-tiny-hand
    ```
    """
    from yolo_prune.commands.datasets.anchors import find_data_anchors

    return find_data_anchors(data, settings)


@with_settings(ConvertConfig(to="yolo", out=Path("out")), app=app)
def convert(
    settings: ConvertConfig, sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help=_SOURCE)]
) -> Result:
    """Turn COCO json, YOLO txt or Pascal VOC xml into another of these, and print the data.yaml's or folder's path.

    ```
    yoloprune data convert train=train.json val=val.json --to yolo --out hands
    yoloprune data convert hands/data.yaml --to coco --out hands-coco
    ```
    """
    from yolo_prune.commands.datasets.convert import convert as make_conversion

    return make_conversion(sources, settings)


@with_settings(VggHandConfig(), app=app)
def vgg_hand(settings: VggHandConfig, out: Out = Path("data/vgg-hand")) -> Result:
    """Make a data set of the Visual Geometry Group's hands, with the official splits, and print the path of its data.yaml.

    ```
    yoloprune data vgg-hand
    yoloprune data vgg-hand --archive hand_dataset.tar.gz --out hands
    ```
    """
    from yolo_prune.commands.datasets.vgg_hand import make_vgg_hand

    return make_vgg_hand(out, settings)
