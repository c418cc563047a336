"""Pictures that a run leaves: what the network was shown, and what it then found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import make_detections, suppress
from yolo_prune.evaluation.matching import GroundTruth
from yolo_prune.evaluation.previews import Image, draw_detections, make_side_by_side, save_picture
from yolo_prune.model.decode import DecodedDetector, normalise
from yolo_prune.model.detector import Detector

COLUMNS, ROWS = 4, 4


def save_batch_picture(folder: Path, data: DetectionDataset) -> Path:
    """Draw training pictures as the network is given them, with their boxes, in train_batch.png."""
    pictures = []
    for image, boxes in (data.make_item(index) for index in pick_evenly(len(data), COLUMNS * ROWS)):
        pictures.append(draw_detections(image, make_detections([], [], []), (), _get_truth(boxes)))
    return save_picture(folder / "train_batch.png", _lay_out("training pictures and their boxes", pictures))


@torch.inference_mode()
def save_detections_picture(
    folder: Path, model: Detector, data: DetectionDataset, names: Sequence[str], device: torch.device
) -> Path:
    """Draw what a model in evaluation mode finds in validation pictures in val_detections.png."""
    pictures = [draw_found(model, data, index, names, device) for index in pick_evenly(len(data), COLUMNS * ROWS)]
    return save_picture(folder / "val_detections.png", _lay_out("validation, truth in white", pictures))


@torch.inference_mode()
def draw_found(
    model: Detector, data: DetectionDataset, index: int, names: Sequence[str], device: torch.device
) -> Image:
    """Draw what a model in evaluation mode finds in one picture of a data set, over the truth in white."""
    image, boxes = data.make_item(index)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
    candidates, scores = DecodedDetector(model).to(device)(normalise(pixels))
    (found,) = suppress(candidates, scores, DetectConfig())
    return draw_detections(image, found, names, _get_truth(boxes))


def pick_evenly(count: int, wanted: int) -> range:
    """Return up to `wanted` indices below `count`, spread evenly."""
    return range(0, count, max(1, -(-count // wanted)))


def _get_truth(boxes: NDArray[np.float32]) -> GroundTruth:
    return GroundTruth(boxes[:, 1:5], boxes[:, 0].astype(np.int64), boxes[:, 5] > 0)


def _lay_out(title: str, pictures: Sequence[Image]) -> Image:
    return make_side_by_side([(title if column == 0 else "", pictures[column::COLUMNS]) for column in range(COLUMNS)])
