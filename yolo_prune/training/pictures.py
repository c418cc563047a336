"""Pictures that a run leaves: what the network was shown, and what it then found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.average_precision import GroundTruth
from yolo_prune.evaluation.detections import make_detections, suppress
from yolo_prune.evaluation.pictures import Image, draw_detections, make_side_by_side, save_picture
from yolo_prune.evaluation.settings import DetectConfig
from yolo_prune.model.decode import DecodedDetector, normalise
from yolo_prune.model.detector import Detector

COLUMNS, ROWS = 4, 4


def save_batch_picture(folder: Path, data: DetectionDataset) -> Path:
    """Draw training pictures as the network is given them, with their boxes, in train_batch.png."""
    pictures = []
    for image, boxes in (data.make_item(index) for index in _pick(len(data))):
        truth = GroundTruth(boxes[:, 1:], boxes[:, 0].astype("int64"))
        pictures.append(draw_detections(image, make_detections([], [], []), (), truth))
    return save_picture(folder / "train_batch.png", _lay_out("training pictures and their boxes", pictures))


@torch.inference_mode()
def save_detections_picture(
    folder: Path, model: Detector, data: DetectionDataset, names: Sequence[str], device: torch.device
) -> Path:
    """Draw what a model in evaluation mode finds in validation pictures, over the truth in white, in val_detections.png."""
    engine = DecodedDetector(model).to(device)
    pictures = []
    for index in _pick(len(data)):
        image, boxes = data.make_item(index)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
        candidates, scores = engine(normalise(pixels))
        (found,) = suppress(candidates, scores, DetectConfig())
        truth = GroundTruth(boxes[:, 1:], boxes[:, 0].astype("int64"))
        pictures.append(draw_detections(image, found, names, truth))
    return save_picture(folder / "val_detections.png", _lay_out("validation pictures, truth in white", pictures))


def _pick(count: int) -> range:
    """Return up to 16 indices, spread evenly."""
    return range(0, count, max(1, -(-count // (COLUMNS * ROWS))))


def _lay_out(title: str, pictures: Sequence[Image]) -> Image:
    return make_side_by_side([(title if column == 0 else "", pictures[column::COLUMNS]) for column in range(COLUMNS)])
