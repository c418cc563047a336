"""Stage `bench`: the table's networks in every engine, at three batch sizes, against what the device can do at most."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler_util import DeviceType  # type: ignore[attr-defined]  # documented, not exported
from torch.profiler import ProfilerActivity, profile

from gpu.ceilings import judge, measure_ceilings, summarise, time_call
from gpu.job import Job, parse_job
from gpu.networks import draw_images, make_models
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.engines.make import Engine, make_engine
from yolo_prune.engines.precision import computing_in
from yolo_prune.model.detector import Detector

BATCHES, TINY_BATCHES = (1, 8, 32), (1, 2)
QUICK = (
    *(("eager", "fp32"), ("eager", "tf32"), ("folded", "bf16"), ("folded", "fp16")),
    *(("cudagraph", "bf16"), ("half-2:4", "fp16")),
)
"""Engines that are ready at once."""
SLOW = (("compile", "bf16"), ("compile-max", "bf16"))
"""Engines that take minutes to build: the last, as far as time allows."""
OF_CPU = (("eager", "fp32"), ("folded", "fp32"), ("folded", "bf16"))
RUNS, TINY_RUNS = 40, 3
WARMUP = 5
RESERVE_S = 25.0
"""Seconds that must be left to begin building a slow engine."""


@dataclass
class Row:
    """A network in an engine at a batch size, while it is timed."""

    name: str
    model: Detector
    engine: str
    precision: str
    batch: int
    call: Engine
    images: torch.Tensor

    def run(self) -> object:
        """Run one pass."""
        with torch.inference_mode(), computing_in(self.precision):
            return self.call(self.images)


def run(job: Job) -> None:
    """Measure the ceilings, then all rows, batch by batch; rows of one batch take turns."""
    job.results |= {"ceilings": measure_ceilings(job.place, job.is_tiny), "img_size": job.img_size, "rows": []}
    job.save()
    models = make_models(job.width, job.img_size, job.is_tiny)
    job.results["networks"] = {
        name: {**measure_cost(model.network, job.img_size).as_dict()} for name, model in models.items()
    }
    is_gpu = job.place.type == "cuda"
    for batch in TINY_BATCHES if job.is_tiny else BATCHES:
        measure(job, list(make_rows(job, models, QUICK if is_gpu else OF_CPU, batch)))
    for engine in SLOW if is_gpu else ():  # the stage `check` has compiled a network on the CPU
        for batch in BATCHES:
            for name in ("original", "ours"):
                if job.seconds_left < RESERVE_S:
                    job.results.setdefault("left_out", []).append([name, *engine, batch])
                    continue
                measure(job, list(make_rows(job, {name: models[name]}, (engine,), batch)))
    job.save()


def make_rows(job: Job, models: dict[str, Detector], engines: Any, batch: int) -> Iterator[Row]:
    """Yield rows; one that cannot be made, or does not run, is recorded with its reason."""
    for engine, precision in engines:
        for name, model in models.items():
            if (engine == "half-2:4") != (name == "original 2:4"):
                continue
            images = draw_images(batch, 3, job.img_size, job.place)
            try:
                row = Row(
                    name, model, engine, precision, batch, make_engine(model, engine, job.place, precision), images
                )
                for _ in range(WARMUP if job.place.type == "cuda" else 1):
                    row.run()
            except Exception as error:  # noqa: BLE001  # the others are still measured
                traceback.print_exc()
                said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                record(job, {"network": name, "engine": engine, "precision": precision, "batch": batch, "failed": said})
                continue
            yield row


def measure(job: Job, rows: list[Row]) -> None:
    """Time rows in turn and record them."""
    runs = TINY_RUNS if job.is_tiny else RUNS
    times: list[list[tuple[float, float]]] = [[] for _ in rows]
    for _ in range(runs):
        for row, own in zip(rows, times, strict=True):
            own.append(time_call(row.run, job.place))
    for row, own in zip(rows, times, strict=True):
        wall, device = (summarise(values) for values in zip(*own, strict=True))
        kernels = count_kernels(row, job.place)
        seconds = wall["p50"] / 1e3
        record(job, {
            **{"network": row.name, "engine": row.engine, "precision": row.precision, "batch": row.batch},
            **{"wall_ms": wall, "device_ms": device, "runs": runs, "kernels": kernels, "images_per_s": row.batch / seconds},
            "memory_bytes": measure_memory(row, job.place),
            **judge(row.model.network, job.img_size, row.batch, row.precision, kernels, seconds, job.results["ceilings"]),
        })  # fmt: skip


def record(job: Job, row: dict[str, Any]) -> None:
    """Add a row to the results, on disk too."""
    job.results["rows"].append(row)
    job.save()


def count_kernels(row: Row, device: torch.device) -> int:
    """Return how many launches a pass makes on the GPU: kernels, or one graph; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    if row.engine == "cudagraph":
        return 1
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        row.run()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in found.events() or ())


def measure_memory(row: Row, device: torch.device) -> int | None:
    """Return the most bytes that PyTorch held on the GPU in a pass; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with suppress(RuntimeError):
        row.run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def format_results(results: dict[str, Any]) -> str:
    """Return the ceilings and the rows as Markdown."""
    found = results["ceilings"]
    flops = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in found["flops_per_s"].items())
    lines = [
        f"Ceilings: {flops} TFLOP/s; {found['bytes_per_s'] / 1e9:.0f} GB/s of copying; {1e6 * found['launch_s']:.1f} µs a launch.",
        "",
        "| network | engine | precision | batch | ms (p5 to p95) | of the device | images/s | TMAC/s | verdict | × the floor |",
        "| --- | --- | --- | ---: | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for row in results["rows"]:
        head = f"| {row['network']} | {row['engine']} | {row['precision']} | {row['batch']} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed'].replace('|', '/')} | | | | | |")
            continue
        wall, device = row["wall_ms"], row["device_ms"]
        lines.append(
            f"{head} {wall['p50']:.3f} ({wall['p5']:.3f} to {wall['p95']:.3f}) | {device['p50']:.3f} | {row['images_per_s']:.0f} "
            f"| {row['macs_per_s'] / 1e12:.2f} | {row['verdict']} | {row['times_the_floor']:.1f} |"
        )
    if left := results.get("left_out"):
        lines += ["", f"Not measured for want of time: {'; '.join(' '.join(map(str, one)) for one in left)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    run(parse_job())
