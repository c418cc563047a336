from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from yolo_prune.commands.detect import DetectResult, detect
from yolo_prune.commands.measure_config import DetectRunConfig
from yolo_prune.datasets.images import read_image
from yolo_prune.errors import CheckpointError, ConfigError, DatasetError
from yolo_prune.evaluation.previews import PALETTE
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector

CONFIG = DetectRunConfig(device="cpu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Write an image of 100 × 50 pixels, which lies in a square of 64 as 64 × 32 below 16 rows of grey."""
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.full((50, 100, 3), 90, np.uint8))
    return path


class FakeEngine:
    """An engine that gives every image three boxes of the square: two that overlap, one too weak."""

    sizes: list[int]

    def __init__(self, detector: Detector) -> None:
        assert not detector.training
        FakeEngine.sizes = []

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[:2] == (1, 3)
        assert float(images.max()) <= 1
        FakeEngine.sizes.append(images.shape[-1])
        boxes = torch.tensor([[16.0, 24, 32, 40], [16, 24, 32, 41], [0, 16, 64, 48]])
        return boxes[None], torch.tensor([[[0.9], [0.5], [0.2]]])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_prune.evaluation.models.make_engine", lambda model, engine, device: FakeEngine(model))


def run(trained: Path, images: Sequence[Path | str], out: Path, **changes: Any) -> DetectResult:
    return detect(trained, images, replace(CONFIG, **{"out": out, "img_size": 64, **changes}))


@pytest.mark.usefixtures("fake")
def test_boxes_come_back_in_the_pixels_of_the_image(trained: Path, image: Path, tmp_path: Path) -> None:
    result = run(trained, [image], tmp_path / "out")
    (found,) = result.detections
    assert found["image_id"] == str(image)
    assert found["bbox"] == pytest.approx([25, 12.5, 25, 25])  # (16, 24, 32, 40) less 16 rows, at 100/64
    assert found["score"] == pytest.approx(0.9)
    assert result.results is not None
    assert json.loads(result.results.read_text()) == result.detections
    assert result.results == tmp_path / "out/detections.json"
    assert result.images == (tmp_path / "out/wide.png",)
    drawn = read_image(result.images[0])
    assert drawn.shape == (50, 100, 3)
    assert tuple(drawn[37, 40]) == PALETTE[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "wide.png"]


@pytest.mark.usefixtures("fake")
def test_the_threshold_and_the_size_are_those_asked_for(trained: Path, image: Path, tmp_path: Path) -> None:
    result = run(trained, [image], tmp_path / "out", confidence=0.2, nms_iou=1.0, img_size=96)
    assert [round(found["score"], 3) for found in result.detections] == [0.9, 0.5, 0.2]
    assert FakeEngine.sizes == [96]
    detect(trained, [image], replace(CONFIG, out=tmp_path / "out"))
    assert FakeEngine.sizes == [load_checkpoint(trained).img_size.width]


@pytest.mark.usefixtures("fake")
def test_folders_are_searched_and_names_kept_apart(trained: Path, image: Path, tmp_path: Path) -> None:
    for name in ("a/b/wide.png", "a/wide.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    result = run(trained, [image, tmp_path / "a"], tmp_path / "out")
    assert [path.name for path in result.images] == ["wide.png", "wide-2.png", "wide-3.png"]
    assert {found["image_id"] for found in result.detections} == {
        str(image),
        str(tmp_path / "a/wide.png"),
        str(tmp_path / "a/b/wide.png"),
    }


def test_a_real_network_s_boxes_lie_inside_the_image(trained: Path, image: Path, tmp_path: Path) -> None:
    result = run(trained, [image], tmp_path / "out", confidence=0.0001)
    assert result.detections
    for found in result.detections:
        x, y, width, height = found["bbox"]
        assert 0 <= x <= x + width <= 100.01
        assert 0 <= y <= y + height <= 50.01


def test_the_others_are_done_where_a_source_is_wrong(
    trained: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty = tmp_path / "broken.jpg", tmp_path / "empty"
    broken.write_bytes(b"\xff\xd8\xff no image")
    empty.mkdir()
    cases: tuple[tuple[Path | str, str], ...] = (
        (broken, "broken.jpg: is not a readable image; put a whole"),
        (tmp_path / "none.jpg", "none.jpg: there is no such image; name an image that exists"),
        (empty, "empty: holds no image or video; name images or videos"),
        (f"{empty}/*.jpg", "empty/*.jpg: matches no image or video; name images or videos"),
    )
    for number, (wrong, what) in enumerate(cases):
        result = run(trained, [image, wrong], tmp_path / str(number))
        assert result.images == (tmp_path / f"{number}/wide.png",)
        with pytest.raises(
            DatasetError, match=r"sources: 1 of 2 could not be read, or .*; the others are done; see the"
        ):
            result.raise_on_issues()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert what in line


def test_nothing_is_written_where_all_is_wrong(trained: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    for sources, what in (
        ([tmp_path / "broken.jpg"], r"broken\.jpg: is not a readable image"),
        ([tmp_path / "none.jpg", tmp_path / "nine.jpg"], "sources: 2 of 2 could not be read, .*; nothing is done"),
    ):
        with pytest.raises(DatasetError, match=what):
            run(trained, sources, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"wide\.png: cannot be read"):
        run(image, [image], tmp_path / "out")
    with pytest.raises(ConfigError, match="img_size: 50 is no multiple of 32; use 64"):
        run(trained, [image], tmp_path / "out", img_size=50)
    assert not (tmp_path / "out").exists()


def test_a_source_is_never_overwritten(trained: Path, image: Path) -> None:
    before = image.read_bytes()
    assert run(trained, [image], image.parent).images == (image.with_name("wide-2.png"),)
    assert image.read_bytes() == before


def test_without_save_there_is_json_alone(trained: Path, image: Path, tmp_path: Path) -> None:
    result = run(trained, [image], tmp_path / "out", save=False)
    assert result.images == ()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.json"]


def test_only_some_classes(trained: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes in one place: each is found, unless only others are wanted."""

    class ThreeClasses(FakeEngine):
        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor([[[16.0, 24, 32, 40]]]), torch.tensor([[[0.9, 0.8, 0.7]]])

    names = ("person", "2", "traffic light")
    several = replace(load_checkpoint(trained), names=names)
    monkeypatch.setattr("yolo_prune.commands.detect.load_model", lambda path: several)
    monkeypatch.setattr("yolo_prune.evaluation.models.make_engine", lambda model, engine, device: ThreeClasses(model))
    for wanted, expected in (
        ((), [0, 1, 2]),
        (("person",), [0]),
        (("traffic light", "person", "0"), [0, 2]),
        (("1",), [1]),
        (("2",), [1]),  # a name comes before a number
    ):
        result = run(trained, [image], tmp_path / "out", classes=wanted, confidence=0.0)
        assert [found["category_id"] for found in result.detections] == expected
    for wrong, right in (
        ("Persn", "did you mean person?"),
        ("7", "use one of person, 2, traffic light, or its number"),
    ):
        with pytest.raises(ConfigError, match=rf"classes: the network knows no class {wrong}; {re.escape(right)}"):
            run(trained, [image], tmp_path / "out", classes=(wrong,))


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"engine": "eager"}, {"engine": "onnxruntime"}])
def test_batches_and_engines_find_the_same(trained: Path, hands: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    if changes.get("engine") == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    images = sorted((hands.parent / "images/val").iterdir()) + sorted((hands.parent / "images/test").iterdir())
    one = run(trained, images, tmp_path / "one", confidence=0.004)
    other = run(trained, images, tmp_path / "other", confidence=0.004, **changes)
    best, same = ({each["image_id"]: each["score"] for each in result.detections[::-1]} for result in (one, other))
    assert list(best.values()) == pytest.approx([same[image] for image in best], abs=1e-4)
    assert len(best) == len(images)
