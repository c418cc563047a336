"""What an exported file scores, beside its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolo_prune.commands.data import choose_split
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.engines.exported.model import ExportedModel
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.evaluate import evaluate
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.text_tables import pluralize

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ScoreDifference:
    """AP50 of a checkpoint and of a file made from it, on the same images."""

    split: str
    images: int
    checkpoint: float
    exported: float
    difference: tuple[float, float, float]
    """The difference, and the ends of its paired 95 % bootstrap interval over images."""

    def describe(self) -> str:
        """Return the scores as a sentence."""
        value, low, high = self.difference
        return (
            f"AP50 {self.exported:.4f}, the checkpoint's {self.checkpoint:.4f} ({value:+.4f} [{low:+.3f}, {high:+.3f}]), "
            f"on {pluralize(self.images, 'image')} of the {self.split} split"
        )


class Scorer:
    """Scores exported files on the test split, or on the validation split where there is none, which is told."""

    def __init__(self, checkpoint: Checkpoint, spec: DataSpec) -> None:
        self.spec, self.split = spec, choose_split(spec, None)
        self.samples = spec.samples(self.split)
        self.own = evaluate(checkpoint, self.samples, spec.names, device=CPU)

    def compare(self, exported: ExportedModel) -> ScoreDifference:
        """Score a file beside its checkpoint."""
        other = evaluate(exported, self.samples, self.spec.names, device=CPU)
        difference = paired_difference(self.own.matches, other.matches)
        return ScoreDifference(self.split, len(self.samples), self.own.score.map50, other.score.map50, difference)
