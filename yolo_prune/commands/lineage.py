"""Find the network that a checkpoint was pruned from, and how that was trained."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from yolo_prune.commands.config import FINETUNE, PRUNE_TRAINING, PruneConfig
from yolo_prune.config import parse_config
from yolo_prune.errors import ConfigError
from yolo_prune.files import measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.training.config import TrainConfig

CUTS = ("prune", "iterate")
"""Stages that prune: their checkpoint is smaller than its parent."""
FINETUNE_SHARE = 0.75
"""`finetune` trains for this share of the network's epochs. `prune` takes half, so both take about the same."""
INHERITED = ("batch_size", "accumulate", "multi_scale", "rectangular", "agnostic_nms", "augment", "loss")
"""Training settings that a later training takes over by default."""


class Ancestor(NamedTuple):
    """A checkpoint that another was made from: its file, or the reason why it is not available."""

    path: Path | None
    reason: str


def find_parent(checkpoint: Checkpoint) -> Ancestor | None:
    """Find the checkpoint that another was made from, and check its SHA-256; None if it was made from none.

    The hash of a file cannot be in it, so a line of parents has an end.
    """
    if (parent := checkpoint.provenance.get("parent")) is None:
        return None
    path = Path(parent["path"])
    if not path.is_file():
        return Ancestor(None, f"{path}, which it comes from, is not there")
    if measure_sha256(path) != parent["sha256"]:
        return Ancestor(None, f"{path}, which it comes from, has changed since")
    return Ancestor(path, "")


def find_uncut(checkpoint: Checkpoint) -> Ancestor:
    """Find the network that a checkpoint was pruned from, through all stages since."""
    was_cut, found = False, None
    while (parent := find_parent(checkpoint)) is not None:
        stage = checkpoint.provenance.get("stage")
        if was_cut and stage not in CUTS:
            break
        was_cut |= stage in CUTS
        if parent.path is None:
            return parent
        found, checkpoint = parent.path, load_checkpoint(parent.path)
    return Ancestor(found, "") if was_cut else Ancestor(None, "it was not pruned")


def find_training(path: Path) -> TrainConfig | None:
    """Return how a checkpoint, or the one that it was pruned from, was trained; None if that is unknown.

    Raises:
        CheckpointError: the file cannot be read.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.provenance.get("stage") in CUTS:
        if (uncut := find_uncut(checkpoint).path) is None:
            return None
        checkpoint = load_checkpoint(uncut)
    try:
        recipe = dict(checkpoint.provenance["recipe"])
        return parse_config(TrainConfig(), recipe, "recipe") if "epochs" in recipe else None
    except (KeyError, TypeError, ConfigError):
        return None  # imported, or written by another version: use the defaults


def adapt_finetune(trained: TrainConfig | None) -> TrainConfig:
    """Return the defaults of `finetune` for a network with this training: three quarters of its epochs."""
    if trained is None:
        return FINETUNE
    # Who trained without validation has no images for it.
    interval = FINETUNE.val_interval if trained.val_interval else 0
    return replace(
        _inherit(FINETUNE, trained), epochs=math.ceil(FINETUNE_SHARE * trained.epochs), val_interval=interval
    )


def adapt_prune(trained: TrainConfig | None) -> PruneConfig:
    """Return the defaults of `prune` for a network with this training."""
    return PruneConfig() if trained is None else PruneConfig(training=_inherit(PRUNE_TRAINING, trained))


def _inherit(settings: TrainConfig, trained: TrainConfig) -> TrainConfig:
    return replace(settings, **{name: getattr(trained, name) for name in INHERITED})
