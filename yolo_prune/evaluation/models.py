"""Checkpoints and exported files alike: loaded by their path, and made into predictors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from yolo_prune.engines.exported.model import ExportedModel, is_exported, load_exported
from yolo_prune.engines.make import make_engine
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.predictor import Predictor
from yolo_prune.model.checkpoint import Checkpoint, load_usable
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector

Model: TypeAlias = Checkpoint | ExportedModel
CPU = torch.device("cpu")


def load_model(path: Path) -> Model:
    """Load a checkpoint, or the metadata of an exported file, by the suffix of its name.

    Raises:
        CheckpointError: the file cannot be read, or a weight is NaN or infinite.
        ConfigError: the package that runs it is not installed.
    """
    return load_exported(path) if is_exported(path) else load_usable(path)


def make_predictor(
    model: Model,
    config: DetectConfig | None = None,
    device: torch.device = CPU,
    engine: str = "eager",
    only: Sequence[int] = (),
) -> Predictor:
    """Make what finds objects in images. An exported file runs in its own engine, on the CPU.

    Args:
        engine: what runs a checkpoint; see `make_engine`.
        only: the classes to detect; all if it is empty.

    Raises:
        CheckpointError: an exported file cannot be read.
    """
    if isinstance(model, ExportedModel):
        return Predictor(model.make_engine(), model.img_size, model.names, config, only=only)
    made = make_engine(model.make_model().eval(), engine, device)
    return Predictor(made, model.img_size, model.names, config, device, only, model.network)


def make_predictor_of(
    detector: Detector,
    names: Sequence[str] = (),
    device: torch.device | str = CPU,
    config: DetectConfig | None = None,
) -> Predictor:
    """Make a predictor of a network, which is used in evaluation mode, in place."""
    engine = DecodedDetector(detector.eval()).to(device)
    return Predictor(engine, detector.network.img_size, names, config, device, network=detector.network)
