"""Time ours beside ultralytics' networks at equal pixels, in OpenVINO in fp32 and int8.

    python benchmarks/ultralytics_speed.py OURS.pt … --img-sizes 224,416 --threads 1,2

Needs the packages ultralytics, openvino and nncf, in an environment of their own. Their weights are random, as time does not
depend on them; so are the images that the ranges of int8 are measured on. Decoding is inside all files, and NMS in none. All
networks of a line of sizes and threads run interleaved.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from engine_peers import find_module, make_openvino_call
from torch import Tensor

from yolo_prune.benchmarking.latency import Latency, draw_inputs, measure_latencies
from yolo_prune.engines.exported.open_vino import get_core
from yolo_prune.engines.exported.signal_stack import keeping_signal_stack
from yolo_prune.export.writers import describe, write_model
from yolo_prune.image_size import ImageSize
from yolo_prune.model.checkpoint import load_checkpoint

THEIRS = ("yolov8n", "yolo11n", "yolo26n")
PACKAGES = ("ultralytics", "openvino", "nncf")
PRECISIONS = ("fp32", "int8")
RANGE_IMAGES = 20
DECODING = ".*model.2[23].*"
"""The names of their last module's operations, which stay in float32, as our decoding does."""
CPU = torch.device("cpu")


def write_ours(source: Path, size: ImageSize, images: Sequence[Tensor], folder: Path) -> dict[str, Path]:
    """Write a checkpoint in both precisions, and return the files by precision."""
    checkpoint = load_checkpoint(source).with_img_size(size)
    return {
        precision: write_model(
            checkpoint,
            describe(checkpoint, "", precision=precision),
            folder / f"{source.parent.name}-{source.stem}-{precision}.xml",
            calibration=images,
        )
        for precision in PRECISIONS
    }


def write_theirs(name: str, size: ImageSize, images: Sequence[Tensor], folder: Path) -> dict[str, Path]:
    """Write one of their networks in both precisions as their exporter does, and return the files by precision."""
    openvino, nncf = find_module("openvino"), find_module("nncf")
    model = find_module("ultralytics").YOLO(f"{name}.yaml").model.eval().fuse()
    head = model.model[-1]
    head.export, head.format, head.dynamic = True, "openvino", False
    example = draw_inputs(size)
    with torch.no_grad():
        model(example)  # sets the head's grid
        made = openvino.convert_model(model, example_input=example)
    made.reshape(list(example.shape))
    paths = {precision: folder / f"{name}-{precision}.xml" for precision in PRECISIONS}
    openvino.save_model(made, paths["fp32"], compress_to_fp16=False)
    with keeping_signal_stack():
        quantized = nncf.quantize(
            get_core().read_model(paths["fp32"]),
            nncf.Dataset([image.numpy() for image in images]),
            subset_size=RANGE_IMAGES,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(patterns=[DECODING], validate=False),
        )
    openvino.save_model(quantized, paths["int8"])
    return paths


def time_files(files: dict[str, Path], size: ImageSize, threads: int, runs: int) -> dict[str, Latency]:
    """Return the milliseconds of each file for one image, interleaved."""
    images = draw_inputs(size)
    calls = [make_openvino_call(path, images, threads) for path in files.values()]
    times = measure_latencies(calls, runs=runs, warmup=5, device=CPU, settles=True)
    return dict(zip(files, times, strict=True))


def format_table(times: dict[tuple[int, int], dict[str, Latency]], names: Sequence[str]) -> str:
    """Return a line for each network, and two columns for each size and number of threads, in Markdown."""
    heads = [f"{size} px, {threads} thread{'s' if threads > 1 else ''}: fp32, int8" for size, threads in times]
    lines = [f"| network | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for name in names:
        cells = [
            ", ".join(_format(found[f"{name} {precision}"]) for precision in PRECISIONS) for found in times.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format(time: Latency) -> str:
    return f"{time.p50:.2f} ms [{time.p5:.2f}, {time.p95:.2f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Write all files, time them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--img-sizes", default="224,416")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--runs", type=int, default=40)
    given = parser.parse_args(argv)
    modules: dict[str, Any] = {name: find_module(name) for name in PACKAGES}
    if missing := [name for name, module in modules.items() if module is None]:
        parser.error(f"{', '.join(missing)} cannot be imported; install them")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    names = [f"{path.parent.name}/{path.stem}" for path in given.checkpoints]
    times = {}
    for side in map(int, given.img_sizes.split(",")):
        size = ImageSize(side, side)
        images = list(torch.split(draw_inputs(size, batch_size=RANGE_IMAGES), 1))
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path] = {}
            for name, path in zip(names, given.checkpoints, strict=True):
                files |= {f"{name} {key}": made for key, made in write_ours(path, size, images, Path(folder)).items()}
            for name in THEIRS:
                files |= {f"{name} {key}": made for key, made in write_theirs(name, size, images, Path(folder)).items()}
            for threads in map(int, given.threads.split(",")):
                torch.set_num_threads(threads)
                times[side, threads] = time_files(files, size, threads, given.runs)
    print(format_table(times, [*names, *THEIRS]))
    print("\n" + ", ".join(f"{name} {module.__version__.partition('-')[0]}" for name, module in modules.items()))


if __name__ == "__main__":
    main()
