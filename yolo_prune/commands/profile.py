"""`profile`: the time, multiply–accumulates and bytes of every layer, of one network or of two side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolo_prune.benchmarking.latency import describe_environment, measure_latencies, timing_threads
from yolo_prune.benchmarking.layer_timing import LayerCase, list_cases, make_layer_timer
from yolo_prune.benchmarking.profile_plot import draw_profile
from yolo_prune.commands.measure_config import ProfileConfig
from yolo_prune.commands.timed_calls import make_timed_call
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.engines.precision import computing_in
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_usable
from yolo_prune.model.device import make_device
from yolo_prune.own_files import PLOTS, check_own
from yolo_prune.text_tables import format_table, wrap

RUNS, WARMUP = 20, 5


@dataclass(frozen=True)
class LayerProfile:
    """A layer's costs for one image."""

    index: int
    kind: str
    outputs: int
    """Output channels."""
    macs: int
    moved_bytes: int
    """Weights, inputs and outputs, in float32."""
    time_ms: float


@dataclass(frozen=True)
class NetworkProfile:
    """A network's layers, and its time as a whole."""

    name: str
    layers: tuple[LayerProfile, ...]
    """Those that compute; concatenations and decoding are only in the time of the whole."""
    whole_ms: float

    @property
    def layers_ms(self) -> float:
        """The sum of the layers' times."""
        return sum(layer.time_ms for layer in self.layers)


@dataclass(frozen=True)
class ProfileResult:
    """The profiles, the original first, and the conditions."""

    networks: tuple[NetworkProfile, ...]
    environment: dict[str, Any]
    plot: Path | None

    @property
    def stdout(self) -> str:
        """The table, a row for each layer, and the conditions."""
        first, last = self.networks[0], self.networks[-1]
        after = {layer.index: layer for layer in last.layers}
        cells: list[tuple[str, ...]] = [("layer", "kind", "channels", "MACs", "bytes", "time")]
        cells += [_format_layer(layer, after.get(layer.index)) for layer in first.layers]
        for title, key in (("layers", "layers_ms"), ("whole", "whole_ms")):
            one, other = getattr(first, key), getattr(last, key)
            cells.append((title, "", "", "", "", _change(f"{one:.3f}", f"{other:.3f}", first is not last) + " ms"))
        environment = self.environment
        conditions = (
            f"{' → '.join(network.name for network in self.networks)}: milliseconds for one image in {environment['engine']} on "
            f"{environment['device']} ({environment['threads']} threads). Each layer is timed alone, the least of some runs; the whole is a median, and has decoding, concatenation "
            "and the calls between layers as well."
        )
        return f"{format_table(cells)}\n\n{wrap(conditions)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        networks = [{**asdict(network), "layers_ms": network.layers_ms} for network in self.networks]
        plot = None if self.plot is None else str(self.plot)
        return {"environment": self.environment, "networks": networks, "plot": plot}


def _format_layer(layer: LayerProfile, other: LayerProfile | None) -> tuple[str, ...]:
    has_other = other is not None and other is not layer
    last = other or layer
    return (
        str(layer.index),
        layer.kind,
        _change(f"{layer.outputs}", f"{last.outputs}", has_other),
        _change(f"{layer.macs / 1e6:.2f}M", f"{last.macs / 1e6:.2f}M", has_other) if layer.macs else "–",
        _change(f"{layer.moved_bytes / 1e6:.2f}MB", f"{last.moved_bytes / 1e6:.2f}MB", has_other),
        _change(f"{layer.time_ms:.3f}", f"{last.time_ms:.3f}", has_other) + " ms",
    )


def _change(before: str, after: str, has_other: bool) -> str:
    return f"{before} → {after}" if has_other else before


def profile(checkpoints: Sequence[Path], config: ProfileConfig) -> ProfileResult:
    """Time every layer of one or two checkpoints, and each as a whole.

    Raises:
        CheckpointError, ConfigError: an input is invalid, the engine has no times of layers, or the networks have other layers.
        OutputError: the plot is there already, and is not one of profile.
    """
    if len(checkpoints) > 2:
        what = f"{len(checkpoints)} checkpoints are given"
        raise ConfigError(what, where="CHECKPOINT", right="name one, or two to compare: before and after")
    if config.plot is not None:
        if config.plot.suffix.lower() not in PLOTS:
            right = f"let its name end in {' or '.join(PLOTS)}"
            raise ConfigError(f"{config.plot} names no kind of plot", where="--plot", right=right)
        check_own([config.plot], force=config.force, inputs=checkpoints, option="--plot")
    device = make_device(config.device)
    loaded = [load_usable(path).with_img_size(config.img_size) for path in checkpoints]
    kinds = [[case.kind for _, case in list_cases(checkpoint.network)] for checkpoint in loaded]
    if kinds[0] != kinds[-1]:
        right = "compare a checkpoint with one that channels were pruned from"
        raise ConfigError("the two networks do not have the same layers", where="CHECKPOINT", right=right)
    timer = make_layer_timer(config.engine, device)
    known: dict[LayerCase, float] = {}
    with timing_threads(config.threads):
        calls = [make_timed_call(one.make_model().eval(), config.engine, device) for one in loaded]  # exports, maybe
        with computing_in("fp32"):
            wholes = measure_latencies(calls, runs=RUNS, warmup=WARMUP, device=device, settles=True)
            networks = tuple(
                NetworkProfile(str(path), profile_layers(checkpoint.network, known, timer), whole.p50)
                for path, checkpoint, whole in zip(checkpoints, loaded, wholes, strict=True)
            )
        environment = describe_environment(device, config.engine)
    plot = None if config.plot is None else draw_profile(config.plot, networks)
    return ProfileResult(networks, environment, plot)


def profile_layers(
    network: Network, known: dict[LayerCase, float], timer: Callable[[LayerCase], float]
) -> tuple[LayerProfile, ...]:
    """Time every layer that computes, alone; `known` has the times of layers that were timed before, and gets the others."""
    costs = measure_cost(network).layers
    layers = []
    for index, case in list_cases(network):
        if case not in known:
            known[case] = timer(case)
        cost = costs[index]
        area = case.height * case.width
        moved = 4 * (cost.params + case.inputs * area + cost.shape.channels * cost.shape.height * cost.shape.width)
        layers.append(LayerProfile(index, case.kind, cost.shape.channels, cost.macs, moved, known[case]))
    return tuple(layers)
