"""What an exported file scores, beside its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolo_prune.commands.data import CHOSEN_BY, choose_split
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.engines.exported.model import ExportedModel
from yolo_prune.evaluation.bootstrap import map50_interval, paired_difference
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
    interval: tuple[float, float]
    """The ends of the 95 % bootstrap interval of the file's AP50, over images."""

    def describe(self) -> str:
        """Return the scores as a sentence."""
        value, low, high = self.difference
        return (
            f"AP50 {self.exported:.4f}, the checkpoint's {self.checkpoint:.4f} ({value:+.4f} [{low:+.3f}, {high:+.3f}]), "
            f"on {pluralize(self.images, 'image')} of the {self.split} split"
        )

    def describe_with_interval(self) -> str:
        """Return the file's score with its interval, and the difference to the checkpoint, as a sentence for a model card."""
        (low, high), (value, *ends) = self.interval, self.difference
        chosen = f", {CHOSEN_BY}," if self.split == "val" else ""
        return (
            f"AP50 {self.exported:.4f}, 95 % bootstrap interval over images [{low:.3f}, {high:.3f}]; its checkpoint {self.checkpoint:.4f}, "
            f"difference {value:+.4f} [{ends[0]:+.3f}, {ends[1]:+.3f}]; on {self.images} images of the {self.split} split{chosen}"
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
        own, score = self.own.score.map50, other.score.map50
        return ScoreDifference(self.split, len(self.samples), own, score, difference, map50_interval(other.matches))
