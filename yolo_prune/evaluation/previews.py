"""Previews: detections drawn on images, and images side by side, all RGB uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from yolo_prune.console import escape
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import Sample
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.matching import GroundTruth
from yolo_prune.evaluation.models import make_predictor_of
from yolo_prune.files import open_atomically
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.own_files import mark_png

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (255, 64, 96), (0, 200, 255), (255, 190, 0), (120, 220, 60), (190, 110, 255),
    (255, 120, 30), (0, 220, 170), (255, 110, 200), (90, 140, 255), (200, 200, 80),
)  # fmt: skip
"""One colour per class; they repeat if there are more classes."""

TRUTH_COLOUR: Colour = (255, 255, 255)
IGNORED_COLOUR: Colour = (140, 140, 140)
PAPER: Colour = (250, 250, 250)
INK: Colour = (30, 30, 30)
FONT = cv2.FONT_HERSHEY_SIMPLEX
SUBPIXEL_BITS = 4
COMPARED = 5
"""Number of images in a comparison of checkpoints."""


def draw_detections(
    image: Image,
    detections: Detections,
    names: Sequence[str],
    truth: GroundTruth | None = None,
    min_score: float = 0.25,
    has_scores: bool = True,
) -> Image:
    """Return a copy of an image with a labelled box for each detection with a score of at least `min_score`.

    Ground truth, if given, is drawn below them in white, ignored boxes in grey. Line and text sizes grow with the
    image. Labels are the class, and with `has_scores` the score.
    """
    canvas: Image = np.array(image, np.uint8, order="C")
    width = max(1, round(max(canvas.shape[:2]) / 480))
    for box, counted in () if truth is None else zip(truth.boxes_xyxy, truth.counted.tolist(), strict=True):
        _draw_box(canvas, box, INK, width + 2)
        _draw_box(canvas, box, TRUTH_COLOUR if counted else IGNORED_COLOUR, width)
    # The best detection is drawn last, so that its label is on top.
    for row in np.flatnonzero(detections.scores >= min_score)[::-1]:
        own = int(detections.classes[row])
        colour = PALETTE[own % len(PALETTE)]
        _draw_box(canvas, detections.boxes_xyxy[row], colour, width + 1)
        label = f"{names[own]} {detections.scores[row]:.2f}" if has_scores else names[own]
        _draw_label(canvas, detections.boxes_xyxy[row], label, colour)
    return canvas


def make_side_by_side(columns: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """Arrange images as a grid: one column per (title, images), with the title above.

    Images are not resized, and are centred in their cells. A shorter column leaves cells empty.
    """
    images = [image for _, column in columns for image in column]
    rows = max((len(column) for _, column in columns), default=0)
    cell = max((image.shape[1] for image in images), default=1)
    heights = [max(column[row].shape[0] for _, column in columns if row < len(column)) for row in range(rows)]
    gap = max(2, cell // 50)
    band = max(24, cell // 10)
    canvas = np.full((band + sum(heights) + gap * rows, len(columns) * (cell + gap) + gap, 3), PAPER, np.uint8)
    for number, (title, column) in enumerate(columns):
        left, top = gap + number * (cell + gap), band
        if title:
            _draw_title(canvas[:band, left : left + cell], title)
        for image, height in zip(column, heights, strict=False):
            y, x = top + (height - image.shape[0]) // 2, left + (cell - image.shape[1]) // 2
            canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
            top += height + gap
    return canvas


def save_image(path: Path, image: Image) -> Path:
    """Write an RGB image as PNG, atomically, and return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with open_atomically(path) as file:
        file.write(mark_png(encoded.tobytes()))
    return path


@torch.inference_mode()
def draw_found(
    model: Detector,
    data: DetectionDataset,
    index: int,
    names: Sequence[str],
    device: torch.device,
    config: DetectConfig | None = None,
) -> Image:
    """Draw the detections of a model in evaluation mode on one image of a data set, above the ground truth in white."""
    image, boxes = data.make_item(index)
    predictor = make_predictor_of(model, names, device, config)
    (found,) = predictor.detect_letterboxed(torch.from_numpy(image).permute(2, 0, 1)[None])
    return draw_detections(image, found, names, get_truth(boxes))


def pick_evenly(count: int, wanted: int) -> range:
    """Return up to `wanted` indices below `count`, spread evenly."""
    return range(0, count, max(1, -(-count // wanted)))


def get_truth(boxes: NDArray[np.float32]) -> GroundTruth:
    """Return a loader item's boxes (M, 6), class first, as ground truth."""
    return GroundTruth(boxes[:, 1:5], boxes[:, 0].astype(np.int64), boxes[:, 5] > 0)


def _draw_box(canvas: Image, box_xyxy: NDArray[np.floating], colour: Colour, width: int) -> None:
    limit = 2 * max(canvas.shape)  # larger values are outside the image, and would overflow OpenCV's integers
    x1, y1, x2, y2 = np.rint(np.clip(box_xyxy, -limit, limit) * (1 << SUBPIXEL_BITS)).astype(int).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_label(canvas: Image, box_xyxy: NDArray[np.floating], text: str, colour: Colour) -> None:
    """Write a label on a filled patch above the box's upper left corner, moved to lie inside the image."""
    text = escape(text, kept="")
    scale = max(0.35, max(canvas.shape[:2]) / 1200)
    (width, height), below = cv2.getTextSize(text, FONT, scale, 1)
    pad = max(2, height // 4)
    x1, y1, _, _ = np.clip(box_xyxy, 0, max(canvas.shape)).round().astype(int).tolist()
    x = max(0, min(x1, canvas.shape[1] - width - 2 * pad))
    bottom = max(y1, height + below + 2 * pad)
    cv2.rectangle(canvas, (x, bottom - height - below - 2 * pad), (x + width + 2 * pad, bottom), colour, cv2.FILLED)
    light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    _write(canvas, text, (x + pad, bottom - below - pad), scale, INK if light else PAPER)


def _draw_title(band: Image, title: str) -> None:
    title = escape(title, kept="")
    (width, height), _ = cv2.getTextSize(title, FONT, 1.0, 1)
    scale = min(band.shape[0] * 0.45 / height, band.shape[1] * 0.96 / max(width, 1))
    left, top = (band.shape[1] - round(width * scale)) // 2, (band.shape[0] + round(height * scale)) // 2
    _write(band, title, (left, top), scale, INK)


def _write(canvas: Image, text: str, origin: tuple[int, int], scale: float, colour: Colour) -> None:
    cv2.putText(canvas, text, origin, FONT, scale, colour, max(1, round(scale * 1.2)), cv2.LINE_AA)


@torch.inference_mode()
def save_comparison(
    path: Path, checkpoints: Mapping[str, Path], samples: Sequence[Sample], names: Sequence[str], device: torch.device
) -> Path:
    """Draw each checkpoint's detections on a few images, one column per checkpoint, with the ground truth in white.

    Images without objects are skipped if there are enough others.
    """
    columns = []
    for name, place in checkpoints.items():
        checkpoint = load_checkpoint(place)
        model = checkpoint.make_model().to(device).eval()
        data = DetectionDataset(samples, len(names), checkpoint.img_size, cache_bytes=0)
        with_objects = [index for index, labels in enumerate(data.labels) if len(labels)] or list(range(len(data)))
        chosen = [with_objects[place] for place in pick_evenly(len(with_objects), COMPARED)]
        columns.append((name, [draw_found(model, data, index, names, device) for index in chosen]))
    return save_image(path, make_side_by_side(columns))
