"""A few kills of a few commands by scripts/kill_runs.py, and whether it would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import pytest
from kills.cases import CASES, find_forgotten, list_commands
from kills.contents import compare, find_broken, find_scraps, read_contents
from kills.trial import Reference, Trial
from paths import ROOT

pytestmark = pytest.mark.checkout
KILLS = int(os.environ.get("YOLO_PRUNE_KILLS", "2"))
"""Of each command; scripts/kill_runs.py kills 20 times."""
QUICK = ("config copy", "data convert", "plan", "train, workers")


def test_every_command_is_tried_or_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_forgotten() == []
    assert {"train", "data check", "cfg show"} <= set(list_commands())
    monkeypatch.delitem(CASES, "import")
    monkeypatch.setitem(CASES, "fly", CASES["train"])
    assert find_forgotten() == ["fly", "import"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


WHOLE = {"a.json": '{"x": 1, "seconds": 2}', "b.csv": "x,y\n1,2\n", "c.html": "<p></html>\n", "d.weights": "12345678"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", '{"x": '), ("b.csv", "x,y\n1"), ("b.csv", "x,y\n1,2\n3\n"), ("c.html", "<p>"), ("d.weights", "12")],
)
def test_a_half_written_file_is_noticed(tmp_path: Path, name: str, text: str) -> None:
    whole = read_contents(write(tmp_path / "whole", WHOLE))
    place = write(tmp_path / "place", {**WHOLE, ".b.csv.0123abcd-7.tmp": "x"})
    assert find_broken(place, {}, whole) == []
    write(place, {name: text})
    (found,) = find_broken(place, {}, whole)
    assert found.startswith(name)


def test_an_input_that_is_changed_is_noticed(tmp_path: Path) -> None:
    before = read_contents(write(tmp_path, {"in.json": "1"}))
    write(tmp_path, {"in.json": "2"})
    assert find_broken(tmp_path, before, before) == ["in.json was changed"]


def test_scraps_and_differences_are_noticed(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, WHOLE) for name in ("one", "two"))
    write(two, {"a.json": '{"x": 1, "seconds": 3}', "c.html": "<h1></html>"})
    assert compare(one, two, timed=["c.html"]) is None
    assert compare(one, two, timed=[]) == "c.html differs"
    write(two, {"a.json": '{"x": 2, "seconds": 2}'})
    assert compare(one, two, timed=["c.html"]) == "a.json: x differs"
    write(two, {".out.0123abcd-7.tmp/part": ""})
    assert find_scraps(two) == [".out.0123abcd-7.tmp"]
    assert compare(one, two, timed=["c.html"]) == ".out.0123abcd-7.tmp/part is missing"


@pytest.mark.parametrize("seconds", [0.01, 0.09, 3.0])
def test_runs_of_any_length_are_killed_before_they_end(seconds: float) -> None:
    trial = object.__new__(Trial)
    trial.chance, trial.longest_s = Random(0), seconds
    trial.reference = Reference(Path(), seconds, seconds / 2, "")
    moments = [trial._choose_moment() for _ in range(50)]
    assert 0 < min(moments) <= max(moments) <= seconds


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found by /proc")
def test_commands_that_are_killed_leave_nothing_half_done() -> None:
    words = [sys.executable, str(ROOT / "scripts/kill_runs.py"), "--kills", str(KILLS), "--commands", ";".join(QUICK)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:  # a short path: the sockets of processes lie in it
        done = subprocess.run(
            [*words, "--jobs", "1", "--folder", folder],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=1200,
        )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert f"{KILLS * len(QUICK)} kills in " in done.stdout
