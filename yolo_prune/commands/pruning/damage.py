"""The effect of pruning on a network: AP50 on some validation images, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolo_prune.benchmarking.table import RUINED_SHARE
from yolo_prune.commands.pruning.calibration import BATCH, pick_samples
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.evaluation.evaluate import measure_score_of
from yolo_prune.model.detector import Detector

IMAGES = 200
"""Number of validation images to score on."""
RECOVERED_RATIO, LOST_RATIO = 0.8, 0.9
"""Ratios from which `finetune` by its defaults was seen to recover, and not to recover (docs/experiments.md)."""


def explain_high_ratio(ratio: float) -> str | None:
    """Return what is known about a ratio from which finetuning was not seen to recover; None for lower ones."""
    if ratio < (RECOVERED_RATIO + LOST_RATIO) / 2:
        return None
    return (
        f"ratio {ratio:.2f}: in our experiments finetune did not recover the AP50 of a network at {LOST_RATIO:g} in its default "
        f"number of epochs, and did at {RECOVERED_RATIO:g}; prune less, or finetune for more epochs"
    )


@dataclass(frozen=True)
class Damage:
    """AP50 of a network before and after pruning, and the number of validation images."""

    images: int
    before: float
    after: float

    @property
    def is_ruined(self) -> bool:
        """Whether the network has lost nearly all of its AP50."""
        return self.after < RUINED_SHARE * self.before

    def format(self) -> str:
        """Return one line with both scores, and advice if the network is ruined."""
        line = f"AP50 on {self.images} validation images: {self.before:.4f} before, {self.after:.4f} after"
        if not self.is_ruined:
            return line
        return (
            f"{line}: the network is ruined; prune less, without --one-shot, or finetune for many epochs with a teacher"
        )


def measure_damage(before: Detector, after: Detector, spec: DataSpec | None, device: torch.device) -> Damage | None:
    """Score a network before and after pruning on validation images; return None if there are none.

    Raises:
        DatasetError: an image or a label cannot be read.
    """
    if spec is None or not spec.splits.get("val"):
        return None
    data = pick_samples(spec, "val", IMAGES, before.network.img_size)
    scores = []
    for model in (before, after):
        placed = model.to(device).to(memory_format=torch.channels_last).eval()
        scores.append(measure_score_of(placed, data, device=device, batch_size=BATCH).map50)
        model.cpu()
    return Damage(len(data), *scores)


def format_damage(damage: Damage | None) -> dict[str, float | int | None]:
    """Return the scores under the names that JSON output uses."""
    if damage is None:
        return {"map50_before": None, "map50_after": None, "scored_images": 0}
    return {"map50_before": damage.before, "map50_after": damage.after, "scored_images": damage.images}
