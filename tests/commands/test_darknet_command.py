"""Darknet's files in and out by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import measure_largest_gap
from tiny import TINY_CFG, Cli, read_json

from yolo_prune.darknet.cfg import load_cfg, parse_cfg
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import load_weights, save_weights

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(workplace: Path) -> Path:
    """Write tiny.cfg and the weights of a network of random numbers."""
    torch.manual_seed(5)
    Path("tiny.cfg").write_text(TINY_CFG)
    return save_weights(Detector(parse_cfg(TINY_CFG)), Path("tiny.weights"))


def test_what_was_imported_is_exported_byte_by_byte(cli: Cli, weights: Path) -> None:
    outcome = cli("import", "tiny.cfg", "--weights", weights, "--names", "hand")
    assert (outcome.code, outcome.out) == (0, "runs/import/tiny.pt\n"), outcome.err
    assert "took 6 of 6 convolutions" in outcome.err
    assert load_checkpoint(Path("runs/import/tiny.pt")).names == ("hand",)
    outcome = cli("export", "--out", "out/again")
    assert (outcome.code, outcome.out) == (0, "out/again.weights\n"), outcome.err
    assert Path("out/again.weights").read_bytes() == weights.read_bytes()
    assert load_cfg(Path("out/again.cfg")) == parse_cfg(TINY_CFG)


def test_an_imported_network_is_pruned_and_exported_folded(cli: Cli, weights: Path) -> None:
    assert cli("import", "tiny.cfg", "--weights", weights).code == 0
    outcome = cli("prune", "--one-shot", "--ratio", 0.5, "--recalibrate", 0)
    assert outcome.code == 0, outcome.err
    outcome = cli("export", "--fold", "--out", "folded", "--json")
    assert outcome.code == 0, outcome.err
    files = {name: f"folded.{suffix}" for name, suffix in (("cfg", "cfg"), ("card", "md"), ("weights", "weights"))}
    assert read_json(outcome) == {**files, "files": {"darknet": files["weights"]}, "parity": {}, "scores": {}}
    network = load_cfg(Path("folded.cfg"))
    assert not any(conv.batch_normalize for _, conv in network.convs)
    folded = Detector(network).eval()
    load_weights(folded, Path("folded.weights"))
    with torch.no_grad():
        pruned = load_checkpoint(Path("runs/prune/pruned.pt")).make_model().eval()(IMAGES)
        assert measure_largest_gap(pruned, folded(IMAGES)) < 1e-5


def test_without_weights_numbers_are_random_by_the_seed_and_it_is_reported(cli: Cli, weights: Path) -> None:
    outcomes = [
        cli("import", "tiny.cfg", "--out", f"{name}.pt", "--seed", seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert all("tiny.cfg: no weights were given, all weights are random" in outcome.err for outcome in outcomes)
    one, same, other = (load_checkpoint(Path(f"{name}.pt")).state["layers.0.conv.weight"] for name in "abc")
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("import", "missing.cfg"), "error: missing.cfg: cannot be read"),
        (("import", "tiny.cfg", "--weights", "missing.weights"), "error: missing.weights: cannot be read"),
        (("import", "tiny.cfg", "--names", "hand,foot"), "error: --names: 2 names for 1 classes; name every class"),
        (("export", "tiny.weights"), "error: tiny.weights: "),
        (("export",), "error: CHECKPOINT: no checkpoint of finetune or prune or train below runs"),
    ],
)
def test_bad_input_is_named(cli: Cli, weights: Path, words: tuple[str, ...], said: str) -> None:
    Path("wide.cfg").write_text(TINY_CFG.replace("width=64", "width=96"))
    outcome = cli(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(said)
    assert not list(Path().glob("**/*.pt"))
