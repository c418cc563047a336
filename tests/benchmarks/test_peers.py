"""The checkpoints of benchmarks/peers.py: as cheap as ours, and finetuned as any."""

from __future__ import annotations

import sys
from pathlib import Path

import peers
import pytest

from yolo_prune.commands.config import PruneConfig
from yolo_prune.commands.lineage import find_uncut
from yolo_prune.commands.prune import PruneResult, prune
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.model.checkpoint import load_checkpoint


def test_each_peer_costs_no_more_than_ours(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PruneConfig(one_shot=True, criterion="l2", target_macs=0.6, device="cpu")
    ours = prune(trained, config, tmp_path / "ours")
    assert isinstance(ours, PruneResult)
    out = tmp_path / "peers"
    monkeypatch.setattr(sys, "argv", ["peers", str(trained), str(ours.checkpoint), "--out", str(out)])
    peers.main()
    for name in ("group-norm", "taylor", "published", "random"):
        made = load_checkpoint(out / name / "pruned.pt")
        assert measure_cost(made.network).macs <= measure_cost(ours.planned.slim).macs
        assert find_uncut(made).path == trained.resolve()
        widths = {index: layer.filters for index, layer in made.network.convs}
        if name == "published":  # what the shortcut ties is left alone
            assert widths[1] == widths[3] == 8
        if name == "random":
            assert made.network == ours.planned.slim
