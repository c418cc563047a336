"""How near the estimates of latency tables come to whole networks: python benchmarks/latency_tables.py [--engines folded,openvino] [--threads 1,2]

Cuts each network at random to several shares of its multiply–accumulates, and estimates the time of each with the table that
targets in time are planned by, which knows single layers, the original and a very thin network. Then the networks are timed,
interleaved with the original, and the estimated share of the original's time is compared with the measured one. Tables are
measured anew, in a folder of their own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from engine_peers import make_random_detector
from widths import CPU, NETWORKS

from yolo_prune.benchmarking.latency import describe_environment
from yolo_prune.benchmarking.latency_table import CACHE
from yolo_prune.commands.pruning.time_budgets import Stopwatch, TimeTargets
from yolo_prune.console import report
from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import make_cost_budgets, make_plan, prune_network

SHARES = (0.7, 0.5, 0.35, 0.2, 0.1)
"""Of the multiply–accumulates that are left."""
MULTIPLE = 8
"""Of the widths."""
GOAL = 0.1
"""The largest error that is wanted, as a share of the measured time."""


@dataclass(frozen=True)
class Error:
    """An estimate beside the clock."""

    network: str
    engine: str
    threads: int
    share: float
    """Of the original's multiply–accumulates."""
    estimated: float
    """As a share of the original's time, as the next."""
    measured: float

    @property
    def value(self) -> float:
        """How much the estimate is above the measured time, as a share of that."""
        return self.estimated / self.measured - 1


def cut(network: Network, share: float, seed: int) -> Network:
    """Return the network without channels drawn at random, at `share` of its multiply–accumulates."""
    graph, cost = make_channel_graph(network), measure_cost(network)
    generator = np.random.default_rng(seed)
    importance = generator.random(graph.size)
    for group in graph.groups:
        importance[group.ids] *= generator.uniform(0.3, 1)  # some layers lose more than others
    config = PlanConfig(target_macs=share, round_to=MULTIPLE)
    plan = make_plan(graph, importance, config, make_cost_budgets(config, network, graph, cost))
    return prune_network(network, plan, graph)


def measure_errors(name: str, engine: str, seeds: int) -> list[Error]:
    """Return the errors of one network in one engine, with as many threads as PyTorch has now; what cannot be timed is reported."""
    case, threads = NETWORKS[name], torch.get_num_threads()
    network = resize(load_cfg(case.cfg), case.img_size)
    model = make_random_detector(network)
    watch = Stopwatch(model, CPU, engine)
    errors = []
    try:
        targets = TimeTargets(PlanConfig(target_speedup=1.5, round_to=MULTIPLE), model, watch)
    except PlanError as error:
        report(f"{name}, {engine}, {threads} threads: {error}")
        return []
    full = measure_cost(network).macs
    for share in SHARES:
        for seed in range(seeds):
            slim = cut(network, share, seed)
            try:
                before, after = watch.measure(make_random_detector(slim))
            except PlanError as error:
                report(f"{name}, {engine}, {threads} threads, share {share}: {error}")
                continue
            estimated = targets.table.estimate(slim) / targets.before_ms
            errors.append(Error(name, engine, threads, measure_cost(slim).macs / full, estimated, after / before))
    return errors


def format_table(errors: Sequence[Error]) -> str:
    """Return a line for each network, engine and number of threads, in Markdown."""
    lines = [
        "| network | engine | threads | networks timed | error: median, largest | within 10 % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key in dict.fromkeys((error.network, error.engine, error.threads) for error in errors):
        own = [error for error in errors if (error.network, error.engine, error.threads) == key]
        sizes = np.abs([error.value for error in own])
        lines.append(
            f"| {' | '.join(map(str, key))} | {len(own)} | {np.median(sizes):.1%}, {sizes.max():.1%} | {(sizes <= GOAL).sum()} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table and each error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", default="tiny-128,quarter")
    parser.add_argument("--engines", default="folded,onnxruntime,openvino")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args(argv)
    if unknown := set(given.networks.split(",")) - set(NETWORKS):
        parser.error(f"--networks: unknown {min(unknown)}; use some of {','.join(NETWORKS)}")
    errors: list[Error] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        for name in given.networks.split(","):
            for threads in map(int, given.threads.split(",")):
                torch.set_num_threads(threads)
                for engine in given.engines.split(","):
                    errors += measure_errors(name, engine, given.seeds)
    for error in errors:
        print(
            f"{error.network}, {error.engine}, {error.threads} threads, {error.share:.0%} of the MACs: "
            f"estimated {error.estimated:.3f}, measured {error.measured:.3f} of the original's time, {error.value:+.1%}"
        )
    print(
        f"\n{format_table(errors)}\n\n{describe_environment(CPU, given.engines)['device']}, PyTorch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
