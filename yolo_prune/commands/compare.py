"""One picture of what two checkpoints find, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import Sample
from yolo_prune.evaluation.previews import make_side_by_side, save_picture
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.previews import draw_found, pick_evenly

PICTURES = 5


@torch.inference_mode()
def save_comparison(
    path: Path, checkpoints: Mapping[str, Path], samples: Sequence[Sample], names: Sequence[str], device: torch.device
) -> Path:
    """Draw what each checkpoint finds in a few pictures, one column per checkpoint, the truth in white.

    Pictures without objects are passed over where others are enough.
    """
    columns = []
    for name, place in checkpoints.items():
        checkpoint = load_checkpoint(place)
        model = checkpoint.make_model().to(device).eval()
        data = DetectionDataset(samples, len(names), checkpoint.img_size, cache_bytes=0)
        with_objects = [index for index, labels in enumerate(data.labels) if len(labels)] or list(range(len(data)))
        chosen = [with_objects[place] for place in pick_evenly(len(with_objects), PICTURES)]
        columns.append((name, [draw_found(model, data, index, names, device) for index in chosen]))
    return save_picture(path, make_side_by_side(columns))
