"""No command replaces a file that it did not make, unless --force says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY_CFG, Cli, Outcome

from yolo_prune.errors import OutputError
from yolo_prune.files import check_replaceable
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("workplace")
MINE = "five years of work"


def leave(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MINE)
    return path


def list_files() -> dict[str, bytes]:
    """Return all files in the present folder, hidden ones too."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def check_refused(outcome: Outcome, *names: str) -> None:
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert line == outcome.err.splitlines()[-1]
    assert line.startswith(f"error: {names[0]}: is there already, and would be replaced")
    assert line.endswith("; name another --out, or replace with --force")
    for name in names[1:]:
        assert name in line


@pytest.fixture
def other(workplace: Path, trained: Path) -> Path:
    """Return a checkpoint with the same weights and another SHA-256."""
    checkpoint = load_checkpoint(trained)
    return save_checkpoint(
        Path("other.pt"), replace(checkpoint, provenance={**checkpoint.provenance, "stage": "import"})
    )


@pytest.fixture
def own(workplace: Path, trained: Path) -> Path:
    return Path(shutil.copy(trained, workplace / "own.pt")).relative_to(workplace)


LEFT = {
    "cfg make": ("cfg make --arch yolov3-tiny --out hand.cfg", ["hand.cfg"]),
    "import": ("import tiny.cfg --out hand.pt", ["hand.pt"]),
    "import by default": ("import tiny.cfg", ["runs/import/tiny.pt"]),
    "export, weights": ("export own.pt", ["own.weights"]),
    "export, cfg": ("export own.pt --out a", ["a.cfg"]),
    "export, both": ("export own.pt --out a", ["a.weights", "a.cfg"]),
    "export, network": ("export own.pt --out a.onnx", ["a.onnx"]),
    "export, part": ("export own.pt --out a.xml", ["a.bin"]),
    "export, card": ("export own.pt --out a.onnx", ["a.md"]),
    "export, example": ("export own.pt --out a.onnx", ["a_onnx.py"]),
    "data check": ("data check {hands} --out out", ["out/report.json"]),
    "data check, plot": ("data check {hands} --out out", ["out/contact_sheet.png", "out/boxes.png"]),
}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("case", LEFT)
def test_a_file_of_somebody_else_is_replaced_by_force_alone(cli: Cli, hands: Path, case: str) -> None:
    words, names = LEFT[case]
    Path("tiny.cfg").write_text(TINY_CFG)
    for name in names:
        leave(name)
    before = list_files()
    line = words.format(hands=hands).split()
    check_refused(cli(*line), *names)
    assert list_files() == before
    assert cli(*line, "--force").code == 0
    after = list_files()
    assert all(after[name] != MINE.encode() for name in names)


@pytest.mark.parametrize(
    "words",
    [
        "cfg make --arch yolov3-tiny --out hand.cfg",
        "import tiny.cfg --out hand.pt",
        "export own.pt --out a",
        "export own.pt --out a --fold",
        "export own.pt --out a --format onnx,darknet",
        "export own.pt --out a --format pytorch-yolov3",
        "data check {hands} --out out",
    ],
)
@pytest.mark.usefixtures("own")
def test_a_command_may_replace_what_it_made_of_the_same(cli: Cli, hands: Path, words: str) -> None:
    Path("tiny.cfg").write_text(TINY_CFG)
    line = words.format(hands=hands).split()
    for _ in range(2):
        assert cli(*line).code == 0
    assert not [name for name in list_files() if name.endswith(".tmp")]


def test_an_export_of_another_checkpoint_is_not_replaced(cli: Cli, own: Path, other: Path) -> None:
    assert cli("export", own, "--out", "a.onnx").code == 0
    before = list_files()
    check_refused(cli("export", other, "--out", "a.onnx"), "a.onnx", "a.md")
    assert list_files() == before
    assert cli("export", other, "--out", "a.onnx", "--force").code == 0
    assert cli("export", other, "--out", "a.onnx").code == 0


def test_an_example_that_was_changed_is_not_replaced(cli: Cli, own: Path) -> None:
    assert cli("export", own, "--out", "a.onnx").code == 0
    with Path("a_onnx.py").open("a") as file:
        file.write("print('mine')\n")
    check_refused(cli("export", own, "--out", "a.onnx"), "a_onnx.py")
    assert cli("export", own, "--out", "a.onnx", "--no-card").code == 0


def test_an_import_of_other_weights_is_not_replaced(cli: Cli, own: Path) -> None:
    assert cli("export", own, "--out", "a").code == 0
    assert cli("import", "a.cfg", "--out", "b.pt").code == 0
    check_refused(cli("import", "a.cfg", "--weights", "a.weights", "--out", "b.pt"), "b.pt")
    assert cli("import", "a.cfg", "--weights", "a.weights", "--out", "c.pt").code == 0
    assert cli("import", "a.cfg", "--weights", "a.weights", "--out", "c.pt", "--seed", 3).code == 0


def test_an_export_does_not_replace_the_files_that_were_imported(cli: Cli, own: Path) -> None:
    assert cli("export", own, "--out", "a").code == 0
    Path("a.cfg").write_text("# mine\n" + Path("a.cfg").read_text())
    assert cli("import", "a.cfg", "--weights", "a.weights", "--out", "a.pt").code == 0
    check_refused(cli("export", "a.pt"), "a.cfg")
    assert Path("a.cfg").read_text().startswith("# mine\n")


def test_a_folded_export_does_not_replace_the_cfg_of_prune(cli: Cli, own: Path) -> None:
    assert cli("prune", own, "--one-shot", "--ratio", 0.5, "--recalibrate", 0).code == 0
    before = list_files()
    check_refused(cli("export", "--fold"), "runs/prune/pruned.cfg")
    assert list_files() == before
    assert cli("export").code == 0  # the cfg is the same


def test_an_input_is_never_replaced(cli: Cli, own: Path) -> None:
    before = list_files()
    for words in (f"import {own} --out {own} --force", "import tiny.cfg --weights own.pt --out own.pt --force"):
        Path("tiny.cfg").write_text(TINY_CFG)
        assert cli(*words.split()).code == 2
        Path("tiny.cfg").unlink()
        assert list_files() == before


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        *((f"export own.pt --out {out}", f"{out}: is no name for a file; name a file") for out in (".", "/", "..")),
        ("cfg make --out .", ".: is no name for a file; name a file"),
        ("cfg make --out folder", "folder: is a folder; name a file"),
        ("export own.pt --out folder/a", "folder/a.weights: is a folder; name a file"),
        ("export own.pt --out file/a", "file/a.cfg: cannot be written (File exists)"),
        ("import tiny.cfg --out folder.pt", "folder.pt: is a folder; name a file"),
        ("import tiny.cfg --out .", ".: is no name for a file; name a file"),
        ("import tiny.cfg --out tiny2.cfg", "--out: tiny2.cfg is no name of a checkpoint; use tiny2.pt"),
        ("data check {hands} --out file", "file: is no folder; name a folder"),
        ("data synthetic --out file", "file: is not a folder of synthetic hands; name a new or empty folder"),
        ("data synthetic --out .", ".: is not a folder of synthetic hands; name a new or empty folder"),
        ("data convert {hands} --to coco --out file", "file: holds something already; name a new or empty folder"),
        ("data convert {hands} --to coco --out .", ".: is no name for a folder to make; name a new or empty folder"),
    ],
)
def test_a_path_that_cannot_be_what_is_wanted_is_one_line(cli: Cli, hands: Path, words: str, said: str) -> None:
    Path("tiny.cfg").write_text(TINY_CFG)
    leave("file")
    for name in ("folder/a.weights", "folder.pt"):
        Path(name).mkdir(parents=True)
    before = list_files()
    outcome = cli(*words.format(hands=hands).split(), *(["--force"] if "folder" in words else []))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == f"error: {said}"
    assert list_files() == before
    assert Path("folder/a.weights").is_dir()


def test_several_files_are_named_in_one_line() -> None:
    paths = [leave(name) for name in ("a", "b")]
    with pytest.raises(OutputError, match=r"^a: is there already, and would be replaced, as would b; name another"):
        check_replaceable([*paths, Path("c")], force=False)
    check_replaceable(paths, force=True)
    check_replaceable(paths, force=False, is_own=lambda path: True)
    with pytest.raises(OutputError, match=r"^b: is read by this command, and would be replaced; name another --out"):
        check_replaceable(paths, force=True, inputs=[Path("../workplace/b")])
