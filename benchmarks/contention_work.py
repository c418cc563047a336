"""A worker of contention.py: a command in a process of its own, measured when it is told to.

Reads what to work on from its argument, then orders from stdin, and responds on stdout, a line of JSON each.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from yolo_prune.benchmarking.latency import draw_inputs
from yolo_prune.commands.bench import bench
from yolo_prune.commands.config import FINETUNE
from yolo_prune.commands.detect import detect
from yolo_prune.commands.evaluate import evaluate_models
from yolo_prune.commands.iterate import start_iterate
from yolo_prune.commands.measure_config import BenchConfig, DetectRunConfig, EvaluateConfig
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.contention import LoadMeter, count_free_cores, watch_contention
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import find_images, load_spec
from yolo_prune.engines.sparse.engine import SparseDetector
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.threads import count_cores
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.schedule import measure_rates
from yolo_prune.training.state import make_training_state

Unit = Callable[[], int]
"""Do a little of a command, and return how many images, or runs of `iterate`, that was."""
COMMANDS = ("train", "iterate", "evaluate", "detect", "bench", "sparse")
RUNS = 20
"""Forward passes in a unit of `bench` and of the sparse engine."""
SPARSITY = 0.9
PLOTS = ("yolo_prune.training.report._draw_results", "yolo_prune.commands.iterate.draw_frontier")
STEPS = 10_000
"""How long the training believes it is, for its schedules."""


def make_unit(command: str, folder: Path, batch_size: int) -> Unit:
    """Return what a worker repeats."""
    source, data, out = folder / "run/best.pt", folder / "hands/data.yaml", folder / f"out-{os.getpid()}"
    match command:
        case "train":
            return make_train_unit(source, data, batch_size)
        case "iterate":
            return make_iterate_unit(source, data, out, batch_size)
        case "evaluate":
            config = EvaluateConfig(data=data, device="cpu")
            return lambda: evaluate_models([source], [], config).models[0].evaluation.score.images
        case "detect":
            images = find_images(folder / "hands/images/val")
            return lambda: len(detect(source, images, DetectRunConfig(out=out, device="cpu")).images)
        case "bench":
            timed = BenchConfig(score=False, engine=("eager",), runs=RUNS, device="cpu")
            return lambda: RUNS * len(bench({"Original": source}, timed).rows)
        case "sparse":
            return make_sparse_unit(source)
    raise AssertionError(command)


def make_iterate_unit(source: Path, data: Path, out: Path, batch_size: int) -> Unit:
    """Return a whole run of `iterate` with one step and an epoch, without its plots, which a run of some length takes no notice of."""
    finetune = replace(FINETUNE, batch_size=batch_size)
    config = IterateConfig(
        step=0.2, target_ratio=0.2, settle_epochs=0, max_drop=1, data=data, device="cpu", finetune=finetune
    )

    def run() -> int:
        shutil.rmtree(out, ignore_errors=True)
        with ExitStack() as stack:
            for plot in PLOTS:
                stack.enter_context(patch(plot))
            start_iterate(source, config, out)
        return 1

    return run


def make_train_unit(source: Path, data: Path, batch_size: int) -> Unit:
    """Return a step of a training run that has no end, its batch read and varied by the loader."""
    config, checkpoint, spec = TrainConfig(batch_size=batch_size), load_checkpoint(source), load_spec(data)
    images = DetectionDataset(spec.samples("train"), len(spec.names), checkpoint.img_size, augment=config.augment)
    model = Detector(checkpoint.network)
    model.load_state_dict(dict(checkpoint.state))
    training = make_training_state(model.to(memory_format=torch.channels_last), config, STEPS)
    training.learn()
    rates = measure_rates(config, 0.0, STEPS // 2, STEPS)

    def load() -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from make_loader(images, batch_size, shuffle=True, epoch=epoch)

    batches = load()

    def step() -> int:
        batch = next(batches)
        train_step(training, batch, config, rates)
        return len(batch.images)

    return step


@torch.inference_mode()
def make_sparse_unit(source: Path) -> Unit:
    """Return some forward passes, batch 1, of the network with most weights zero."""
    checkpoint = load_checkpoint(source)
    model = Detector(checkpoint.network).eval()
    model.load_state_dict(dict(checkpoint.state))
    for index, _ in checkpoint.network.convs:
        module = model.get_conv(index)
        if index and index not in checkpoint.network.head_convs:
            sizes = module.conv.weight.abs()
            module.conv.weight[sizes <= sizes.flatten().kthvalue(round(SPARSITY * sizes.numel())).values] = 0
    engine, image = SparseDetector(model), draw_inputs(checkpoint.img_size)

    def run() -> int:
        for _ in range(RUNS):
            engine(image)
        return RUNS

    return run


def measure(unit: Unit, settle_s: float, seconds: float) -> dict[str, float]:
    """Return units of work per second, the cores used, for how long threads waited for a core, and how much of these others used.

    Args:
        settle_s: seconds of work before, which do not count.
    """
    started = time.perf_counter()
    while time.perf_counter() - started < settle_s:
        unit()
    meter, used, done = LoadMeter(), time.process_time(), 0
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < seconds or not done:
        done += unit()
    load = meter.measure()
    return {
        "rate": done / took,
        "cores": (time.process_time() - used) / took,
        "waited": load.waited,
        "others": load.others,
    }


def work(order: dict[str, Any]) -> None:
    """Make the unit, and measure it as often as an order comes."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a command prints is no response
    sys.stdin.readline()
    unit = make_unit(order["command"], Path(order["folder"]), order["batch_size"])
    unit()
    print(json.dumps({"threads": torch.get_num_threads()}), file=responses, flush=True)
    for line in sys.stdin:
        free = count_free_cores() if order["has_rule"] else count_cores()  # `bench` looks once, which takes 0.25 s
        with ExitStack() as stack:
            stack.enter_context(patch("yolo_prune.benchmarking.latency.count_free_cores", lambda: free))  # noqa: B023
            if order["has_rule"]:
                stack.enter_context(watch_contention())
            print(json.dumps(measure(unit, **json.loads(line))), file=responses, flush=True)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
