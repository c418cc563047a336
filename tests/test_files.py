from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yolo_prune.errors import OutputError
from yolo_prune.files import make_folder_atomically, measure_sha256, open_atomically, save_json, save_text
from yolo_prune.scraps import name_scrap, remove_scraps

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


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    own = name_scrap(tmp_path / "a.pt").name
    dead = own.replace(f"-{os.getpid()}.", f"-{ended.pid}.")
    elsewhere = dead.replace(dead.split(".")[3].partition("-")[0], "0123abcd")
    old, other = f".a.pt.{ended.pid}.tmp", dead.replace(".a.pt", ".b.pt")
    kept = {own, elsewhere, "a.pt", ".a.pt.tmp", ".a.tmp"}
    for name in {old, dead, other, *kept}:
        (tmp_path / name).touch()
    (tmp_path / f"{dead[:-4].replace('a.pt', 'a')}.tmp").mkdir()
    remove_scraps(tmp_path, "a.pt")
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {other, *kept}
    (tmp_path / other).unlink()
    (tmp_path / other).mkdir()
    (tmp_path / other / "image").touch()
    remove_scraps(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_the_next_file_in_a_folder_removes_what_dead_processes_left_there(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    own = name_scrap(tmp_path / "b.txt").name
    dead = own.replace(f"-{os.getpid()}.", f"-{ended.pid}.")
    others = {own, f".c.txt.{ended.pid}.tmp"}  # the second may be another program's: it tells no machine
    for name in {dead, *others}:
        (tmp_path / name).touch()
    save_text(tmp_path / "a.txt", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", *others}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the start of a process is read from /proc")
def test_a_living_process_did_not_write_what_is_older_than_it(tmp_path: Path) -> None:
    scrap = name_scrap(tmp_path / "a.pt")
    scrap.touch()
    remove_scraps(tmp_path)
    assert scrap.exists()
    os.utime(scrap, (0, time.time() - 7 * 24 * 3600))
    remove_scraps(tmp_path)
    assert not scrap.exists()


def test_a_new_folder_is_made_where_a_killed_process_began_one(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = tmp_path / f".out.{ended.pid}.tmp"
    left.mkdir()
    (left / "half").touch()
    fill_until(tmp_path / "out", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
