"""Texts that are no path of any file: each is one line, whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Cli

from yolo_prune.files import can_be_path, expand_home

LONG = "x" * 300
PLACES = (
    "cfg show {}",
    "run {}",
    "import {}",
    "export {} --format darknet",
    "train --data {}",
    "train --cfg {}",
    "evaluate {}",
    "detect {} photo.jpg",
    "detect lone.pt {}",
    "data check {}",
    "data convert {} --to coco --out out",
    "data convert train={} --to yolo --out out",
    "data vgg-hand --archive {}",
    "bench {}",
    "evaluate --detections {} --data hands",
)


@pytest.mark.parametrize("path", [LONG, f"a/{LONG}/b.pt", "a/" * 3000, "\ud800"])
@pytest.mark.parametrize("words", PLACES)
def test_a_text_that_is_no_path_is_one_line(cli: Cli, lone: Path, words: str, path: str) -> None:
    outcome = cli(*(word.replace("{}", path) for word in words.split()))
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err) < 1200


@pytest.mark.parametrize("text", ["train: {}\nval: images", "train: images\nval: {}", "path: {}\ntrain: a\nval: b"])
@pytest.mark.parametrize("path", [LONG, "~nobody-of-this-name/x"])
def test_a_path_in_a_data_yaml(cli: Cli, workplace: Path, text: str, path: str) -> None:
    Path("images").mkdir()
    Path("images/a.png").touch()
    Path("data.yaml").write_text(text.format(path) + "\nnames: [hand]\n")
    outcome = cli("data", "anchors", "data.yaml")
    assert outcome.code == 2
    assert outcome.err.startswith("error: data.yaml: ")
    Path("set.data").write_text(text.replace(":", " =").format(path) + "\nnames = a.names\n")
    assert cli("data", "anchors", "set.data").code == 2


def test_stdin_that_is_no_text_names_no_checkpoint(cli: Cli) -> None:
    outcome = cli("export", "-", "--format", "darknet", stdin=b"\x89PNG\xff\xfe\n")
    assert (outcome.code, outcome.out) == (2, "")
    assert "cannot be read" in outcome.err


def test_as_in_a_shell_the_home_of_nobody_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/a") == Path("/home/me/a")
    assert expand_home("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


@pytest.mark.parametrize(
    "path", ["a", "/", "", "x" * 255, "a/" * 900, "ä" * 127, b"\xff".decode(errors="surrogateescape")]
)
def test_what_can_be_a_path(path: str) -> None:
    assert can_be_path(path)


@pytest.mark.parametrize("path", ["x" * 256, "ä" * 128, "a\0b", "\ud800", "a/" * 2048])
def test_what_cannot(path: str) -> None:
    assert not can_be_path(path)
