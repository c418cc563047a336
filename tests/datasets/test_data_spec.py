from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from yolo_prune.datasets.spec import Sample, find_images, load_list, load_spec, measure_fingerprint, save_spec
from yolo_prune.errors import DatasetError

YAML = "path: .\ntrain: images/train\nval: images/val\nnames: {0: hand}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a data set of images that nobody reads."""
    for name in ("train/b.jpg", "train/a.PNG", "train/deep/c.webp", "val/d.jpeg", "val/._d.jpeg", "val/notes.md"):
        image = tmp_path / "set/images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(name.encode())
    (tmp_path / "set/labels/train").mkdir(parents=True)
    (tmp_path / "set/labels/train/a.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "set/data.yaml").write_text(YAML)
    return tmp_path / "set"


def write(root: Path, text: str) -> Path:
    path = root / "data.yaml"
    path.write_text(text)
    return path


def test_folders_are_searched_through_and_labels_follow_the_images_rule(root: Path) -> None:
    spec = load_spec(root / "data.yaml")
    assert spec.names == ("hand",)
    assert spec.samples("train") == (
        Sample(root / "images/train/a.PNG", root / "labels/train/a.txt"),
        Sample(root / "images/train/b.jpg", root / "labels/train/b.txt"),
        Sample(root / "images/train/deep/c.webp", root / "labels/train/deep/c.txt"),
    )
    assert [sample.image.name for sample in spec.samples("val")] == ["d.jpeg"]


def test_only_the_last_images_folder_becomes_labels(tmp_path: Path) -> None:
    image = tmp_path / "images/v1/images/a.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    spec = load_spec(write(tmp_path, "train: images\nval: images\nnames: [x]\n"))
    assert spec.samples("val")[0].label == tmp_path / "images/v1/labels/a.txt"


def test_labels_stand_beside_images_of_another_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.b.jpg").touch()
    spec = load_spec(write(tmp_path, "train: photos\nval: photos\nnames: [x]\n"))
    assert spec.samples("train")[0].label == tmp_path / "photos/a.b.txt"


def test_lists_folders_and_sequences_of_them_may_be_mixed(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists/near.txt").write_text("images/train/b.jpg\n\n./e.jpg\n")
    (root / "lists/e.jpg").touch()
    text = "train: [lists/near.txt, images/train/deep, images/train]\nval: lists/near.txt\ntest:\nnames: [hand, 7]\nnc: 2\ndownload: no\n"
    spec = load_spec(write(root, text))
    assert [sample.image.name for sample in spec.samples("train")] == ["a.PNG", "b.jpg", "c.webp", "e.jpg"]
    assert [sample.image for sample in spec.samples("val")] == [root / "images/train/b.jpg", root / "lists/e.jpg"]
    assert spec.names == ("hand", "7")
    assert set(spec.splits) == {"train", "val"}


def test_path_counts_from_the_yaml_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    spec = load_spec(write(tmp_path / "specs", YAML.replace("path: .", "path: ../set")))
    assert spec.samples("val")[0].image.resolve() == (root / "images/val/d.jpeg").resolve()


def test_load_list_gives_a_part_of_a_split(root: Path) -> None:
    spec = load_spec(root / "data.yaml")
    (root / "part.txt").write_text("images/train/a.PNG\n")
    assert load_list(spec, root / "part.txt") == spec.samples("train")[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML.replace("train:", "trian:"), "data.yaml: the key train is missing; add a line train: …"),
        (YAML.replace("val:", "vald:"), "data.yaml: the key val is missing"),
        (YAML.replace("names:", "labels:"), "data.yaml: the key names is missing"),
        (YAML.replace("{0: hand}", ""), "data.yaml: the key names is missing"),
        (YAML.replace("{0: hand}", "{1: hand}"), "data.yaml: names: the classes are [1]; number them 0, 1, 2"),
        (YAML.replace("{0: hand}", "[]"), "data.yaml: names: [] does not name the classes"),
        (YAML.replace("{0: hand}", "hand"), "data.yaml: names: 'hand' does not name the classes"),
        (YAML.replace("{0: hand}", "[yes, no]"), "data.yaml: names: True is no name; put quotes around it"),
        (YAML + "nc: 2\n", "data.yaml: nc: 2 does not agree with 1 names"),
        (YAML + "test: data.yaml\n", "data.yaml: test: there is no folder "),
        (YAML + "test: 3\n", "data.yaml: test: 3 is no path"),
        (YAML.replace("images/val", "images/test"), "data.yaml: val: there is no folder "),
        (YAML.replace("images/val", "part.txt"), "part.txt: the list cannot be read"),
        (YAML + "test: []\n", "data.yaml: test: there are no images in []"),
        (YAML + "test: labels\n", "data.yaml: test: there are no images in labels"),
        (YAML.replace("path: .", "path: nowhere"), "data.yaml: path: there is no folder "),
        ("train: a\nval: [b\nnames: {0: hand}\n", "data.yaml:3: is not YAML"),
        ("- train\n", "data.yaml: is not a mapping"),
        ("", "data.yaml: is not a mapping"),
    ],
)
def test_a_bad_yaml_is_named_with_its_key_or_line(root: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load_spec(write(root, text))
    assert f"/{message}" in str(caught.value)
    assert caught.value.right


@pytest.mark.parametrize(
    ("test", "missing", "kind"),
    [("images/test", "images/test", "folder"), ("[images/val, part.txt]", "part.txt", "list")],
)
def test_a_test_split_whose_place_is_missing_is_absent_until_it_is_asked_for(
    root: Path, test: str, missing: str, kind: str
) -> None:
    without = measure_fingerprint(load_spec(root / "data.yaml"))
    spec = load_spec(write(root, YAML + f"test: {test}\n"))
    assert set(spec.splits) == {"train", "val"}
    assert spec.absent == {"test": root / missing}
    assert measure_fingerprint(spec) == without
    for ask in (lambda: spec.samples("test"), spec.require_all):
        with pytest.raises(DatasetError) as caught:
            ask()
        assert str(caught.value).startswith(f"{root / 'data.yaml'}: test: there is no {kind} {root / missing}; ")
        assert caught.value.right
    load_spec(root / "data.yaml").samples("val")


def test_a_missing_or_binary_yaml_is_named(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"other\.yaml: there is no such file"):
        load_spec(root / "other.yaml")
    (root / "data.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"data\.yaml: cannot be read"):
        load_spec(root / "data.yaml")


def test_a_list_that_names_a_missing_image_or_none_is_rejected(root: Path) -> None:
    spec = load_spec(root / "data.yaml")
    (root / "part.txt").write_text("images/train/a.PNG\nimages/train/z.jpg\n")
    with pytest.raises(DatasetError, match=r"part\.txt:2: there is no image images/train/z\.jpg"):
        load_list(spec, root / "part.txt")
    (root / "part.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"part\.txt: the list is empty"):
        load_list(spec, root / "part.txt")


@pytest.mark.parametrize("split", ["test", "trian"])
def test_an_absent_split_is_rejected_and_the_known_ones_are_named(root: Path, split: str) -> None:
    with pytest.raises(
        DatasetError, match=rf"data\.yaml: {split}: there are no images for {split}; use one of train, val"
    ):
        load_spec(root / "data.yaml").samples(split)


def test_find_images_takes_images_alone(root: Path) -> None:
    assert [path.name for path in find_images(root)] == ["a.PNG", "b.jpg", "c.webp", "d.jpeg"]


def test_the_fingerprint_is_the_same_wherever_the_data_set_lies(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    prints = {measure_fingerprint(load_spec(path / "data.yaml")) for path in (root, tmp_path / "copy")}
    assert len(prints) == 1
    assert len(prints.pop()) == 64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels/train/a.txt", "0 0.5 0.5 1 0.9\n"),
        ("labels/train/b.txt", ""),
        ("labels/train/a.ignore.txt", ""),
        ("images/train/a.PNG", "longer than before"),
        ("images/train/new.jpg", ""),
        ("data.yaml", YAML.replace("hand", "foot")),
    ],
)
def test_the_fingerprint_sees_every_change(root: Path, name: str, content: str) -> None:
    before = measure_fingerprint(load_spec(root / "data.yaml"))
    (root / name).write_text(content)
    assert measure_fingerprint(load_spec(root / "data.yaml")) != before


def test_the_fingerprint_names_an_image_that_is_missing(root: Path) -> None:
    spec = load_spec(root / "data.yaml")
    (root / "images/train/b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"b\.jpg: cannot be read"):
        measure_fingerprint(spec)


@pytest.mark.skipif("YOLO_PRUNE_HANDS" not in os.environ, reason="YOLO_PRUNE_HANDS names no folder of real hands")
def test_the_real_hands_are_found() -> None:
    root = Path(os.environ["YOLO_PRUNE_HANDS"])
    spec = load_spec(root / "data.yaml")
    assert set(spec.splits) == {"train", "val", "test"}
    assert set(load_list(spec, root / "test_voc.txt")) < set(spec.samples("test"))


def test_a_spec_that_was_written_is_read_back(root: Path) -> None:
    assert save_spec(root, ("train", "val"), ("hand", "füße: 2")) == root / "data.yaml"
    spec = load_spec(root / "data.yaml")
    assert spec.names == ("hand", "füße: 2")
    assert set(spec.splits) == {"train", "val"}


def test_annotations_in_place_of_images_are_told_apart(root: Path) -> None:
    (root / "coco.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"test: coco\.json holds annotations, not images; make a data set of it"):
        load_spec(write(root, YAML + "test: coco.json\n"))
