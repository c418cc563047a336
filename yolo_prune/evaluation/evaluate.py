"""Score a model on images: predict, match, measure. Boxes are in image pixels, clipped to the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from yolo_prune.arrays import Float32Array
from yolo_prune.console import Bar, report
from yolo_prune.datasets.class_names import list_names, match_names
from yolo_prune.datasets.images import Header, make_letterbox, read_header
from yolo_prune.datasets.labels import load_objects, locate_objects
from yolo_prune.datasets.loader import DetectionDataset, read_in_order
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.average_precision import Score, measure_score
from yolo_prune.evaluation.bootstrap import map50_interval
from yolo_prune.evaluation.coco_ap import measure_coco_ap
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.curves import Curve, SizeRecall, measure_curve, measure_size_recalls
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.matching import GroundTruth, Matches, match
from yolo_prune.evaluation.models import Model, make_predictor, make_predictor_of
from yolo_prune.evaluation.predictor import Predictor, map_to_image
from yolo_prune.image_size import AnySize
from yolo_prune.model.detector import Detector

BATCH_SIZE = 16


@dataclass(frozen=True)
class Evaluation:
    """All measurements of one model on one set of images."""

    score: Score
    map50_interval: tuple[float, float]
    coco_ap50: float
    coco_ap: float
    curve: Curve
    size_recalls: tuple[SizeRecall, ...]
    """Recall by object size, for all detections and at the score's confidence."""
    matches: tuple[Matches, ...]
    """One per image, for the paired bootstrap."""
    detections: tuple[Detections, ...]
    """One per image, in its pixels: what was measured."""


def evaluate(
    model: Model,
    samples: Sequence[Sample],
    names: Sequence[str],
    *,
    device: torch.device,
    config: DetectConfig | None = None,
) -> Evaluation:
    """Score a checkpoint, or an exported file, on images; `config` says what counts as a detection.

    Raises:
        ConfigError: the data set has a class that the network has not.
        DatasetError: an image or a label cannot be read.
    """
    dataset = make_dataset(samples, names, model.img_size)
    return score_detections(predict(model, dataset, names, device=device, config=config), _list_truths(dataset))


def make_dataset(samples: Sequence[Sample], names: Sequence[str], img_size: AnySize) -> DetectionDataset:
    """Make a data set to score on: labels are read at once, images when needed."""
    return DetectionDataset(samples, len(names), img_size, cache_bytes=0)


def predict(
    model: Model,
    dataset: DetectionDataset,
    names: Sequence[str],
    *,
    device: torch.device,
    config: DetectConfig | None = None,
) -> list[Detections]:
    """Return the detections of a checkpoint or an exported file in each image of a data set, whose classes are called `names`.

    Classes are matched by their names, in whatever order the two number them; those that the data set has not are left
    out.

    Raises:
        ConfigError: the data set has a class that the network has not.
        DatasetError: an image cannot be read.
    """
    places = match_names(model.names, names)
    if places is None and len(model.names) != dataset.classes:
        what = f"the checkpoint has {len(model.names)} classes, the data set {dataset.classes}"
        raise ConfigError(what, where="--data", right="use a data set with the checkpoint's classes")
    if missing := [] if places is None else [name for name in names if name not in model.names]:
        what = f"the network does not know the class {missing[0]}, but {list_names(model.names)}"
        raise ConfigError(what, where="--data", right="use a data set with the checkpoint's classes")
    predictor = make_predictor(model, config, device)
    found = predict_with(predictor, dataset, range(len(dataset)), batch_size=BATCH_SIZE)
    every = [found[index] for index in range(len(dataset))]
    if places is None:
        return every
    report(f"classes are matched by their names: {list_names(names)}")
    return [renumber(one, places) for one in every]


def renumber(found: Detections, places: Sequence[int]) -> Detections:
    """Return detections with other class numbers, without those whose class gets -1."""
    classes = np.array(places, np.int64)[found.classes]
    kept = classes >= 0
    return Detections(found.boxes_xyxy[kept], found.scores[kept], classes[kept])


def load_truths(samples: Sequence[Sample], classes: int) -> list[GroundTruth]:
    """Read the labelled boxes of images, in image pixels; no image is decoded.

    Raises:
        DatasetError: a label, or an image's size, cannot be read.
    """
    return [_make_truth(load_objects(sample, classes), read_header(sample.image)) for sample in samples]


def score_detections(found: Sequence[Detections], truths: Sequence[GroundTruth]) -> Evaluation:
    """Measure all scores of detections; each argument has one entry per image."""
    matches = tuple(map(match, found, truths))
    score = measure_score(matches)
    return Evaluation(
        score,
        map50_interval(matches),
        *measure_coco_ap(found, truths),
        measure_curve(matches),
        tuple(measure_size_recalls(matches, score.confidence)),
        matches,
        tuple(found),
    )


def measure_score_of(model: Detector, dataset: DetectionDataset, *, device: torch.device, batch_size: int) -> Score:
    """Score a model in evaluation mode on a data set without augmentation, without bootstrap intervals."""
    predictor = make_predictor_of(model, device=device)
    found = predict_with(predictor, dataset, range(len(dataset)), batch_size=batch_size)
    return score_found(found, dataset)


def score_found(found: Mapping[int, Detections], dataset: DetectionDataset) -> Score:
    """Score the detections of every image of a data set, keyed by index, without bootstrap intervals."""
    return measure_score([match(found[index], truth) for index, truth in enumerate(_list_truths(dataset))])


@torch.inference_mode()
def predict_with(
    predictor: Predictor,
    dataset: DetectionDataset,
    indices: Sequence[int],
    *,
    batch_size: int,
    rectangular: bool = False,
) -> dict[int, Detections]:
    """Return the detections in images of a data set without augmentation, keyed by index.

    Raises:
        DatasetError: an image cannot be read.
    """
    found: dict[int, Detections] = {}
    with Bar("score", len(indices)) as bar:
        for batch in read_in_order(dataset, batch_size, indices, rectangular):
            for index, detections in zip(
                batch.indices.tolist(), predictor.detect_letterboxed(batch.images), strict=True
            ):
                width, height = dataset.headers[index].width_px, dataset.headers[index].height_px
                box = make_letterbox(width, height, dataset.img_size, rectangular)
                found[index] = map_to_image(detections, box, width, height)
            bar.show(len(found))
    return found


def _list_truths(dataset: DetectionDataset) -> list[GroundTruth]:
    return list(map(_make_truth, dataset.labels, dataset.headers))


def _make_truth(rows: Float32Array, header: Header) -> GroundTruth:
    located = locate_objects(rows, header.width_px, header.height_px)
    return GroundTruth(located[:, 1:5], located[:, 0].astype(np.int64), located[:, 5] > 0)
