"""COCO and VOC files as other tools export them are read; what is faulty in them is listed whole, or left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import Cli

from yolo_prune.datasets.formats.coco import load_coco, save_coco
from yolo_prune.datasets.formats.labelled_set import LabelledSet, Source
from yolo_prune.datasets.formats.voc import load_voc, save_voc
from yolo_prune.datasets.formats.yolo import save_yolo
from yolo_prune.errors import DatasetError

BOX = [10, 10, 40, 30]


def draw(path: Path, number: int = 0) -> None:
    """Write an image of noise, 96×64 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)


def make_coco(**changes: Any) -> dict[str, Any]:
    """Return annotations of two images with a hand each."""
    values: dict[str, Any] = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 64} for number in (1, 2)],
        "categories": [{"id": 1, "name": "hand", "supercategory": "none"}],
        "annotations": [{"id": number, "image_id": number, "category_id": 1, "bbox": BOX} for number in (1, 2)],
    }
    return {**values, **changes}


def load(folder: Path, values: dict[str, Any], images: Path | None = None) -> LabelledSet:
    for number in (1, 2):
        draw((images or folder) / f"{number}.jpg", number)
    (folder / "a.json").write_text(json.dumps(values))
    return load_coco([Source("train", folder / "a.json")], None, images)


def count(data: LabelledSet) -> tuple[int, int]:
    """Return the numbers of boxes and of ignored ones."""
    flags = np.concatenate([image.objects.ignore for image in data.images])
    return len(flags), int(flags.sum())


@pytest.mark.parametrize("root", ["hands-xyz", "hand"])
def test_a_root_category_that_roboflow_adds_is_no_class(tmp_path: Path, root: str) -> None:
    categories = [{"id": 0, "name": root, "supercategory": "none"}, {"id": 1, "name": "hand", "supercategory": root}]
    data = load(tmp_path, make_coco(categories=categories))
    assert data.names == ("hand",)
    assert count(data) == (2, 0)


def test_a_supercategory_with_annotations_of_its_own_stays(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "body"}, {"id": 2, "name": "hand", "supercategory": "body"}]
    assert load(tmp_path, make_coco(categories=categories)).names == ("body", "hand")


@pytest.mark.parametrize(
    "changes",
    [
        {"iscrowd": None},
        {"iscrowd": "0"},
        {"image_id": "1"},
        {"image_id": 1.0},
        {"category_id": "1"},
        {"category_id": 1.0},
    ],
)
def test_numbers_in_other_spellings_are_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    values = make_coco()
    values["annotations"][0] |= changes
    assert count(load(tmp_path, values)) == (2, 0)


def test_a_crowd_in_quotes_is_one(tmp_path: Path) -> None:
    values = make_coco()
    values["annotations"][0]["iscrowd"] = "1"
    assert count(load(tmp_path, values)) == (2, 1)


def test_a_file_without_annotations_has_images_without_objects(tmp_path: Path) -> None:
    assert count(load(tmp_path, make_coco(annotations=None))) == (0, 0)


def test_annotations_of_images_that_are_not_listed_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = make_coco()
    values["images"].pop()
    assert count(load(tmp_path, values)) == (1, 0)
    assert (
        capsys.readouterr().err
        == f"warning: {tmp_path / 'a.json'}: left out 1 annotation of images that are not listed\n"
    )


@pytest.mark.parametrize(
    "name", ["/home/me/set/1.jpg", "../images/1.jpg", "C:\\set\\1.jpg", "deep/er/1.jpg", " 1.jpg ", "./1.jpg"]
)
def test_an_image_is_found_by_the_end_of_its_path(tmp_path: Path, name: str) -> None:
    values = make_coco()
    values["images"][0]["file_name"] = name
    data = load(tmp_path, values, tmp_path / "photos")
    assert [image.image.name for image in data.images] == ["1.jpg", "2.jpg"]


def test_no_path_leads_out_of_the_folders(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    draw(tmp_path / "secret.jpg")
    values = make_coco()
    values["images"][0]["file_name"] = "../secret.jpg"
    inner.mkdir()
    (inner / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"the image secret\.jpg cannot be found"):
        load(inner, values, inner / "photos")


def test_all_faults_are_listed_or_left_out(cli: Cli) -> None:
    values = make_coco()
    values["annotations"][0]["bbox"] = [1, 2, 3]
    values["annotations"].append({"id": 3, "image_id": 2, "category_id": 9, "bbox": BOX})
    values["images"].append({"id": 3, "file_name": "none.jpg", "width": 96, "height": 64})
    load_ok = make_coco()
    for split, content in (("train", values), ("val", load_ok)):
        folder = Path(split)
        for number in (1, 2):
            draw(folder / f"{number}.jpg", number)
        (folder / "a.json").write_text(json.dumps(content))
    words = ("data", "convert", "train=train/a.json", "val=val/a.json", "--to", "yolo", "--out", "made")
    outcome = cli(*words)
    assert (outcome.code, outcome.out, Path("made").exists()) == (2, "", False)
    *listed, last = outcome.err.splitlines()
    assert [line.split(":")[1].strip() for line in listed] == ["train/a.json"] * 3
    assert last == "error: there are 3 faults; correct what is listed, or leave it out with --skip-bad"
    outcome = cli(*words, "--skip-bad")
    assert outcome.out == "made/data.yaml\n", outcome.err
    assert "left out for 3 faults" in outcome.err
    assert [len(path.read_text().splitlines()) for path in sorted(Path("made/labels/train").iterdir())] == [0, 1]


XML = """<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>
<object><name>hand</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize(
    ("name", "size"), [("1.jpg", (0, 0)), ("old name.jpg", (96, 64)), ("C:\\set\\1.jpg", (96, 64)), ("", (0, 0))]
)
def test_voc_files_as_they_are(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    draw(tmp_path / "1.jpg")
    (tmp_path / "1.xml").write_text(XML.format(name=name, width=size[0], height=size[1]))
    (image,) = load_voc([Source("train", tmp_path)]).images
    assert image.image == tmp_path / "1.jpg"
    assert image.objects.boxes_xyxy.tolist() == [[10, 10, 50, 40]]


def test_an_image_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(XML.format(name="/etc/passwd", width=96, height=64))
    with pytest.raises(DatasetError, match=r"1\.xml: the image etc/passwd cannot be found; .* --images"):
        load_voc([Source("train", tmp_path)])


def test_faulty_xml_files_are_all_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(25):
        (tmp_path / f"{number:02d}.xml").write_text("<annotation>")
    draw(tmp_path / "ok.jpg")
    (tmp_path / "ok.xml").write_text(XML.format(name="ok.jpg", width=96, height=64))
    with pytest.raises(DatasetError, match="there are 25 faults; 5 are not shown; correct what is listed"):
        load_voc([Source("train", tmp_path)])
    assert len(capsys.readouterr().err.splitlines()) == 20


@pytest.mark.parametrize("save", [save_yolo, save_coco, save_voc])
def test_an_image_that_vanishes_before_it_is_copied_is_named(tmp_path: Path, save: Callable[..., None]) -> None:
    data = load(tmp_path, make_coco())
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"2\.jpg: cannot be read any more \(No such file or directory\)"):
        save(tmp_path / "out", data)
