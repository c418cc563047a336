from __future__ import annotations

import io
from pathlib import Path

import pytest

from yolo_prune.commands.run_folders import RUNS, find_latest, make_run_folder, remember_latest, resolve_checkpoint
from yolo_prune.errors import ConfigError

pytestmark = pytest.mark.usefixtures("workplace")


def leave(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_default_names_count_up() -> None:
    for expected in ("train", "train-2", "train-3"):
        folder = make_run_folder("train", "train")
        assert folder == RUNS / expected
        leave(folder / "last.pt")


def test_a_name_is_only_given_out() -> None:
    make_run_folder("train", "train")
    assert not RUNS.exists()


def test_a_chosen_name_must_be_free() -> None:
    leave(RUNS / "mine/last.pt")
    with pytest.raises(ConfigError, match=r"^--name: runs/mine already holds a run; use another name"):
        make_run_folder("mine", "train")


def test_an_empty_folder_is_free() -> None:
    (RUNS / "mine").mkdir(parents=True)
    assert make_run_folder("mine", "train") == RUNS / "mine"


def test_a_file_is_no_run_folder() -> None:
    leave(RUNS / "latest.json")
    with pytest.raises(ConfigError, match=r"latest\.json already holds"):
        make_run_folder("latest.json", "train")


def test_the_newest_of_the_wanted_stages_is_found() -> None:
    paths = {stage: leave(Path("runs") / stage / "best.pt") for stage in ("train", "prune", "finetune")}
    for stage, path in paths.items():
        remember_latest(stage, path)
    assert find_latest("train") == paths["train"]
    assert find_latest("finetune", "prune", "train") == paths["finetune"]
    remember_latest("train", other := leave(Path("runs/train-2/best.pt")))
    assert find_latest("train") == other
    assert find_latest("finetune", "prune", "train") == other
    assert find_latest("prune") == paths["prune"]


def test_a_missing_checkpoint_is_skipped() -> None:
    for stage in ("train", "prune"):
        remember_latest(stage, leave(Path("runs") / stage / "best.pt"))
    Path("runs/prune/best.pt").unlink()
    assert find_latest("prune", "train") == Path("runs/train/best.pt")
    with pytest.raises(
        ConfigError, match=r"CHECKPOINT: no checkpoint of prune below runs; .* run yoloprune prune first"
    ):
        find_latest("prune")


@pytest.mark.parametrize("text", [None, "", "{", "[1]"])
def test_a_lost_or_damaged_note_is_no_note(text: str | None) -> None:
    if text is not None:
        leave(RUNS / "latest.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"no checkpoint of finetune or train below runs; .* run yoloprune train first"
    ):
        find_latest("finetune", "train")
    remember_latest("train", leave(Path("runs/train/best.pt")))
    assert find_latest("train") == Path("runs/train/best.pt")


def test_an_argument_is_taken_as_it_is() -> None:
    assert resolve_checkpoint(Path("a b.pt"), "train") == Path("a b.pt")


def test_a_dash_reads_one_line_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("runs/a b/best.pt\nmore\n"))
    assert resolve_checkpoint(Path("-"), "train") == Path("runs/a b/best.pt")


@pytest.mark.parametrize("text", ["", "\n", "  \n"])
def test_an_empty_stdin_names_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(ConfigError, match=r"^-: stdin names no checkpoint; pipe a command in"):
        resolve_checkpoint(Path("-"), "train")
