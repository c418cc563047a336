"""Synthetic hands: exact labels, the same images whoever draws them, all of a data set or none of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.labels import format_labels
from yolo_prune.datasets.synthetic import dataset as synthetic
from yolo_prune.datasets.synthetic import scenes
from yolo_prune.datasets.synthetic.dataset import make_dataset, make_image
from yolo_prune.datasets.synthetic.hand_pose import make_skeleton, make_view
from yolo_prune.datasets.synthetic.hands import draw_hand
from yolo_prune.datasets.synthetic.scenes import MAX_EXTENT, MIN_VISIBLE, Scene, make_scene
from yolo_prune.datasets.synthetic.solids import NOTHING, Canvas, Layer, Light, RoundCone, make_skin, raise_cones
from yolo_prune.errors import ConfigError, OutputError

SMALL = SyntheticConfig(train=9, val=2, test=3, size_px=96)
LIGHT = Light(np.array([0.0, 0.0, 1.0]), np.full(3, 0.7), np.full(3, 0.4))


def scene_of(seed: int, size_px: int = 128, max_hands: int = 4) -> Scene:
    return make_scene(np.random.default_rng(seed), size_px, max_hands)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_ball_rises_as_the_formula_says() -> None:
    ball = RoundCone(np.array([10.0, 8.0, 3.0]), np.array([10.0, 8.0, 3.0]), 5.0, 5.0, part=2)
    relief = raise_cones([ball], Canvas(0, 0, 20, 16, oversampling=1))
    y, x = np.mgrid[:16, :20] + 0.5
    depth2 = 25 - (x - 10) ** 2 - (y - 8) ** 2
    assert np.array_equal(relief.part == 2, depth2 > 0)
    np.testing.assert_allclose(relief.height[depth2 > 0], 3 + np.sqrt(depth2[depth2 > 0]), rtol=1e-5)
    assert np.all(relief.part[depth2 <= 0] == NOTHING)


@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0, 3.0])
def test_a_tilted_cone_is_the_highest_of_its_balls(slope: float) -> None:
    start, along = np.array([14.0, 15.0, 0.0]), np.array([12.0, 5.0, 13.0 * slope])
    canvas = Canvas(0, 0, 40, 36, oversampling=1)
    steps = np.linspace(0, 1, 400)
    balls = [RoundCone(point, point, 6.0, 6.0) for point in start + steps[:, None] * along]
    expected = raise_cones(balls, canvas)
    relief = raise_cones([RoundCone(start, start + along, 6.0, 6.0)], canvas)
    both = expected.solid & relief.solid
    assert np.sum(expected.solid ^ relief.solid) <= 0.02 * np.sum(both)
    assert np.percentile(np.abs(relief.height[both] - expected.height[both]), 98) < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_the_masks_outer_pixels(seed: int) -> None:
    scene = scene_of(seed)
    assert len(scene.boxes_xyxy) == len(scene.masks)
    for (left, top, right, bottom), mask in zip(scene.boxes_xyxy.tolist(), scene.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_every_bone_keeps_its_length_and_its_back_stays_square_to_it() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        hand = make_skeleton(rng)
        seen = hand.turned(make_view(rng))
        bones = np.diff(seen.joints, axis=1)
        lengths = np.linalg.norm(bones, axis=-1)
        np.testing.assert_allclose(lengths, np.linalg.norm(np.diff(hand.joints, axis=1), axis=-1))
        assert 1.5 < lengths.min() < lengths.max() < 5.5
        np.testing.assert_allclose((bones * seen.dorsal).sum(axis=-1), 0, atol=1e-9)
        np.testing.assert_allclose(abs(np.linalg.det(seen.turn)), 1)


def test_an_image_is_a_function_of_its_generator() -> None:
    first, again, other = (make_image(np.random.default_rng(seed), SMALL) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    make_dataset(tmp_path / "one", SMALL, workers=1)
    make_dataset(tmp_path / "two", SMALL, workers=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_splits_differ_and_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    make_dataset(tmp_path / "small", SyntheticConfig(2, 1, 1, size_px=64), workers=1)
    make_dataset(tmp_path / "large", SyntheticConfig(3, 2, 1, size_px=64), workers=1)
    small, large = digest(tmp_path / "small" / "images"), digest(tmp_path / "large" / "images")
    assert small.items() <= large.items()
    assert len(set(large.values())) == 6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), max_hands=st.integers(0, 4), size_px=st.integers(64, 160))
def test_every_box_lies_within_its_image(seed: int, max_hands: int, size_px: int) -> None:
    config = SyntheticConfig(size_px=size_px, max_hands=max_hands)
    image, boxes = make_image(np.random.default_rng(seed), config)
    height, width = image.shape[:2]
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert max(height, width) == size_px
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(boxes), 4)
    assert len(boxes) <= max_hands
    assert np.all((boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= (width, height)))


def test_images_without_hands_and_with_the_most_occur() -> None:
    counts = {len(scene_of(seed, size_px=64, max_hands=2).masks) for seed in range(40)}
    assert counts == {0, 1, 2}


def test_no_hand_is_mostly_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[int] = []
    lay = scenes._Stage.lay

    def record(stage: scenes._Stage, layer: Layer) -> bool:
        laid = lay(stage, layer)
        if laid and layer.hand.any():
            whole.append(int(layer.hand.sum()))
        return laid

    monkeypatch.setattr(scenes._Stage, "lay", record)
    shares = []
    for seed in range(40):
        whole.clear()
        visible = [int(mask.sum()) for mask in scene_of(seed).masks]
        assert len(visible) == len(whole)
        shares += [part / all_of_it for part, all_of_it in zip(visible, whole, strict=True)]
    assert min(shares) >= MIN_VISIBLE
    assert min(shares) < 0.9, "nothing is ever hidden"
    assert max(shares) == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_hand_has_the_extent_asked_for_and_its_arm_is_none_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = draw_hand(rng, make_skin(rng), LIGHT, np.array([100.0, 100.0]), 80.0, (200, 200))
    x, y, width, height = cv2.boundingRect(layer.hand.view(np.uint8))
    assert 0.8 * 80 <= max(width, height) <= 1.2 * 80
    centre = np.array([x + width / 2 + layer.x_px, y + height / 2 + layer.y_px])
    assert np.abs(centre - 100).max() < 12
    assert np.sum(layer.alpha >= 0.5) > 1.2 * layer.hand.sum()
    assert MAX_EXTENT <= 0.5


def test_the_folder_is_a_yolo_data_set(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    where = make_dataset(
        tmp_path / "deep" / "hands", SMALL, progress=lambda done, total: seen.append((done, total)), workers=1
    )
    assert where == tmp_path / "deep" / "hands" / "data.yaml"
    layout = yaml.safe_load(where.read_text())
    assert layout == {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": {0: "hand"},
    }
    assert seen == [(done, 14) for done in range(1, 15)]
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        images = sorted((where.parent / layout[split]).iterdir())
        labels = sorted((where.parent / "labels" / split).iterdir())
        assert [path.stem for path in images] == [path.stem for path in labels] == [f"{i:06}" for i in range(count)]
    rng = np.random.default_rng((SMALL.seed, 0, 4))
    image, boxes = make_image(rng, SMALL)
    stored = cv2.imread(str(where.parent / "images/train/000004.jpg"))
    assert stored is not None
    assert np.abs(stored[..., ::-1].astype(int) - image).mean() < 8
    assert (where.parent / "labels/train/000004.txt").read_text() == format_labels(
        np.zeros(len(boxes), np.int64), boxes, *image.shape[1::-1]
    )


def test_a_finished_data_set_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_dataset(tmp_path / "hands", SMALL, workers=1)
    monkeypatch.setattr(synthetic, "_write_image", None)
    assert make_dataset(tmp_path / "hands", SMALL, workers=1) == first


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise failure

    for workers in (1, 2) if failure is KeyboardInterrupt else (1,):
        with pytest.raises(failure):
            make_dataset(tmp_path / "hands", SMALL, progress=stop, workers=workers)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(OutputError, match="is not a folder of synthetic hands"):
        make_dataset(tmp_path, SMALL, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_data_set_of_another_config_is_left_alone(tmp_path: Path) -> None:
    make_dataset(tmp_path / "hands", SyntheticConfig(1, 1, 1, size_px=64), workers=1)
    before = digest(tmp_path)
    with pytest.raises(OutputError, match="size_px 64 instead of 80, seed 0 instead of 7"):
        make_dataset(tmp_path / "hands", SyntheticConfig(1, 1, 1, size_px=80, seed=7), workers=1)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("text", ["- 1", "{", "\x00"])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "synthetic.yaml").write_text(text)
    with pytest.raises(OutputError, match=r"synthetic\.yaml: is no record"):
        make_dataset(tmp_path, SMALL, workers=1)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/hands: cannot be written"):
        make_dataset(tmp_path / "file" / "hands", SMALL, workers=1)


@pytest.mark.parametrize(("key", "value"), [("train", 0), ("size_px", 63), ("max_hands", -1), ("seed", -1)])
def test_a_setting_out_of_range_is_named(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{key}: {value} is out of range"):
        SyntheticConfig(**{key: value})


@pytest.mark.parametrize("text", ["[" * 3000, "a: !!timestamp x", "a: 2024-02-30", "a: !!bool x", "\0", "3"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / synthetic.CONFIG_FILE).write_text(text)
    with pytest.raises(OutputError, match=r"synthetic\.yaml: is no record of a data set"):
        make_dataset(tmp_path, SyntheticConfig(), workers=1)
