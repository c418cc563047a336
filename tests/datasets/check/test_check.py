"""`data check`: one issue of every kind is planted in a clean data set, and each is found once, by its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import Cli, read_json

from yolo_prune.datasets.check.check import Check, check_dataset
from yolo_prune.datasets.check.issues import KINDS, Issue
from yolo_prune.datasets.config import CheckConfig, SyntheticConfig
from yolo_prune.datasets.spec import load_spec
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.errors import ConfigError

TRAIN, VAL, TEST = (Path("hands/images", split) for split in ("train", "val", "test"))
LABELS = Path("hands/labels/train")
SIDE = 128


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 18, 3 and 3 images; not to be changed."""
    config = SyntheticConfig(train=18, val=3, test=3, size_px=SIDE)
    return make_dataset(tmp_path_factory.mktemp("clean") / "hands", config, workers=1).parent


@pytest.fixture
def data(workplace: Path, clean: Path) -> Path:
    """Return the data.yaml of a copy that a test may change: hands/data.yaml."""
    shutil.copytree(clean, workplace / "hands")
    return Path("hands/data.yaml")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take longer than the rest of the check of a small data set."""
    for name in ("save_contact_sheet", "save_box_plots"):
        monkeypatch.setattr(f"yolo_prune.commands.datasets.check.{name}", lambda path, *_: path)


def check(path: Path, **changes: Any) -> Check:
    return check_dataset(load_spec(path), CheckConfig(workers=2, **changes))


def get_places(issues: tuple[Issue, ...]) -> list[tuple[str, str]]:
    return [(issue.kind, issue.where) for issue in issues]


def find(path: Path, kind: str) -> Issue:
    """Return the only issue, which must be of this kind."""
    (issue,) = check(path).issues
    assert issue.kind == kind, issue
    return issue


def image(number: int, folder: Path = TRAIN) -> Path:
    return folder / f"{number:06}.jpg"


def label(number: int) -> Path:
    return LABELS / f"{number:06}.txt"


def add(pixels: np.ndarray, path: Path) -> Path:
    """Write an RGB image with an empty label file."""
    Image.fromarray(pixels).save(path)
    labels = Path("hands/labels", path.parent.name, f"{path.stem}.txt")
    if not labels.exists():
        labels.write_text("")
    return path


def load(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def make_noise(seed: int, width: int = 90, height: int = 80) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def test_a_clean_data_set_has_no_issues(clean: Path) -> None:
    found = check(clean / "data.yaml")
    assert found.issues == ()
    assert len(found.images) == 24


def plant_everything() -> list[tuple[str, str]]:
    """Plant an issue of every kind in ./hands; return the kinds and places in the order of the report."""
    image(0).write_bytes(b"no image")
    image(1).write_bytes(image(1).read_bytes()[:-300])
    label(2).write_text("0 .5 .5 .2 .2\n0 .5 .5 .2\n\n0 .2 .2 .1 .1\n7 .2 .2 .1 .1\n")
    label(2).with_suffix(".ignore.txt").write_text("0 .9 .5 .4 .1\n")
    label(3).write_bytes(b"\xff\xfe\x00")
    add(make_noise(0), TRAIN / "000004.png")
    Path("hands/data.yaml").write_text(
        "path: .\ntrain: images/train\nval: [images/val, more.txt]\ntest: images/test\nnames: [hand, glove]\n"
    )
    Path("hands/more.txt").write_text("images/train/000005.jpg\n")
    shutil.copy(image(6), TEST / "same.jpg")
    shutil.copy(label(6), "hands/labels/test/same.txt")
    add(cv2.resize(load(image(7))[:, ::-1], None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA), VAL / "alike.png")
    add(load(image(8)), TRAIN / "same.png")
    Image.fromarray(load(image(9))).save(TRAIN / "alike.jpg", quality=60)
    (LABELS / "alike.txt").write_text("")
    label(10).write_text("0 .5 .5 .2 .2\n0 .3 .3 .1 .1\n0 0.500 .5 .2 .2\n")
    label(11).write_text("0 .5 .5 .2 .2\n0 .3 .3 .1 .1\n0 .505 .5 .2 .2\n")
    (LABELS / "nobody.txt").write_text("0 .5 .5 .2 .2\n")
    label(12).unlink()
    label(13).write_text(f"0 .5 .5 .02 {3.5 / 416:.4f}\n")
    label(14).write_text("0 .5 .5 .9 .1\n")
    label(15).write_text("0 .5 .5 .99 .98\n")
    image(15).write_bytes(image(15).read_bytes()[:-2])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(make_noise(1)).save(TRAIN / "turned.jpg", exif=turned)
    (LABELS / "turned.txt").write_text("")
    add(make_noise(2, 40, 20), TRAIN / "tiny.png")
    label(9).write_text("0 .5 .5 1.01 .5\n")
    (TRAIN / "phone.heic").write_bytes(b"")
    return [
        ("unreadable_image", f"{image(0)}"),
        ("cut_image", f"{image(1)}"),
        ("damaged_image", f"{image(15)}"),
        ("bad_label", f"{label(2)}:2"),
        ("bad_label", f"{label(2)}:5"),
        ("bad_label", f"{LABELS / '000002.ignore.txt'}:1"),
        ("unreadable_labels", f"{label(3)}"),
        ("shared_labels", f"{label(4)}"),
        ("two_splits", f"{image(5)}"),
        ("two_splits", f"{TEST / 'same.jpg'}"),
        ("two_splits", f"{VAL / 'alike.png'}"),
        ("identical_images", f"{image(8)}"),
        ("near_duplicates", f"{image(9)}"),
        ("repeated_label", f"{label(10)}:3"),
        ("repaired_labels", f"{label(9)}"),
        ("odd_files", "hands/data.yaml"),
        ("coinciding_boxes", f"{label(11)}:3"),
        ("labels_without_image", f"{LABELS / 'nobody.txt'}"),
        ("no_labels", f"{image(12)}"),
        ("small_box", f"{label(13)}:1"),
        ("extreme_box", f"{label(14)}:1"),
        ("covering_box", f"{label(15)}:1"),
        ("empty_class", "hands/data.yaml: names"),
        ("turned_image", f"{TRAIN / 'turned.jpg'}"),
        ("small_image", f"{TRAIN / 'tiny.png'}"),
    ]


def test_a_planted_issue_of_every_kind_is_found_once(data: Path) -> None:
    expected = plant_everything()
    assert {kind for kind, _ in expected} == set(KINDS) - {"no_objects"}  # all the others would be without objects then
    found = check(data)
    assert sorted(get_places(found.issues)) == sorted(expected)
    kinds = list(KINDS)
    assert [issue.kind for issue in found.issues] == sorted((issue.kind for issue in found.issues), key=kinds.index)
    assert check(data).issues == check_dataset(load_spec(data), CheckConfig(workers=1)).issues


def test_a_report_of_everything(cli: Cli, blind: None, data: Path) -> None:
    expected = plant_everything()
    outcome = cli("data", "check", data, "--out", "out")
    errors = sum(KINDS[kind].is_error for kind, _ in expected)
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "report.json, contact_sheet.png and boxes.png are in out",
        f"error: {errors} errors in hands/data.yaml; correct what the report lists",
    ]
    assert f"{errors} errors, {len(expected) - errors} warnings" in outcome.out
    lines = outcome.out.splitlines()
    for kind, where in expected:
        (title,) = [
            number for number, line in enumerate(lines) if line.partition(": ")[2].startswith(KINDS[kind].title)
        ]
        assert lines[title].startswith("error: " if KINDS[kind].is_error else "warning: ")
        assert any(line.startswith(f"  {where}: ") for line in lines[title + 1 :])
    report = json.loads(Path("out/report.json").read_text())
    assert sorted((issue["kind"], issue["where"]) for issue in report["issues"]) == sorted(expected)
    assert json.loads(cli("data", "check", data, "--json", "--out", "out").out) == report
    assert (report["errors"], report["warnings"]) == (errors, len(expected) - errors)
    assert sum(report["found"].values()) == len(expected)
    crossing = next(issue for issue in report["issues"] if issue["where"] == str(VAL / "alike.png"))
    assert crossing["splits"] == ["train", "val"]
    assert (crossing["mirrored"], crossing["others"]) == (True, [str(image(7))])
    assert crossing["distance"] <= 4
    assert cli("data", "check", data, "--strict").err.endswith(
        f"error: {errors} errors and {len(expected) - errors} warnings in hands/data.yaml; correct what the report lists\n"
    )


def test_images_in_all_three_splits_are_reported_split_by_split(data: Path) -> None:
    shutil.copy(image(0), VAL / "same.jpg")
    add(load(image(0)), TEST / "same.png")
    (Path("hands/labels/val") / "same.txt").write_text("")
    found = check(data).issues
    assert [issue.what for issue in found] == [
        f"of val, has the same pixels as {image(0)} of train",
        f"of test, has the same pixels as {image(0)} of train",
        f"of test, has the same pixels as {VAL / 'same.jpg'} of val",
    ]
    assert all(issue.details["distance"] == 0 for issue in found)


def test_the_nearest_of_several_near_duplicates_is_named(data: Path) -> None:
    pixels = load(image(0))
    Image.fromarray(pixels[3:-3, 3:-3]).save(TRAIN / "cropped.png")
    Image.fromarray(pixels).save(TRAIN / "packed.jpg", quality=60)
    add(pixels[:, ::-1], VAL / "mirrored.png")
    (LABELS / "cropped.txt").write_text("")
    (LABELS / "packed.txt").write_text("")
    crossing, group = check(data).issues
    assert crossing.what == f"of val, looks like {image(0)} of train, mirrored (distance 0), and like 2 more there"
    assert group.where == str(image(0))
    assert group.what.startswith("is one of 3 that are near-duplicates (3 pairs, distances ")
    assert group.others == (str(TRAIN / "cropped.png"), str(TRAIN / "packed.jpg"))
    assert check(data, near=0).issues[0].what.startswith(crossing.what.partition(", and")[0])


def test_identical_images_are_one_to_the_search_for_near_duplicates(data: Path) -> None:
    for name in ("a.png", "b.png"):
        add(load(image(0)), TRAIN / name)
    add(load(image(0))[:, ::-1], TRAIN / "mirrored.png")
    same, alike = check(data).issues
    assert (same.kind, same.others) == ("identical_images", (str(TRAIN / "a.png"), str(TRAIN / "b.png")))
    assert same.what == f"has the same pixels as {TRAIN / 'a.png'} and {TRAIN / 'b.png'}"
    assert alike.what == f"looks like {TRAIN / 'mirrored.png'}, mirrored (distance 0)"


def test_files_beside_the_labels_that_are_none(data: Path) -> None:
    (LABELS / "classes.txt").write_text("hand\n")
    (LABELS / "notes.txt").write_bytes(b"\xff\xfe\x00")
    (LABELS / ".hidden.txt").write_text("0 .5 .5 .1 .1\n")
    Path("hands/labels/train.txt").write_text("images/train/000000.jpg\n")
    data.write_text("train: list.txt\nval: images/val\nnames: [hand]\n")  # the others are unlisted, but there
    Path("hands/list.txt").write_text("images/train/000000.jpg\nimages/train/000001.jpg\n")
    assert check(data).issues == ()
    for place in ("old", "old/older"):
        (LABELS / place).mkdir()
        (LABELS / place / "000000.txt").write_text("")
    (LABELS / "missing.ignore.txt").write_text("5 .5 .5 .1 .1\n")
    assert get_places(check(data).issues) == [
        ("labels_without_image", str(LABELS / place))
        for place in ("missing.ignore.txt", "old/000000.txt", "old/older/000000.txt")
    ]


def test_labels_beside_the_images(workplace: Path) -> None:
    Path("root/deep").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(make_noise(number)).save(f"root/{number}.png")
        Path(f"root/{number}.txt").write_text("0 .5 .5 .2 .2\n")
    Path("root/list.txt").write_text("0.png\n")
    Path("root/other.txt").write_text("1.png\n")
    Path("root/deep/9.txt").write_text("0 .5 .5 .2 .2\n")
    Path("root/data.yaml").write_text("train: list.txt\nval: other.txt\nnames: [hand]\n")
    assert check(Path("root/data.yaml")).issues == ()
    Path("root/9.txt").write_text("0 .5 .5 .2 .2\n")
    assert get_places(check(Path("root/data.yaml")).issues) == [("labels_without_image", "root/9.txt")]


def test_a_label_file_that_is_another_image_s_ignored_boxes(data: Path) -> None:
    shutil.copy(LABELS / "000000.txt", LABELS / "000001.ignore.txt")
    add(make_noise(5), TRAIN / "000001.ignore.png")
    issue = find(data, "shared_labels")
    assert issue.where == str(LABELS / "000001.ignore.txt")
    assert issue.others == (str(image(1)), str(TRAIN / "000001.ignore.png"))


def test_two_images_without_the_label_file_that_they_would_share(data: Path) -> None:
    label(0).unlink()
    Image.fromarray(make_noise(0)).save(TRAIN / "000000.png")
    assert get_places(check(data).issues) == [
        ("no_labels", str(image(0))),
        ("no_labels", str(TRAIN / "000000.png")),
    ]


def test_images_that_differ_in_one_pixel_or_in_shape_are_not_identical(data: Path) -> None:
    pixels = load(image(0)).copy()
    add(pixels, TRAIN / "same.png")
    pixels[-1, -1, -1] ^= 1
    add(pixels, TRAIN / "other.png")
    add(np.full((40, 60, 3), 9, np.uint8), TRAIN / "wide.png")
    add(np.full((60, 40, 3), 9, np.uint8), TRAIN / "high.png")
    same, alike = check(data).issues
    assert (same.kind, same.others) == ("identical_images", (str(TRAIN / "same.png"),))
    assert (alike.kind, alike.others) == ("near_duplicates", (str(TRAIN / "other.png"),))


def test_a_line_that_is_written_twice_has_its_other_issues_once(data: Path) -> None:
    label(0).write_text("0 .5 .5 .9 .05\n" * 2)
    label(0).with_suffix(".ignore.txt").write_text("0 .2 .2 .1 .1\n" * 2)
    assert get_places(check(data).issues) == [
        ("repeated_label", f"{label(0)}:2"),
        ("repeated_label", f"{LABELS / '000000.ignore.txt'}:2"),
        ("extreme_box", f"{label(0)}:1"),
    ]


def test_boxes_that_coincide_across_files_and_classes(data: Path) -> None:
    data.write_text("train: images/train\nval: images/val\nnames: [hand, hand]\n")
    label(0).write_text("0 .5 .5 .4 .4\n1 .5 .5 .4 .4\n0 .53 .5 .4 .4\n")
    label(0).with_suffix(".ignore.txt").write_text("0 .5 .51 .4 .4\n")
    Path("hands/labels/val/000000.txt").write_text("1 .5 .5 .4 .4\n")
    issue = find(data, "coinciding_boxes")
    ignored = f"{LABELS / '000000.ignore.txt'}:1"
    assert (issue.where, issue.others) == (ignored, (f"{label(0)}:1",))
    assert issue.what == f"nearly coincides with the hand of {label(0)}:1 (IoU 0.95)"
    assert issue.details["iou"] == pytest.approx(0.39 / 0.41, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "size", "kind", "what"),
    [
        ("0 .5 .5 .02 .01", 416, "small_box", "is 8.3 × 2.9 px at 416 px"),
        ("0 .5 .5 .02 .014", 416, None, ""),
        ("0 .5 .5 .02 .014", 320, "small_box", "is 6.4 × 3.1 px at 320 px"),
        ("0 .5 .5 .6 .15", 416, None, ""),
        ("0 .5 .5 .61 .14", 416, "extreme_box", "is 6.2 times as wide as high"),
        ("0 .5 .5 .1 .98", 416, "extreme_box", "is 6.9 times as high as wide"),
        ("0 .5 .5 .98 .1", 416, "extreme_box", "is 14.0 times as wide as high"),
        ("0 .5 .5 .97 .97", 416, None, ""),
        ("0 .5 .5 .98 .98", 416, "covering_box", "covers 96.0% of the image"),
    ],
)
def test_odd_boxes(data: Path, row: str, size: int, kind: str | None, what: str) -> None:
    Image.fromarray(make_noise(0, 200, 140)).save(image(0))
    label(0).write_text(f"{row}\n")
    found = check(data, img_size=size).issues
    assert [(issue.kind, issue.where, issue.what) for issue in found] == (
        [] if kind is None else [(kind, f"{label(0)}:1", what)]
    )


def test_a_class_is_missed_split_by_split(data: Path) -> None:
    data.write_text("train: images/train\nval: images/val\nnames: [hand, glove, foot]\n")
    label(0).write_text("1 .5 .5 .2 .2\n")
    assert [issue.what for issue in check(data).issues] == [
        "class 1 (glove) has no object in val",
        "class 2 (foot) has no object in train or val",
    ]


def test_a_clean_data_set_on_the_command_line(cli: Cli, data: Path) -> None:
    outcome = cli("data", "check", data)
    assert (outcome.code, outcome.err) == (0, "report.json, contact_sheet.png and boxes.png are in runs/check\n")
    assert outcome.out.startswith("hands/data.yaml: 24 images, 1 class, 3 splits\n")
    assert outcome.out.endswith("\nno errors, no warnings\n")
    assert {path.name for path in Path("runs/check").iterdir()} == {"report.json", "contact_sheet.png", "boxes.png"}


def test_json_on_the_command_line(cli: Cli, blind: None, data: Path) -> None:
    Path("runs/check").mkdir(parents=True)
    Path("runs/check/report.json").write_text("{}")
    result = read_json(cli("data", "check", data, "--json", "--strict", "--img-size", 320, "--near", 3, "--workers", 1))
    assert set(result) == {
        "data", "img_size", "near", "report", "contact_sheet", "boxes", "errors", "warnings", "all", "splits", "found", "issues",
    }  # fmt: skip
    assert (result["report"], result["img_size"], result["near"]) == ("runs/check-2/report.json", 320, 3)
    assert {split: part["images"] for split, part in result["splits"].items()} == {"train": 18, "val": 3, "test": 3}
    assert result["all"]["objects"] == sum(part["objects"] for part in result["splits"].values())


def test_warnings_alone_are_no_failure_unless_strict(cli: Cli, blind: None, data: Path) -> None:
    label(0).unlink()
    assert cli("data", "check", data).code == 0
    outcome = cli("data", "check", data, "--strict")
    assert outcome.code == 2
    assert outcome.err.endswith("error: 1 warning in hands/data.yaml; correct what the report lists\n")
    assert "no errors, 1 warning\n" in outcome.out


def test_long_lists_are_cut_for_people_alone(cli: Cli, blind: None, data: Path) -> None:
    label(0).write_text("0 .5\n" * 57)
    outcome = cli("data", "check", data, "--out", "out")
    assert f"  {label(0)}:20: " in outcome.out
    assert f"{label(0)}:21: " not in outcome.out
    assert outcome.out.endswith("  … and 37 more\n")
    assert len(json.loads(Path("out/report.json").read_text())["issues"]) == 57


def test_a_data_set_without_a_readable_image_or_a_box(cli: Cli, data: Path) -> None:
    for split in (TRAIN, VAL, TEST):
        for path in split.iterdir():
            path.write_bytes(b"")
    for path in Path("hands/labels").rglob("*.txt"):
        path.write_text("")
    outcome = cli("data", "check", data)
    assert outcome.code == 2
    assert outcome.err.endswith("error: 26 errors in hands/data.yaml; correct what the report lists\n")
    report = json.loads(Path("runs/check/report.json").read_text())
    assert report["all"]["box_side_px"] == {"p5": None, "median": None, "p95": None}


@pytest.mark.parametrize(
    ("words", "place", "right"),
    [
        ("", "DATA: no data set is named", "name a data.yaml"),
        ("none.yaml", "none.yaml: there is no such file", "name a data.yaml"),
        ("hands/images", "hands/images: cannot be read", "name a data.yaml"),
        ("hands/data.yaml --img-size 400", "--img-size: 400 is no multiple of 32", "use 384"),
        ("hands/data.yaml --img-size 0", "--img-size: 0 is no multiple of 32", "use 32"),
        ("hands/data.yaml --near 65", "--near: 65 is out of range", "use a whole number from 0 to 64"),
        ("hands/data.yaml --near -1", "--near: -1 is out of range", "use a whole number from 0 to 64"),
        ("hands/data.yaml --workers 0", "--workers: 0 is out of range", "use a whole number from 1"),
        ("hands/data.yaml --out hands/data.yaml", "hands/data.yaml: is no folder", "name a folder"),
        ("hands/data.yaml --near many", "Invalid value for '--near'", "yoloprune data check --help"),
    ],
)
def test_bad_words(cli: Cli, data: Path, words: str, place: str, right: str) -> None:
    outcome = cli("data", "check", *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"error: {place}"), outcome.err
    assert right in outcome.err
    assert not Path("runs").exists()


def test_a_missing_image_is_rejected_before_anything_is_read(cli: Cli, data: Path) -> None:
    data.write_text("train: list.txt\nval: images/val\nnames: [hand]\n")
    Path("hands/list.txt").write_text("images/train/000000.jpg\nimages/train/missing.jpg\n")
    outcome = cli("data", "check", data)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: hands/list.txt:2: there is no image images/train/missing.jpg; ")


def test_settings_are_checked() -> None:
    changes: list[dict[str, Any]] = [{"near": 65}, {"near": -1}, {"workers": 0}]
    for change in changes:
        with pytest.raises(ConfigError, match="out of range"):
            CheckConfig(**change)
    with pytest.raises(ConfigError, match="img_size: 0 is no multiple of 32"):
        CheckConfig(img_size=0)


@pytest.fixture
def real_hands() -> Path:
    folder = os.environ.get("YOLO_PRUNE_HANDS")
    if folder is None:
        pytest.skip("YOLO_PRUNE_HANDS names no folder of hand photos")
    return Path(folder, "data.yaml")


def test_the_real_hands_are_as_they_are_known_to_be(real_hands: Path, cli: Cli) -> None:
    outcome = cli("data", "check", real_hands, "--json")
    result = read_json(outcome)
    images = [part["images"] for part in result["splits"].values()]
    boxes = [part["objects"] for part in result["splits"].values()]
    assert (images, boxes) == ([3191, 695, 1053], [3916, 811, 1308])
    assert result["errors"] == 0
    assert "two_splits" not in result["found"]


def test_planted_issues_are_found_among_real_hands(real_hands: Path, workplace: Path) -> None:
    """Every eighth image is copied, and sixteen photos of other scenes get the issues."""
    for split in ("train", "val", "test"):
        Path("hands/images", split).mkdir(parents=True)
        Path("hands/labels", split).mkdir(parents=True)
        for sample in load_spec(real_hands).splits[split][::8]:
            shutil.copy(sample.image, Path("hands/images", split))
            shutil.copy(sample.label, Path("hands/labels", split))
    photos = sorted((real_hands.parent / "images" / "train").glob("voc_*"))[4::8]
    for number in range(16):
        Image.fromarray(load(photos[number])).save(image(number))
        label(number).write_text("0 .5 .5 .3 .3\n")
        (LABELS / f"{photos[number].stem}.txt").unlink(missing_ok=True)
        (TRAIN / photos[number].name).unlink(missing_ok=True)
    data = Path("hands/data.yaml")
    data.write_text("path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: [hand]\n")
    before = get_places(check(data).issues)
    expected = plant_everything()
    assert sorted(get_places(check(data).issues)) == sorted([*before, *expected])


PLANTS: list[Callable[[Path], np.ndarray]] = [
    lambda path: load(path)[:, ::-1],
    lambda path: np.asarray(cv2.resize(load(path), None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)),
    lambda path: (load(path) * 1.1).clip(0, 255).astype(np.uint8),
    lambda path: load(path)[6:-6, 6:-6],
]


def test_copies_of_real_hands_are_found_across_splits(real_hands: Path, workplace: Path) -> None:
    """Every eighth of 480 images is put into val as well, changed in one of five ways; the others stay unnamed."""
    sources = sorted((real_hands.parent / "images" / "train").iterdir())[::7][:480]
    for split in ("train", "val"):
        Path("hands/images", split).mkdir(parents=True)
        Path("hands/labels", split).mkdir(parents=True)
    planted = {}
    for number, source in enumerate(sources):
        shutil.copy(source, TRAIN)
        (LABELS / f"{source.stem}.txt").write_text("0 .5 .5 .3 .3\n")
        if number % 8 == 0:
            kind = number // 8 % (len(PLANTS) + 1)
            copy = VAL / f"copy_{number}.jpg"
            changed = load(source) if kind == len(PLANTS) else PLANTS[kind](source)
            Image.fromarray(changed).save(copy, quality=60)
            Path("hands/labels/val", f"copy_{number}.txt").write_text("0 .5 .5 .3 .3\n")
            planted[str(copy)] = str(TRAIN / source.name)
    Path("hands/data.yaml").write_text("train: images/train\nval: images/val\nnames: [hand]\n")
    found = [issue for issue in check(Path("hands/data.yaml")).issues if issue.kind == "two_splits"]
    assert sorted(issue.where for issue in found) == sorted(planted)
    right = sum(planted[issue.where] == issue.others[0] for issue in found)
    assert right >= 0.9 * len(planted)  # another frame of the same scene may be as near
