"""`evaluate`: one checkpoint's score on one part of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.datasets.spec import load_list
from yolo_prune.evaluation.evaluate import Evaluation, evaluate
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.stages.data import load_data_of
from yolo_prune.training.device import make_device


@dataclass(frozen=True)
class EvaluateResult:
    """A checkpoint, what it was scored on, and the score."""

    checkpoint: Path
    scored_on: str
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        score = self.evaluation.score
        return {
            "checkpoint": str(self.checkpoint),
            "scored_on": self.scored_on,
            "map50": score.map50,
            "map50_interval": list(self.evaluation.map50_interval),
            "coco_ap50": self.evaluation.coco_ap50,
            "coco_ap": self.evaluation.coco_ap,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "confidence": score.confidence,
            "images": score.images,
            "instances": score.instances,
        }

    def format(self) -> str:
        """Say it in three lines."""
        score, (low, high) = self.evaluation.score, self.evaluation.map50_interval
        return (
            f"{self.scored_on}: {score.images} pictures, {score.instances} objects\n"
            f"mAP {score.map50:.4f} [{low:.4f}, {high:.4f}] (AP at IoU 0.5, all points; 95 % bootstrap interval over pictures); "
            f"COCO AP50 {self.evaluation.coco_ap50:.4f}, AP {self.evaluation.coco_ap:.4f}\n"
            f"best F1 {score.f1:.4f} at confidence {score.confidence:.3f}: precision {score.precision:.4f}, recall {score.recall:.4f}"
        )


def evaluate_checkpoint(
    path: Path, data: Path | None, split: str, subset: Path | None, img_size: int | None, device: str
) -> EvaluateResult:
    """Score a checkpoint on a split, or on the pictures that the text file `subset` lists.

    Raises:
        CheckpointError, DatasetError, ConfigError: an input is not what it should be.
    """
    checkpoint = load_checkpoint(path)
    spec = load_data_of(data, checkpoint.provenance, "--data")
    samples = spec.samples(split) if subset is None else load_list(spec, subset)
    evaluation = evaluate(checkpoint, samples, spec.names, img_size=img_size, device=make_device(device))
    return EvaluateResult(path, str(subset or split), evaluation)
