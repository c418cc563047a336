"""A model's score on pictures: predict, match, measure. Boxes are in pixels of the network's square throughout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_convert
from tqdm import tqdm

from yolo_prune.datasets.loader import Batch, DetectionDataset, make_loader
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.average_precision import GroundTruth, Matches, Score, match, measure_score
from yolo_prune.evaluation.bootstrap import map50_interval
from yolo_prune.evaluation.coco import coco_scores
from yolo_prune.evaluation.detections import Detections, suppress
from yolo_prune.evaluation.settings import DetectConfig
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.decode import DecodedDetector, normalise
from yolo_prune.model.detector import Detector
from yolo_prune.model.settings import check_img_size

BATCH_SIZE = 16


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one model on one set of pictures."""

    score: Score
    map50_interval: tuple[float, float]
    coco_ap50: float
    coco_ap: float
    matches: tuple[Matches, ...]
    """One per picture: what a paired bootstrap needs."""


def evaluate(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    names: Sequence[str],
    *,
    img_size: int | None,
    device: torch.device,
) -> Evaluation:
    """Score a checkpoint on pictures, at its own input size or another.

    Raises:
        ConfigError: it tells another number of classes apart than the data set, or `img_size` does not suit it.
        DatasetError: a picture or a label cannot be read.
    """
    check_img_size(img_size)
    if checkpoint.network.classes != len(names):
        what = f"the checkpoint knows {checkpoint.network.classes} classes, the data set {len(names)}"
        raise ConfigError(what, where="--data", right="use a data set with the checkpoint's classes")
    dataset = DetectionDataset(samples, len(names), img_size or checkpoint.img_size, cache_bytes=0)
    model = checkpoint.make_model().to(device).to(memory_format=torch.channels_last).eval()
    found, truths = _predict(model, dataset, device, BATCH_SIZE)
    matches = tuple(match(detections, truth) for detections, truth in zip(found, truths, strict=True))
    return Evaluation(measure_score(matches), map50_interval(matches), *coco_scores(found, truths), matches)


def measure_score_of(model: Detector, dataset: DetectionDataset, *, device: torch.device, batch_size: int) -> Score:
    """Score a model in evaluation mode on a data set that is not augmented, without intervals."""
    pairs = zip(*_predict(model, dataset, device, batch_size), strict=True)
    return measure_score([match(detections, truth) for detections, truth in pairs])


@torch.inference_mode()
def _predict(
    model: Detector, dataset: DetectionDataset, device: torch.device, batch_size: int
) -> tuple[list[Detections], list[GroundTruth]]:
    engine, config = DecodedDetector(model).to(device), DetectConfig()
    found: list[Detections] = []
    truths: list[GroundTruth] = []
    loader = make_loader(dataset, batch_size, shuffle=False, epoch=0)
    for batch in tqdm(loader, desc="score", unit="batch", leave=False, disable=None):
        images = normalise(batch.images.to(device)).to(memory_format=torch.channels_last)
        boxes, scores = engine(images)
        found += suppress(boxes, scores, config)
        truths += _list_truths(batch)
    return found, truths


def _list_truths(batch: Batch) -> Iterator[GroundTruth]:
    boxes_xyxy = box_convert(batch.targets[:, 2:6], "cxcywh", "xyxy") * batch.images.shape[-1]
    for number in range(len(batch.images)):
        own = batch.targets[:, 0] == number
        yield GroundTruth(boxes_xyxy[own].numpy(), batch.targets[own, 1].numpy().astype(np.int64))
