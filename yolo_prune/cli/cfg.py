"""`yoloprune cfg`: make networks and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import Json, print_json
from yolo_prune.darknet.architectures import ARCHITECTURES, make_network

app = typer.Typer(help="Make Darknet cfg files and show what they cost.", rich_markup_mode="markdown")


@app.command()
def make(
    arch: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "yolov3",
    classes: Annotated[int, typer.Option(help="Classes to tell apart.")] = 1,
    width: Annotated[float, typer.Option(help="Factor on every convolution's filters but the heads'.")] = 1.0,
    img_size: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 416,
    anchors: Annotated[
        str | None,
        typer.Option(help="width,height pairs in pixels of that input: 10,14,23,27,…", show_default="COCO's, scaled"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="stdout")] = None,
) -> None:
    """Write the cfg of a YOLOv3 or YOLOv4 at any width and class count."""
    from yolo_prune.darknet.cfg import format_cfg, parse_anchors, save_cfg

    pairs = None if anchors is None else parse_anchors(anchors, "--anchors")
    network = make_network(arch, classes, width, img_size, pairs)
    print(format_cfg(network).rstrip() if out is None else save_cfg(network, out))


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A Darknet cfg file or a checkpoint.")],
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="the cfg's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print every layer's shape and cost, and the totals."""
    from yolo_prune.darknet.cost import format_cost, measure_cost

    if file.suffix == ".pt":
        from yolo_prune.model.checkpoint import load_checkpoint

        network = load_checkpoint(file).network
    else:
        from yolo_prune.darknet.cfg import load_cfg

        network = load_cfg(file)
    cost = measure_cost(network, img_size)
    if as_json:
        print_json({**cost.as_dict(), "layers": cost.layers_as_dicts()})
    else:
        print(format_cost(cost))
