from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.results import ImageId, ImageIds, format_results, load_image_ids, load_results, name_images

NOTHING = make_detections((), (), ())
GOOD: dict[str, Any] = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
ROOT = Path("/data/set")


def make_ids(images: list[ImageId], classes: tuple[int, ...]) -> ImageIds:
    return ImageIds(tuple(images), classes, {image: place for place, image in enumerate(images)})


def make_samples(*names: str) -> list[Sample]:
    return [Sample(ROOT / name, ROOT / "labels" / Path(name).with_suffix(".txt").name) for name in names]


def test_format_by_hand() -> None:
    found = make_detections([[1.0, 2.0, 4.0, 8.0], [0.5, 0.0, 1.0, 1.0]], [0.25, 0.5], [0, 1])
    assert format_results([42, 43], [found, NOTHING], category_ids=[18, 90]) == [
        {"image_id": 42, "category_id": 90, "bbox": [0.5, 0, 0.5, 1], "score": 0.5},
        {"image_id": 42, "category_id": 18, "bbox": [1, 2, 3, 6], "score": 0.25},
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), mapped=st.booleans())
def test_load_is_the_inverse_of_format(tmp_path_factory: pytest.TempPathFactory, seed: int, mapped: bool) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 200, (12, 2)).astype(np.float32)
    boxes = np.concatenate((corners, corners + random.uniform(40, 120, (12, 2))), axis=1)
    detections = [make_detections(boxes, random.random(12), random.integers(0, 2, 12)) for _ in range(2)]
    ids = make_ids(["a.jpg", 5, "c"], (90, 18) if mapped else (0, 1))
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(format_results(ids.images, [*detections, NOTHING], ids.classes)))
    for found, expected in zip(load_results(path, ids), [*detections, NOTHING], strict=True):
        assert np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert np.array_equal(found.scores, expected.scores)
        assert np.array_equal(found.classes, expected.classes)
        assert found.classes.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r":1: is not JSON .*; correct that line"),
        ("{}", "holds no list"),
        (json.dumps([GOOD, 3]), r"\[1\]: is no detection"),
        (json.dumps([GOOD, {"image_id": 7}]), r"\[1\]: is no detection .*category_id"),
        (json.dumps([GOOD | {"bbox": [1, 2, 3]}]), r"\[0\]: is no detection"),
        (json.dumps([GOOD | {"bbox": [1, 2, -3, 4]}]), r"\[0\]: bbox .* has a negative side; write"),
        (json.dumps([GOOD | {"score": math.nan}]), r"\[0\]: bbox .* or score nan is not finite"),
        (json.dumps([GOOD | {"score": None}]), r"\[0\]: bbox .* or score None is not finite"),
        (json.dumps([GOOD | {"score": True}]), r"\[0\]: bbox .* or score True is not finite"),
        (json.dumps([GOOD | {"bbox": "1234"}]), r"\[0\]: bbox 1234 or"),
        (json.dumps([GOOD | {"image_id": [7]}]), r"\[0\]: image_id \[7\] or category_id 1 is of the wrong kind"),
        (json.dumps([GOOD | {"category_id": 1.5}]), r"\[0\]: image_id 7 or category_id 1\.5 is of the wrong kind"),
        (json.dumps([GOOD | {"image_id": 8}]), r"\[0\]: image_id 8 is not in the data set; .*--annotations"),
        (
            json.dumps([GOOD | {"category_id": 2}]),
            r"\[0\]: category_id 2 is unknown; use one of 1, 5, or .*--annotations",
        ),
    ],
)
def test_a_bad_results_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=f"results.json.*{message}"):
        load_results(path, make_ids([7], (5, 1)))


def test_a_missing_results_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.json: cannot be read"):
        load_results(tmp_path / "none.json", make_ids([], (0,)))


def test_images_are_named_by_their_path_and_understood_by_its_ends() -> None:
    samples = make_samples("images/test/a/000139.jpg", "images/test/b.webp")
    ids = name_images(samples, ROOT, 2, make_samples("images/train/b.webp", "images/train/c.webp"))
    assert ids.images == ("images/test/a/000139.jpg", "images/test/b.webp")
    assert ids.classes == (0, 1)
    for name in ("images/test/a/000139.jpg", "test/a/000139.jpg", "000139.jpg", "000139", 139, str(samples[0].image)):
        assert ids.places[name] == 0
    assert ids.places["b.webp"] == 1  # of those asked for, before another split's
    assert ids.places["c"] is None
    assert "d.webp" not in ids.places
    assert not ids.ambiguous


def test_results_of_images_that_were_not_asked_for_are_left_out(tmp_path: Path) -> None:
    ids = name_images(make_samples("a.jpg"), ROOT, 1, make_samples("b.jpg"))
    path = tmp_path / "results.json"
    rows = [GOOD | {"image_id": name, "category_id": 0} for name in ("b", "a", "b.jpg")]
    path.write_text(json.dumps(rows))
    (found,) = load_results(path, ids)
    assert found.boxes_xyxy.tolist() == [[1, 2, 4, 6]]


def test_a_name_that_fits_two_images_is_rejected(tmp_path: Path) -> None:
    ids = name_images(make_samples("left/a.jpg", "right/a.jpg", "a.jpg"), ROOT, 1)
    assert ids.places["a.jpg"] == 2  # a whole path is meant before the end of another
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD | {"image_id": "a", "category_id": 0}]))
    with pytest.raises(DatasetError, match=r"\[0\]: 'a' fits more than one image; name images by their path"):
        load_results(path, ids)


def write_annotations(path: Path, images: Any, categories: Any) -> Path:
    path.write_text(json.dumps({"images": images, "categories": categories}))
    return path


def test_annotations_give_images_and_classes_their_ids(tmp_path: Path) -> None:
    samples = make_samples("images/test/a.jpg", "images/test/b.jpg")
    images = [{"id": 30, "file_name": "b.jpg"}, {"id": "x", "file_name": "test/a.jpg"}, {"id": 5, "file_name": "c.jpg"}]
    categories = [{"id": 4, "name": "foot"}, {"id": 2, "name": "hand"}, {"id": 3, "name": "face"}]
    path = write_annotations(tmp_path / "coco.json", images, categories)
    ids = load_image_ids(path, samples, ROOT, ("hand", "foot"), make_samples("images/train/c.jpg"))
    assert ids.images == ("x", 30)
    assert ids.classes == (2, 4)
    assert dict(ids.places) == {30: 1, "x": 0, 5: None}


@pytest.mark.parametrize(
    ("images", "categories", "message"),
    [
        (None, [], r"coco\.json: there is no list images"),
        ([{"id": 1, "file_name": "a.jpg"}], [], r"coco\.json: 1 images of the data set are not .* first is b\.jpg"),
        ([{"id": 1}], [], r"coco\.json: images\[0\]: has no file_name"),
        ([{"id": 1.5, "file_name": "a.jpg"}], [], r"coco\.json: images\[0\]: has no id"),
        ([{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}], {}, r"there is no list categories"),
        (
            [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            [{"id": 1, "name": "foot"}],
            r"coco\.json: categories: there is no category hand; .* these have foot",
        ),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, images: Any, categories: Any, message: str) -> None:
    path = write_annotations(tmp_path / "coco.json", images, categories)
    with pytest.raises(DatasetError, match=message):
        load_image_ids(path, make_samples("a.jpg", "b.jpg"), ROOT, ("hand",))
