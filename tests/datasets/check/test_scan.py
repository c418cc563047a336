"""What the checker reads of images and labels, and what it counts."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolo_prune.datasets.check import scan as facts
from yolo_prune.datasets.check.check import check_dataset
from yolo_prune.datasets.check.issues import Issue
from yolo_prune.datasets.check.scan import CHUNK, Content, read_content, read_images
from yolo_prune.datasets.config import CheckConfig
from yolo_prune.datasets.labels import parse_labels, scan_labels
from yolo_prune.datasets.spec import DataSpec, Sample, load_spec
from yolo_prune.errors import DatasetError

DAMAGE = "Corrupt JPEG data: N extraneous bytes before marker 0xd9"
"""What libjpeg says of bytes that it does not decode."""


def make_noise(seed: int, width: int = 90, height: int = 80) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def test_what_a_decoder_says_of_a_damaged_image_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    samples = []
    for number in range(CHUNK + 3):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
        samples.append(Sample(path, path.with_suffix(".txt")))
    data = samples[7].image.read_bytes()
    samples[7].image.write_bytes(data[:-2] + b"\1" * 32 + data[-2:])
    samples[CHUNK].image.write_bytes(data[:-2])
    spec = DataSpec(tmp_path / "data.yaml", tmp_path, ("hand",), {"train": tuple(samples)})
    damage = {
        number: image.content.damage
        for number, image in enumerate(read_images(spec))
        if isinstance(image.content, Content)
    }
    assert {number: re.sub(r"\d+ ", "N ", text) for number, text in damage.items() if text} == {
        7: DAMAGE,
        CHUNK: "lacks its end mark",
    }
    assert len(damage) == len(samples)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("suffix", "lost"),
    [
        *((suffix, lost) for suffix in (".jpg", ".png", ".webp", ".bmp", ".tif") for lost in (40, 0.5)),
        *((suffix, lost) for suffix in (".webp",) for lost in (1, 2)),
    ],
)
def test_a_cut_image_is_not_taken_for_whole(tmp_path: Path, suffix: str, lost: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(make_noise(3)).save(path)
    assert isinstance(read_content(path), Content)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - lost] if isinstance(lost, int) else whole[: int(len(whole) * lost)])
    content = read_content(path)
    assert isinstance(content, Issue), content
    assert (content.kind, content.where) == ("cut_image", str(path))


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff no", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WAVE"])
def test_what_is_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    found = read_content(tmp_path / "a.jpg")
    assert isinstance(found, Issue)
    assert (found.kind, found.what) == ("unreadable_image", "is not a readable image")


def test_an_image_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    found = read_content(tmp_path / "a.jpg")
    assert isinstance(found, Issue)
    assert found.kind == "unreadable_image"


def test_a_turned_image_has_the_size_that_it_is_shown_with(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(make_noise(1, 90, 60)).save(tmp_path / "a.jpg", exif=turned)
    content = read_content(tmp_path / "a.jpg")
    assert isinstance(content, Content)
    assert (content.width_px, content.height_px, content.orientation) == (60, 90, 6)


def test_all_workers_decode_at_the_same_time(hands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(3, timeout=20)

    def read_together(path: Path) -> Content | Issue:
        barrier.wait()  # breaks unless three threads get here
        return read_content(path)

    monkeypatch.setattr(facts, "read_content", read_together)
    calls: list[tuple[int, int]] = []
    images = read_images(load_spec(hands), 3, lambda done, total: calls.append((done, total)))
    assert len(images) == 24
    assert calls == [(18, 24), (24, 24)]


@given(st.lists(st.sampled_from(["0 .5 .5 .2 .2", "1 .1 .1 .1 .1", "", "0 .5", "3 .5 .5 .1 .1", "0 2 2 .1 .1"])))
@settings(max_examples=100, deadline=None)
def test_scanned_lines_are_those_of_the_parser_up_to_the_first_bad_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "scanned.txt"
    path.write_text("\n".join(lines))
    scanned = scan_labels(path, 2)
    filled = [number for number, line in enumerate(lines, 1) if line]
    bad = [int(str(error.where).rpartition(":")[2]) for error in scanned.errors]
    assert sorted([*scanned.numbers.tolist(), *bad]) == filled
    if bad:
        with pytest.raises(DatasetError) as caught:
            parse_labels(path.read_text(), path, 2)
        assert str(caught.value) == str(scanned.errors[0])
    else:
        rows = np.array(list(dict.fromkeys(map(tuple, scanned.rows.tolist())))).reshape(-1, 5)
        np.testing.assert_array_equal(parse_labels(path.read_text(), path, 2), rows.astype(np.float32))


def test_a_missing_label_file_has_no_lines(tmp_path: Path) -> None:
    scanned = scan_labels(tmp_path / "none.txt", 1)
    assert (scanned.numbers.shape, scanned.rows.shape, scanned.errors) == ((0,), (0, 5), ())


def test_statistics_of_a_hand_worked_data_set(workplace: Path) -> None:
    for split in ("train", "val"):
        Path("d/images", split).mkdir(parents=True)
        Path("d/labels", split).mkdir(parents=True)
    for number, (width, height) in enumerate(((192, 96), (96, 48), (48, 96))):
        Image.fromarray(make_noise(number, width, height)).save(f"d/images/train/{number}.png")
    Image.fromarray(make_noise(9)).save("d/images/val/0.png")
    Path("d/labels/train/0.txt").write_text("0 .5 .5 .4 .2\n1 .5 .5 .1 .2\n0 .5 .5 .4 .2\n")
    Path("d/labels/train/0.ignore.txt").write_text("0 .2 .2 .1 .1\n")
    Path("d/labels/train/1.txt").write_text("0 .5 .5 .9 .9\n")
    Path("d/labels/train/2.txt").write_text("")
    Path("d/data.yaml").write_text("train: images/train\nval: images/val\nnames: [hand, glove]\n")
    spec = load_spec(Path("d/data.yaml"))
    train = check_dataset(spec, CheckConfig(img_size=384)).statistics["train"].as_dict(("hand", "glove"))
    sides = np.sqrt([76.8 * 19.2, 19.2 * 19.2, 86.4 * 43.2])
    assert train == {
        "images": 3,
        "without_objects": 1,
        "without_labels": 0,
        "objects": 3,
        "ignored": 1,
        "objects_per_image_mean": 1.0,
        "objects_per_image_max": 2,
        "objects_per_class": [{"name": "hand", "objects": 2}, {"name": "glove", "objects": 1}],
        "box_side_px": pytest.approx(
            dict(zip(("p5", "median", "p95"), np.percentile(sides, (5, 50, 95)), strict=True))
        ),
        "box_side_at_img_size_px": pytest.approx(
            {"p5": 42.24, "median": 76.8, "p95": 76.8 + 0.9 * (sides[2] * 4 - 76.8)}
        ),
        "small": 0.0,
        "medium": pytest.approx(2 / 3),
        "large": pytest.approx(1 / 3),
        "aspect_ratio": pytest.approx({"p5": 1.1, "median": 2.0, "p95": 3.8}),
        "width_px": {"min": 48.0, "median": 96.0, "max": 192.0},
        "height_px": {"min": 48.0, "median": 96.0, "max": 96.0},
    }
    val = check_dataset(spec, CheckConfig()).statistics["val"]
    assert (val.images, val.without_objects, val.without_labels, val.objects) == (1, 1, 1, 0)
