"""Times of layers, and the latency of networks that follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import make_small_network

from yolo_prune.benchmarking import latency_table
from yolo_prune.benchmarking.latency_table import CACHE, Grid, LatencyTable, measure_table
from yolo_prune.benchmarking.layer_timing import (
    LayerCase,
    LayerModule,
    list_cases,
    make_layer_onnx,
    make_layer_timer,
)
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import ACTIVATIONS, Conv, MaxPool, Shortcut, Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_mixed() -> Network:
    layers = (Conv(16, 3, padding=1), Conv(16, 1), Shortcut(0), MaxPool(2, 2, 0), Conv(24, 3, padding=1), Upsample())
    return make_small_network(*layers, side=32)


def test_cases_are_the_layers_that_compute() -> None:
    cases = dict(list_cases(make_mixed()))
    assert cases[0] == LayerCase("conv", 3, 16, 32, 32, 3, 1, 1, activation="leaky")
    assert cases[2] == LayerCase("add", 16, 16, 32, 32)
    assert cases[3] == LayerCase("pool", 16, 16, 32, 32, 2, 2)
    assert cases[5] == LayerCase("upsample", 24, 24, 16, 16, stride=2)


@given(
    times=st.lists(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), min_size=2, max_size=2),
    widths=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    more=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_wider_layers_never_take_less(times: list[list[float]], widths: tuple[int, int], more: tuple[int, int]) -> None:
    grid = Grid([8, 64], [8, 32, 64], times)
    wider = [one + other for one, other in zip(widths, more, strict=True)]
    assert grid.look_up(*widths) <= grid.look_up(*wider) + 1e-9


def test_between_widths_times_are_interpolated() -> None:
    grid = Grid([16, 32], [16, 32], [[1.0, 2.0], [3.0, 5.0]])
    assert grid.look_up(16, 32) == 2.0
    assert grid.look_up(24, 24) == pytest.approx((1 + 2 + 3 + 5) / 4)
    assert grid.look_up(25, 16) == 3.0  # computed as 32


def pretend(case: LayerCase) -> float:
    """A layer takes what its multiply–accumulates need."""
    return 1e-6 * case.inputs * case.outputs * case.size**2 * case.height * case.width


def make_pretended(network: Network, monkeypatch: pytest.MonkeyPatch) -> tuple[LatencyTable, list[LayerCase]]:
    asked: list[LayerCase] = []

    def time(case: LayerCase) -> float:
        asked.append(case)
        return pretend(case)

    monkeypatch.setattr(latency_table, "make_layer_timer", lambda engine, device: time)
    return measure_table(network, "folded", CPU), asked


def test_the_sum_of_the_layers_is_that_of_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("yolov3-tiny", 1, 0.25, 64)
    table, asked = make_pretended(network, monkeypatch)
    wanted = sum(pretend(case) for _, case in list_cases(network))
    assert table.sum_layers(network) == pytest.approx(wanted, rel=0.05)  # the heads have no multiple of 8
    again, asked_again = make_pretended(network, monkeypatch)
    assert asked
    assert not asked_again
    assert again.grids == table.grids
    wider, asked_wider = make_pretended(make_network("yolov3-tiny", 1, 0.5, 64), monkeypatch)
    assert asked_wider
    assert wider.sum_layers(network) == pytest.approx(wanted, rel=0.05)


def test_whole_networks_correct_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("yolov3-tiny", 1, 0.5, 64)
    thin = make_network("yolov3-tiny", 1, 0.125, 64)
    table, _ = make_pretended(network, monkeypatch)
    total, less = table.sum_layers(network), table.sum_layers(thin)
    assert table.estimate(network) == total
    table.correct(network, 3 * total)
    assert table.estimate(network) == pytest.approx(3 * total)
    assert table.estimate(thin) == pytest.approx(3 * less)
    table.correct(thin, 2 * less)
    assert (table.estimate(thin), table.estimate(network)) == pytest.approx((2 * less, 3 * total))
    between = make_network("yolov3-tiny", 1, 0.25, 64)
    assert 2 * less < table.estimate(between) < 3 * total
    wider = make_network("yolov3-tiny", 1, 1.0, 64)
    table, _ = make_pretended(wider, monkeypatch)
    table.correct(network, 3 * total)
    assert table.estimate(wider) > 3 * total


def test_a_damaged_table_is_measured_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_mixed()
    make_pretended(network, monkeypatch)
    (path,) = cache.iterdir()
    path.write_text("{")
    _, asked = make_pretended(network, monkeypatch)
    assert asked


@pytest.mark.parametrize("engine", ["folded", "onnxruntime", "openvino"])
def test_every_kind_of_layer_is_timed(engine: str) -> None:
    if engine != "folded":
        pytest.importorskip(engine, reason="the extra `export` is not installed")
    timer = make_layer_timer(engine, CPU)
    for _, case in list_cases(make_mixed()):
        assert 0 < timer(case.with_widths(8, 8)) < 1e3
    assert timer(LayerCase("conv", 8, 8, 16, 16, 3, 1, 1, groups=8)) > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_in_onnx_has_the_shape_of_the_one_in_pytorch(activation: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    case = LayerCase("conv", 4, 6, 16, 16, 3, 2, 1, activation=activation)
    for one in (case, LayerCase("pool", 4, 4, 16, 16, 2, 1, 1), LayerCase("upsample", 4, 4, 16, 16, stride=2)):
        session = runtime.InferenceSession(make_layer_onnx(one).SerializeToString())
        (found,) = session.run(None, {"images": np.zeros((1, 4, 16, 16), np.float32)})
        assert found.shape == tuple(LayerModule(one)(torch.zeros(1, 4, 16, 16)).shape)


def test_a_depthwise_layer_keeps_a_group_for_each_channel() -> None:
    case = LayerCase("conv", 16, 16, 8, 8, 3, 1, 1, groups=16)
    assert case.family.with_widths(24, 99) == replace(case, inputs=24, outputs=24, groups=24)


def test_other_engines_have_no_table() -> None:
    with pytest.raises(ConfigError, match="engine: layers cannot be timed in ncnn; use one of folded"):
        make_layer_timer("ncnn", CPU)


@pytest.mark.parametrize(
    "grid",
    [
        {"inputs": [8], "outputs": [8, 16], "times_ms": [[0.1]]},
        {"inputs": [8, 16], "outputs": [8], "times_ms": [[0.1]]},
        {"inputs": [16, 8], "outputs": [8], "times_ms": [[0.1], [0.2]]},
        {"inputs": ["8"], "outputs": [8], "times_ms": [[0.1]]},
        {"inputs": [8], "outputs": [8], "times_ms": [["fast"]]},
        {"inputs": [8], "outputs": [8], "times_ms": "fast"},
        {"inputs": [], "outputs": [], "times_ms": []},
        {"inputs": [8], "outputs": [8], "times_ms": [[float("nan")]]},
    ],
)
def test_a_table_that_holds_no_grid_is_measured_again(tmp_path: Path, grid: dict[str, object]) -> None:
    path, sound = tmp_path / "a.json", {"inputs": [8], "outputs": [8], "times_ms": [[0.1]]}
    entry = {"family": ["conv", 8, 8, 4, 4, 3], "grid": sound}
    path.write_text(json.dumps([entry]))
    assert [one.look_up(8, 8) for one in latency_table._load(path).values()] == [0.1]
    path.write_text(json.dumps([entry, {**entry, "grid": grid}]))
    assert latency_table._load(path) == {}


def test_without_a_home_folder_it_is_measured_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("HOME", "~nobody-of-this-name")
    network = make_mixed()
    make_pretended(network, monkeypatch)
    assert measure_table(network, "folded", CPU).grids.keys() == measure_table(network, "folded", CPU).grids.keys()
