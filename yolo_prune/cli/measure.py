"""The commands that look at checkpoints: bench, evaluate, detect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolo_prune.cli.options import Config, Given, Json, Markdown, overlay, print_json, with_settings
from yolo_prune.commands.config import BenchConfig, EvaluateConfig
from yolo_prune.evaluation.config import DetectConfig

if TYPE_CHECKING:
    from yolo_prune.commands.bench import BenchResult

_SHOWN = DetectConfig(confidence=0.25)
"""What `detect` draws and writes."""


@with_settings(BenchConfig(), has_more=False)
def bench(
    given: Given,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints; - reads one path from stdin. From stdin or without any, the newest one with its ancestors.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Print params, size, MACs, latency and mAP of checkpoints, each with its change against the first.

    yoloprune bench

    yoloprune bench runs/train/best.pt runs/finetune/best.pt --engine eager --threads 1
    """
    from yolo_prune.commands.bench import bench as make_bench
    from yolo_prune.commands.bench import find_lineage, name_rows
    from yolo_prune.commands.run_folders import resolve_checkpoint

    settings = overlay(BenchConfig(), config, given)
    if not checkpoints or checkpoints == [Path("-")]:
        argument = checkpoints[0] if checkpoints else None
        rows = find_lineage(resolve_checkpoint(argument, "finetune", "prune", "train"))
    else:
        rows = name_rows([resolve_checkpoint(checkpoint) for checkpoint in checkpoints])
    print_bench(make_bench(rows, settings), as_json, markdown)


def print_bench(result: BenchResult, as_json: bool, markdown: bool) -> None:
    """Print a table as JSON, as Markdown or for a terminal."""
    print_json(result.as_dict()) if as_json else print(result.format(markdown))


@with_settings(EvaluateConfig(), has_more=False)
def evaluate(
    given: Given,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints, compared with the first; - reads one path from stdin. Without any and without --detections, "
            "what the command before left.",
            show_default=False,
        ),
    ] = None,
    detections: Annotated[
        list[Path] | None,
        typer.Option(
            help="COCO results of any tool on the same images. May be repeated.",
            show_default=False,
            rich_help_panel="Data",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print mAP with bootstrap intervals, COCO's AP, best F1 and recall by size, of checkpoints or of any detections.

    yoloprune evaluate runs/train/best.pt runs/finetune/best.pt --split test
    """
    from yolo_prune.commands.evaluate import evaluate_models
    from yolo_prune.commands.run_folders import resolve_checkpoint

    settings = overlay(EvaluateConfig(), None, given)
    if checkpoints:
        paths = [resolve_checkpoint(checkpoint) for checkpoint in checkpoints]
    else:
        paths = [] if detections else [resolve_checkpoint(None, "finetune", "prune", "train")]
    result = evaluate_models(paths, detections or [], settings)
    print_json(result.as_dict()) if as_json else print(result.format())


@with_settings(_SHOWN, has_more=False)
def detect(
    given: Given,
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; - reads its path from stdin.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the annotated images and detections.json.", show_default="runs/detect"),
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="the checkpoint's")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw detections into copies of images, write them as COCO results, and print that file's path.

    yoloprune detect runs/finetune/best.pt photos
    """
    from yolo_prune.commands.detect import detect as make_detections
    from yolo_prune.commands.run_folders import make_run_folder, resolve_checkpoint

    config = overlay(_SHOWN, None, given)
    folder = make_run_folder("detect", "detect") if out is None else out
    result = make_detections(resolve_checkpoint(checkpoint), images, folder, config, img_size, device)
    print_json(result.as_dict()) if as_json else print(result.results)
