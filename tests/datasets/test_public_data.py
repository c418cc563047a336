"""Data sets as users have them: what other tools export is read as they read it, and what is read otherwise is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY_CFG, Cli

from yolo_prune.datasets.data_file import load_data_file
from yolo_prune.datasets.images import read_header, read_image
from yolo_prune.datasets.labels import load_labels
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import SUFFIXES, find_images, find_shared_labels, load_spec, make_sample
from yolo_prune.errors import DatasetError

LABEL = "0 0.5 0.5 0.4 0.4\n"


def draw(path: Path, number: int = 0) -> Path:
    """Write an image of noise, 96×64 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def lay_out(root: Path, images: str = "images/{}", labels: str | None = "labels/{}", per_split: int = 3) -> Path:
    """Make the images and labels of train and val, and return the folder."""
    for number, split in enumerate(("train", "val")):
        for image in range(per_split):
            draw(root / images.format(split) / f"{image}.jpg", 10 * number + image)
            if labels is not None:
                place = root / labels.format(split) / f"{image}.txt"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(LABEL)
    return root


def count(path: Path) -> dict[str, int]:
    """Return how many objects each split has, as training reads them."""
    spec = load_spec(path)
    return {
        split: DetectionDataset(samples, len(spec.names), 64).count_objects() for split, samples in spec.splits.items()
    }


def test_roboflow_s_paths_are_found(tmp_path: Path) -> None:
    lay_out(tmp_path, "{}/images", "{}/labels")
    (tmp_path / "val").rename(tmp_path / "valid")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['hand']\n"
    )
    assert count(tmp_path / "data.yaml") == {"train": 3, "val": 3}
    assert load_spec(tmp_path / "data.yaml").absent == {"test": tmp_path / "../test/images"}


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nval: images/val\nnc: 1\n",
        "train: images/train\nvalidation: images/val\nnames: [hand]\n",
        "train: images/train\nvalid: images/val\nnames: [hand]\n",
        "train: images/train\nval: images/val\nnames: {'0': hand}\n",
        "\ufefftrain: images/train\nval: images/val\nnames: [hand]\n",
        "path: here\ntrain: images/train\nval: images/val\nnames: [hand]\n",
    ],
)
def test_a_data_yaml_as_others_write_it(workplace: Path, text: str) -> None:
    folder = lay_out(Path("here"))
    (folder / "data.yaml").write_text(text, encoding="utf-8")  # `path: here` counts from the working folder
    assert count(folder / "data.yaml") == {"train": 3, "val": 3}
    assert count(folder) == {"train": 3, "val": 3}
    assert workplace.is_dir()


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\n")
    spec = load_spec(tmp_path)
    assert spec.names == ("class_0", "class_1")
    assert spec.notes == (f"{tmp_path / 'data.yaml'}: names is missing: the 2 classes are called class_0 and so on",)


@pytest.mark.parametrize("place", ["obj.data", "data/obj.data"])
def test_darknet_s_files_are_read(workplace: Path, place: str) -> None:
    lay_out(Path(), "data/obj/{}", "data/obj/{}")
    for split, name in (("train", "train"), ("val", "test")):
        lines = [f"data/obj/{split}/{number}.jpg" for number in range(3)]
        Path(f"data/{name}.txt").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    Path("data/obj.names").write_text("hand\n")
    Path(place).write_text(
        "classes = 1\ntrain  = data/train.txt\nvalid  = data/test.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    assert count(Path(place)) == {"train": 3, "val": 3}
    assert load_spec(Path(place)).names == ("hand",)
    os.chdir("data")  # and from another folder
    assert count(workplace / place) == {"train": 3, "val": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train = a.txt\n", "the key valid is missing; add a line valid = …"),
        ("train = a.txt\nvalid\n", "obj.data:2: 'valid' is no key = value; write train = train.txt"),
        ("train = a.txt\nvalid = b.txt\nnames = none\n", "obj.data: names: there is no file none"),
        (
            "train = a.txt\nvalid = b.txt\nnames = obj.names\nclasses = 3\n",
            "classes = 3 does not agree with the 1 names",
        ),
    ],
)
def test_what_is_wrong_in_darknet_s_file_is_named(workplace: Path, text: str, said: str) -> None:
    Path("obj.names").write_text("hand\n")
    Path("obj.data").write_text(text)
    with pytest.raises(DatasetError) as caught:
        load_data_file(Path("obj.data"))
    assert said in str(caught.value)
    assert workplace.is_dir()


def test_a_folder_must_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is a folder without a data\.yaml; name a data\.yaml"):
        load_data_file(tmp_path)
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "b.yaml").write_text("")
    with pytest.raises(DatasetError, match=r"holds 2 files that may describe it; name one of a\.yaml, b\.yaml"):
        load_data_file(tmp_path)


def test_an_alias_bomb_is_one_short_line(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 9)]
    for names in ("[*a8]", "*a8", "{0: *a8}", "{*a8 : hand}"):
        text = "\n".join([*lines, "train: images/train", "val: images/val", f"names: {names}", ""])
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(DatasetError) as caught:
            load_spec(tmp_path / "data.yaml")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("spelled", ["images", "./images", "images/../images", "elsewhere/../images"])
def test_labels_do_not_depend_on_how_a_path_is_spelled(
    workplace: Path, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(Path())
    Path("elsewhere").mkdir()
    text = "train: {0}/train\nval: {0}/val\nnames: [hand]\n"
    Path("data.yaml").write_text(text.format(spelled))
    assert count(Path("data.yaml")) == {"train": 3, "val": 3}
    Path("images/data.yaml").write_text(text.format("."))
    assert count(Path("images/data.yaml")) == {"train": 3, "val": 3}
    monkeypatch.chdir("images")
    assert count(Path("data.yaml")) == {"train": 3, "val": 3}
    assert workplace.is_dir()


def test_labels_beside_images_in_a_folder_named_images_are_found(tmp_path: Path) -> None:
    lay_out(tmp_path, labels="images/{}")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [hand]\n")
    assert count(tmp_path / "data.yaml") == {"train": 3, "val": 3}
    assert load_spec(tmp_path / "data.yaml").notes == ()
    lay_out(tmp_path)  # and now there are both
    spec = load_spec(tmp_path / "data.yaml")
    assert spec.splits["train"][0].label == tmp_path / "labels/train/0.txt"
    assert spec.notes == (
        f"{tmp_path}/data.yaml: labels are read from {tmp_path}/labels/train; there are others beside 6 images, in {tmp_path}/images/train",
    )


def test_without_any_object_nothing_is_trained(cli: Cli) -> None:
    folder = lay_out(Path("hands"), labels=None)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [hand]\n")
    Path("tiny.cfg").write_text(TINY_CFG)
    words = ("train", "--data", folder, "--cfg", "tiny.cfg", "--epochs", 1, "--batch-size", 3, "--device", "cpu")
    outcome = cli(*words)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == (
        "error: hands/data.yaml: train: no image has an object; put label files there: hands/labels/train"
    )
    assert not Path("runs/train").exists()
    checked = cli("data", "check", folder / "data.yaml")
    assert checked.code == 2
    assert "error: splits without any object: 2" in checked.out
    for image in (folder / "images/train").iterdir():
        label = make_sample(image).label
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(LABEL)
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert "no validation image has an object: AP cannot be measured" in outcome.err


@pytest.mark.parametrize(
    ("line", "box", "said"),
    [
        (
            "0 0.098438 0.5 0.2 0.4",
            (0.0, 0.3, 0.198438, 0.7),
            "1 box over the image's edge by up to 1%: clipped",
        ),
        ("0 0.304 0.50028 0.608 1.000437", (0.0, 0.0, 0.608, 1.0), "1 box over"),
        ("0 .1 .1 .4 .1 .4 .5 .0 .5 .2 .3", (0.0, 0.1, 0.4, 0.5), "1 polygon: the box around each counts"),
        ("0 0.2 0.2 0.4 0.2 0.4 0.6 0.2 0.6", (0.2, 0.2, 0.4, 0.6), "1 polygon:"),
        ("0 0.2 0.2 0.4 0.2 0.3 0.6", (0.2, 0.2, 0.4, 0.6), "1 polygon:"),
    ],
)
def test_labels_that_can_be_meant_in_one_way_are_read_and_counted(
    cli: Cli, line: str, box: tuple[float, ...], said: str
) -> None:
    folder = lay_out(Path("hands"))
    (folder / "labels/train/1.txt").write_text(f"{line}\n")
    ((_, cx, cy, w, h),) = load_labels(folder / "labels/train/1.txt", 1)
    assert (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) == pytest.approx(box, abs=1e-4)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [hand]\n")
    Path("tiny.cfg").write_text(TINY_CFG)
    outcome = cli("train", "--data", folder, "--cfg", "tiny.cfg", "--epochs", 1, "--batch-size", 3, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    (told,) = [one for one in outcome.err.splitlines() if one.startswith("warning: labels:")]
    assert said in told
    assert told.endswith("the first in hands/labels/train/1.txt:1")
    assert "label files with boxes that are clipped, or with polygons" in cli("data", "check", folder / "data.yaml").out
    made = cli("data", "convert", folder / "data.yaml", "--to", "yolo", "--out", "clean")
    assert made.code == 0, made.err
    assert load_labels(Path("clean/labels/train/1.txt"), 1)[0, 1:] == pytest.approx([cx, cy, w, h], abs=1e-5)


@pytest.mark.parametrize("line", ["0 0.5 0.5 1.1 0.2", "0 .1 .1 .4 .1 .4 .5 .0", "0 .1 .1 1.3 .1 .4 .5", "0 .1 .1 .4"])
def test_labels_beyond_that_are_errors(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(DatasetError, match=r"a\.txt:1: "):
        load_labels(tmp_path / "a.txt", 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_decoded(tmp_path: Path, suffix: str) -> None:
    kind = {".dib": "BMP", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".pnm": "PPM", ".jp2": "JPEG2000"}.get(
        suffix
    )
    pixels = np.full((64, 96, 3), 200, np.uint8)
    pixels[:, :48] = 20
    image = Image.fromarray(pixels).convert("L" if suffix in (".pgm",) else "1" if suffix == ".pbm" else "RGB")
    path = tmp_path / f"a{suffix}"
    image.save(path, **({"format": kind} if kind else {}))
    assert find_images(tmp_path) == [path]
    found = read_image(path)
    assert found.shape == (64, 96, 3)
    assert found[:, :40].mean() < 60 < 140 < found[:, 56:].mean()
    assert (read_header(path).width_px, read_header(path).height_px) == (96, 64)


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    lay_out(tmp_path)
    for name in ("a.heic", "b.HEIC", "c.psd", "notes.txt"):
        (tmp_path / "images/train" / name).write_bytes(b"x")
    draw(tmp_path / "images/train/0.png")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [hand]\n")
    notes = load_spec(tmp_path / "data.yaml").notes
    assert find_shared_labels(load_spec(tmp_path / "data.yaml")) == [tmp_path / "labels/train/0.txt"]
    assert [note.removeprefix(f"{tmp_path}/data.yaml: ") for note in notes] == [
        "files that cannot be read as images are left out: 2 of .heic, 1 of .psd; convert them to JPEG or PNG",
    ]


def test_links_that_lead_round_count_once_and_pipes_not_at_all(tmp_path: Path) -> None:
    draw(tmp_path / "a/1.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "a/2.jpg")
    assert [path.name for path in find_images(tmp_path)] == ["1.jpg"]


def test_a_jpeg_without_its_end_mark_is_read_and_one_cut_off_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_prune.console._told", set())
    path = draw(tmp_path / "a.jpg")
    data, whole = path.read_bytes(), read_image(path)
    path.write_bytes(data[:-2])
    np.testing.assert_array_equal(read_image(path), whole)
    assert read_header(path).width_px == 96
    (tmp_path / "b.jpg").write_bytes(data[:-2])
    read_image(tmp_path / "b.jpg")
    said = capsys.readouterr().err
    assert said == f"warning: {path}: lacks the mark at a JPEG's end, and is read; others like it are not named\n"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match="is not a readable image"):
        read_image(path)


def test_detect_goes_on_past_a_bad_image_in_a_folder(cli: Cli, trained: Path) -> None:
    for number in range(2):
        draw(Path(f"photos/{number}.jpg"), number)
    Path("photos/bad.jpg").write_bytes(b"\xff\xd8 no image")
    outcome = cli("detect", trained, "photos", "--out", "found", "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, "found/detections.json\n")
    assert outcome.err.splitlines()[-1].startswith(
        "error: photos/bad.jpg: is not a readable image; the others are done; "
    )
    assert {path.name for path in Path("found").iterdir()} == {"0.png", "1.png", "detections.json"}
    shutil.rmtree("found")
    alone = cli("detect", trained, "photos/bad.jpg", "--out", "found", "--device", "cpu")
    assert (alone.code, alone.out, Path("found").exists()) == (2, "", False)
    named = cli("detect", trained, "photos/bad.jpg", "photos/0.jpg", "--out", "found", "--device", "cpu")
    assert (named.code, named.out) == (2, "found/detections.json\n")
    first, last = named.err.splitlines()
    assert first.startswith("error: photos/bad.jpg: is not a readable image; put ")
    assert last.startswith("error: sources: 1 of 2 could not be read, or not as a whole; the others are done; ")
