from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from labelled import check_rejected, labelled_sets, list_rows, make_objects, save_image, save_images
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO
from tiny import Cli

from yolo_prune.datasets.formats.coco import format_coco, load_coco, save_coco
from yolo_prune.datasets.formats.coco_masks import measure_box
from yolo_prune.datasets.formats.labelled_set import LabelledImage, LabelledSet, Source
from yolo_prune.datasets.images import read_image
from yolo_prune.errors import DatasetError

Entry = dict[str, Any]

HAND, FOOT = {"id": 7, "name": "hand"}, {"id": 3, "name": "foot"}


def make_coco() -> Entry:
    """Return hand-worked annotations of a.jpg, with four boxes, and b.jpg without any."""
    return {
        "images": [
            {"id": 12, "file_name": "b.jpg", "width": 64, "height": 40},
            {"id": 5, "file_name": "a.jpg", "width": 64, "height": 40},
        ],
        "categories": [dict(HAND), dict(FOOT)],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2.5, 10, 20]},
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [50, -4, 30, 10], "iscrowd": 0},
            {"id": 3, "image_id": 5, "category_id": 7, "bbox": [0, 0, 64, 40], "iscrowd": 1},
            {"id": 4, "image_id": 5, "category_id": 3, "bbox": [5, 5, 5, 5], "ignore": 1},
        ],
    }


A_ROWS = [
    (1, (1.0, 2.5, 11.0, 22.5), False),
    (0, (50.0, 0.0, 64.0, 6.0), False),
    (1, (0.0, 0.0, 64.0, 40.0), True),
    (0, (5.0, 5.0, 10.0, 10.0), True),
]


def write(value: Any, path: str = "train.json") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(value if isinstance(value, str) else json.dumps(value))
    return Path(path)


@pytest.fixture
def images(workplace: Path) -> Path:
    """Put a.jpg and b.jpg, of 64 × 40 pixels, into the current folder."""
    for name in ("a.jpg", "b.jpg"):
        save_image(Path(name))
    return workplace


def load(value: Any, names: tuple[str, ...] | None = None) -> LabelledSet:
    return load_coco([Source("train", write(value))], names)


def test_hand_worked_annotations(images: Path) -> None:
    read = load(make_coco())
    assert read.names == ("foot", "hand")
    a, b = read.images
    assert (a.image, a.name, a.split, a.width_px, a.height_px, a.dropped) == (
        Path("a.jpg"),
        "a.jpg",
        "train",
        64,
        40,
        0,
    )
    assert list_rows(a) == A_ROWS
    assert (b.name, list_rows(b)) == ("b.jpg", [])


def test_wanted_classes_come_in_their_order(images: Path) -> None:
    a, b = load(make_coco(), ("hand",)).images
    assert [row[0] for row in list_rows(a)] == [0, 0]
    assert (a.left_out, b.left_out) == (("foot", "foot"), ())
    assert [row[0] for row in list_rows(load(make_coco(), ("hand", "foot")).images[0])] == [0, 1, 0, 1]


def test_boxes_that_are_empty_or_outside_are_dropped_and_told(cli: Cli, images: Path) -> None:
    coco = make_coco()
    for box in ([64, 0, 5, 5], [-9, 1, 9, 9], [3, 3, 0, 5], [10, 10, -5, 5], [1e308, 0, 1e308, 1]):
        coco["annotations"].append({"image_id": 12, "category_id": 7, "bbox": box})
    coco["annotations"].append({"image_id": 12, "category_id": 7, "bbox": [-1e308, 0, 1.5e308, 1e308]})
    outcome = cli("data", "convert", write(coco), "--to", "coco", "--out", "out")
    assert outcome.out == "out\n"
    assert (
        outcome.err.splitlines()[0] == "warning: dropped 5 boxes without area or outside the image, the first in b.jpg"
    )
    assert list_rows(load(coco).images[1]) == [(1, (0, 0, 64, 40), False)]


def test_what_is_written_is_what_was_worked_out(workplace: Path) -> None:
    a = LabelledImage(
        save_image(Path("a.jpg")), "deep/a.jpg", "val", 64, 40,
        make_objects((1, (1, 2.5, 11, 22.5), False), (0, (1 / 3, 0, 64, 6), True)),
    )  # fmt: skip
    b = LabelledImage(save_image(Path("b.jpg"), 3, 2), "b.jpg", "val", 3, 2, make_objects())
    save_coco(Path("out"), LabelledSet(("hand", "foot"), (b, a)))
    written = json.loads(Path("out/annotations/val.json").read_text())
    assert written.pop("info")
    assert written == {
        "images": [
            {"id": 1, "file_name": "b.jpg", "width": 3, "height": 2},
            {"id": 2, "file_name": "deep/a.jpg", "width": 64, "height": 40},
        ],
        "categories": [
            {"id": 1, "name": "hand", "supercategory": "none"},
            {"id": 2, "name": "foot", "supercategory": "none"},
        ],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 2, "bbox": [1, 2.5, 10, 20], "area": 200, "iscrowd": 0, "segmentation": []},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0.3333333, 0, 63.6666667, 6], "area": 382, "iscrowd": 1, "segmentation": []},
        ],
    }  # fmt: skip
    assert Path("out/images/val/deep/a.jpg").read_bytes() == Path("a.jpg").read_bytes()
    assert not Path("out/annotations/train.json").exists()


@given(labelled_sets())
@settings(max_examples=10, deadline=None)
def test_pycocotools_reads_the_same_boxes(drawn: LabelledSet) -> None:
    with TemporaryDirectory() as name:
        data = save_images(Path(name, "images"), drawn)
        save_coco(Path(name, "coco"), data)
        for split in data.splits:
            coco = COCO(Path(name, "coco/annotations", f"{split}.json"))
            assert [coco.cats[number]["name"] for number in coco.getCatIds()] == list(data.names)
            labelled = data.of(split)
            assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [one.name for one in labelled]
            for number, one in enumerate(labelled, 1):
                found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
                corners = np.array([row["bbox"] for row in found]).reshape(-1, 4)
                corners[:, 2:] += corners[:, :2]
                np.testing.assert_allclose(corners, one.objects.boxes_xyxy, atol=2e-7)
                assert [row["category_id"] - 1 for row in found] == one.objects.classes.tolist()
                assert [row["iscrowd"] for row in found] == one.objects.ignore.tolist()
                assert coco.getImgIds(imgIds=[number]) == [number]


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=60, deadline=None)
def test_a_box_is_drawn_around_a_mask_however_it_is_written(pixels: NDArray[np.bool_]) -> None:
    height, width = pixels.shape
    packed = mask.encode(np.asfortranarray(pixels, np.uint8))
    runs = np.flatnonzero(np.diff(np.concatenate(([0], pixels.T.ravel(), [2]))))
    counts = np.diff(np.concatenate(([0], runs))).tolist()
    expected = mask.toBbox(packed).tolist()
    gaps = [length for count in counts for length in (count, 0, 0)]
    for one in (packed["counts"].decode(), counts, gaps, [*counts, 0]):
        found = measure_box({"size": [height, width], "counts": one}, width, height, "here")
        assert list(found) == expected
    x, y, w, h = map(int, expected)
    assert pixels[y : y + h, x : x + w].sum() == pixels.sum()


def test_large_masks_are_unpacked(workplace: Path) -> None:
    pixels = np.zeros((1200, 1600), np.uint8, order="F")
    pixels[17:1100:2, 300:900] = 1
    packed = mask.encode(pixels)
    assert measure_box({**packed, "counts": packed["counts"].decode()}, 1600, 1200, "here") == (300, 17, 600, 1083)


@given(st.text(st.characters(min_codepoint=47, max_codepoint=112), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_in_place_of_a_mask_is_a_mask_or_an_error(text: str) -> None:
    with suppress(DatasetError):
        x, y, w, h = measure_box({"size": [4, 6], "counts": text}, 6, 4, "here")
        assert 0 <= x <= x + w <= 6
        assert 0 <= y <= y + h <= 4
        assert mask.toBbox({"size": [4, 6], "counts": text.encode()}).tolist() == [x, y, w, h] or not w


@given(st.lists(st.lists(st.floats(-1e300, 1e300) | st.floats(-9, 9), min_size=6, max_size=10), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_polygon_gives_a_box_inside_the_image_or_an_error(polygons: list[list[float]]) -> None:
    with suppress(DatasetError):
        x, y, w, h = measure_box(polygons, 6, 4, "here")
        assert 0 <= x <= x + w <= 6
        assert 0 <= y <= y + h <= 4


def test_polygons_give_the_box_of_their_masks(images: Path) -> None:
    polygons = [[2, 1, 6, 1, 6, 4, 2, 4], [20.5, 30, 30, 30, 25, 38.2]]
    expected = mask.toBbox(mask.merge(mask.frPyObjects(polygons, 40, 64))).tolist()
    assert measure_box(polygons, 64, 40, "here") == tuple(expected)
    assert expected[:2] == [2, 1]
    coco = make_coco()
    coco["annotations"] = [
        {"image_id": 5, "category_id": 7, "segmentation": polygons[:1]},
        {"image_id": 5, "category_id": 7, "segmentation": polygons[:1], "bbox": [7, 8, 9, 10]},
        {"image_id": 12, "category_id": 7, "segmentation": [[70, 1, 80, 1, 80, 4]], "bbox": []},
    ]
    a, b = load(coco).images
    assert [row[1] for row in list_rows(a)] == [(2, 1, 6, 4), (7, 8, 16, 18)]
    assert (list_rows(b), b.dropped) == ([], 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("written_as", ["bbox", "polygon"])
@pytest.mark.parametrize("stated", ["stored", "shown", "nothing"])
def test_boxes_turn_with_the_image_where_its_stored_size_is_stated(
    workplace: Path, orientation: int, written_as: str, stated: str
) -> None:
    save_image(Path("a.jpg"), 64, 40, orientation, (8, 8, 40, 16))
    shown = read_image(Path("a.jpg"))[..., 0] > 127
    rows, columns = np.nonzero(shown)
    truth = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    turns = stated == "stored" and orientation >= 5
    x1, y1, x2, y2 = (8, 8, 40, 16) if turns else map(int, truth)
    image = {"id": 1, "file_name": "a.jpg"}
    if stated != "nothing":
        width, height = (64, 40) if turns else shown.shape[::-1]
        image |= {"width": width, "height": height}
    box: Entry = (
        {"bbox": [x1, y1, x2 - x1, y2 - y1]}
        if written_as == "bbox"
        else {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
    )
    coco = {"images": [image], "categories": [HAND], "annotations": [{"image_id": 1, "category_id": 7, **box}]}
    (labelled,) = load(coco).images
    assert (labelled.height_px, labelled.width_px) == shown.shape
    assert list_rows(labelled) == [(0, tuple(truth), False)]


@pytest.mark.parametrize(
    ("file", "place", "more"),
    [
        ("train.json", "a.jpg", []),
        ("coco/annotations/instances_train2017.json", "coco/train2017/a.jpg", []),
        ("coco/annotations/instances_train2017.json", "coco/images/train2017/a.jpg", []),
        ("coco/annotations/train.json", "coco/images/train/a.jpg", []),
        ("coco/annotations/train.json", "coco/train/a.jpg", []),
        ("coco/annotations/train.json", "coco/images/a.jpg", []),
        ("coco/train/_annotations.coco.json", "coco/train/a.jpg", []),
        ("labels/train.json", "photos/a.jpg", ["--images", "photos"]),
        ("labels/train.json", "photos/train/a.jpg", ["--images", "photos"]),
    ],
)
def test_images_are_found_where_people_put_them(cli: Cli, file: str, place: str, more: list[str]) -> None:
    coco = make_coco()
    del coco["images"][0]
    write(coco, file)
    save_image(Path(place))
    if more:
        save_image(Path("labels/a.jpg"), 9, 9)  # --images comes first
    outcome = cli("data", "convert", f"train={file}", *more, "--to", "coco", "--out", "out")
    assert (outcome.code, outcome.out) == (0, "out\n"), outcome.err
    assert Path("out/images/train/a.jpg").read_bytes() == Path(place).read_bytes()


def test_the_split_of_a_file_is_guessed_from_its_name(cli: Cli, images: Path) -> None:
    for name in ("instances_train2017.json", "val.json", "test-dev.json"):
        write(make_coco(), name)
    words = ("data", "convert", "instances_train2017.json", "val.json", "test-dev.json", "--to", "yolo")
    assert cli(*words, "--out", "out").out == "out/data.yaml\n"
    assert sorted(path.name for path in Path("out/images").iterdir()) == ["test", "train", "val"]


def test_names_with_folders_are_cut_below_the_folder_of_the_split(images: Path) -> None:
    for name in ("images/train/a.jpg", "images/train/deep/b.jpg"):
        save_image(Path(name))
    coco = make_coco()
    coco["images"][0]["file_name"], coco["images"][1]["file_name"] = "images/train/deep/b.jpg", "./images/train/a.jpg"
    assert [one.name for one in load(coco).images] == ["a.jpg", "deep/b.jpg"]


def test_files_of_one_split_are_joined(images: Path) -> None:
    one, two = make_coco(), make_coco()
    one["images"], two["images"], two["annotations"] = one["images"][1:], two["images"][:1], []
    two["categories"] = [FOOT, {"id": 9, "name": "head"}]
    sources = [Source("train", write(one, "one.json")), Source("train", write(two, "two.json"))]
    read = load_coco(sources)
    assert read.names == ("foot", "hand", "head")
    assert [one.name for one in read.images] == ["a.jpg", "b.jpg"]
    two["categories"] = [{"id": 7, "name": "foot"}]
    write(two, "two.json")
    with pytest.raises(
        DatasetError, match=r"two\.json: categories: category 7 is foot, .* by their names with --names"
    ):
        load_coco(sources)
    assert load_coco(sources, ("hand", "foot")).names == ("hand", "foot")


def test_format_coco_of_nothing(workplace: Path) -> None:
    assert format_coco(("hand",), [])["annotations"] == []


def change(key: str, number: int, **values: Any) -> Callable[[Entry], Any]:
    return lambda coco: coco[key][number].update(values)


def annotate(**values: Any) -> Callable[[Entry], Any]:
    """Change the first annotation, whose bbox is removed."""
    return lambda coco: (coco["annotations"][0].pop("bbox"), coco["annotations"][0].update(values))


def replace(key: str, value: Any) -> Callable[[Entry], Any]:
    return lambda coco: coco.update({key: value})


FIRST = "train.json: annotations[0]: "
RUNS = "write size: [40, 64]"


@pytest.mark.parametrize(
    ("spoil", "place", "right"),
    [
        (replace("images", None), "train.json: holds no list of images", "name a COCO annotations file"),
        (replace("annotations", {}), "train.json: holds no list of annotations", "name a COCO annotations file"),
        (replace("categories", "hand"), "train.json: holds no list of categories", "name a COCO annotations file"),
        (replace("categories", []), "train.json: there are no classes", "with labelled objects"),
        (replace("images", []), "train.json: images: there are no images", "leave this file out"),
        (replace("images", [3]), "train.json: images[0]: is no JSON object", "write {…}"),
        (change("images", 1, id=12), "train.json: images[1]: id 12 is taken", "an id of its own"),
        (change("images", 1, id=[1]), "train.json: images[1]: id is [1]", "write a whole number"),
        (change("images", 1, id=True), "train.json: images[1]: id is True", "write a whole number"),
        (change("images", 1, file_name=None), "train.json: images[1]: None names no image", "the image's file name"),
        (change("images", 1, file_name=""), "train.json: images[1]: '' names no image", "the image's file name"),
        (change("images", 1, file_name="c.jpg"), "train.json: images[1]: the image c.jpg cannot be found", "--images"),
        (change("images", 1, file_name="a\0.jpg"), "train.json: images[1]: 'a\\x00.jpg' names no image", "file name"),
        (change("images", 1, file_name="x" * 999), "train.json: images[1]: the image xxx", "--images"),
        (change("images", 1, file_name="/etc/passwd"), "train.json: images[1]: the image etc/passwd cannot be found", "--images"),
        (change("images", 1, file_name="b/../../c.jpg"), "train.json: images[1]: the image b/c.jpg cannot be found", "--images"),
        (change("images", 1, file_name="b.jpg"), "b.jpg: is there twice in train", "name an image once"),
        (change("images", 1, file_name="train.json"), "train.json: is not a readable image", "put a whole JPEG"),
        (change("images", 1, width=65), "train.json: images[1]: an image of 65 × 40 pixels is stated, and a.jpg has 64 × 40", "state its size"),
        (change("images", 1, width=40, height=64), "train.json: images[1]: an image of 40 × 64 pixels", "that was labelled"),
        (change("images", 1, width=None, height=41), "train.json: images[1]: an image of ? × 41 pixels", "that was labelled"),
        (change("images", 1, width="64"), "train.json: images[1]: width is '64'", "write a number of pixels"),
        (change("categories", 1, id=7), "train.json: categories[1]: id 7 or name foot is taken", "each category its own"),
        (change("categories", 1, name="hand"), "train.json: categories[1]: id 3 or name hand is taken", "its own"),
        (change("categories", 1, id=[3]), "train.json: categories[1]: id None and name 'foot' make no category", "write both"),
        (change("categories", 1, name=None), "train.json: categories[1]: id 3 and name None make no", "write both"),
        (change("categories", 1, name="\ud800"), "train.json: '\\ud800' is no class name", "that can be printed"),
        (change("annotations", 0, image_id=None), FIRST + "image_id is None", "write a whole number"),
        (change("annotations", 0, category_id=1), FIRST + "there is no category 1", "use one of 7, 3"),
        (change("annotations", 0, category_id=None), FIRST + "there is no category None", "use one of 7, 3"),
        (change("annotations", 2, iscrowd=2), "train.json: annotations[2]: iscrowd is 2", "write 0 or 1"),
        (change("annotations", 2, ignore="yes"), "train.json: annotations[2]: ignore is 'yes'", "write 0 or 1"),
        (change("annotations", 0, bbox=[1, 2, 3]), FIRST + "bbox is [1, 2, 3]", "write bbox: [x, y, width, height]"),
        (change("annotations", 0, bbox=5), FIRST + "bbox is 5", "four finite numbers"),
        (change("annotations", 0, bbox=[1, 2, 3, "4"]), FIRST + "bbox is [1, 2, 3, '4']", "four finite numbers"),
        (change("annotations", 0, bbox=[1, 2, 3, True]), FIRST + "bbox is [1, 2, 3, True]", "four finite numbers"),
        (change("annotations", 0, bbox=[float("nan"), 2, 3, 4]), FIRST + "bbox is [nan, 2, 3, 4]", "finite numbers"),
        (change("annotations", 0, bbox=[1, 2, 3, float("inf")]), FIRST + "bbox is [1, 2, 3, inf]", "finite numbers"),
        (change("annotations", 0, bbox=[1, 2, 3, 10**400]), FIRST + "bbox is [1, 2, 3, 1000", "finite numbers"),
        (annotate(), FIRST + "there is neither a bbox nor a segmentation", "write bbox"),
        (annotate(bbox=None, segmentation=[]), FIRST + "there is neither a bbox nor a segmentation", "write bbox"),
        (annotate(segmentation=[[1, 2, 3, 4]]), FIRST + "a polygon of the segmentation is not three", "write polygons"),
        (annotate(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), FIRST + "a polygon of the segmentation", "write polygons"),
        (annotate(segmentation=[[1, 2, 3, 4, 5, None]]), FIRST + "a polygon of the segmentation", "write polygons"),
        (annotate(segmentation=[1, 2, 3, 4, 5, 6]), FIRST + "a polygon of the segmentation", "write polygons"),
        (annotate(segmentation="mask"), FIRST + "the segmentation holds no run lengths", "write polygons"),
        (annotate(segmentation={"counts": [1, -1], "size": [40, 64]}), FIRST + "the segmentation holds no", "write poly"),
        (annotate(segmentation={"counts": "o", "size": [40, 64]}), FIRST + "the segmentation holds no", "write polygons"),
        (annotate(segmentation={"counts": [2560]}), FIRST + "the segmentation's run lengths, of size None", RUNS),
        (annotate(segmentation={"counts": [2560], "size": [64, 40]}), FIRST + "the segmentation's run lengths", RUNS),
        (annotate(segmentation={"counts": [2559], "size": [40, 64]}), FIRST + "the segmentation's run lengths", RUNS),
        (annotate(segmentation={"counts": "2", "size": [40, 64]}), FIRST + "the segmentation's run lengths", RUNS),
    ],
)  # fmt: skip
def test_broken_annotations(cli: Cli, images: Path, spoil: Callable[[Entry], Any], place: str, right: str) -> None:
    coco = make_coco()
    spoil(coco)
    write(coco)
    check_rejected(cli("data", "convert", "train.json", "--to", "coco", "--out", "out"), place, right)


SCALARS = st.sampled_from([None, True, -1, 0, 1, 3, 5, 7, 12, 10**400, float("nan"), float("-inf"), 1e308, "", "a.jpg"])
VALUES = (
    SCALARS | st.lists(SCALARS | st.floats(-99, 99), max_size=6) | st.lists(st.lists(SCALARS, max_size=8), max_size=2)
)
SPANS = st.lists(st.integers(-2, 2560), max_size=4) | st.sampled_from(["", "P0", "`b2", "P@"])
MASKS = st.fixed_dictionaries({"size": st.sampled_from([[40, 64], [64, 40], [1], "40"]), "counts": SPANS})
PLACES = [
    *((key, 0, inner) for key in ("images", "annotations", "categories") for inner in make_coco()[key][0]),
    ("annotations", 0, "iscrowd"), ("annotations", 0, "ignore"), ("annotations", 0, "segmentation"),
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES | MASKS), min_size=1, max_size=3), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_values_give_boxes_inside_the_image_or_a_dataset_error(
    changes: list[tuple[tuple[str, int, str], Any]], without_bbox: bool
) -> None:
    coco = make_coco()
    for (key, number, inner), value in changes:
        coco[key][number][inner] = value
    if without_bbox:
        coco["annotations"][0].pop("bbox")
    with TemporaryDirectory() as name, suppress(DatasetError):
        for own in ("a.jpg", "b.jpg"):
            save_image(Path(name, own))
        for image in load_coco([Source("train", write(coco, f"{name}/train.json"))]).images:
            boxes = image.objects.boxes_xyxy
            assert ((boxes >= 0) & (boxes <= (64, 40, 64, 40))).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("text", "place", "right"),
    [
        ("[]", "train.json: holds no COCO annotations", "name a COCO annotations file"),
        ('{\n"images": [,]}', "train.json:2: is not JSON", "correct that line"),
        (
            '{"images": ' + "[" * 100000,
            "train.json: cannot be read (it is no JSON text)",
            "name a COCO annotations file",
        ),
        ("[" * 100000, "train.json: holds no COCO annotations", "name a COCO annotations file"),
        ("", "train.json:1: is not JSON", "correct that line"),
    ],
)
def test_what_is_no_annotations_file(cli: Cli, images: Path, text: str, place: str, right: str) -> None:
    write(text)
    check_rejected(cli("data", "convert", "train.json", "--to", "coco", "--out", "out"), place, right)


def test_a_category_nobody_wants_needs_no_box(images: Path) -> None:
    coco = make_coco()
    del coco["annotations"][1]["bbox"]
    assert load(coco, ("hand",)).images[0].left_out == ("foot", "foot")
