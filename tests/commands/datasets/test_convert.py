from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import check_rejected, is_same, labelled_sets, list_rows, make_objects, save_image, save_images
from tiny import Cli, read_json

from yolo_prune.datasets.data_file import SPLITS
from yolo_prune.datasets.formats.coco import load_coco, save_coco
from yolo_prune.datasets.formats.labelled_set import LabelledImage, LabelledSet, Source
from yolo_prune.datasets.formats.voc import load_voc, save_voc
from yolo_prune.datasets.formats.yolo import load_yolo, save_yolo
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.labels import load_objects
from yolo_prune.datasets.spec import load_spec, make_sample
from yolo_prune.errors import DatasetError

YAML = "train: images/train\nval: images/val\nnames: [hand, foot]\n"


def read_coco(folder: Path, names: tuple[str, ...] | None = None) -> LabelledSet:
    return load_coco([Source(split, folder / f"annotations/{split}.json") for split in SPLITS], names)


def read_voc(folder: Path, names: tuple[str, ...] | None = None) -> LabelledSet:
    return load_voc([Source(split, folder / f"ImageSets/Main/{split}.txt") for split in SPLITS], names)


def flatten(data: LabelledSet) -> LabelledSet:
    """Give images the names that they get in VOC."""
    flat = [replace(one, name=one.name.replace("/", "_").replace(" ", "_")) for one in data.images]
    return LabelledSet(data.names, tuple(sorted(flat, key=lambda one: (SPLITS.index(one.split), one.name))))


@given(labelled_sets())
@settings(max_examples=15, deadline=None)
def test_data_sets_survive_a_round_trip_through_coco(drawn: LabelledSet) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        save_yolo(root / "one", save_images(root / "images", drawn))
        first = load_yolo([root / "one/data.yaml"])
        save_coco(root / "coco", first)
        second = read_coco(root / "coco")
        save_yolo(root / "two", second, link=True)
        assert is_same(first, second)
        assert is_same(first, load_yolo([root / "two/data.yaml"]))


@given(labelled_sets())
@settings(max_examples=15, deadline=None)
def test_data_sets_survive_a_round_trip_through_voc(drawn: LabelledSet) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        save_yolo(root / "one", save_images(root / "images", drawn))
        first = load_yolo([root / "one/data.yaml"])
        save_voc(root / "voc", first)
        second = read_voc(root / "voc")
        save_yolo(root / "two", second)
        assert is_same(flatten(first), second)
        assert is_same(flatten(first), load_yolo([root / "two/data.yaml"]))


@given(labelled_sets())
@settings(max_examples=15, deadline=None)
def test_coco_survives_a_round_trip_through_voc(drawn: LabelledSet) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        given_set = save_images(root / "images", drawn)
        backwards = make_backwards(given_set)
        save_coco(root / "one", backwards)
        first = read_coco(root / "one")
        save_voc(root / "voc", first, link=True)
        save_coco(root / "two", read_voc(root / "voc", backwards.names))
        assert is_same(backwards, first, 1e-7)
        assert is_same(flatten(first), read_coco(root / "two"), 2e-7)


def make_backwards(data: LabelledSet) -> LabelledSet:
    """Turn the order of the classes around."""
    last = len(data.names) - 1
    images = [replace(one, objects=replace(one.objects, classes=last - one.objects.classes)) for one in data.images]
    return LabelledSet(data.names[::-1], tuple(images))


@given(labelled_sets())
@settings(max_examples=10, deadline=None)
def test_a_data_set_written_in_yolo_is_the_one_that_was_given(drawn: LabelledSet) -> None:
    with TemporaryDirectory() as name:
        given_set = save_images(Path(name, "images"), drawn)
        save_yolo(Path(name, "set"), given_set)
        assert is_same(given_set, load_yolo([Path(name, "set/data.yaml")]))


@pytest.fixture
def data(workplace: Path) -> Path:
    """Make a hand-worked data set in ./set: two images to train on, one of them empty, and one to choose by."""
    for name in ("train/a.jpg", "train/deep/b.jpg", "val/a.jpg"):
        save_image(Path("set/images", name), 64, 40)
    write("set/data.yaml", YAML)
    write("set/labels/train/a.txt", "0 0.25 0.25 0.5 0.5\n1 0.625 0.75 0.75 0.5\n")
    write("set/labels/train/a.ignore.txt", "0 0.5 0.5 0.25 0.5\n")
    write("set/labels/val/a.txt", "0 0.125 0.5 0.25 1\n")
    return Path("set/data.yaml")


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


A_HAND = (0, (0.0, 0.0, 32.0, 20.0), False)
A_FOOT = (1, (16.0, 20.0, 64.0, 40.0), False)
A_CROWD = (0, (24.0, 10.0, 40.0, 30.0), True)


def test_a_data_yaml_is_read_in_pixels(data: Path) -> None:
    read = load_yolo([data])
    assert read.names == ("hand", "foot")
    assert read.splits == ("train", "val")
    assert [(one.split, one.name, one.width_px, one.height_px) for one in read.images] == [
        ("train", "a.jpg", 64, 40),
        ("train", "deep/b.jpg", 64, 40),
        ("val", "a.jpg", 64, 40),
    ]
    assert list(map(list_rows, read.images)) == [
        [A_HAND, A_FOOT, A_CROWD], [], [(0, (0.0, 0.0, 16.0, 40.0), False)]
    ]  # fmt: skip


def test_wanted_classes_come_in_their_order(data: Path) -> None:
    first, *_ = load_yolo([data], ("foot", "hand")).images
    assert [row[0] for row in list_rows(first)] == [1, 0, 1]
    first, *_ = load_yolo([data], ("foot",)).images
    assert list_rows(first) == [(0, *A_FOOT[1:])]
    assert first.left_out == ("hand", "hand")


def test_a_turned_image_keeps_its_labels_as_shown(workplace: Path) -> None:
    for split in ("train", "val"):
        save_image(Path("set/images", split, "a.jpg"), 64, 40, 6, (8, 4, 24, 20))
        write(f"set/labels/{split}/a.txt", "0 0.7 0.25 0.4 0.25\n")
    write("set/data.yaml", YAML)
    image = load_yolo([Path("set/data.yaml")]).images[0]
    assert (image.width_px, image.height_px) == (40, 64)
    assert list_rows(image) == [(0, (20.0, 8.0, 36.0, 24.0), False)]
    shown = read_image(image.image)[..., 0]
    assert (shown[8:24, 20:36] > 200).all()
    assert (shown > 128).sum() == 16 * 16


def test_whole_pixels_survive_labels_of_six_decimals(workplace: Path) -> None:
    save_image(Path("a.jpg"), 333, 77)
    objects = make_objects((0, (100, 11, 101, 76), False), (0, (0, 0, 333, 1), False), (0, (10.5, 1, 20, 2), False))
    image = LabelledImage(Path("a.jpg"), "a.jpg", "train", 333, 77, objects)
    save_yolo(Path("set"), LabelledSet(("hand",), (image, replace(image, split="val"))))
    one, two, (_, edges, _) = list_rows(load_yolo([Path("set/data.yaml")]).images[0])
    assert (one, two) == ((0, (100, 11, 101, 76), False), (0, (0, 0, 333, 1), False))
    assert edges == pytest.approx((10.5, 1, 20, 2), abs=333e-6)
    assert edges[1:] == (1, 20, 2)


@pytest.mark.parametrize(
    ("train", "names"),
    [
        ("images/train", ["a.jpg", "deep/b.jpg"]),
        ("images", ["train/a.jpg", "train/deep/b.jpg", "val/a.jpg"]),
        ("[images/train/a.jpg.txt, images/val]", ["train/a.jpg", "val/a.jpg"]),
        ("{other}/photos", ["c.jpg", "more/d.jpg"]),
        ("[{other}/photos/more, images/train/deep]", ["d.jpg", "train/deep/b.jpg"]),
        ("../set/images/train/deep/..", ["a.jpg", "deep/b.jpg"]),
    ],
)
def test_names_count_from_the_folder_of_the_split(data: Path, tmp_path: Path, train: str, names: list[str]) -> None:
    write("set/images/train/a.jpg.txt", "./a.jpg\n")
    save_image(tmp_path / "other/photos/c.jpg")
    save_image(tmp_path / "other/photos/more/d.jpg")
    write("set/data.yaml", f"train: {train.format(other=tmp_path / 'other')}\nval: images/val\nnames: [hand, foot]\n")
    read = load_yolo([data])
    assert [one.name for one in read.of("train")] == names
    assert [one.name for one in read.of("val")] == ["a.jpg"]


def test_several_data_yaml_are_joined(cli: Cli, data: Path) -> None:
    save_image(Path("more/images/train/c.jpg"))
    save_image(Path("more/images/val/d.jpg"))
    write("more/data.yaml", YAML)
    words = ("data", "convert", data, "more/data.yaml", "--to", "yolo", "--out", "out", "--json")
    splits = read_json(cli(*words))["splits"]
    assert {split: count["images"] for split, count in splits.items()} == {"train": 3, "val": 2}
    shutil.rmtree("out")
    write("more/data.yaml", YAML.replace("hand, foot", "foot, hand"))
    check_rejected(cli(*words), "more/data.yaml: names: its names are not those of set/data.yaml", "with --names")
    assert read_json(cli(*words, "--names", "foot,hand"))["names"] == ["foot", "hand"]


@pytest.mark.parametrize("link", [False, True])
def test_images_are_copied_or_linked(cli: Cli, data: Path, link: bool) -> None:
    outcome = cli("data", "convert", data, "--to", "yolo", "--out", "out", *["--link"] * link)
    assert (outcome.code, outcome.out) == (0, "out/data.yaml\n")
    for name in ("train/a.jpg", "train/deep/b.jpg", "val/a.jpg"):
        made, original = Path("out/images", name), Path("set/images", name)
        assert made.read_bytes() == original.read_bytes()
        assert made.is_symlink() == link
        assert not link or made.readlink() == original.absolute()
    assert Path("out/labels/train/deep/b.txt").read_text() == ""
    assert {path.name: path.read_text() for path in Path("out/labels/train").glob("*.txt")} == {
        path.name: "".join(
            "{} {:.6f} {:.6f} {:.6f} {:.6f}\n".format(kind, *map(float, box))
            for kind, *box in map(str.split, path.read_text().splitlines())
        )
        for path in Path("set/labels/train").glob("*.txt")
    }


def test_json_says_what_was_written(cli: Cli, data: Path) -> None:
    write("set/labels/val/a.txt", "0 1 0.5 0.0000015 1\n1 0.5 0.5 1 1\n")
    outcome = cli("data", "convert", data, "--to", "coco", "--out", "out", "--names", "hand", "--json")
    assert read_json(outcome) == {
        "out": "out",
        "format": "coco",
        "names": ["hand"],
        "splits": {
            "train": {
                "images": 2, "objects": 1, "ignored": 1, "without_objects": 1, "dropped": 0, "left_out": {"foot": 1}
            },
            "val": {
                "images": 1, "objects": 0, "ignored": 0, "without_objects": 1, "dropped": 1, "left_out": {"foot": 1}
            },
        },
    }  # fmt: skip
    assert outcome.err.splitlines() == [
        "warning: left out boxes: 2 foot",
        "warning: dropped 1 box without area or outside the image, the first in set/images/val/a.jpg",
        "train: 2 images, 1 object, 1 ignored, 1 image without any",
        "val: 1 image, 0 objects, 0 ignored, 1 image without any",
        "done in 0.0 s: 3 images, 1 class",
    ]


def test_every_way_round_from_the_command_line(cli: Cli, data: Path) -> None:
    first = load_yolo([data])
    assert cli("data", "convert", data, "--to", "coco", "--out", "coco").out == "coco\n"
    jsons = sorted(Path("coco/annotations").iterdir())
    assert cli("data", "convert", *jsons, "--to", "voc", "--out", "voc").out == "voc\n"
    lists = [f"{split}=voc/ImageSets/Main/{split}.txt" for split in ("train", "val")]
    words = ("data", "convert", *lists, "--names", "hand,foot", "--to", "yolo")
    assert cli(*words, "--out", "yolo").out == "yolo/data.yaml\n"
    last = load_yolo([Path("yolo/data.yaml")])
    names = [one.name for one in last.images]
    assert names == ["train_a.jpg", "train_deep_b.jpg", "val_a.jpg"]  # VOC's images share a folder
    renamed = tuple(replace(one, name=name) for one, name in zip(first.images, names, strict=True))
    assert is_same(replace(first, images=renamed), last)


def test_an_image_in_two_splits_is_written_and_reported(cli: Cli, data: Path) -> None:
    write("set/data.yaml", YAML.replace("images/val", "images/train"))
    outcome = cli("data", "convert", data, "--to", "coco", "--out", "out")
    assert outcome.out == "out\n"
    line = outcome.err.splitlines()[0]
    assert line == "warning: 2 images in two splits, the first in train and val: set/images/train/a.jpg"


def test_the_current_folder_is_not_replaced(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    source = data.absolute()
    monkeypatch.chdir(tmp_path / "empty")
    outcome = cli("data", "convert", source, "--to", "coco", "--out", ".")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: .: is no name for a folder to make; name a new or empty folder\n"
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "place", "right"),
    [
        ("set/data.yaml --to yolov9", "--to: unknown value yolov9", "use yolo, coco or voc"),
        ("set/data.yaml --to coco --names hand,,foot", "--names: 'hand,,foot' is no list", "write hand,foot"),
        ("set/data.yaml --to coco --names hand,hand", "--names: 'hand,hand' is no list", "write hand,foot"),
        ("set/data.yaml --to coco --names hnad", "--names: nothing is named hnad", "use some of hand, foot"),
        ("set/data.yaml --to coco --images set", "--images: a data.yaml brings its own images", "leave it out"),
        ("train=a.json --to coco --images none", "--images: there is no folder none", "name a folder of images"),
        ("none.yaml --to coco", "none.yaml: there is no such file or folder", "name a data.yaml, SPLIT=FILE.json"),
        ("train=none.json --to coco", "train=none.json: there is no such file or folder", "SPLIT=FILE.json of COCO"),
        ("set/images/val/a.jpg --to coco", "set/images/val/a.jpg: is of no format that can be read", "SPLIT=FOLDER"),
        ("train=set/data.yaml --to coco", "train=set/data.yaml: a data.yaml has splits of its own", "write set/data.yaml"),
        ("valid=a.json --to coco", "valid=a.json: there is no split valid", "use one of train, val, test"),
        ("a.json --to coco", "a.json: its split is not named", "write train=a.json, val=a.json or test=a.json"),
        ("trainval.json --to coco", "trainval.json: its split is not named", "write train=trainval.json"),
        ("set --to coco", "set: its split is not named", "write train=set"),
        ("train.txt --to coco", "train.txt: its split is not named", "write train=train.txt"),
        ("set/data.yaml train=a.json --to coco", "SOURCE: sources of yolo and coco cannot be joined", "by itself"),
        ("train=a.json val=set --to coco", "SOURCE: sources of coco and voc cannot be joined", "by itself"),
        ("train=a.json --to yolo", "SOURCE: there is no source for val", "needs train and val, so add val=PATH"),
        ("val=a.json test=a.json --to yolo", "SOURCE: there is no source for train", "so add train=PATH"),
        ("set/data.yaml set/data.yaml --to coco", "set/images/train/a.jpg: is there twice in train", "name an image once"),
        ("--to coco", "Missing argument", "see yoloprune data convert --help"),
        (f"{'x' * 5000} --to coco", "xxx", "there is no such file or folder"),
    ],
)  # fmt: skip
def test_sources_that_make_no_sense(cli: Cli, data: Path, words: str, place: str, right: str) -> None:
    for path in ("a.json", "trainval.json", "train.txt"):
        write(path, "{}")
    check_rejected(cli("data", "convert", *words.split(), "--out", "out"), place, right)


@pytest.mark.parametrize(
    ("spoiled", "content", "place", "right"),
    [
        ("set/labels/train/a.txt", "0 0.5\n", "set/labels/train/a.txt:1: '0 0.5' is not five", "write class cx cy w h"),
        ("set/labels/train/a.txt", "0 nan 0.5 1 1\n", "set/labels/train/a.txt:1: ", "write class cx cy w h"),
        ("set/labels/train/a.ignore.txt", "7 .5 .5 1 1\n", "set/labels/train/a.ignore.txt:1: class 7", "from 0 to 1"),
        ("set/images/val/a.jpg", "no image", "set/images/val/a.jpg: is not a readable image", "put a whole JPEG"),
        ("set/data.yaml", "train: images/train\n", "set/data.yaml: the key val is missing", "add a line val"),
        ("set/data.yaml", YAML.replace("hand, foot", "a, a"), "set/data.yaml: two classes are named a", "its own name"),
        ("set/data.yaml", YAML.replace("hand", "''"), "set/data.yaml: '' is no class name", "that can be printed"),
        ("set/data.yaml", YAML.replace("hand", r'"a\nb"'), r"set/data.yaml: 'a\nb' is no class name", "be printed"),
    ],
)  # fmt: skip
def test_a_broken_data_set(cli: Cli, data: Path, spoiled: str, content: str, place: str, right: str) -> None:
    write(spoiled, content)
    check_rejected(cli("data", "convert", data, "--to", "coco", "--out", "out"), place, right)


def test_a_folder_that_holds_something_is_left_alone(cli: Cli, data: Path) -> None:
    outcome = cli("data", "convert", data, "--to", "coco", "--out", "set")
    assert outcome.code == 2
    assert outcome.err == "error: set: holds something already; name a new or empty folder\n"
    assert sorted(path.name for path in Path("set").iterdir()) == ["data.yaml", "images", "labels"]


@pytest.mark.parametrize(
    ("names", "place", "right"),
    [
        (("a.jpg", "a.png"), "1.jpg: would share its label file with 0.jpg", "give one of them another name"),
        (("a.ignore.jpg", "a.jpg"), "1.jpg: would share its label file with 0.jpg", "give one of them another name"),
        (("a.heic",), "0.jpg: a data.yaml finds no image of that name", "ends in one of .bmp, .dib"),
        (("b/.a.jpg",), "0.jpg: a data.yaml finds no image of that name", "does not begin with a dot"),
    ],
)
def test_images_that_a_data_yaml_would_lose(workplace: Path, names: tuple[str, ...], place: str, right: str) -> None:
    images = []
    for number, name in enumerate(names):
        image = save_image(Path(f"{number}.jpg"))
        images.append(LabelledImage(image, name, "train", 64, 40, make_objects()))
    with pytest.raises(DatasetError) as caught:
        save_yolo(Path("out"), LabelledSet(("hand",), tuple(images)))
    assert str(caught.value).startswith(place)
    assert right in str(caught.value)


def test_a_folder_named_images_inside_a_split_keeps_its_labels(workplace: Path) -> None:
    image = LabelledImage(save_image(Path("a.jpg")), "images/x/a.jpg", "train", 64, 40, make_objects(A_HAND))
    save_yolo(Path("out"), LabelledSet(("hand",), (image, replace(image, split="val"))))
    assert list_rows(load_yolo([Path("out/data.yaml")]).images[0]) == [A_HAND]


@given(st.lists(st.sampled_from(["images", "a", "b.c", "labels", "x images"]), max_size=4))
def test_labels_are_written_where_they_are_looked_for(folders: list[str]) -> None:
    with TemporaryDirectory() as home:
        source, out = save_image(Path(home, "a.jpg")), Path(home, "images/out")
        name = "/".join([*folders, "b.c.jpg"])
        image = LabelledImage(source, name, "train", 64, 40, make_objects(A_HAND))
        save_yolo(out, LabelledSet(("hand",), (image,)))
        assert make_sample(out / "images/train" / name).label.read_text()


@pytest.mark.skipif("YOLO_PRUNE_HANDS" not in os.environ, reason="YOLO_PRUNE_HANDS names no folder of real hands")
def test_the_real_hands_come_back_from_coco(cli: Cli) -> None:
    root = Path(os.environ["YOLO_PRUNE_HANDS"])
    write("hands.yaml", f"path: {root}\ntrain: test_voc.txt\nval: images/val\nnames: [hand]\n")
    assert cli("data", "convert", "hands.yaml", "--to", "coco", "--out", "coco", "--link").code == 0
    jsons = sorted(Path("coco/annotations").iterdir())
    assert cli("data", "convert", *jsons, "--to", "yolo", "--out", "out", "--link").code == 0
    one, two = load_spec(Path("hands.yaml")), load_spec(Path("out/data.yaml"))
    for split in ("train", "val"):
        assert [sample.image.name for sample in one.samples(split)] == [
            sample.image.name for sample in two.samples(split)
        ]
        pairs = zip(one.samples(split), two.samples(split), strict=True)
        rows = [(load_objects(left, 1), load_objects(right, 1)) for left, right in pairs]
        assert [len(left) for left, _ in rows] == [len(right) for _, right in rows]
        left, right = (np.concatenate(own) for own in zip(*rows, strict=True))
        np.testing.assert_allclose(left, right, rtol=0, atol=2e-6)
        assert len(left) > len(rows) / 2
