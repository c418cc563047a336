from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from yolo_prune.errors import OutputError
from yolo_prune.files import make_folder_atomically, measure_sha256, open_atomically, save_json, save_text

FULL = OSError(28, "No space left on device")


def write_until(path: Path, error: BaseException) -> None:
    with open_atomically(path) as file:
        file.write(b"new")
        raise error


def test_text_and_json_are_written_into_new_folders(tmp_path: Path) -> None:
    assert save_text(tmp_path / "a" / "b.txt", "σ(x)\n").read_bytes() == "σ(x)\n".encode()
    assert json.loads(save_json(tmp_path / "c.json", {"boxes": [1, 2.5, None]}).read_text()) == {
        "boxes": [1, 2.5, None]
    }


def test_nothing_has_the_name_before_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with open_atomically(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [FULL, ValueError("a defect"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = save_text(tmp_path / "a.txt", "old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_until(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    here = save_text(tmp_path / "file", "here")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for path in (here / "a.txt", here / "deep" / "a.txt", tmp_path / "folder", tmp_path / ("long" * 100)):
        with pytest.raises(OutputError) as caught:
            save_text(path, "new")
        assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert here.read_text() == "here"


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(No space left on device\)$"):
        write_until(tmp_path / "a.txt", FULL)


def test_the_fingerprint_is_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 8192 + b"odd"
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert measure_sha256(path) == expected
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # as on Python 3.10
    assert measure_sha256(path) == expected


def fill_until(out: Path, error: BaseException | None) -> None:
    with make_folder_atomically(out) as folder:
        (folder / "a.txt").write_text("half")
        if error is not None:
            raise error


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill_until(tmp_path / "out", None)
    assert (tmp_path / "out/a.txt").read_text() == "half"
    for error in (FULL, ValueError("a defect"), KeyboardInterrupt()):
        with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
            fill_until(tmp_path / "deep/other", error)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_the_folder_that_one_is_in_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is no name for a folder to make; name a new or empty folder"):
        fill_until(Path(name), None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("five years of work")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(OutputError, match="holds something already; name a new or empty folder"):
            fill_until(out, None)
    assert (tmp_path / "thesis.txt").read_text() == "five years of work"
    assert len(list(tmp_path.iterdir())) == 1
