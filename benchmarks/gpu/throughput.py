"""Stage `throughput`: training steps of yolov3-hand, without and with the loader, and where their time goes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from gpu.ceilings import measure_ceilings
from gpu.job import Job, parse_job
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import Detector
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.run_data import count_workers
from yolo_prune.training.schedule import measure_rates
from yolo_prune.training.state import TrainingState, make_training_state

BATCHES, TINY_BATCHES = (64, 128), (2, 4)
STEPS, TINY_STEPS = 20, 2
WARMUP = 3
PASSES = 3
"""A training step computes the network forwards, and twice as much backwards."""
PARTS = ("waiting", "forward", "loss", "backward", "optimizer")


def run(job: Job) -> None:
    """Measure every batch size; one that does not fit into memory is recorded as such."""
    peak = job.load("bench").get("ceilings") or measure_ceilings(job.place, job.is_tiny)
    network = make_network("yolov3", width=job.width, img_size=job.img_size)
    macs = measure_cost(network, job.img_size).macs
    precision: Literal["bf16"] = "bf16"
    job.results |= {"img_size": job.img_size, "precision": precision, "workers": None, "rows": []}
    spec = load_spec(job.find_data())
    for batch in TINY_BATCHES if job.is_tiny else BATCHES:
        config = TrainConfig(batch_size=batch, precision=precision, device=job.device)
        job.results["workers"] = workers = count_workers(config, job.place)
        data = DetectionDataset(spec.samples("train"), len(spec.names), job.img_size, augment=config.augment)
        try:
            row = measure(job, config, network, data, workers)
        except torch.OutOfMemoryError as error:
            row = {"failed": " ".join(str(error).split())[:200]}
        for name in ("steps", "loader"):
            if name in row:
                row[f"{name}_peak_share"] = 2 * PASSES * macs * row[name] / peak["flops_per_s"][precision]
        job.results["rows"].append({"batch": batch, **row})
        job.save()


def measure(job: Job, config: TrainConfig, network: Any, data: DetectionDataset, workers: int) -> dict[str, Any]:
    """Return images/s of steps on batches in memory, and of steps with the loader, and the share of each part."""
    device, steps = job.place, TINY_STEPS if job.is_tiny else STEPS
    model = Detector(network).to(device).to(memory_format=torch.channels_last)
    training = make_training_state(model, config, steps)
    training.learn()
    batches = iterate(data, config.batch_size, workers, device.type == "cuda")
    kept = list(itertools.islice(batches, 2))
    rates = measure_rates(config, 0.0, steps // 2, steps)

    def step(batch: Batch) -> None:
        train_step(training, batch, config, rates)

    in_memory = itertools.cycle(kept)
    for _ in range(WARMUP):
        step(next(in_memory))
    found = {"steps": time_steps(step, in_memory, steps, config.batch_size, device)}
    found["loader"] = time_steps(step, batches, steps, config.batch_size, device)
    parts = np.array([split_step(training, batches, device) for _ in range(max(2, steps // 4))])
    shares = parts / parts.sum(1, keepdims=True)
    return {**found, "parts_ms": dict(zip(PARTS, (1e3 * np.median(parts, 0)).tolist(), strict=True)),
            "shares": dict(zip(PARTS, np.median(shares, 0).tolist(), strict=True))}  # fmt: skip


def iterate(data: DetectionDataset, batch_size: int, workers: int, pin: bool) -> Iterator[Batch]:
    """Yield whole batches, epoch after epoch."""
    for epoch in itertools.count():
        loader = make_loader(data, batch_size, shuffle=True, epoch=epoch, workers=workers, pin_memory=pin)
        yield from (batch for batch in loader if len(batch.images) == min(batch_size, len(data)))


def time_steps(
    step: Callable[[Batch], None], batches: Iterator[Batch], steps: int, batch: int, device: torch.device
) -> float:
    """Return images/s of some steps."""
    synchronise(device)
    started = time.perf_counter()
    images = 0
    for one in itertools.islice(batches, steps):
        step(one)
        images += len(one.images)
    synchronise(device)
    return images / (time.perf_counter() - started)


def split_step(training: TrainingState, batches: Iterator[Batch], device: torch.device) -> list[float]:
    """Return the seconds of each of PARTS in one step, the device waited for after each."""
    marks = [time.perf_counter()]

    def mark() -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    batch = next(batches)
    images = normalise(batch.images.to(device, non_blocking=True)).to(memory_format=torch.channels_last)
    mark()
    with training.autocast():
        heads = training.forward(images)
    mark()
    losses = training.loss.measure(heads, batch.targets, *images.shape[-2:])
    mark()
    training.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(losses.total)
    mark()
    training.optimizer.step()
    training.average.update(training.model)
    mark()
    return [end - start for start, end in pairwise(marks)]


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_results(results: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    head = "| batch | images/s, batches in memory | of peak | images/s with the loader | " + " | ".join(PARTS) + " |"
    lines = [
        f"yolov3-hand at {results['img_size']} px in {results['precision']}, {results['workers']} loader threads. Shares of a step that "
        "waits for the device after each part.",
        "",
        head,
        "| ---: | ---: | ---: | ---: |" + " ---: |" * len(PARTS),
    ]
    for row in results["rows"]:
        if "failed" in row:
            lines.append(f"| {row['batch']} | {row['failed'].replace('|', '/')} |" + " |" * (len(PARTS) + 2))
            continue
        shares = " | ".join(f"{row['shares'][part]:.1%}" for part in PARTS)
        lines.append(
            f"| {row['batch']} | {row['steps']:.0f} | {row['steps_peak_share']:.1%} | {row['loader']:.0f} | {shares} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(parse_job())
