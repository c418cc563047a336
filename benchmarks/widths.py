"""What odd widths cost: python benchmarks/widths.py [--networks tiny-128,quarter] [--engines folded,openvino] [--threads 1,2]

Cuts each network to the same multiply–accumulates four times, to widths that are multiples of 1, 4, 8 and 16, by random
importance, so that widths fall as they do after pruning; with several seeds, as one odd width may be a lucky one. All of them
run, with decoding, batch 1, in this package's folded PyTorch engine, ONNX Runtime and OpenVINO (packages onnx, onnxruntime and
openvino), on one thread and on two, all in turn in each round. Weights are random: time does not depend on them.

Brackets behind milliseconds are quartiles over all rounds and seeds. A ratio is that of medians over a seed's rounds, over
seeds the geometric mean; the brackets behind it are a 95 % bootstrap interval over seeds and rounds.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_peers import (
    Call,
    export_onnx,
    find_module,
    make_onnxruntime_call,
    make_openvino_call,
    make_random_detector,
    measure,
)
from numpy.typing import NDArray
from torch import Tensor
from widths_table import Measured, format_tables

from yolo_prune.benchmarking.latency import describe_environment
from yolo_prune.console import report
from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.engines.make import make_engine
from yolo_prune.errors import EngineError, PlanError
from yolo_prune.files import save_json
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import make_cost_budgets, make_plan, make_threshold_plan, prune_network
from yolo_prune.pruning.surgery.recalibrate import recalibrate_

CONFIGS = Path(__file__).parents[1] / "configs"
CPU = torch.device("cpu")
ENGINES = {"folded": (), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx")}
"""Engines, and the packages that each needs."""
HEADROOM = 1.25
"""The MACs are at least so many times the fewest of the coarsest widths: with those every group has just one multiple."""
MOST_APART = 0.01
"""How far the MACs of two roundings may be apart."""
OFFSETS = tuple(sign * step / 100 for step in range(21) for sign in (1, -1))
"""Changes of the MACs at which plans of all roundings are tried, the smallest first, until they are near each other."""
WARMUP = 0
"""Rounds: every call has run when its outputs were compared, and runs again right before it is timed."""
LARGEST_GAP = 1e-3
"""Between two engines' outputs, as a share of the largest."""


@dataclass(frozen=True)
class Cut:
    """How a network is pruned, and so how many MACs stay."""

    config: PlanConfig
    power: float
    """Of a group's size, by which its random scores are divided: 0 leaves every group about the same share."""


CUTS = {
    "80 % of the channels, most of them in wide layers": Cut(PlanConfig(0.8), 0.5),
    "to 20 % of the MACs, the same share of all layers": Cut(PlanConfig(target_macs=0.2), 0.0),
}
"""The first is what pruning by γ comes to: wide layers lose more."""


@dataclass(frozen=True)
class Case:
    """A network, the side of its images in pixels, and how often it is timed."""

    cfg: Path
    img_size: int
    rounds: int


NETWORKS = {
    "tiny-128": Case(CONFIGS / "yolov3-tiny-hand.cfg", 128, 10),
    "tiny-416": Case(CONFIGS / "yolov3-tiny-hand.cfg", 416, 6),
    "quarter": Case(CONFIGS / "yolov3-hand-quarter.cfg", 416, 6),
    "full": Case(CONFIGS / "yolov3-hand.cfg", 416, 3),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Time everything and print the tables."""
    arguments = parse_arguments(argv)
    threads_before = torch.get_num_threads()
    measured: list[Measured] = []
    try:
        for name in arguments.networks:
            for cut in CUTS:
                for seed in range(arguments.seeds):
                    started = time.perf_counter()
                    measured += measure_seed(name, cut, seed, arguments)
                    report(f"{name}, {cut}, seed {seed}: {time.perf_counter() - started:.0f} s")
    finally:
        torch.set_num_threads(threads_before)
    environment = describe(arguments)
    print(", ".join(f"{name} {value}" for name, value in environment.items()) + "\n")
    print(format_tables(measured))
    if arguments.json is not None:
        runs = [{**asdict(run), "seconds": run.seconds.tolist()} for run in measured]
        save_json(arguments.json, {"environment": environment, "measured": runs})


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and end with one line about what is wrong in it."""
    parser = argparse.ArgumentParser(description="Odd widths beside multiples, at the same MACs.")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--round-to", default="1,4,8,16", help="multiples; all are compared with the first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="of every network (default: the larger, the fewer)")
    parser.add_argument("--json", type=Path, help="a file for all times")
    arguments = parser.parse_args(argv)
    for name, known in (("networks", NETWORKS), ("engines", ENGINES)):
        setattr(arguments, name, getattr(arguments, name).split(","))
        if unknown := set(getattr(arguments, name)) - set(known):
            parser.error(f"--{name}: unknown {min(unknown)}; use some of {','.join(known)}")
    for name in ("threads", "round_to"):
        numbers = [int(word) if word.isdecimal() else 0 for word in getattr(arguments, name).split(",")]
        setattr(arguments, name, numbers)
        if min(numbers) < 1 or len(set(numbers)) < len(numbers):
            parser.error(f"--{name.replace('_', '-')}: use different whole numbers from 1 on, such as 1,2")
    if arguments.seeds < 1 or (arguments.rounds is not None and arguments.rounds < 1):
        parser.error("--seeds, --rounds: use at least 1")
    missing = {package for engine in arguments.engines for package in ENGINES[engine] if find_module(package) is None}
    if missing:
        parser.error(
            f"--engines: {', '.join(sorted(missing))} cannot be imported; install, or name the engines to time"
        )
    return arguments


def describe(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the conditions under which the times are true."""
    found = describe_environment(CPU, "folded")
    packages = dict.fromkeys(package for engine in arguments.engines for package in ENGINES[engine])
    versions = {package: str(find_module(package).__version__).split("-")[0] for package in packages}
    keys = ("device", "precision", "torch", "python", "system")
    return {**{key: str(found[key]) for key in keys}, **versions, "batch": "1", "seeds": str(arguments.seeds)}


@torch.inference_mode()
def measure_seed(name: str, cut: str, seed: int, arguments: argparse.Namespace) -> list[Measured]:
    """Time one cut of one network in all roundings and engines, on all numbers of threads, side by side."""
    case = NETWORKS[name]
    network = resize(load_cfg(case.cfg), case.img_size)
    images = torch.rand(1, network.channels, case.img_size, case.img_size)
    pruned = make_equal_networks(network, CUTS[cut], seed, arguments.round_to)
    full = measure_cost(network).macs
    with tempfile.TemporaryDirectory() as folder:
        by_rounding = {
            round_to: make_calls(slim, images, Path(folder) / f"{round_to}.onnx", arguments)
            for round_to, slim in pruned.items()
        }
        keys = list(itertools.product(arguments.engines, arguments.threads, pruned))
        calls = {str(key): by_rounding[key[2]][key[:2]] for key in keys}
        times = measure(calls, arguments.rounds or case.rounds, time.perf_counter, WARMUP)
    costs = {round_to: measure_cost(slim) for round_to, slim in pruned.items()}
    return [
        Measured(
            name, cut, seed, *key, costs[key[2]].macs, costs[key[2]].macs / full, costs[key[2]].params, times[str(key)]
        )
        for key in keys
    ]


def make_equal_networks(network: Network, cut: Cut, seed: int, multiples: Sequence[int]) -> dict[int, Network]:
    """Return the network pruned at random to widths of each multiple, all to nearly the same MACs.

    These are the MACs that `cut` leaves unrounded, or `HEADROOM` times the fewest that the coarsest widths can have, whichever is
    more; then they move until a plan of each multiple is near.
    """
    graph, cost = make_channel_graph(network), measure_cost(network)
    full = cost.macs
    importance = np.random.default_rng(seed).random(graph.size)
    for group in graph.groups:
        importance[group.ids] /= len(group.ids) ** cut.power

    def prune(config: PlanConfig) -> Network:
        budgets = make_cost_budgets(config, network, graph, cost)
        return prune_network(network, make_plan(graph, importance, config, budgets), graph)

    least = max(measure_least(network, graph, multiple) for multiple in multiples)
    target = min(1.0, max(measure_cost(prune(cut.config)).macs, HEADROOM * least) / full)
    nearest: dict[int, Network] = {}
    apart = np.inf
    for offset in OFFSETS:
        found: dict[int, Network] = {}
        share = target * (1 + offset)
        try:
            for multiple in sorted(multiples, reverse=True):
                found[multiple] = prune(PlanConfig(target_macs=min(1.0, share), round_to=multiple))
                if len(found) == 1:  # the coarsest can meet few numbers of MACs: the others follow it
                    share = measure_cost(found[multiple]).macs / full * (1 + MOST_APART / 2)
        except PlanError:
            continue
        if (now := measure_spread(found.values())) < apart:
            nearest, apart = found, now
        if apart <= MOST_APART:
            break
    return {multiple: nearest[multiple] for multiple in multiples}


def measure_least(network: Network, graph: ChannelGraph, multiple: int) -> int:
    """Return the fewest MACs that a plan of this multiple can leave: one multiple in every group."""
    plan = make_threshold_plan(graph, np.zeros(graph.size), np.inf, PlanConfig(min_channels=max(2, multiple)))
    return measure_cost(prune_network(network, plan, graph)).macs


def measure_spread(networks: Iterable[Network]) -> float:
    """Return how far the MACs of networks are apart, as a share of the fewest."""
    macs = [measure_cost(network).macs for network in networks]
    return max(macs) / min(macs) - 1


def make_calls(
    network: Network, images: Tensor, path: Path, arguments: argparse.Namespace
) -> dict[tuple[str, int], Call]:
    """Return calls of a network of random weights by engine and threads, whose outputs are the same."""
    folded = make_engine(make_model(network, images), "folded", CPU)
    if arguments.engines != ["folded"]:
        export_onnx(folded, images, path)
    calls: dict[tuple[str, int], Call] = {}
    for engine in arguments.engines:
        for threads in arguments.threads:
            match engine:
                case "folded":
                    last = images.to(memory_format=torch.channels_last)
                    call: Call = partial(run_folded, folded, last, threads)
                case "onnxruntime":
                    call = make_onnxruntime_call(find_module(engine), path, images, threads)
                case _:
                    call = make_openvino_call(path, images, threads)
            calls[engine, threads] = call
            check_outputs(engine, run_folded(folded, images, threads), call())
    return calls


def make_model(network: Network, images: Tensor) -> Detector:
    """Make a detector of random weights, its batch norm measured on the images.

    So numbers neither grow from layer to layer nor fall to denormal ones, which are slow.
    """
    model = make_random_detector(network)
    recalibrate_(model, [images], CPU)
    return model


def run_folded(engine: torch.nn.Module, images: Tensor, threads: int) -> list[NDArray[np.float32]]:
    """Run PyTorch on so many threads."""
    torch.set_num_threads(threads)
    return [output.numpy() for output in engine(images)]


def check_outputs(engine: str, expected: Sequence[NDArray[np.float32]], found: Any) -> None:
    """Raise an EngineError where an engine's boxes and scores are not PyTorch's."""
    outputs = list(found.values()) if hasattr(found, "values") else found
    for one, other in zip(expected, outputs, strict=True):
        gap = float(np.abs(one - other).max() / np.abs(one).max())
        if not gap <= LARGEST_GAP:
            raise EngineError(f"outputs are off by {gap:.1e} of the largest", where=engine, right="use another version")


if __name__ == "__main__":
    main()
