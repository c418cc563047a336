"""benchmarks/widths.py, rehearsed on a tiny network: what it compares, what it prints, and what it says where it cannot start."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import engine_peers
import numpy as np
import pytest
import torch
import widths
from torch import Tensor
from widths_table import Cell, Measured, compare, format_tables

from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import load_cfg, save_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.errors import EngineError
from yolo_prune.model.detector import ConvLayer
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig

MULTIPLES = (1, 4, 8, 16)
TIMES = ["--seeds", "2", "--rounds", "2"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one tiny network, and no pauses."""
    path = save_cfg(make_network("yolov3-tiny", width=0.25), tmp_path / "tiny.cfg")
    monkeypatch.setattr(widths, "NETWORKS", {"tiny": widths.Case(path, 64, 2)})
    monkeypatch.setattr(engine_peers, "PAUSE_S", 0.0)


@pytest.fixture
def asked_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keep PyTorch on one thread, as two wait long for each other on a busy machine; return what it was asked for."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[Path, torch.nn.Module]:
    """Have PyTorch do what is asked of the other engines, whose packages need not be there; return what was exported."""
    exported: dict[Path, torch.nn.Module] = {}

    def export(model: torch.nn.Module, images: Tensor, path: Path) -> Path:
        exported[path] = model
        return path

    def make_call(_: object, path: Path, images: Tensor, threads: int) -> engine_peers.Call:
        return partial(widths.run_folded, exported[path], images, threads)

    def make_openvino_call(path: Path, images: Tensor, threads: int) -> engine_peers.Call:
        call = make_call(None, path, images, threads)
        return lambda: dict(enumerate(call()))

    monkeypatch.setattr(widths, "find_module", lambda name: np)
    monkeypatch.setattr(widths, "export_onnx", export)
    monkeypatch.setattr(widths, "make_onnxruntime_call", make_call)
    monkeypatch.setattr(widths, "make_openvino_call", make_openvino_call)
    return exported


def test_a_rehearsal(
    tiny: None,
    stand_ins: dict[Path, torch.nn.Module],
    asked_threads: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    widths.main([*TIMES, "--round-to", "1,2,4", "--json", str(tmp_path / "times.json")])
    assert set(asked_threads) == {1, 2}
    assert asked_threads[-1] == torch.get_num_threads()
    out, err = capsys.readouterr()
    headings = [line.removeprefix("### ") for line in out.splitlines() if line.startswith("###")]
    assert headings == [*(f"tiny, {cut}" for cut in widths.CUTS), "Over all of these"]
    rows = [
        line.split(" | ")[:2]
        for line in out.splitlines()
        if line.startswith(tuple(f"| {name}" for name in widths.ENGINES))
    ]
    assert rows == 2 * [[f"| {engine}", threads] for engine in widths.ENGINES for threads in "12"]
    assert "\nFastest over all: round_to " in out
    assert out.startswith("device ")
    assert err.count("tiny, ") == 4
    saved = json.loads((tmp_path / "times.json").read_text())
    keys = [tuple(run[key] for key in ("cut", "seed", "engine", "threads", "round_to")) for run in saved["measured"]]
    assert len(keys) == len(set(keys)) == 2 * 2 * 3 * 2 * 3
    assert all(len(run["seconds"]) == 2 and min(run["seconds"]) > 0 for run in saved["measured"])
    assert len(stand_ins) == 2 * 2 * 3


def test_one_engine_one_thread_one_multiple(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    widths.main([*TIMES, "--engines", "folded", "--threads", "1", "--round-to", "4"])
    out, _ = capsys.readouterr()
    assert out.count("| folded | 1 |") == 2
    assert "Over all" not in out


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_another_engine_gives_the_same_outputs(engine: str, tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    if missing := [name for name in widths.ENGINES[engine] if engine_peers.find_module(name) is None]:
        pytest.skip(f"{', '.join(missing)} cannot be imported")
    widths.main([*TIMES, "--engines", engine, "--threads", "1", "--round-to", "1,4"])
    assert f"| {engine} | 1 |" in capsys.readouterr().out


def test_other_outputs_are_an_error() -> None:
    right = [np.ones((1, 2, 4), np.float32), np.full((1, 2, 1), 0.5, np.float32)]
    widths.check_outputs("openvino", right, right)
    widths.check_outputs("openvino", right, dict(enumerate(right)))
    for wrong in (1.01 * right[1], np.nan * right[1]):
        with pytest.raises(EngineError, match="openvino: outputs are off by "):
            widths.check_outputs("openvino", right, [right[0], wrong])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--networks", "tiny-128,huge"], "--networks: unknown huge; use some of tiny-128,tiny-416,quarter,full"),
        (["--engines", "tensorrt"], "--engines: unknown tensorrt; use some of folded,onnxruntime,openvino"),
        (
            ["--engines", "openvino"],
            "--engines: onnx, openvino cannot be imported; install, or name the engines to time",
        ),
        (["--threads", "0"], "--threads: use different whole numbers from 1 on"),
        (["--threads", "1,1"], "--threads: use different whole numbers from 1 on"),
        (["--round-to", "1,x"], "--round-to: use different whole numbers from 1 on"),
        (["--seeds", "0"], "--seeds, --rounds: use at least 1"),
        (["--rounds", "0"], "--seeds, --rounds: use at least 1"),
    ],
)
def test_what_cannot_be_timed_is_reported_before_anything_is(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(widths, "find_module", lambda name: None)
    with pytest.raises(SystemExit) as leaving:
        widths.main(words)
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize("cut", widths.CUTS)
@pytest.mark.parametrize(("name", "seeds"), [("tiny-128", 3), ("quarter", 1)])
def test_networks_of_all_multiples_have_the_same_macs(name: str, seeds: int, cut: str) -> None:
    case = widths.NETWORKS[name]
    network = resize(load_cfg(case.cfg), case.img_size)
    whole = measure_cost(network).macs
    for seed in range(seeds):
        pruned = widths.make_equal_networks(network, widths.CUTS[cut], seed, MULTIPLES)
        assert list(pruned) == list(MULTIPLES)
        macs = [measure_cost(slim).macs for slim in pruned.values()]
        assert max(macs) <= 1.02 * min(macs)
        if widths.CUTS[cut].config.target_macs is not None:
            assert macs[0] / whole == pytest.approx(0.2, rel=0.1)
        for multiple, slim in pruned.items():
            assert find_broken(network, slim, multiple) == []
        odd = sum(conv.filters % 4 > 0 for _, conv in pruned[1].convs)
        assert odd > len(network.convs) / 2


def find_broken(network: Network, slim: Network, multiple: int) -> list[int]:
    """Return the convolutions that have neither a multiple of filters nor all of them."""
    graph, pairs = make_channel_graph(network), zip(network.convs, slim.convs, strict=True)
    assert graph.conv_layers == tuple(index for index, _ in network.convs)
    return [index for (index, old), (_, new) in pairs if new.filters % multiple and new.filters != old.filters]


def test_no_denormal_number_slows_a_random_network_down() -> None:
    case = widths.NETWORKS["quarter"]
    network = resize(load_cfg(case.cfg), 96)
    slim = widths.make_equal_networks(network, widths.Cut(PlanConfig(target_macs=0.2), 0.0), 0, (1,))[1]
    images = torch.rand(1, 3, 96, 96)
    model = widths.make_model(slim, images)
    least: list[float] = []
    most: list[float] = []

    def record(module: Any, inputs: Any, output: Tensor) -> None:
        assert output.isfinite().all()
        least.append(float(output[output != 0].abs().min()))
        most.append(float(output.abs().max()))

    for module in model.layers:
        if isinstance(module, ConvLayer):
            module.register_forward_hook(record)
    with torch.no_grad():
        model(images)
    assert len(least) == len(network.convs)
    assert min(least) > 1e-20
    assert max(most) < 100


def make_measured(engine: str, round_to: int, seed: int, seconds: list[float]) -> Measured:
    return Measured("net", "cut", seed, engine, 1, round_to, 10**6, 0.2, 1000, np.array(seconds))


def test_ratios_by_hand() -> None:
    """Twice and four times as long in two seeds, whose geometric mean is √8; all rounds alike but for one."""
    measured = [
        make_measured("folded", 1, 0, [1.0, 1.0, 9.0]), make_measured("folded", 8, 0, [2.0, 2.0, 18.0]),
        make_measured("folded", 1, 1, [3.0, 3.0, 3.0]), make_measured("folded", 8, 1, [12.0, 12.0, 12.0]),
    ]  # fmt: skip
    ratio = compare(measured)[Cell("net", "cut", "folded", 1)][8]
    assert ratio.value == pytest.approx(8**0.5)
    assert str(ratio) == "2.83 [2.00, 4.00]"  # the rounds are resampled together: the slow one changes no ratio


def test_the_fastest_is_named_with_those_it_cannot_be_told_from() -> None:
    def run(multiple: int, *seconds: float) -> list[Measured]:
        return [make_measured(engine, multiple, 0, list(seconds)) for engine in ("folded", "openvino")]

    one, four, eight, sixteen = run(1, 1, 1, 1), run(4, 0.9, 0.9, 0.9), run(8, 0.5, 0.5, 0.5), run(16, 0.4, 0.51, 0.6)
    text = format_tables([*one, *four, *eight, *sixteen])
    assert (
        "Fastest over all: round_to 8, 0.50 [0.50, 0.50] times as long as the first; the intervals do not tell it apart from 16."
        in text
    )
    assert "| 4 | 0.90 [0.90, 0.90] | 0.90 [0.90, 0.90] | 0.90 [0.90, 0.90] |" in text
    slower = format_tables([*one, *run(4, 1.1, 1.2, 0.9)])
    assert slower.endswith(
        "round_to 4, 1.10 [0.90, 1.20] times as long as the first; the intervals do not tell it apart from the first."
    )
