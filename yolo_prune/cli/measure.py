"""The commands that look at checkpoints: bench, report, evaluate, detect, profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from yolo_prune.cli.options import Checkpoints, Config, Markdown, with_settings
from yolo_prune.cli.streams import print_result
from yolo_prune.commands.measure_config import BenchConfig, DetectRunConfig, EvaluateConfig, ProfileConfig, ReportConfig
from yolo_prune.commands.results import Result

_DETECTIONS = typer.Option(help="COCO results of any tool on the same images, repeatable.", rich_help_panel="Data")
_SOURCE = (
    "Images, videos, folders or quoted patterns of them, cameras such as 0, URLs; "
    "- reads an image, or words such as these, one a line, from stdin."
)
_JSONL = typer.Option(
    "--jsonl", help="Print one JSON object for each image and frame, as soon as it is done.", rich_help_panel="Output"
)
_CSV = typer.Option("--csv", help="Print the rows as CSV, with every number.", rich_help_panel="Output")


@with_settings(BenchConfig())
def bench(
    settings: BenchConfig,
    checkpoints: Checkpoints = None,
    config: Config = None,
    markdown: Markdown = False,
    csv: Annotated[bool, _CSV] = False,
) -> Result:
    """Print params, size, MACs, latency and mAP of checkpoints, each with its change against the first.

    A checkpoint from stdin, and the newest one, bring the ones that they were made from.

    ```
    yoloprune bench
    yoloprune bench runs/train runs/finetune --engine folded,onnxruntime
    yoloprune bench pruned.onnx --data hands/data.yaml --json
    ```
    """
    from yolo_prune.commands.bench import bench as make_bench
    from yolo_prune.commands.bench import choose_rows

    result = make_bench(choose_rows(checkpoints, settings.lineage), settings)
    return replace(result, form="csv" if csv else "markdown" if markdown else "text")


@with_settings(ReportConfig())
def report(settings: ReportConfig, checkpoints: Checkpoints = None, config: Config = None) -> Result:
    """Write one HTML page on checkpoints: table, plots, curves, detections before and after; print its path.

    It takes what bench takes, measures the same, and needs no network to be looked at.

    ```
    yoloprune report
    yoloprune report runs/train runs/prune runs/finetune --out report.html
    ```
    """
    from yolo_prune.commands.bench import choose_rows
    from yolo_prune.commands.report import make_report

    return make_report(choose_rows(checkpoints, settings.lineage), settings)


@with_settings(EvaluateConfig())
def evaluate(
    settings: EvaluateConfig,
    checkpoints: Checkpoints = None,
    detections: Annotated[list[Path] | None, _DETECTIONS] = None,
) -> Result:
    """Print mAP with bootstrap intervals, COCO's AP, best F1 and recall by size, of checkpoints or of any detections.

    All are compared with the first. Two classes or more have a table of their own. With --detections alone no checkpoint is needed.

    ```
    yoloprune evaluate runs/train/best.pt runs/finetune/best.pt --split test
    yoloprune evaluate --detections other.json --data hands/data.yaml
    ```
    """
    from yolo_prune.commands.evaluate import evaluate_models
    from yolo_prune.commands.run_folders import resolve_checkpoints

    paths = resolve_checkpoints(checkpoints) if checkpoints or not detections else []
    return evaluate_models(paths, detections or [], settings)


@with_settings(DetectRunConfig())
def detect(
    settings: DetectRunConfig,
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; - reads its path from stdin.")],
    sources: Annotated[list[str], typer.Argument(help=_SOURCE)],
    jsonl: Annotated[bool, _JSONL] = False,
) -> Result:
    """Draw detections into copies of images, videos and streams, write them as JSON, and print what was written.

    Of images, COCO results are written to detections.json; of videos, one line for each frame to detections.jsonl.

    ```
    yoloprune detect runs/finetune/best.pt photos clip.mp4
    yoloprune detect best.onnx 'photos/**/*.jpg' --confidence 0.4
    yoloprune detect best.onnx rtsp://camera/stream --jsonl
    ```
    """
    from yolo_prune.commands.detect import detect as make_detections
    from yolo_prune.commands.run_folders import resolve_checkpoint
    from yolo_prune.errors import ConfigError

    if str(checkpoint) == "-" and "-" in sources:
        raise ConfigError("CHECKPOINT and SOURCE both read stdin", where="-", right="name one of them")
    emit = print_result if jsonl else None
    return make_detections(resolve_checkpoint(checkpoint), sources, settings, emit)


@with_settings(ProfileConfig())
def profile(settings: ProfileConfig, checkpoints: Checkpoints = None) -> Result:
    """Print the time, multiply–accumulates and bytes of every layer, of a checkpoint or of two: before and after.

    ```
    yoloprune profile runs/train/best.pt runs/finetune/best.pt --plot profile.png
    yoloprune profile --engine openvino --threads 1
    ```
    """
    from yolo_prune.commands.profile import profile as make_profile
    from yolo_prune.commands.run_folders import resolve_checkpoints

    return make_profile(resolve_checkpoints(checkpoints), settings)
