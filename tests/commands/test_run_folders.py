from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Cli

from yolo_prune.commands.run_folders import (
    RUNS,
    find_latest,
    find_run_folder,
    hold_run_folder,
    remember_latest,
    resolve_checkpoint,
    take_run_folder,
)
from yolo_prune.errors import ConfigError, OutputError

pytestmark = pytest.mark.usefixtures("workplace")
PYTHON = (sys.executable,)
HOLDER = """
import os, sys, time
from pathlib import Path
from yolo_prune.commands.run_folders import hold_run_folder, take_run_folder
with {what} as folder:
    print(folder, flush=True)
    {do}
    sys.stdin.read()
"""


def hold(what: str, do: str = "") -> subprocess.Popen[str]:
    """Start a process that holds a folder until its stdin is closed, and prints which."""
    code = HOLDER.format(what=what, do=do)
    return subprocess.Popen([*PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read(process: subprocess.Popen[str]) -> str:
    """Wait for a line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leave(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_default_names_count_up() -> None:
    for expected in ("train", "train-2", "train-3"):
        with take_run_folder("train", "train") as folder:
            assert folder == RUNS / expected
            leave(folder / "last.pt")
        assert [path.name for path in folder.iterdir()] == ["last.pt"]  # the lock is removed


def test_two_runs_at_once_get_two_folders() -> None:
    with take_run_folder("train", "train") as one, take_run_folder("train", "train") as two:
        assert (one, two) == (RUNS / "train", RUNS / "train-2")
        assert find_run_folder("train", "train") is None
        leave(one / "last.pt")
    assert find_run_folder("train", "train") == one
    assert not two.exists()


def test_many_processes_at_once_get_as_many_folders() -> None:
    holders = [hold("take_run_folder('train', 'train')") for _ in range(6)]
    try:
        assert {read(holder) for holder in holders} == {
            "runs/train",
            *(f"runs/train-{number}" for number in range(2, 7)),
        }
    finally:
        for holder in holders:
            holder.communicate(timeout=120)  # it closes stdin, and thus ends the process
    assert not RUNS.exists() or not list(RUNS.iterdir())


def test_a_chosen_name_must_be_free() -> None:
    leave(RUNS / "mine/last.pt")
    with (
        pytest.raises(ConfigError, match=r"^--name: runs/mine already holds a run; use another name"),
        take_run_folder("mine", "train"),
    ):
        pytest.fail("it is not free")
    assert [path.name for path in (RUNS / "mine").iterdir()] == ["last.pt"]


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_name_in_use_is_free_once_its_process_has_ended(end: signal.Signals | None) -> None:
    holder = hold("take_run_folder('mine', 'train')")
    assert read(holder) == "runs/mine"
    line = rf"^--name: runs/mine is in use by process {holder.pid}; use another name, or wait until that ends$"
    with pytest.raises(ConfigError, match=line), take_run_folder("mine", "train"):
        pytest.fail("it is in use")
    if end is not None:
        holder.send_signal(end)
    holder.communicate(timeout=120)
    assert (RUNS / "mine/.lock").exists() is (end is not None)
    with take_run_folder("mine", "train") as folder:
        assert folder == RUNS / "mine"


def test_a_forked_child_does_not_keep_the_name_of_its_dead_parent() -> None:
    holder = hold(
        "take_run_folder('mine', 'train')",
        "child = os.fork(); child or (print(os.getpid(), flush=True), time.sleep(600))",  # it has let go once it prints
    )
    assert read(holder) == "runs/mine"
    child = int(read(holder))
    holder.kill()
    holder.wait(timeout=120)
    try:
        os.kill(child, 0)
        with take_run_folder("mine", "train") as folder:
            assert folder == RUNS / "mine"
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate(timeout=120)


@pytest.mark.parametrize(
    ("left", "is_kept"), [((), False), (("prune.json", "short.pt"), False), (("last.pt", "prune.json"), True)]
)
def test_a_start_that_fails_frees_its_name(left: tuple[str, ...], is_kept: bool) -> None:
    def fail() -> None:
        with take_run_folder("mine", "prune") as folder:
            for name in left:
                leave(folder / name)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (RUNS / "mine").exists() is is_kept
    if is_kept:
        assert sorted(path.name for path in (RUNS / "mine").iterdir()) == list(left)


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "prune.json", "short.pt")])
def test_a_folder_without_a_result_is_free(left: tuple[str, ...]) -> None:
    (RUNS / "mine").mkdir(parents=True)
    for name in left:
        leave(RUNS / "mine" / name)
    with take_run_folder("mine", "train") as folder:
        assert folder == RUNS / "mine"
        assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("is_killed", [True, False])
def test_the_parts_of_a_killed_run_are_no_result(is_killed: bool) -> None:
    for name in ("plan.json", "plan.png", "pruned.cfg"):
        leave(RUNS / "plan" / name)
    if is_killed:
        (RUNS / "plan/.lock").write_text("7 elsewhere")
    with take_run_folder("plan", "plan") as folder:
        assert folder == RUNS / ("plan" if is_killed else "plan-2")
        assert (RUNS / "plan/plan.json").exists() is not is_killed


def test_the_lock_of_a_run_that_was_killed_when_all_was_done_is_removed() -> None:
    leave(RUNS / "prune/pruned.pt")
    (RUNS / "prune/.lock").write_text("7 elsewhere")
    with take_run_folder("prune", "prune") as folder:
        assert folder == RUNS / "prune-2"
        assert [path.name for path in (RUNS / "prune").iterdir()] == ["pruned.pt"]


def test_a_run_that_fails_leaves_no_parts() -> None:
    def fail() -> None:
        with take_run_folder("plan", "plan") as folder:
            leave(folder / "plan.json")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not RUNS.exists()
    with take_run_folder("plan", "plan") as folder:
        leave(folder / "plan.json")
    assert (RUNS / "plan/plan.json").exists()


def test_a_file_is_no_run_folder() -> None:
    leave(RUNS / "latest.json")
    with pytest.raises(ConfigError, match=r"latest\.json already holds"), take_run_folder("latest.json", "train"):
        pytest.fail("it is a file")


def test_a_place_that_cannot_be_written_is_named() -> None:
    leave(RUNS)
    for name in ("mine", "train"):
        with pytest.raises(OutputError, match=r"^runs: is no folder; rename it"), take_run_folder(name, "train"):
            pytest.fail("runs is a file")


def test_a_run_that_goes_on_is_held_by_one_process() -> None:
    leave(RUNS / "mine/last.pt")
    holder = hold("hold_run_folder(Path('runs/mine'))")
    read(holder)
    line = rf"^runs/mine: is in use by process {holder.pid}; wait until that ends, or stop it first$"
    with pytest.raises(ConfigError, match=line), hold_run_folder(RUNS / "mine"):
        pytest.fail("it is in use")
    holder.communicate(timeout=120)
    with hold_run_folder(RUNS / "mine"):
        assert (RUNS / "mine/.lock").is_file()
    assert [path.name for path in (RUNS / "mine").iterdir()] == ["last.pt"]
    with hold_run_folder(RUNS / "other"):
        assert not (RUNS / "other").exists()


@pytest.mark.parametrize("stage", ["train", "finetune", "prune", "sensitivity", "iterate"])
def test_the_command_line_does_not_resume_a_run_in_use(cli: Cli, stage: str) -> None:
    leave(RUNS / stage / "last.pt")
    with hold_run_folder(RUNS / stage):
        outcome = cli(stage, "--resume")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: runs/{stage}: is in use by process {os.getpid()}; wait until")
    assert outcome.err.count("\n") == 1


def test_the_command_line_does_not_run_the_stages_of_a_run_in_use(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    Path("run.yaml").write_text(f"data: {hands}\nname: mine\ntrain: {{cfg: {tiny_cfg}}}\n")
    with hold_run_folder(RUNS / "mine", is_made=True):
        outcome = cli("run", "run.yaml")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: runs/mine: is in use by process {os.getpid()};")
    assert not (RUNS / "mine").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "missing.yaml"),
        ("iterate", "{trained}", "--target-params", "0.01", "--epochs", "1"),
        ("prune", "{trained}", "--one-shot", "--target-params", "0.0001"),
        ("plan", "{trained}", "--target-params", "0.0001"),
        ("sensitivity", "{trained}", "--data", "missing.yaml"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_is_refused_leaves_no_folder(cli: Cli, trained: Path, words: tuple[str, ...]) -> None:
    outcome = cli(*(word.format(trained=trained) for word in words), "--name", "foo", "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert not (RUNS / "foo").exists()


@pytest.mark.parametrize(
    ("words", "name"), [("detect {trained} {image} --device cpu", "detect"), ("data check {hands}", "check")]
)
def test_a_command_without_a_name_takes_the_next_number(
    cli: Cli, trained: Path, hands: Path, words: str, name: str
) -> None:
    image = hands.parent / "images/val/000000.jpg"
    with take_run_folder(name, name):
        assert cli(*words.format(trained=trained, hands=hands, image=image).split()).code == 0
    assert [path.name for path in RUNS.iterdir()] == [f"{name}-2"]
    assert cli(*words.format(trained=trained, hands="missing.yaml", image="missing.jpg").split()).code == 2
    assert [path.name for path in RUNS.iterdir()] == [f"{name}-2"]


def test_two_trainings_at_once_get_two_folders(hands: Path, tiny_cfg: Path) -> None:
    words = ("train", "--data", hands, "--cfg", tiny_cfg, "--epochs", "1", "--batch-size", "6", "--device", "cpu")
    processes = [
        subprocess.Popen(
            [*PYTHON, "-m", "yolo_prune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [code for _, _, code in ends] == [0, 0], ends
    assert {out for out, _, _ in ends} == {"runs/train/best.pt\n", "runs/train-2/best.pt\n"}
    for name in ("train", "train-2"):
        assert not list((RUNS / name).glob(".*"))


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
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"runs/a b/best.pt\nmore\n")))
    assert resolve_checkpoint(Path("-"), "train") == Path("runs/a b/best.pt")


@pytest.mark.parametrize("text", ["", "\n", "  \n"])
def test_an_empty_stdin_names_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(ConfigError, match=r"^-: stdin names no checkpoint; pipe a command in"):
        resolve_checkpoint(Path("-"), "train")
