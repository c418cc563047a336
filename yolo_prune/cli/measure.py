"""The commands that look at checkpoints: bench, evaluate, detect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolo_prune.cli.flags import Config, Data, Device, Json, overlay, print_json
from yolo_prune.commands.config import BenchConfig, EvaluateConfig
from yolo_prune.evaluation.config import DetectConfig

if TYPE_CHECKING:
    from yolo_prune.commands.bench import BenchResult

_BENCH = BenchConfig()
_EVALUATE = EvaluateConfig()
_SHOWN = 0.25
"""The least score of a detection that `detect` draws and writes."""


def bench(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints; - reads one path from stdin. From stdin or without any, the newest one with its ancestors.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    split: Annotated[
        str | None,
        typer.Option(help="Part of the data set to score on.", show_default="test where there is one, else val"),
    ] = None,
    score: Annotated[
        bool | None, typer.Option("--score/--no-score", help="Measure mAP as well.", show_default="score")
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="each checkpoint's")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="eager, folded: batch norm folded into the convolutions, sparse: zero weights skipped, on the CPU, half: float16, on "
            "CUDA, or half-2:4: 2:4 zeros skipped there.",
            show_default=_BENCH.engine,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures per timed call.", show_default=str(_BENCH.batch_size))
    ] = None,
    runs: Annotated[int | None, typer.Option(help="Timed calls per checkpoint.", show_default=str(_BENCH.runs))] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Calls before the timed ones.", show_default=str(_BENCH.warmup))
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="PyTorch's choice")] = None,
    device: Device = None,
    config: Config = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
) -> None:
    """Print params, size, MACs, latency and mAP of checkpoints, each with its change against the first."""
    from yolo_prune.commands.bench import bench as make_bench
    from yolo_prune.commands.bench import find_lineage, name_rows
    from yolo_prune.commands.run_folders import resolve_checkpoint

    flags = {
        "data": data, "split": split, "score": score, "img_size": img_size, "engine": engine, "batch_size": batch_size,
        "runs": runs, "warmup": warmup, "threads": threads, "device": device,
    }  # fmt: skip
    settings = overlay(_BENCH, config, flags)
    if not checkpoints or checkpoints == [Path("-")]:
        argument = checkpoints[0] if checkpoints else None
        rows = find_lineage(resolve_checkpoint(argument, "finetune", "prune", "train"))
    else:
        rows = name_rows([resolve_checkpoint(checkpoint) for checkpoint in checkpoints])
    print_bench(make_bench(rows, settings), as_json, markdown)


def print_bench(result: BenchResult, as_json: bool, markdown: bool) -> None:
    """Print a table as JSON, as Markdown or for a terminal."""
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format(markdown))


def evaluate(
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
            help="COCO results of any tool on the same pictures; may be given several times.", show_default=False
        ),
    ] = None,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the data set to score on.", show_default=_EVALUATE.split)
    ] = None,
    subset: Annotated[
        Path | None,
        typer.Option(
            "--list", help="A text file of picture paths, relative to the data set: score on these.", show_default=False
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="COCO annotations whose ids of pictures and classes the detections use.",
            show_default="pictures by their path, classes by their index",
        ),
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="each checkpoint's")
    ] = None,
    save_detections: Annotated[
        Path | None, typer.Option(help="File for the checkpoint's detections as COCO results.", show_default=False)
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="PNG file for precision, recall and F1, and recall by size.", show_default=False),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Print the mAP of checkpoints or of any detections with bootstrap intervals, COCO's AP, best F1, recall by size."""
    from yolo_prune.commands.evaluate import evaluate_models
    from yolo_prune.commands.run_folders import resolve_checkpoint

    flags = {
        "data": data, "split": split, "subset": subset, "annotations": annotations, "img_size": img_size,
        "save_detections": save_detections, "curves": curves, "device": device,
    }  # fmt: skip
    settings = overlay(_EVALUATE, None, flags)
    if checkpoints:
        paths = [resolve_checkpoint(checkpoint) for checkpoint in checkpoints]
    else:
        paths = [] if detections else [resolve_checkpoint(None, "finetune", "prune", "train")]
    result = evaluate_models(paths, detections or [], settings)
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.format())


def detect(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; - reads its path from stdin.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the annotated pictures and detections.json.", show_default="runs/detect"),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Least score of a detection.")] = _SHOWN,
    nms_iou: Annotated[
        float, typer.Option(help="Overlap beyond which the lower-scored box is dropped.")
    ] = DetectConfig().nms_iou,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="the checkpoint's")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw detections into copies of pictures, write them as COCO results, and print that file's path."""
    from yolo_prune.commands.detect import detect as make_detections
    from yolo_prune.commands.run_folders import make_run_folder, resolve_checkpoint

    config = DetectConfig(confidence=confidence, nms_iou=nms_iou)
    folder = make_run_folder("detect", "detect") if out is None else out
    result = make_detections(resolve_checkpoint(checkpoint), images, folder, config, img_size, device or "auto")
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.results)
