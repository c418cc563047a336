"""Checkpoints of other ways to prune, as `yoloprune finetune` and `evaluate` take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_prune.commands.config import PruneConfig
from yolo_prune.darknet.layers import Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.model.checkpoint import Checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.config import CRITERIA

PUBLISHED = "published rule: global γ, no shortcuts, none before upsampling"


def list_methods(network: Network) -> dict[str, PruneConfig]:
    """Return our ways to prune by their row's name; a group's scores are divided by their mean but where γ is taken raw."""
    before_upsampling = tuple(index - 1 for index, layer in enumerate(network.layers) if isinstance(layer, Upsample))
    base = PruneConfig(one_shot=True, criterion="bn-gamma", normalize="mean", min_channels=1)
    return {
        "bn-gamma, raw": replace(base, normalize="none"),
        **{name: replace(base, criterion=name) for name in CRITERIA},
        PUBLISHED: replace(base, normalize="none", shortcuts=False, spare=before_upsampling),
    }


def save_peer(folder: Path, model: Detector, path: Path, source: Checkpoint, recipe: dict[str, Any]) -> Path:
    """Write a network as one that was cut from the checkpoint at `path`, which `finetune` takes as its teacher."""
    provenance = make_provenance("prune", recipe, path, data=source.provenance.get("data"))
    checkpoint = Checkpoint(model.network, model.state_dict(), source.names, provenance)
    return save_checkpoint(folder / "pruned.pt", checkpoint)
