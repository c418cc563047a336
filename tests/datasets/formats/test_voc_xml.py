from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import check_rejected, list_rows, make_objects, save_image
from tiny import Cli
from torchvision.datasets import VOCDetection

from yolo_prune.datasets.formats.labelled_set import LabelledImage, LabelledSet, Source
from yolo_prune.datasets.formats.voc import load_voc, parse_xml, save_voc
from yolo_prune.datasets.images import read_image
from yolo_prune.errors import DatasetError

PERSON = """\
<annotation>
  <folder>VOC2012</folder>
  <filename>2009_000001.jpg</filename>
  <source><database>hand-worked</database></source>
  <size><width>64</width><height>40</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>person</name>
    <pose>Frontal</pose>
    <difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>64</xmax><ymax>40</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>30</xmin><ymin>1</ymin><xmax>40</xmax><ymax>10</ymax></bndbox></part>
    <part><name>hand</name><bndbox><xmin>11.5</xmin><ymin>21</ymin><xmax>20.25</xmax><ymax>30</ymax></bndbox></part>
  </object>
  <object>
    <name>person</name>
    <bndbox><ymax>20</ymax><ymin>11</ymin><xmax>70</xmax><xmin>51</xmin></bndbox>
    <difficult>1</difficult>
    <part><name>hand</name><bndbox><xmin>60</xmin><ymin>12</ymin><xmax>61</xmax><ymax>13</ymax></bndbox></part>
  </object>
  <object>
    <name> dog </name>
    <bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
  </object>
</annotation>
"""
EMPTY = "<annotation><filename>2009_000002.jpg</filename></annotation>"


def write(path: str, text: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


@pytest.fixture
def voc(workplace: Path) -> Path:
    """Make VOC2012 with an image of two persons and a dog, and one without objects."""
    for name, text in (("2009_000001", PERSON), ("2009_000002", EMPTY)):
        write(f"VOC2012/Annotations/{name}.xml", text)
        save_image(Path(f"VOC2012/JPEGImages/{name}.jpg"))
    write("VOC2012/ImageSets/Main/train.txt", "\ufeff2009_000001\n2009_000002\n")
    write("VOC2012/ImageSets/Main/person_val.txt", "2009_000001  1\n2009_000002 -1\n")
    return write("VOC2012/ImageSets/Layout/train.txt", "2009_000001 1\n2009_000001 2\n\n")


def load(path: str | Path, *names: str, images: Path | None = None) -> LabelledSet:
    return load_voc([Source("train", Path(path))], names or None, images)


HANDS = [(0, (10.5, 20.0, 20.25, 30.0), False), (0, (59.0, 11.0, 61.0, 13.0), True)]
OBJECTS = [
    (1, (0.0, 0.0, 64.0, 40.0), False), (0, (4.0, 4.0, 5.0, 5.0), False), (1, (50.0, 10.0, 64.0, 20.0), True)
]  # fmt: skip


def test_hand_worked_objects(voc: Path) -> None:
    read = load("VOC2012/ImageSets/Main/train.txt")
    assert read.names == ("dog", "person")
    first, second = read.images
    assert (first.name, first.split, first.width_px, first.height_px) == ("2009_000001.jpg", "train", 64, 40)
    assert list_rows(first) == OBJECTS
    assert first.left_out == ("head", "hand", "hand")
    assert (second.name, list_rows(second)) == ("2009_000002.jpg", [])


def test_the_hands_of_person_layout(voc: Path) -> None:
    read = load(voc, "hand")
    (image,) = read.images
    assert read.names == ("hand",)
    assert list_rows(image) == HANDS
    assert image.left_out == ("person", "head", "person", "dog")


def test_parts_and_objects_of_wanted_names_are_taken_alike(voc: Path) -> None:
    (image,) = load(voc, "hand", "dog").images
    assert list_rows(image) == [HANDS[0], (1, *OBJECTS[1][1:]), HANDS[1]]


def test_parts_are_left_out_even_where_objects_have_their_name(voc: Path) -> None:
    write("VOC2012/Annotations/2009_000001.xml", PERSON.replace("<name> dog </name>", "<name>hand</name>"))
    read = load(voc)
    assert read.names == ("hand", "person")
    assert list_rows(read.images[0]) == OBJECTS


def test_parts_that_are_left_out_are_reported(cli: Cli, voc: Path) -> None:
    outcome = cli("data", "convert", f"train={voc}", "--to", "coco", "--out", "out")
    assert outcome.out == "out\n"
    line = outcome.err.splitlines()[0]
    assert (
        line == "warning: left out boxes: 2 hand, 1 head, which are parts of objects; take them with --names hand,head"
    )
    outcome = cli("data", "convert", f"train={voc}", "--to", "coco", "--out", "hands", "--names", "hand")
    assert outcome.err.splitlines()[0] == "warning: left out boxes: 1 dog, 1 head, 2 person"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("VOC2012", 2),
        ("VOC2012/Annotations", 2),
        ("VOC2012/ImageSets/Main/train.txt", 2),
        ("VOC2012/ImageSets/Main/person_val.txt", 2),
        ("VOC2012/ImageSets/Layout/train.txt", 1),
        ("{absolute}/VOC2012/ImageSets/Main/train.txt", 2),
    ],
)
def test_lists_and_folders_find_their_images(voc: Path, source: str, count: int) -> None:
    write("VOC2012/Annotations/._2009_000001.xml", "made by a Mac")
    assert len(load(source.format(absolute=Path.cwd())).images) == count


@pytest.mark.parametrize("source", [".", "train.txt"])
def test_sources_may_be_named_from_within(voc: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir("VOC2012/Annotations" if source == "." else "VOC2012/ImageSets/Main")
    assert len(load(source).images) == 2


@pytest.mark.parametrize(
    ("filename", "place"),
    [
        ("<filename>a.png</filename>", "in/a.png"),
        ("<filename>a.png</filename>", "in/JPEGImages/a.png"),
        ("<filename>a.png</filename>", "JPEGImages/a.png"),
        ("<filename>a.png</filename>", "photos/a.png"),
        ("<filename>deep/a.png</filename>", "photos/deep/a.png"),
        ("<filename>a</filename>", "in/a.png"),
        ("<filename> </filename>", "in/x.jpeg"),
        ("", "photos/x.webp"),
    ],
)
def test_an_image_is_found_by_its_filename(voc: Path, filename: str, place: str) -> None:
    xml = PERSON.replace("<filename>2009_000001.jpg</filename>", filename)
    write("in/x.xml", xml)
    save_image(Path(place))
    (image,) = load("in", images=Path("photos")).images
    assert image.image == Path(place)
    assert image.name in ("a.png", "deep/a.png", Path(place).name)


def test_what_is_written_is_what_was_worked_out(workplace: Path) -> None:
    objects = make_objects((1, (0, 0, 64, 40), False), (0, (10.5, 20, 20.25, 100 / 3), True))
    image = LabelledImage(save_image(Path("a.jpg")), "deep/a b.jpg", "val", 64, 40, objects)
    empty = replace(image, name="c.d.jpg", objects=make_objects())
    save_voc(Path("out"), LabelledSet(("hand", "a & <b>"), (empty, image)))
    assert Path("out/ImageSets/Main/val.txt").read_text() == "c.d\ndeep_a_b\n"
    assert not Path("out/ImageSets/Main/train.txt").exists()
    assert Path("out/JPEGImages/deep_a_b.jpg").read_bytes() == Path("a.jpg").read_bytes()
    text = Path("out/Annotations/deep_a_b.xml").read_text()
    assert "".join(text.split()) == (
        "<annotation><folder>JPEGImages</folder><filename>deep_a_b.jpg</filename>"
        "<size><width>64</width><height>40</height><depth>3</depth></size><segmented>0</segmented>"
        "<object><name>a&amp;&lt;b&gt;</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>64</xmax><ymax>40</ymax></bndbox></object>"
        "<object><name>hand</name><pose>Unspecified</pose><truncated>0</truncated><difficult>1</difficult>"
        "<bndbox><xmin>11.5</xmin><ymin>21</ymin><xmax>20.25</xmax><ymax>33.3333333</ymax></bndbox></object>"
        "</annotation>"
    )
    assert "<object>" not in Path("out/Annotations/c.d.xml").read_text()
    assert [row[0] for row in list_rows(load_voc([Source("val", Path("out"))], ["hand", "a & <b>"]).images[1])] == [
        1,
        0,
    ]


def test_torchvision_reads_the_same_boxes(workplace: Path, voc: Path) -> None:
    read = load("VOC2012/ImageSets/Main/train.txt", "person", "hand", "dog")
    save_voc(Path("VOCdevkit/VOC2012"), read)
    found = VOCDetection(".", "2012", "train", download=False)
    assert len(found) == 2
    for (image, target), labelled in zip(found, read.images, strict=True):
        assert image.size == (labelled.width_px, labelled.height_px)
        assert target["annotation"]["filename"] == labelled.name
        items = target["annotation"].get("object", [])
        edges = np.array([[float(one["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")] for one in items])
        np.testing.assert_array_equal(edges.reshape(-1, 4) - (1, 1, 0, 0), labelled.objects.boxes_xyxy)
        assert [one["name"] for one in items] == [read.names[kind] for kind in labelled.objects.classes]
        assert [one["difficult"] for one in items] == [str(int(one)) for one in labelled.objects.ignore]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stated", ["stored", "shown", "nothing"])
def test_boxes_turn_with_the_image_where_its_stored_size_is_stated(
    workplace: Path, orientation: int, stated: str
) -> None:
    save_image(Path("a.jpg"), 64, 40, orientation, (8, 8, 40, 16))
    shown = read_image(Path("a.jpg"))[..., 0] > 127
    rows, columns = np.nonzero(shown)
    truth = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    turns = stated == "stored" and orientation >= 5
    x1, y1, x2, y2 = (8, 8, 40, 16) if turns else truth
    width, height = (64, 40) if turns else shown.shape[::-1]
    size = "" if stated == "nothing" else f"<size><width>{width}</width><height>{height}</height></size>"
    box = f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
    write("a.xml", f"<annotation>{size}<object><name>hand</name>{box}</object></annotation>")
    (image,) = load(".").images
    assert list_rows(image) == [(0, truth, False)]


def name(*names: str) -> LabelledSet:
    """Return a set of one image under several names; SPLIT:NAME is of another split than train."""
    image = save_image(Path("a.jpg"))
    pairs = [one.split(":") if ":" in one else ("train", one) for one in names]
    return LabelledSet(
        ("hand",), tuple(LabelledImage(image, own, split, 64, 40, make_objects()) for split, own in pairs)
    )


def test_names_that_two_splits_share_get_the_split_in_front(workplace: Path) -> None:
    save_voc(Path("out"), name("0.jpg", "1.jpg", "val:0.jpg"))
    assert sorted(path.name for path in Path("out/JPEGImages").iterdir()) == [
        "train_0.jpg",
        "train_1.jpg",
        "val_0.jpg",
    ]
    assert Path("out/ImageSets/Main/val.txt").read_text() == "val_0\n"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("a/b.jpg", "a_b.jpg"), "a.jpg: would be a_b in VOC, as would a.jpg; give one of them another name"),
        (("a.jpg", "a.png"), "a.jpg: would be a in VOC, as would a.jpg"),
        (("0.jpg", "val:0.jpg", "val_0.jpg"), ""),
        (("a\x01.jpg",), r"a.jpg: 'a\x01.jpg' cannot stand in xml"),
        (("a\udcff.jpg",), r"a.jpg: 'a\udcff.jpg' cannot stand in xml"),
    ],
)
def test_names_that_clash_are_rejected(workplace: Path, names: tuple[str, ...], what: str) -> None:
    if not what:
        save_voc(Path("out"), name(*names))
        assert len(list(Path("out/Annotations").iterdir())) == len(names)
        return
    with pytest.raises(DatasetError) as caught:
        save_voc(Path("out"), name(*names))
    assert str(caught.value).startswith(what)


def test_a_clash_leaves_nothing(cli: Cli) -> None:
    for path in ("set/images/train/a/b.jpg", "set/images/train/a_b.jpg", "set/images/val/c.jpg"):
        save_image(Path(path))
    write("set/data.yaml", "train: images/train\nval: images/val\nnames: [hand]\n")
    outcome = cli("data", "convert", "set/data.yaml", "--to", "voc", "--out", "out")
    check_rejected(
        outcome, "set/images/train/a_b.jpg: would be a_b in VOC, as would set/images/train/a/b.jpg", "another"
    )


XML = "VOC2012/Annotations/2009_000001.xml"
BOMB = """\
<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
]><annotation><filename>&b;</filename></annotation>"""
STRANGER = '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


def swap(old: str, new: str) -> Callable[[], Any]:
    assert old in PERSON, old
    return lambda: write(XML, PERSON.replace(old, new, 1))


def put(path: str, content: str | bytes) -> Callable[[], Any]:
    return lambda: Path("VOC2012", path).write_bytes(content.encode() if isinstance(content, str) else content)


MAIN = "ImageSets/Main/train.txt"


@pytest.mark.parametrize(
    ("spoil", "place", "right"),
    [
        (put("Annotations/2009_000001.xml", BOMB), f"{XML}:2: has a document type, which is not allowed", "remove <!DOCTYPE"),
        (put("Annotations/2009_000001.xml", STRANGER), f"{XML}:1: has a document type", "remove <!DOCTYPE"),
        (put("Annotations/2009_000001.xml", "<html>\n</html>"), f"{XML}: begins with <html>", "begin with <annotation>"),
        (put("Annotations/2009_000001.xml", ""), f"{XML}:1: is not xml (no element found)", "correct that line"),
        (put("Annotations/2009_000001.xml", PERSON[:300]), f"{XML}:10: is not xml", "correct that line"),
        (put("Annotations/2009_000001.xml", b"<annotation>\n\xff</annotation>"), f"{XML}:2: is not xml (not well-formed", "UTF-8"),
        (put("Annotations/2009_000001.xml", "<annotation>&x;</annotation>"), f"{XML}:1: is not xml (undefined entity)", "correct"),
        (put("Annotations/2009_000001.xml", '<?xml version="1.0" encoding="gbk"?><annotation/>'), f"{XML}:1: is not xml (", "save as UTF-8"),
        (put("Annotations/2009_000001.xml", '<?xml version="1.0" encoding="oops"?><annotation/>'), f"{XML}:1: is not xml (unknown encoding", "save as UTF-8"),
        (swap("<width>64", "<width>60"), f"{XML}: an image of 60 × 40 pixels is stated, and VOC2012/JPEGImages/2009_000001.jpg has 64 × 40", "state its size"),
        (swap("<width>64", "<width>wide"), f"{XML}:5: width is 'wide'", "write a number of pixels"),
        (swap("<height>40", "<height>nan"), f"{XML}:5: height is 'nan'", "write a number of pixels"),
        (swap("2009_000001.jpg", "2009_000002.jpg"), "VOC2012/JPEGImages/2009_000002.jpg: is there twice in train", "once"),
        (swap("<name>person</name>", ""), f"{XML}:7: the object has no name", "write <name>…</name>"),
        (swap("<name>head</name>", "<name/>"), f"{XML}:12: the part has no name", "write <name>…</name>"),
        (swap("<name>person</name>", "<name>a\tb</name>"), "VOC2012/ImageSets/Main/train.txt: 'a\\tb' is no class name", "printed"),
        (swap("<difficult>1", "<difficult>Unspecified"), f"{XML}:15: difficult is 'Unspecified'", "write 0 or 1"),
        (swap("<xmax>64</xmax>", ""), f"{XML}:7: person has no box (xmin 1, ymin 1, xmax None, ymax 40)", "write <bndbox>"),
        (swap("<xmax>70", "<xmax>wide"), f"{XML}:15: person has no box (xmin 51, ymin 11, xmax wide", "finite numbers"),
        (swap("<xmax>70", "<xmax>inf"), f"{XML}:15: person has no box", "finite numbers"),
        (swap("<ymin>5", "<ymin>nan"), f"{XML}:21: dog has no box (xmin 5, ymin nan", "finite numbers"),
        (put("JPEGImages/2009_000001.jpg", "no"), "VOC2012/JPEGImages/2009_000001.jpg: is not a readable image", "put"),
        (put(MAIN, ""), f"VOC2012/{MAIN}: the list is empty", "write an image's id per line"),
        (put(MAIN, b"\xff\xfe"), f"VOC2012/{MAIN}: the list cannot be read", "write an image's id per line"),
        (put(MAIN, "2009_000001\n7\n"), f"VOC2012/{MAIN}:2: there is no file VOC2012/Annotations/7.xml", "annotated"),
        (put(MAIN, "../../a\n"), f"VOC2012/{MAIN}:1: the image ../../a is outside its folder", "without .."),
        (put(MAIN, "2009_000001\n\n2009_000001\n"), f"VOC2012/{MAIN}:3: 2009_000001 is there twice", "each line once"),
    ],
)  # fmt: skip
def test_broken_annotations(cli: Cli, voc: Path, spoil: Callable[[], Any], place: str, right: str) -> None:
    spoil()
    check_rejected(cli("data", "convert", f"train=VOC2012/{MAIN}", "--to", "coco", "--out", "out"), place, right)


@given(
    st.lists(
        st.tuples(st.integers(0, len(PERSON)), st.integers(0, 40), st.text("<>/&1.-ne x'", max_size=6)), max_size=3
    )
)
@settings(max_examples=200, deadline=None)
def test_any_text_gives_boxes_inside_the_image_or_a_dataset_error(cuts: list[tuple[int, int, str]]) -> None:
    text = PERSON
    for start, length, new in cuts:
        text = text[:start] + new + text[start + length :]
    with TemporaryDirectory() as name, suppress(DatasetError):
        save_image(Path(name, "2009_000001.jpg"))
        for image in load(write(f"{name}/a.xml", text).parent, images=None).images:
            boxes = image.objects.boxes_xyxy
            assert ((boxes >= 0) & (boxes <= (64, 40, 64, 40))).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("source", "place", "right"),
    [
        ("list.txt", "list.txt: is not below a folder ImageSets", "name a list such as VOC2012/ImageSets/Main/train.txt"),
        ("VOC2012/JPEGImages", "VOC2012/JPEGImages: there are no xml files", "name a folder of VOC annotations"),
        ("VOC2012 --names hnad", "--names: nothing is named hnad", "use some of dog, hand, head, person"),
        ("empty", "empty: there are no classes", "name a source with labelled objects"),
        ("folder", "folder/a.xml: cannot be read (Is a directory)", "name VOC annotations"),
    ],
)  # fmt: skip
def test_sources_that_are_none(cli: Cli, voc: Path, source: str, place: str, right: str) -> None:
    write("list.txt", "2009_000001\n")
    write("empty/2.xml", EMPTY)
    save_image(Path("empty/2009_000002.jpg"))
    Path("folder/a.xml").mkdir(parents=True)
    check_rejected(cli("data", "convert", *f"train={source} --to coco --out out".split()), place, right)


def test_a_part_nobody_wants_needs_no_box(voc: Path) -> None:
    swap("<xmin>30</xmin>", "")()
    assert list_rows(load(voc, "hand").images[0]) == HANDS


def test_elements_know_their_line(workplace: Path) -> None:
    root = parse_xml(b'<a>\n<b c="d">e</b></a>', Path("a.xml"))
    assert [(one.tag, one.attrib) for one in root.iter()] == [("a", {"line": "1"}), ("b", {"line": "2"})]


def test_deeply_nested_elements_are_an_error(workplace: Path) -> None:
    depth = 100_000
    with pytest.raises(DatasetError, match=r"^a\.xml:1: is nested too deep; name VOC annotations"):
        parse_xml(b"<annotation>" + b"<a>" * depth + b"</a>" * depth + b"</annotation>", Path("a.xml"))


def test_images_may_be_links(voc: Path) -> None:
    save_voc(Path("out"), load("VOC2012"), link=True)
    assert Path("out/JPEGImages/2009_000001.jpg").readlink() == Path("VOC2012/JPEGImages/2009_000001.jpg").absolute()
