from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from tiny import Cli, read_json
from vgg_archive import (
    BEYOND,
    HANDS,
    HEIGHT,
    INNER,
    OVER,
    TILTED,
    WIDTH,
    Quad,
    Response,
    Server,
    make_box,
    make_files,
    make_jpeg,
    make_mat,
    make_member,
    serve,
    write_archive,
)

from yolo_prune.commands.datasets import vgg_hand as stage
from yolo_prune.datasets.config import VggHandConfig
from yolo_prune.datasets.spec import load_spec
from yolo_prune.datasets.vgg_hand.annotations import FOLDERS, choose_place, enclose, load_corners
from yolo_prune.errors import DatasetError

TRAIN, TEST = "hand_dataset/training_dataset/training_data", "hand_dataset/test_dataset/test_data"
COUNTS = "3/1/2 images for train/val/test and 8 hands"
PUBLISHED = "4,069/738/821 images for train/val/test and 13,050 hands"
LABELS = {
    "train/Buffy_1": [[10.5, 4.5, 19.5, 13.5], [5, 2, 21.25, 17.5]],
    "train/VOC2007_1": [[0, 0, 5.5, 8.5]],
    "train/VOC2007_2": [],
    "val/VOC2007_1": [[10.5, 4.5, 19.5, 13.5]],
    "test/VOC2007_1": [[5, 2, 21.25, 17.5], [10.5, 4.5, 19.5, 13.5]],
    "test/Skin_3": [[10.5, 4.5, 19.5, 13.5]],
}
"""Boxes_xyxy in pixels' edges, worked by hand from the corners in `HANDS`."""


@pytest.fixture(autouse=True)
def no_proxy_and_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("yolo_prune.datasets.vgg_hand.download.time.sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_archive(tmp_path_factory.mktemp("packed") / "a.tar.gz", make_files()).read_bytes()


@pytest.fixture
def server(packed: bytes) -> Iterator[Server]:
    with serve(packed) as server:
        yield server


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small archive be what was published."""
    counts = {split: len(images) for split, images in HANDS.items()}
    monkeypatch.setattr("yolo_prune.datasets.vgg_hand.annotations.PUBLISHED_IMAGES", counts)
    monkeypatch.setattr("yolo_prune.datasets.vgg_hand.annotations.PUBLISHED_INSTANCES", 8)


def read_boxes(label: Path) -> list[list[float]]:
    rows = np.array([line.split() for line in label.read_text().splitlines()], np.float64).reshape(-1, 5)
    centres, sides = rows[:, 1:3] * (WIDTH, HEIGHT), rows[:, 3:] * (WIDTH, HEIGHT)
    assert (rows[:, 0] == 0).all()
    boxes: list[list[float]] = np.concatenate((centres - sides / 2, centres + sides / 2), axis=1).tolist()
    return boxes


def check_data(folder: Path, hands: Mapping[str, Any] = HANDS) -> None:
    """Expect the whole data set, and nothing besides."""
    names = {f"{split}/{name}" for split, images in hands.items() for name in images}
    wanted = {f"images/{name}.jpg" for name in names} | {f"labels/{name}.txt" for name in names} | {"data.yaml"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == wanted
    for name in names:
        assert (folder / f"images/{name}.jpg").read_bytes() == make_jpeg()
        boxes, expected = read_boxes(folder / f"labels/{name}.txt"), LABELS[name]
        assert len(boxes) == len(expected)
        assert np.ravel(boxes) == pytest.approx(np.ravel(expected), abs=1e-4)


def list_names(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def test_the_made_archive_passes_end_to_end(cli: Cli, server: Server, packed: bytes, published: None) -> None:
    outcome = cli("data", "vgg-hand", "--url", server.url)
    assert (outcome.code, outcome.out) == (0, "data/vgg-hand/data.yaml\n"), outcome.err
    check_data(Path("data/vgg-hand"))
    assert {path.name for path in Path("data").iterdir()} == {"vgg-hand", "hand_dataset.tar.gz"}
    assert Path("data/hand_dataset.tar.gz").read_bytes() == packed
    sha256 = hashlib.sha256(packed).hexdigest()
    assert outcome.err.splitlines() == [
        f"downloading {server.url} to data/hand_dataset.tar.gz",
        f"data/hand_dataset.tar.gz: the SHA-256 is {sha256}; --sha256 {sha256} makes sure of it",
        "warning: data/hand_dataset.tar.gz: test_dataset/test_data/annotations/VOC2007_1.mat: "
        "box 2 is outside the image; it is left out",
        f"data/hand_dataset.tar.gz: holds {COUNTS}, as published",
        ANY,
        "next: yoloprune train --data data/vgg-hand/data.yaml",
    ]
    assert outcome.err.splitlines()[-2].endswith(" s: 6 images, 8 hands")
    spec = load_spec(Path("data/vgg-hand/data.yaml"))
    assert spec.names == ("hand",)
    assert {split: len(samples) for split, samples in spec.splits.items()} == {"train": 3, "val": 1, "test": 2}
    assert Path("data/vgg-hand/data.yaml").read_text() == (
        "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n  0: hand\n"
    )


def test_a_second_call_does_not_download_again(cli: Cli, server: Server, published: None) -> None:
    assert cli("data", "vgg-hand", "--url", server.url, "--out", "one").code == 0
    outcome = cli("data", "vgg-hand", "--url", server.url, "--out", "two")
    assert outcome.out == "two/data.yaml\n"
    assert outcome.err.startswith("hand_dataset.tar.gz is there already; remove it to download it again\n")
    check_data(Path("two"))
    assert len(server.requests) == 1


def test_the_case_study_s_split(cli: Cli, server: Server, published: None) -> None:
    assert cli("data", "vgg-hand", "--url", server.url, "--trainval").code == 0
    check_data(Path("data/vgg-hand"))
    text = Path("data/vgg-hand/data.yaml").read_text()
    assert text.startswith("# The case study trains on the official train and val together")
    assert "val is part of train here, and scores on it are too good; test is untouched" in text
    assert yaml.safe_load(text) == {
        "path": ".", "train": ["images/train", "images/val"], "val": "images/val", "test": "images/test", "names": {0: "hand"}
    }  # fmt: skip
    spec = load_spec(Path("data/vgg-hand/data.yaml"))
    assert {split: len(samples) for split, samples in spec.splits.items()} == {"train": 4, "val": 1, "test": 2}
    assert not {sample.image for sample in spec.samples("train")} & {sample.image for sample in spec.samples("test")}


def test_other_counts_than_the_published_ones_are_an_error_unless_told_otherwise(cli: Cli, packed: bytes) -> None:
    Path("hands.tar.gz").write_bytes(packed)
    outcome = cli("data", "vgg-hand", "--archive", "hands.tar.gz")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == (
        f"error: hands.tar.gz: holds {COUNTS}; published are {PUBLISHED}; "
        "get the whole archive, or continue with --any-counts"
    )
    assert list_names(Path()) == {"data", "hands.tar.gz"}
    outcome = cli("data", "vgg-hand", "--archive", "hands.tar.gz", "--any-counts")
    assert (outcome.code, outcome.out) == (0, "data/vgg-hand/data.yaml\n")
    assert outcome.err.splitlines()[-3] == f"warning: hands.tar.gz: holds {COUNTS}; published are {PUBLISHED}"
    check_data(Path("data/vgg-hand"))
    assert Path("hands.tar.gz").read_bytes() == packed


def test_what_was_made_as_json(cli: Cli, packed: bytes) -> None:
    Path("hands.tar.gz").write_bytes(packed)
    found = read_json(cli("data", "vgg-hand", "--archive", "hands.tar.gz", "--any-counts", "--trainval", "--json"))
    assert found == {
        "data": "data/vgg-hand/data.yaml",
        "archive": "hands.tar.gz",
        "sha256": hashlib.sha256(packed).hexdigest(),
        "trainval": True,
        "images": {"train": 3, "val": 1, "test": 2},
        "instances": {"train": 3, "val": 1, "test": 4, "total": 8},
        "published": {"images": {"train": 4069, "val": 738, "test": 821}, "instances": 13050},
        "as_published": False,
        "without_hands": ["train/VOC2007_2.jpg"],
        "outside": [
            "hands.tar.gz: test_dataset/test_data/annotations/VOC2007_1.mat: box 2 is outside the image; it is left out"
        ],
    }


def test_a_download_that_breaks_off_is_resumed(cli: Cli, server: Server, packed: bytes, published: None) -> None:
    server.responses = [Response(cut=1000), Response(cut=500), Response(status=502)]
    outcome = cli("data", "vgg-hand", "--url", server.url)
    assert outcome.code == 0, outcome.err
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert f"the transfer ended after 1,000 of {len(packed):,} bytes; trying again in 1 s\n" in outcome.err
    check_data(Path("data/vgg-hand"))


def test_a_download_that_keeps_breaking_off_is_resumed_by_the_next_call(
    cli: Cli, server: Server, published: None
) -> None:
    server.responses = [Response(cut=200)] * 5
    outcome = cli("data", "vgg-hand", "--url", server.url)
    assert (outcome.code, outcome.out) == (2, "")
    line = outcome.err.splitlines()[-1]
    assert line.startswith(
        f"error: {server.url}: the download failed after 5 tries: the transfer ended after 1,000 of "
    )
    assert line.endswith("run again to go on from data/hand_dataset.tar.gz.part")
    assert list_names(Path("data")) == {"hand_dataset.tar.gz.part", "hand_dataset.tar.gz.part.json"}
    assert cli("data", "vgg-hand", "--url", server.url).code == 0
    assert server.ranges[-1] == "bytes=1000-"
    check_data(Path("data/vgg-hand"))


def test_the_hash_is_held(cli: Cli, server: Server, packed: bytes, published: None) -> None:
    right, wrong = hashlib.sha256(packed).hexdigest(), "f" * 64
    outcome = cli("data", "vgg-hand", "--url", server.url, "--sha256", wrong)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(
        f"error: data/hand_dataset.tar.gz.bad: the file from {server.url} has the SHA-256 {right}, not {wrong}; run again"
    )
    assert list_names(Path("data")) == {"hand_dataset.tar.gz.bad"}
    Path("data/hand_dataset.tar.gz.bad").rename("mine.tar.gz")
    outcome = cli("data", "vgg-hand", "--archive", "mine.tar.gz", "--sha256", wrong)
    assert (
        outcome.err
        == f"error: mine.tar.gz: has the SHA-256 {right}, not {wrong}; check the hash, or download the file again\n"
    )
    assert list_names(Path()) == {"data", "mine.tar.gz"}
    outcome = cli("data", "vgg-hand", "--archive", "mine.tar.gz", "--sha256", right)
    assert outcome.code == 0
    assert outcome.err.splitlines()[0] == f"mine.tar.gz: the SHA-256 is {right}"


def test_a_bad_download_is_not_taken_again(cli: Cli, server: Server, packed: bytes, published: None) -> None:
    server.responses = [Response(length=len(packed) - 100)]
    outcome = cli("data", "vgg-hand", "--url", server.url)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(
        "error: data/hand_dataset.tar.gz: is a damaged archive, or no .tar.gz"
    )
    assert outcome.err.endswith("; run again to download it anew, or look at data/hand_dataset.tar.gz.bad\n")
    assert list_names(Path("data")) == {"hand_dataset.tar.gz.bad"}
    assert cli("data", "vgg-hand", "--url", server.url).code == 0


@pytest.mark.parametrize("out", ["full", "file"])
def test_a_place_that_is_taken_is_rejected_before_anything_is_downloaded(cli: Cli, server: Server, out: str) -> None:
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("five years")
    Path("file").write_text("six years")
    outcome = cli("data", "vgg-hand", "--url", server.url, "--out", out)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: {out}: holds something already; name a new or empty folder\n"
    assert server.requests == []
    assert list_names(Path()) == {"full", "full/thesis.txt", "file"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--url ftp://a.b/hands.tar.gz", "--url: 'ftp://a.b/hands.tar.gz' is no address; write http://… or https://…"),
        ("--url file:///etc/passwd", "--url: 'file:///etc/passwd' is no address; write http://… or https://…"),
        ("--url http://a/b --archive c", "--url: c is given as well; give either url or archive"),
        ("--sha256 abc", "--sha256: abc is no SHA-256; give 64 hexadecimal digits"),
        (
            "--archive none.tar.gz",
            "none.tar.gz: cannot be read (No such file or directory); name a file that can be read",
        ),
        ("--out .", ".: is no name for a folder to make; name a new or empty folder"),
        ("--out ..", "..: is no name for a folder to make; name a new or empty folder"),
        ("--archive .", ".: cannot be read (Is a directory); name a file that can be read"),
    ],
)
def test_bad_words(cli: Cli, words: str, line: str) -> None:
    outcome = cli("data", "vgg-hand", "--out", "new", *words.split())
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {line}\n")
    assert list_names(Path()) == set()


def test_a_response_that_is_an_error_is_named(cli: Cli, server: Server) -> None:
    server.responses = [Response(status=404)]
    outcome = cli("data", "vgg-hand", "--url", server.url)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == (
        f"error: {server.url}: the server responds 404 Not Found; "
        "check --url, or get the file in another way and name it with --archive"
    )
    assert list_names(Path()) == {"data"}


HOSTILE = {
    "climbs": (make_member("hand_dataset/../../evil.jpg"), "leads out of the folder"),
    "is absolute": (make_member("/tmp/evil.jpg"), "has an absolute path"),
    "links": (make_member(f"{TRAIN}/images/x.jpg", tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link"),
    "links hard": (make_member(f"{TRAIN}/images/x.jpg", tarfile.LNKTYPE, "hand_dataset/README.txt"), "is a hard link"),
    "is a device": (make_member(f"{TRAIN}/images/x.jpg", tarfile.CHRTYPE), "is a device"),
    "is a pipe": (make_member(f"{TRAIN}/images/x.jpg", tarfile.FIFOTYPE), "is a pipe"),
    "comes twice": (make_member(f"{TRAIN}/images/Buffy_1.jpg"), "is stored twice"),
    "comes twice elsewhere": (make_member(f"other/{FOLDERS['train']}/images/Buffy_1.jpg"), "is stored twice"),
    "is a bomb": (make_member(f"{TRAIN}/images/x.jpg", size=1 << 40), "unpacks to more than 4,294,967,296 bytes"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_gives_one_line_and_leaves_nothing(cli: Cli, kind: str, published: None) -> None:
    member, what = HOSTILE[kind]
    write_archive(Path("hands.tar.gz"), make_files(), [(member, b"")])
    outcome = cli("data", "vgg-hand", "--archive", "hands.tar.gz")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 2
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: hands.tar.gz: ")
    assert f": {what}; download the archive again" in line
    assert list_names(Path()) == {"data", "hands.tar.gz"}


def spoil(files: dict[str, bytes], kind: str) -> str:
    """Change one file, and return the start of the line that is to name it."""
    image, mat = f"{TEST}/images/Skin_3.jpg", f"{TEST}/annotations/Skin_3.mat"
    at_mat = "hands.tar.gz: test_dataset/test_data/annotations/Skin_3.mat"
    corner = make_box(INNER)
    if kind == "no image":
        files[image] = b"\xff\xd8 no"
        return "hands.tar.gz: test_dataset/test_data/images/Skin_3.jpg: is not a readable image"
    if kind == "image alone":
        del files[mat]
        return "hands.tar.gz: test_dataset/test_data/images/Skin_3.jpg: has no .mat of its name; download"
    if kind == "annotation alone":
        del files[image]
        del files[f"{TEST}/images/VOC2007_1.jpg"]
        return f"{at_mat}: has no .jpg of its name, and so 1 more; download"
    if kind == "no split":
        for name in [name for name in files if name.startswith(TEST)]:
            del files[name]
        return "hands.tar.gz: there are no images in test_dataset/test_data/images; name the Visual"
    what, files[mat] = {
        "no matlab": ("is no readable MATLAB file", b"<html>"),
        "nothing": ("is no readable MATLAB file", b""),
        "no boxes": ("the variable boxes is missing", make_mat([corner], name="boxen")),
        "no cell": ("boxes is not a 1×N cell", _save(boxes=np.ones((2, 2)))),
        "text": ("boxes is not a 1×N cell", _save(boxes="hands")),
        "no struct": ("box 2: is not a struct", make_mat([corner, np.ones((1, 2))])),
        "no corner": ("box 1: corner c is missing", make_mat([{name: corner[name] for name in "abd"}])),
        "NaN": ("box 2: corner b is not two finite numbers", make_mat([corner, {**corner, "b": np.array([[1, np.nan]])}])),
        "infinite": ("box 1: corner d is not two finite numbers", make_mat([{**corner, "d": np.array([[np.inf, 1]])}])),
        "three": ("box 1: corner a is not two finite numbers", make_mat([{**corner, "a": np.ones((1, 3))}])),
        "empty": ("box 1: corner a is not two finite numbers", make_mat([{**corner, "a": np.ones((0, 0))}])),
        "word": ("box 1: corner a is not two finite numbers", make_mat([{**corner, "a": "12"}])),
        "complex": ("is no readable MATLAB file", make_mat([{**corner, "a": np.array([[1 + 2j, 3]])}])),
    }[kind]  # fmt: skip
    return f"{at_mat}: {what}; download the archive again from its publisher"


def _save(**variables: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables)
    return stream.getvalue()


@pytest.mark.parametrize(
    "kind",
    ["no image", "image alone", "annotation alone", "no split", "no matlab", "nothing", "no boxes", "no cell", "text",
     "no struct", "no corner", "NaN", "infinite", "three", "empty", "word", "complex"],
)  # fmt: skip
def test_a_broken_file_is_named_as_the_archive_has_it_and_nothing_is_left(cli: Cli, kind: str) -> None:
    files = make_files()
    start = spoil(files, kind)
    write_archive(Path("hands.tar.gz"), files)
    outcome = cli("data", "vgg-hand", "--archive", "hands.tar.gz", "--any-counts")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: {start}"), outcome.err
    assert list_names(Path()) == {"data", "hands.tar.gz"}


@pytest.mark.parametrize("top", ["", "a/b c/", "./hand_dataset/"])
def test_the_archive_s_top_folder_does_not_matter(cli: Cli, published: None, top: str) -> None:
    write_archive(Path("hands.tar.gz"), make_files(top=top))
    assert cli("data", "vgg-hand", "--archive", "hands.tar.gz").code == 0
    check_data(Path("data/vgg-hand"))


def test_boxes_turn_with_the_image(cli: Cli, published: None) -> None:
    files = make_files()
    files[f"{TEST}/images/Skin_3.jpg"] = make_jpeg(orientation=6)
    write_archive(Path("hands.tar.gz"), files)
    assert cli("data", "vgg-hand", "--archive", "hands.tar.gz").code == 0
    assert Path("data/vgg-hand/images/test/Skin_3.jpg").read_bytes() == files[f"{TEST}/images/Skin_3.jpg"]
    row = np.array(Path("data/vgg-hand/labels/test/Skin_3.txt").read_text().split()[1:], np.float64)
    # stored 40×20 with (10.5, 4.5, 19.5, 13.5); shown a quarter turn clockwise, 20×40: x = 20 - y, y = x
    np.testing.assert_allclose(row * (HEIGHT, WIDTH, HEIGHT, WIDTH), (11, 15, 9, 9), atol=1e-4)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_came_and_no_folder(
    server: Server, packed: bytes, workplace: Path, signum: signal.Signals
) -> None:
    server.responses = [Response(cut=1000, wait=(done := threading.Event()))]
    command = [sys.executable, "-m", "yolo_prune", "data", "vgg-hand", "--url", server.url, "--any-counts"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job is deaf to it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    part = Path("data/hand_dataset.tar.gz.part")
    while process.poll() is None and not (part.is_file() and part.stat().st_size == 1000):
        done.wait(0.01)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    done.set()
    assert (process.returncode, out) == (128 + signum, "")
    assert (
        err.splitlines()[-1]
        == f"stopped by signal {signum.value}; what was finished is on disk, and the run can be resumed"
    )
    assert list_names(Path("data")) == {part.name, f"{part.name}.json"}
    assert part.read_bytes() == packed[:1000]
    stage.make_vgg_hand(Path("data/vgg-hand"), VggHandConfig(url=server.url, any_counts=True))
    assert server.ranges == [None, "bytes=1000-"]
    check_data(Path("data/vgg-hand"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    "name", ["a/training_dataset/training_data/images/x.jpg", "training_dataset/training_data/images/x.jpg"]
)
def test_where_an_image_belongs(name: str) -> None:
    assert choose_place(PurePosixPath(name)) == PurePosixPath("images/train/x.jpg")


@pytest.mark.parametrize(
    "name",
    ["training_data/images/x.jpg", "training_dataset/validation_data/images/x.jpg", "a/training_dataset/training_data/x.jpg",
     "training_dataset/training_data/images/x.mat", "training_dataset/training_data/annotations/x.jpg", "x.jpg", ".",
     "training_dataset/training_data/images/a/x.jpg", "training_dataset/training_data/images/.x.jpg",
     "training_dataset/training_data/masks/x.jpg", "training_dataset/training_data/masks/x", "training_dataset/training_data/images"],
)  # fmt: skip
def test_what_belongs_nowhere(name: str) -> None:
    assert choose_place(PurePosixPath(name)) is None


def save_mat(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("fields", ["abcd", "dcba", "bdac"])
def test_corners_of_one_and_of_many_boxes_whatever_their_order(tmp_path: Path, fields: str, compress: bool) -> None:
    further = {"label": "L", "score": np.ones((2, 3)), "deep": {"a": 1, "cell": np.array([["x", 2]], object)}}
    for quads in ([INNER], [INNER, TILTED, OVER, BEYOND]):
        boxes = [make_box(quad, fields, **further) for quad in quads]
        found = load_corners(save_mat(tmp_path / "a.mat", make_mat(boxes, compress=compress, author="someone")))
        np.testing.assert_array_equal(found, np.array(quads)[:, :, ::-1] - 0.5)


def test_corners_may_be_whole_numbers_or_columns(tmp_path: Path) -> None:
    box = {name: np.array(corner, np.uint16).reshape(2, 1) for name, corner in zip("abcd", INNER, strict=True)}
    (found,) = load_corners(save_mat(tmp_path / "a.mat", make_mat([box]))).tolist()
    assert found == [[10.5, 4.5], [19.5, 4.5], [19.5, 13.5], [10.5, 13.5]]


@pytest.mark.parametrize("empty", [np.empty((1, 0), object), np.empty((0, 0), object), np.zeros((0, 0))])
def test_no_box_at_all(tmp_path: Path, empty: Any) -> None:
    assert load_corners(save_mat(tmp_path / "a.mat", _save(boxes=empty))).shape == (0, 4, 2)


COORDINATE = st.floats(-1e4, 1e4)
POINTS = st.lists(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=4, max_size=4), max_size=4)


@given(POINTS, st.permutations(range(4)), st.tuples(COORDINATE, COORDINATE))
@settings(max_examples=100, deadline=None)
def test_a_box_is_the_smallest_around_its_corners_in_any_order(
    quads: list[list[tuple[float, float]]], order: list[int], shift: tuple[float, float]
) -> None:
    corners = np.array(quads, np.float64).reshape(-1, 4, 2)
    boxes = enclose(corners)
    assert boxes.shape == (len(quads), 4)
    for (x1, y1, x2, y2), points in zip(boxes.tolist(), corners, strict=True):
        assert all(x1 <= x <= x2 and y1 <= y <= y2 for x, y in points.tolist())
        assert {x1, x2} <= set(points[:, 0].tolist())
        assert {y1, y2} <= set(points[:, 1].tolist())
    np.testing.assert_array_equal(enclose(corners[:, order]), boxes)
    np.testing.assert_array_equal(enclose(corners + shift), boxes + np.array(shift * 2))


@given(st.lists(st.tuples(*[st.tuples(COORDINATE, COORDINATE)] * 4), max_size=3))
@settings(max_examples=30, deadline=None)
def test_corners_survive_a_round_trip_through_matlab_s_format(
    tmp_path_factory: pytest.TempPathFactory, quads: list[Quad]
) -> None:
    path = tmp_path_factory.getbasetemp() / "survive.mat"
    found = load_corners(save_mat(path, make_mat([make_box(quad) for quad in quads])))
    np.testing.assert_array_equal(found, np.array(quads).reshape(-1, 4, 2)[:, :, ::-1] - 0.5)


MAT = make_mat([make_box(INNER, label="L"), make_box(TILTED)], compress=False)


@given(
    st.lists(st.tuples(st.integers(128, len(MAT) - 1), st.integers(0, 255)), max_size=3), st.integers(0, 2 * len(MAT))
)
@settings(max_examples=200, deadline=None)
def test_a_corrupt_annotation_is_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], end: int
) -> None:
    content = bytearray(MAT)
    for at, value in changes:
        content[at] = value
    path = save_mat(tmp_path_factory.getbasetemp() / "spoilt.mat", bytes(content[:end]))
    with suppress(DatasetError):
        corners = load_corners(path)
        assert corners.shape[1:] == (4, 2)
        assert np.isfinite(corners).all()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (328, 8),  # a corner of a type that there is none of: scipy's reader takes a null pointer for it
        (328, 161),  # of a type beyond its table
        (328, 14),  # of a matrix for numbers
        (297, 8),  # complex, without an imaginary part
        (596, 0),  # a text without a shape
    ],
)
def test_an_annotation_that_would_crash_the_reader_is_rejected(tmp_path: Path, at: int, value: int) -> None:
    content = bytearray(make_mat([make_box(INNER, label="L")], compress=False))
    assert load_corners(save_mat(tmp_path / "a.mat", bytes(content))).shape == (1, 4, 2)
    content[at] = value
    with pytest.raises(DatasetError, match=r"a\.mat: is no readable MATLAB file; download the archive again"):
        load_corners(save_mat(tmp_path / "a.mat", bytes(content)))
