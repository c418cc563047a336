from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny import SIDE
from torch import Tensor

from yolo_prune.commands.evaluate import evaluate_models
from yolo_prune.commands.measure_config import EvaluateConfig
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import Sample, load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.evaluate import Evaluation, evaluate, measure_score_of
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.model.detector import Detector

CPU = torch.device("cpu")
Outputs = list[tuple[list[list[float]], list[float]]]


class FakeEngine:
    """An engine that gives prepared boxes and scores, image by image."""

    outputs: Iterator[tuple[list[list[float]], list[float]]]

    def __init__(self, detector: Detector) -> None:
        assert not detector.training

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        chosen = [next(self.outputs) for _ in images]
        most = max(len(scores) for _, scores in chosen)
        boxes, values = torch.zeros(len(images), most, 4), torch.zeros(len(images), most, 1)
        for number, (own, scores) in enumerate(chosen):
            if scores:
                boxes[number, : len(scores)] = torch.tensor(own)
                values[number, : len(scores), 0] = torch.tensor(scores)
        return boxes, values


@pytest.fixture
def checkpoint(trained: Path) -> Checkpoint:
    return load_checkpoint(trained)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Write two square images of 128 pixels with one object each: (0, 0, 64, 64) and (32, 32, 96, 96) of 128."""
    made = []
    for number, label in enumerate(("0 0.25 0.25 0.5 0.5", "0 0.5 0.5 0.5 0.5")):
        image, text = tmp_path / f"{number}.png", tmp_path / f"{number}.txt"
        cv2.imwrite(str(image), np.full((128, 128, 3), 99, np.uint8))
        text.write_text(label)
        made.append(Sample(image, text))
    return made


def score(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, samples: list[Sample], outputs: Outputs
) -> Evaluation:
    monkeypatch.setattr("yolo_prune.evaluation.models.make_engine", lambda model, engine, device: FakeEngine(model))
    FakeEngine.outputs = iter(outputs)
    evaluation = evaluate(checkpoint, samples, ("hand",), device=CPU)
    assert next(FakeEngine.outputs, None) is None
    return evaluation


def test_a_perfect_detector_scores_one(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, hands: Path) -> None:
    samples = list(load_spec(hands).samples("test"))
    data = DetectionDataset(samples, 1, SIDE)
    boxes = [data.make_item(index)[1][:, 1:5].tolist() for index in range(len(data))]
    result = score(monkeypatch, checkpoint, samples, [(own, [0.9] * len(own)) for own in boxes])
    assert result.score.map50 == 1
    assert result.map50_interval == (1, 1)
    assert result.coco_ap50 == pytest.approx(1)
    assert result.coco_ap == pytest.approx(1)
    assert (result.score.precision, result.score.recall, result.score.f1) == (1, 1, 1)
    assert (result.score.images, result.score.instances) == (len(samples), sum(map(len, boxes)))


def test_a_hand_worked_average_precision(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, samples: list[Sample]
) -> None:
    # in the square of 64: right at .9, wrong at .8, right at .7, so that precision is 1, 1/2, 2/3
    outputs: Outputs = [([[0, 0, 32, 32], [40, 40, 60, 60]], [0.9, 0.8]), ([[16, 16, 48, 48]], [0.7])]
    result = score(monkeypatch, checkpoint, samples, outputs)
    assert result.score.map50 == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result.score.confidence == pytest.approx(0.7)
    assert [matches.hits.tolist() for matches in result.matches] == [[True, False], [True]]
    assert result.map50_interval == pytest.approx((5 / 6, 1))  # one image drawn twice gives 1, both give 5/6


def test_ignored_boxes_count_neither_way(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, samples: list[Sample]
) -> None:
    samples[1].label.rename(samples[1].ignored)
    outputs: Outputs = [([[0, 0, 32, 32]], [0.7]), ([[16, 16, 48, 48], [20, 20, 44, 44]], [0.9, 0.8])]
    result = score(monkeypatch, checkpoint, samples, outputs)
    assert result.score.map50 == result.coco_ap50 == 1
    assert result.score.instances == 1


def test_detections_are_cut_at_the_images_edge(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, samples: list[Sample]
) -> None:
    # 128×64 px in the square of 64: rows 16 to 48; the object is the image's left half, the prediction all above and below it
    cv2.imwrite(str(samples[0].image), np.full((64, 128, 3), 99, np.uint8))
    samples[0].label.write_text("0 0.25 0.5 0.5 1")
    result = score(monkeypatch, checkpoint, samples[:1], [([[-9, 0, 32, 64]], [0.9])])
    assert result.coco_ap == 1
    assert result.matches[0].truth_sides_px.tolist() == [64]
    assert [one.instances for one in result.size_recalls] == [0, 0, 0, 1, 0]


def test_misses_score_nothing(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, samples: list[Sample]) -> None:
    result = score(monkeypatch, checkpoint, samples, [([[50, 50, 60, 60]], [0.9]), ([], [])])
    assert result.score.map50 == result.coco_ap50 == result.coco_ap == 0
    assert result.map50_interval == (0, 0)


def test_images_without_objects_have_no_score(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, samples: list[Sample]
) -> None:
    empty = [replace(sample, label=Path("none.txt")) for sample in samples]
    result = score(monkeypatch, checkpoint, empty, [([], []), ([], [])])
    assert math.isnan(result.score.map50)
    assert math.isnan(result.map50_interval[0])
    assert math.isnan(result.coco_ap)
    assert result.score.instances == 0


def test_a_real_network_gets_the_same_score_both_ways_and_again(checkpoint: Checkpoint, hands: Path) -> None:
    spec = load_spec(hands)
    samples = spec.samples("val")
    once = evaluate(checkpoint, samples, spec.names, device=CPU)
    again = evaluate(checkpoint.with_img_size(SIDE), samples, spec.names, device=CPU)
    assert once.score == again.score
    assert paired_difference(once.matches, again.matches) == (0, 0, 0)
    data = DetectionDataset(samples, 1, SIDE)
    model = checkpoint.make_model().eval()
    assert measure_score_of(model, data, device=CPU, batch_size=16) == once.score
    assert any(len(matches.scores) for matches in once.matches)


def test_validation_of_a_run_is_what_evaluate_says(trained: Path) -> None:
    """The score in best.pt, measured in training, is the score that its own file gets."""
    result = evaluate_models([trained], [], EvaluateConfig(device="cpu"))
    assert result.models[0].evaluation.score.map50 == pytest.approx(
        load_checkpoint(trained).provenance["metrics"]["val_map50"], abs=1e-6
    )
    assert result.scored_on == "val"


def test_a_list_of_images_can_be_scored(trained: Path, hands: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("images/test/000001.jpg\nimages/val/000000.jpg\n")
    result = evaluate_models([trained], [], EvaluateConfig(data=hands, subset=tmp_path / "few.txt", device="cpu"))
    assert result.as_dict()["images"] == 2
    assert result.scored_on == str(tmp_path / "few.txt")
    assert result.stdout.startswith(f"{tmp_path / 'few.txt'}: 2 images")


@pytest.mark.parametrize(
    ("names", "img_size", "message"),
    [
        (("palm", "fist"), None, "--data: the network does not know the class palm, but hand; use a data set"),
        (("hand",), 50, "img_size: 50 is no multiple of 32; use 64"),
        (("hand",), -32, "img_size: -32 is no multiple of 32; use 32"),
    ],
)
def test_what_does_not_fit_is_rejected(
    checkpoint: Checkpoint, samples: list[Sample], names: tuple[str, ...], img_size: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(checkpoint.with_img_size(img_size), samples, names, device=CPU)
