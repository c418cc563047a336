"""Whatever file a reader is given, it reads a bounded part of it, waits for nothing, and says in one line what is wrong."""

from __future__ import annotations

import inspect
import json
import os
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolo_prune import bounded, files, json_parts, limits, yaml_text
from yolo_prune.commands.bench import load_bench
from yolo_prune.commands.import_darknet import _read_names
from yolo_prune.darknet import layers as darknet_layers
from yolo_prune.darknet.cfg import load_cfg, parse_cfg
from yolo_prune.datasets.anchors import load_sides
from yolo_prune.datasets.check.scan import read_content, read_labels
from yolo_prune.datasets.data_file import load_data_file
from yolo_prune.datasets.formats.coco import load_coco
from yolo_prune.datasets.formats.labelled_set import Source
from yolo_prune.datasets.formats.voc import load_voc
from yolo_prune.datasets.images import read_header, read_image
from yolo_prune.datasets.labels import load_labels, scan_labels
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.sources import make_video
from yolo_prune.datasets.spec import DataSpec, Sample, load_list, load_spec, measure_fingerprint
from yolo_prune.datasets.synthetic.dataset import _holds
from yolo_prune.datasets.vgg_hand.annotations import load_corners
from yolo_prune.datasets.video import open_capture
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.errors import ConfigError, DatasetError, YoloPruneError
from yolo_prune.evaluation.predictor import read_pixels
from yolo_prune.evaluation.results import ImageIds, load_image_ids, load_results
from yolo_prune.model.checkpoint_file import load_plain
from yolo_prune.model.detector import Detector
from yolo_prune.model.state_dicts import load_state_dict
from yolo_prune.model.weights import load_weights
from yolo_prune.pruning.plans.plan_file import load_plan
from yolo_prune.pruning.scores.sensitivity import load_sensitivity

CFG = "[net]\nwidth=32\nheight=32\n[convolutional]\nfilters=18\nsize=1\n[yolo]\nanchors=1,1,2,2,3,3\nclasses=1\n"
NETWORK = parse_cfg(CFG)
FEW_BYTES = 1 << 22
"""What a reader may allocate for a file that it does not read."""


def load_voc_list(path: Path) -> object:
    folder = path.parent / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    return load_voc([Source("train", path.rename(folder / path.name))])


def load_voc_xml(path: Path) -> object:
    return load_voc([Source("train", path.parent)])


def load_names(path: Path) -> object:
    data = path.with_name("obj.data")
    data.write_text(f"train = a.txt\nvalid = a.txt\nnames = {path}\n")
    return load_data_file(data)


def make_spec(path: Path) -> DataSpec:
    return DataSpec(path, path.parent, ("hand",), {"train": (Sample(path, path.with_suffix(".txt")),)})


def raise_issue(path: Path) -> None:
    content = read_content(path)
    raise DatasetError(content.what if hasattr(content, "what") else "is read", where=path)


def raise_label_issue(path: Path) -> None:
    issue = read_labels(Sample(path, path), 1).issues[0]
    raise DatasetError(issue.what, where=issue.where)


READERS: dict[str, tuple[str, Callable[[Path], object], int | None]] = {
    "labels": ("a.txt", lambda path: load_labels(path, 1), limits.MOST_LABEL_BYTES),
    "labels, scanned": ("a.txt", lambda path: scan_labels(path, 1), limits.MOST_LABEL_BYTES),
    "labels, checked": ("a.txt", raise_label_issue, limits.MOST_LABEL_BYTES),
    "fingerprint": ("a.txt", lambda path: measure_fingerprint(make_spec(path)), limits.MOST_LABEL_BYTES),
    "list": ("a.txt", lambda path: load_list(make_spec(path), path), limits.MOST_LIST_BYTES),
    "data.yaml": ("data.yaml", load_spec, limits.MOST_YAML_BYTES),
    "obj.data": ("obj.data", load_spec, limits.MOST_YAML_BYTES),
    "names": ("obj.names", load_names, limits.MOST_NAMES_BYTES),
    "names of import": ("obj.names", lambda path: _read_names((str(path),)), limits.MOST_NAMES_BYTES),
    "COCO": ("a.json", lambda path: load_coco([Source("train", path)]), limits.MOST_ANNOTATION_BYTES),
    "COCO ids": ("a.json", lambda path: load_image_ids(path, (), path, ()), limits.MOST_ANNOTATION_BYTES),
    "COCO results": ("a.json", lambda path: load_results(path, ImageIds((), (), {})), limits.MOST_ANNOTATION_BYTES),
    "VOC list": ("a.txt", load_voc_list, limits.MOST_LIST_BYTES),
    "VOC xml": ("a.xml", load_voc_xml, limits.MOST_XML_BYTES),
    "MATLAB": ("a.mat", load_corners, 1 << 24),
    "image": ("a.png", read_image, limits.MOST_IMAGE_BYTES),
    "image's header": ("a.png", read_header, limits.MOST_IMAGE_BYTES),
    "image, checked": ("a.png", raise_issue, limits.MOST_IMAGE_BYTES),
    "video": ("a.mp4", lambda path: open_capture(make_video(path, path.parent)), None),
    "settings": ("a.yaml", files.load_yaml, limits.MOST_YAML_BYTES),
    "record of synthetic hands": ("config.yaml", lambda path: _holds(path.parent, {}), limits.MOST_YAML_BYTES),
    "JSON": ("a.json", lambda path: files.load_json(path, ConfigError, ""), limits.MOST_JSON_BYTES),
    "plan": ("a.json", lambda path: load_plan(path, NETWORK), limits.MOST_JSON_BYTES),
    "sensitivity": ("a.json", load_sensitivity, limits.MOST_JSON_BYTES),
    "bench": ("a.json", load_bench, limits.MOST_JSON_BYTES),
    "cfg": ("a.cfg", load_cfg, limits.MOST_CFG_BYTES),
    "weights": ("a.weights", lambda path: load_weights(Detector(NETWORK), path), 8 << 30),
    "checkpoint": ("a.pt", load_plain, None),
    "state dict": ("a.pth", load_state_dict, None),
    "ONNX": ("a.onnx", load_exported, None),
    "LiteRT": ("a.tflite", load_exported, None),
}
"""Every reader: a name for its file, the call, and a size above which it reads nothing, if it has one."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "PIPE_S", 0.05)


def check_refused(name: str, path: Path) -> str:
    """Check that a reader raises one line that names the file, and return it."""
    with pytest.raises(YoloPruneError) as caught:
        READERS[name][1](path)
    line = str(caught.value)
    assert path.stem in line or path.parent.name in line
    assert "\n" not in line
    assert len(line) < 1000
    return line


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_that_nobody_writes_is_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / READERS[name][0]
    os.mkfifo(path)
    check_refused(name, path)


@pytest.mark.parametrize("name", READERS)
def test_a_device_without_an_end_is_not_read_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / READERS[name][0]
    path.symlink_to("/dev/zero")
    check_refused(name, path)


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_proc_whose_size_is_not_told_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / READERS[name][0]
    path.symlink_to("/proc/self/maps")
    assert path.stat().st_size == 0
    if name in ("labels, scanned", "fingerprint", "names", "names of import"):  # any text will do
        READERS[name][1](path)
    else:
        check_refused(name, path)


@pytest.mark.parametrize("name", [name for name, (_, _, most) in READERS.items() if most is not None])
def test_a_file_above_the_limit_is_refused_without_being_read(name: str, tmp_path: Path) -> None:
    file, _, most = READERS[name]
    assert most is not None
    path = tmp_path / file
    with path.open("wb") as sparse:
        sparse.truncate(most + 4)
    tracemalloc.start()
    try:
        line = check_refused(name, path)
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()
    assert "MiB" in line or name in ("weights", "bench", "record of synthetic hands"), line


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["folder", "loop", "missing"])
def test_what_is_no_file_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / READERS[name][0]
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    if kind != "folder" and name in ("labels", "labels, scanned", "labels, checked", "names of import", "fingerprint"):
        return  # a missing label file means no objects, and a name that is no file is a class
    if kind == "folder" and name == "names of import":
        return  # it names a class
    if kind == "missing" and name in ("VOC list", "VOC xml", "record of synthetic hands"):
        return  # there is nothing to rename, to list, or to keep
    check_refused(name, path)


def test_a_pipe_that_is_written_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"epochs: 3\n")
    os.close(writing)
    assert files.load_yaml(Path(f"/dev/fd/{reading}")) == {"epochs": 3}
    os.close(reading)


def test_a_label_file_has_no_more_lines_than_any_image_has_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, line = tmp_path / "a.txt", "0 0.5 0.5 0.1 0.1\n"
    monkeypatch.setattr("yolo_prune.datasets.labels.MOST_BOXES", 5)
    path.write_text(line * 5)
    assert len(load_labels(path, 1)) == 1
    path.write_text(line * 6)
    for read in (load_labels, scan_labels):
        with pytest.raises(DatasetError, match="has 6 lines, more than 5 objects; correct it"):
            read(path, 1)


def test_bad_lines_beyond_many_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    monkeypatch.setattr("yolo_prune.datasets.labels.MOST_ERRORS", 3)
    path.write_text("x\n" * 3)
    assert len(scan_labels(path, 1).errors) == 3
    path.write_text("x\n" * 8)
    *errors, last = scan_labels(path, 1).errors
    assert [one.where for one in errors] == [f"{path}:{number}" for number in (1, 2, 3)]
    assert str(last).startswith(f"{path}: 5 more lines are bad; ")


def test_a_list_has_no_line_longer_than_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a.jpg\n" + "b" * (limits.LONGEST_PATH + 1))
    (tmp_path / "a.jpg").touch()
    with pytest.raises(
        DatasetError, match=r"a\.txt: the list cannot be read \(line 2 has more than 32,768 characters\)"
    ):
        load_list(make_spec(path), path)
    path.write_text("b" * 5000)
    with pytest.raises(DatasetError, match=r"a\.txt:1: there is no image bbb"):
        load_list(make_spec(path), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: 40001", "there are 40,001 classes, more than 40,000; correct it: no data set has so many"),
        (f"nc: {'9' * 5000}", "is not YAML (found a number of more than 400 characters)"),
        (f"names: [{'a' * 1001}]", "a class name has 1,001 characters, more than 1,000; shorten it"),
        ("names: [a]\npath: " + "p" * 5000, "ppp' is no path; name a folder"),
        ("names: [a]\npath: 'a\\0b'", "path: there is no folder"),
    ],
)
def test_names_and_paths_are_bounded(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f"train: a\nval: a\n{text}\n")
    with pytest.raises(DatasetError) as caught:
        load_spec(path)
    assert message in str(caught.value)


BOMBS = {
    "deep lists": "a: " + "[" * 100_000,
    "deep mappings": "a: " + "{b: " * 50_000,
    "deep on one line": "- " * 100_000 + "a",
    "deep by indentation": "".join(f"{' ' * depth}a:\n" for depth in range(1000)),
    "aliases": "a: &a [1, 1]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True)),
    "merged at once": f"a: &a {{x: 1}}\nb: {{<<: [{', '.join(['*a'] * 1000)}]}}",
    "itself": "a: &a [*a]",
    "many": "[" + "1," * 300_000 + "1]",
    "a long number": "a: " + "9" * 100_000,
    "a long time": "a: " + "1:" * 100_000 + "1",
    "a long fraction": "a: " + "1:" * 100_000 + "1.5",
    "empty number": 'a: !!int ""',
    "no date": "a: !!timestamp b",
    "no truth": "a: !!bool b",
    "overflow": "a: 9999-99-99",
}  # fmt: skip


@pytest.mark.parametrize("parse", [yaml_text.parse_yaml, yaml_text.parse_plain_yaml])
@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_would_expand_is_refused(
    name: str, parse: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text, "MOST_YAML_VALUES", 5000)
    with pytest.raises(yaml.YAMLError):
        parse(BOMBS[name])


def test_merged_mappings_do_not_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "MOST_YAML_VALUES", 5000)
    lines = [
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    try:
        value = yaml_text.parse_yaml("\n".join(["a: &a {x: 1}", *lines]))
    except yaml.YAMLError as error:  # PyYAML before 6.0.3 keeps what is merged several times
        assert "values" in str(error)  # noqa: PT017
    else:
        assert value["i"] == {"x": 1}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_yaml_is_read_as_others_read_it(value: Any) -> None:
    text = yaml.safe_dump(value)
    assert yaml_text.parse_plain_yaml(text) == yaml.safe_load(text) == value


def join(parts: Iterator[json_parts.Part]) -> Any:
    """Put the parts of a file together again."""
    value: Any = {}
    for key, number, one in parts:
        if number is not None:
            value[key].append(one)
        else:
            value[key] = one
    return value[""] if set(value) == {""} else value


@given(VALUES, st.integers(1, 40), st.sampled_from([None, 1]), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_json_in_parts_is_json(value: Any, block: int, indent: int | None, place: int) -> None:
    value = {f"k{key}": inner for key, inner in value.items()} if isinstance(value, dict) else value
    text = json.dumps(value, indent=indent)
    broken = text[: place % (len(text) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_parts, "BLOCK_CHARACTERS", block)
        path = Path(patch_folder, "a.json")
        path.write_text(text)
        assert join(json_parts.iterate_json(path, DatasetError, "")) == value
        path.write_text(broken)
        try:
            expected = json.loads(broken)
        except json.JSONDecodeError as error:
            with pytest.raises(DatasetError, match="is not JSON") as caught:
                list(json_parts.iterate_json(path, DatasetError, ""))
            assert caught.value.where == f"{path}:{error.lineno}"  # noqa: PT017
        else:
            assert join(json_parts.iterate_json(path, DatasetError, "")) == expected


patch_folder = ""


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global patch_folder
    patch_folder = str(tmp_path_factory.mktemp("json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "[" * 100_000, "cannot be read (it is no JSON text)"),
        ('{"a": [' + "9" * 10_000 + "]}", "cannot be read (it is no JSON text)"),
        ('{"a":\n["' + "b" * 2000 + '"]}', "a.json:2: holds a value of more than 0 MiB"),
        ('{"a":\n{"' + "b" * 2000 + '": 1}}', "a.json:2: holds a value of more than 0 MiB"),
        ('{"a" 1}', "a.json:1: is not JSON (Expecting ':' delimiter)"),
        ('{"a": 1,}', "a.json:1: is not JSON (Expecting property name"),
        ('{"a": 1} 2', "a.json:1: is not JSON (Extra data)"),
        ("\xff", "is not JSON"),
    ],
)
def test_json_in_parts_is_bounded(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "9999" in text and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python has no limit of digits")
    monkeypatch.setattr(json_parts, "BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(json_parts, "MOST_ENTRY_CHARACTERS", 20_000 if len(text) > 9_000 else 1000)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError) as caught:
        list(json_parts.iterate_json(path, DatasetError, ""))
    assert message in str(caught.value)


def test_a_coco_file_of_too_many_categories_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_prune.datasets.formats.coco_file.MOST_CLASSES", 20)
    path = tmp_path / "a.json"
    categories = [{"id": number, "name": str(number)} for number in range(21)]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(DatasetError, match="categories: there are more than 20 categories; correct it"):
        load_coco([Source("train", path)])


def test_a_polygon_is_no_longer_than_an_outline(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    polygon = [0, 0, 99, 99] * 30_000
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon]}
    images, categories = [{"id": 1, "file_name": "a.png"}], [{"id": 1, "name": "hand"}]
    path.write_text(json.dumps({"images": images, "annotations": [entry], "categories": categories}))
    with pytest.raises(DatasetError, match=r"annotations\[0\]: a polygon of the segmentation is longer than 5,000,000"):
        load_coco([Source("train", path)])


@pytest.mark.parametrize(("inner", "what"), [("<a>", "is nested too deep"), ("<a/>", "has more than 50 elements")])
def test_xml_is_bounded(inner: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_prune.datasets.formats.voc.MOST_XML_ELEMENTS", 50 if "/" in inner else 10_000)
    (tmp_path / "a.xml").write_text("<annotation>\n" + inner * 1000)
    with pytest.raises(DatasetError, match=rf"a\.xml:2: {what}"):
        load_voc([Source("train", tmp_path)])


def make_png(width: int, height: int) -> bytes:
    """Return a PNG that ends after its header, as far as Pillow needs it to tell the size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


OPENERS: dict[str, Callable[[Path], object]] = {
    "read_image": read_image,
    "read_header": read_header,
    "detect": read_pixels,
    "check": raise_issue,
    "train": lambda path: DetectionDataset([Sample(path, path.with_suffix(".txt"))], 1, 32),
    "anchors": lambda path: load_sides([Sample(path, path.with_suffix(".txt"))], 1, 32),
    "convert COCO": lambda path: load_coco([Source("train", path.with_suffix(".json"))]),
    "convert VOC": lambda path: load_voc([Source("train", path.parent)]),
}


@pytest.mark.parametrize("name", OPENERS)
def test_an_image_of_too_many_pixels_is_refused_by_its_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make_png(20_000, 20_000))
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.png</filename><object><name>hand</name></object></annotation>"
    )
    images, categories = [{"id": 1, "file_name": "a.png"}], [{"id": 1, "name": "hand"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=r"a\.png: has 20000 × 20000 pixels, more than 268,435,456"):
            OPENERS[name](path)
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()


def test_the_shapes_of_depthwise_sections_are_inferred_once(monkeypatch: pytest.MonkeyPatch) -> None:
    infer, calls = darknet_layers._infer_shape, 0

    def count_call(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return infer(*given)

    monkeypatch.setattr(darknet_layers, "_infer_shape", count_call)
    count = 200
    parse_cfg(CFG.replace("[conv", "[depthwise]\nsize=3\npad=1\n" * count + "[conv"))
    assert calls <= 3 * count


def test_every_limit_has_a_reader_and_a_reason() -> None:
    source = inspect.getsource(limits)
    named = [name for name in vars(limits) if name.isupper()]
    assert len(named) > 15
    package = "\n".join(path.read_text() for path in Path(limits.__file__).parent.rglob("*.py"))
    for name in named:
        assert len(package.split(name)) > 3, name  # stated, imported and used
        reason = source.partition(f"\n{name} = ")[2].partition('"""')[2].partition('"""')[0]
        assert len(reason) > 20, name


def test_weights_larger_than_the_network_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.weights"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 34)
    with pytest.raises(YoloPruneError, match="too many"):
        load_weights(Detector(NETWORK), path)


def test_a_pickle_larger_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": list(range(100_000))}, path)
    assert len(load_plain(path)["a"]) == 100_000
    monkeypatch.setattr("yolo_prune.model.checkpoint_file.MOST_PICKLE_BYTES", 1 << 17)
    with pytest.raises(YoloPruneError, match=r"a\.pt: holds a pickle of 0 MiB, more than 0; name a checkpoint"):
        load_plain(path)
