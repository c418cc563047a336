"""What models found in the images of a split: what their scores, and the page's curves and images, are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from yolo_prune.console import report
from yolo_prune.datasets.spec import DataSpec, Sample
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.evaluate import Evaluation, evaluate
from yolo_prune.evaluation.models import Model
from yolo_prune.model.checkpoint import AVERAGE, Checkpoint
from yolo_prune.text_tables import pluralize


@dataclass(frozen=True)
class Evidence:
    """The images, and what each model found in them, keyed by row name."""

    samples: Sequence[Sample]
    names: tuple[str, ...]
    """The data set's classes."""
    evaluations: Mapping[str, Evaluation]


def score_models(
    models: Mapping[str, Model], spec: DataSpec, split: str, device: torch.device, config: DetectConfig
) -> Evidence:
    """Score models on a split, keyed by row name; `config` says what counts as a detection.

    Raises:
        ConfigError, DatasetError: the data set does not fit the models, or cannot be read.
    """
    samples = spec.samples(split)
    evaluations: dict[str, Evaluation] = {}
    for name, model in models.items():
        report(f"scoring {name} on the {split} split: {pluralize(len(samples), 'image')}{describe_weights(model)}")
        evaluations[name] = evaluate(model, samples, spec.names, device=device, config=config)
    return Evidence(samples, tuple(spec.names), evaluations)


def describe_weights(model: Model) -> str:
    """Return the end of a log line: the weights used of an unfinished run's last.pt, and its epoch; else ''."""
    training = model.training if isinstance(model, Checkpoint) else {}
    if AVERAGE not in training or training.get("is_done", True):
        return ""
    epochs = model.provenance.get("recipe", {}).get("epochs", "?")
    return f", with the averaged weights after epoch {training.get('epoch', '?')} of {epochs}"
