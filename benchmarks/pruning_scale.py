"""How long planning and surgery take, and what they hold: python benchmarks/pruning_scale.py [--widths 0.25,0.5,1,1.5,2]

For YOLOv3 at several widths: the channel graph, a plan to a tenth of the MACs by l2, the rebuild, medians with their range,
and the peak of memory beyond the model itself while planning and rebuilding, each width in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.files import open_atomically
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig, ScoreConfig
from yolo_prune.pruning.plans.plan import make_cost_budgets, make_plan
from yolo_prune.pruning.scores.importance import score_channels
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import rebuild

T = TypeVar("T")
IMG_SIZE = 416
STAGES = ("graph", "score", "plan", "rebuild")
GOALS_S = {"graph": 0.05, "plan": 1.0, "rebuild": 2.0}
"""At width 1."""


def main() -> None:
    """Print a row per width, and how figures grow with channels; with --out draw them."""
    parser = argparse.ArgumentParser(description="Time and memory of planning and surgery.")
    parser.add_argument("--widths", default="0.25,0.5,1,1.5,2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a PNG of the curves")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.repeats)))
        return
    rows = []
    print("| width | channels | model | " + " | ".join(STAGES) + " | memory beyond the model |")
    print("| --- " * (4 + len(STAGES)) + "|")
    for width in map(float, arguments.widths.split(",")):
        command = [sys.executable, __file__, "--one", str(width), "--repeats", str(arguments.repeats)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(format_row(rows[-1]), flush=True)
    if whole := [row for row in rows if row["width"] == 1]:
        for stage, goal in GOALS_S.items():
            took = whole[0][stage][1]
            print(f"{stage}: {took:.3f} s, goal {goal} s: {'met' if took < goal else 'missed'}")
    if arguments.out is not None:
        draw(arguments.out, rows)


def measure(width: float, repeats: int) -> dict[str, Any]:
    """Return one width's figures: seconds as (least, median, most) per stage, and bytes."""
    network = make_network("yolov3", width=width)
    model = Detector(network).eval()
    config = PlanConfig(target_macs=0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph, times = make_channel_graph(network), dict[str, Any]()
    _ = graph.groups

    def make_graph() -> object:
        fresh = make_channel_graph(network)
        return fresh.groups

    times["graph"], _ = clock(make_graph, repeats)
    times["score"], importance = clock(lambda: score_channels(model, graph, ScoreConfig("l2")), repeats)
    budgets = make_cost_budgets(config, network, graph, measure_cost(network, IMG_SIZE))
    times["plan"], plan = clock(lambda: make_plan(graph, importance, config, budgets), repeats)
    times["rebuild"], _ = clock(lambda: rebuild(model, plan, carry_constants(model, plan)), repeats)
    return {
        "width": width,
        "channels": graph.size,
        "model_bytes": measure_cost(network).size_bytes,
        "memory_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        **times,
    }


def clock(work: Callable[[], T], repeats: int) -> tuple[tuple[float, float, float], T]:
    """Return the least, median and most seconds that `work` takes, and what it returned last."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return (min(seconds), float(np.median(seconds)), max(seconds)), result


def format_row(row: dict[str, Any]) -> str:
    """Return one width as a Markdown row."""
    times = [f"{1e3 * mid:.0f} ms [{1e3 * low:.0f}, {1e3 * high:.0f}]" for low, mid, high in (row[s] for s in STAGES)]
    cells = [f"{row['width']:g}", f"{row['channels']:,}", f"{row['model_bytes'] / 1e6:.0f} MB", *times]
    return f"| {' | '.join(cells)} | {row['memory_bytes'] / 1e6:.0f} MB |"


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw seconds and bytes against channels on double logarithmic axes, with what linear growth would look like."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    channels = [row["channels"] for row in rows]
    for stage in STAGES:
        seconds.loglog(channels, [row[stage][1] for row in rows], marker="o", label=stage)
    seconds.set(title="seconds", xlabel="channels")
    memory.loglog(channels, [row["model_bytes"] / 1e6 for row in rows], marker="o", label="the model's weights")
    memory.loglog(channels, [row["memory_bytes"] / 1e6 for row in rows], marker="o", label="held beyond them")
    memory.set(title="MB", xlabel="channels")
    for axes, start in ((seconds, rows[0]["graph"][1]), (memory, rows[0]["model_bytes"] / 1e6)):
        line = [start * count / channels[0] for count in channels]
        axes.loglog(channels, line, color="0.7", linestyle="--", label="linear in channels")
        axes.legend(fontsize=8)
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=110)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
