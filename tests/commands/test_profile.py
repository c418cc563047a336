"""`profile`: what every layer takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Cli, read_json

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.model.checkpoint import load_checkpoint


def test_two_networks_side_by_side(cli: Cli, trained: Path) -> None:
    pruned = cli("prune", trained, "--one-shot", "--ratio", 0.5, "--recalibrate", 0, "--device", "cpu").out.strip()
    words = ("profile", trained, pruned, "--device", "cpu")
    result = read_json(cli(*words, "--plot", "layers.png", "--json"))
    for network, path in zip(result["networks"], (trained, Path(pruned)), strict=True):
        cost = measure_cost(load_checkpoint(path).network)
        assert sum(layer["macs"] for layer in network["layers"]) == cost.macs
        assert all(layer["time_ms"] > 0 and layer["moved_bytes"] > 0 for layer in network["layers"])
        assert network["layers_ms"] == pytest.approx(sum(layer["time_ms"] for layer in network["layers"]))
        assert network["whole_ms"] > 0
    assert Path("layers.png").read_bytes().startswith(b"\x89PNG")
    lines = cli(*words).out.splitlines()
    assert lines[0].split() == ["layer", "kind", "channels", "MACs", "bytes", "time"]
    assert lines[2].split()[:2] == ["0", "conv"]
    assert "→" in lines[2]


def test_one_network_in_another_engine(cli: Cli, trained: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    outcome = cli("profile", trained, "--engine", "onnxruntime", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "→" not in outcome.out.partition("\n\n")[0]
    assert "in onnxruntime" in outcome.out


def test_networks_that_cannot_be_compared(cli: Cli, trained: Path, workplace: Path) -> None:
    outcome = cli("profile", trained, trained, trained)
    assert (outcome.code, outcome.err) == (
        2,
        "error: CHECKPOINT: 3 checkpoints are given; name one, or two to compare: before and after\n",
    )
    assert cli("cfg", "make", "--arch", "yolov3", "--width", 0.0625, "--out", "v3.cfg").code == 0
    assert cli("import", "v3.cfg", "--out", "v3.pt").code == 0
    outcome = cli("profile", trained, "v3.pt")
    assert outcome.err.startswith(
        "error: CHECKPOINT: the two networks do not have the same layers; compare a checkpoint"
    )


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_the_plot_is_of_the_kind_that_its_name_says(cli: Cli, trained: Path, workplace: Path, suffix: str) -> None:
    words = ("profile", trained, "--device", "cpu", "--plot", f"plot{suffix}")
    assert cli(*words).code == 0
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".PDF": b"%PDF"}
    assert Path(f"plot{suffix}").read_bytes().startswith(starts[suffix])
    assert cli(*words).code == 0  # it may replace what it made


@pytest.mark.parametrize("name", ["plot", "0.5,0.75", "plot.json", "plot.tif"])
def test_a_plot_of_an_unknown_kind_is_refused_before_anything_is_timed(cli: Cli, trained: Path, name: str) -> None:
    outcome = cli("profile", trained, "--plot", name)
    assert outcome.code == 2
    assert outcome.err == f"error: --plot: {name} names no kind of plot; let its name end in .png or .svg or .pdf\n"
