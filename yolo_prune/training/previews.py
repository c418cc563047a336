"""Previews that a run saves: training images, and detections on validation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.previews import (
    Image,
    draw_detections,
    draw_found,
    get_truth,
    make_side_by_side,
    pick_evenly,
    save_image,
)
from yolo_prune.model.detector import Detector

COLUMNS, ROWS = 4, 4


def save_batch_image(folder: Path, data: DetectionDataset) -> Path:
    """Save augmented training images with their boxes as train_batch.png."""
    images = []
    for image, boxes in (data.make_item(index) for index in pick_evenly(len(data), COLUMNS * ROWS)):
        images.append(draw_detections(image, make_detections([], [], []), (), get_truth(boxes)))
    return save_image(folder / "train_batch.png", _lay_out("training images and their boxes", images))


@torch.inference_mode()
def save_detections_image(
    folder: Path, model: Detector, data: DetectionDataset, names: Sequence[str], device: torch.device
) -> Path:
    """Save the detections of a model in evaluation mode on validation images as val_detections.png."""
    images = [draw_found(model, data, index, names, device) for index in pick_evenly(len(data), COLUMNS * ROWS)]
    return save_image(folder / "val_detections.png", _lay_out("validation, truth in white", images))


def _lay_out(title: str, images: Sequence[Image]) -> Image:
    return make_side_by_side([(title if column == 0 else "", images[column::COLUMNS]) for column in range(COLUMNS)])
