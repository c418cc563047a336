"""The commands about Darknet's files: cfg make, cfg show, import, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import Checkpoint, with_settings
from yolo_prune.commands.results import Result
from yolo_prune.darknet.config import CfgConfig, ImportConfig, ShowConfig
from yolo_prune.export.config import ExportConfig

app = typer.Typer(help="Make Darknet cfg files and show what they cost.", rich_markup_mode="markdown")


@with_settings(CfgConfig(), app=app)
def make(settings: CfgConfig) -> Result:
    """Write the cfg of a YOLOv3 or YOLOv4 at any width and class count.

    ```
    yoloprune cfg make --classes 1 --out hand.cfg
    yoloprune cfg make --arch yolov3-tiny --width 0.5 --img-size 224
    ```
    """
    from yolo_prune.commands.cfg import make_cfg

    return make_cfg(settings)


@with_settings(ShowConfig(), app=app)
def show(
    settings: ShowConfig,
    file: Annotated[Path, typer.Argument(help="A Darknet cfg file, a shipped one's name, or a checkpoint.")],
) -> Result:
    """Print every layer's shape and cost, and the totals.

    ```
    yoloprune cfg show yolov3-hand
    yoloprune cfg show runs/prune/pruned.pt --img-size 416
    ```
    """
    from yolo_prune.commands.cfg import show_cfg

    return show_cfg(file, settings)


@with_settings(ImportConfig())
def import_(
    settings: ImportConfig, cfg: Annotated[Path, typer.Argument(help="A Darknet cfg file, or a shipped one's name.")]
) -> Result:
    """Make a checkpoint of a Darknet cfg and its weights, and print its path.

    ```
    yoloprune import yolov3.cfg --weights yolov3.weights --out yolov3.pt
    yoloprune import hand.cfg --weights best.pth --names hand.names
    ```
    """
    from yolo_prune.commands.import_darknet import import_darknet

    return import_darknet(cfg, settings)


@with_settings(ExportConfig())
def export(settings: ExportConfig, checkpoint: Checkpoint = None) -> Result:
    """Write a checkpoint for Darknet, ONNX Runtime, OpenVINO or others, and print the path of each file.

    ```
    yoloprune export best.pt --format onnx,openvino
    yoloprune export best.pt --out hand.onnx --img-size 640x384
    ```
    """
    from yolo_prune.commands.export import export as run
    from yolo_prune.commands.run_folders import TRAINED, resolve_checkpoint

    return run(resolve_checkpoint(checkpoint, *TRAINED), settings)
