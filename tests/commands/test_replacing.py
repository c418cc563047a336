"""No command replaces a file that it did not make, unless --force says so."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from tiny import TINY_CFG, Cli, Outcome
from videos import write_video

from yolo_prune.cli import main as command_line
from yolo_prune.errors import OutputError
from yolo_prune.files import check_replaceable
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint
from yolo_prune.own_files import check_own, is_marked

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


def check_refused(outcome: Outcome, *names: str, option: str = "--out") -> None:
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert line == outcome.err.splitlines()[-1]
    assert line.startswith(f"error: {names[0]}: is there already, and would be replaced")
    assert line.endswith(f"; name another {option}, or replace with --force")
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

FAST = "--no-score --runs 1 --warmup 0 --threads 1"
WRITTEN = {
    "detect, images": ("detect own.pt {photo} --out out", ["out/detections.json", "out/photo.png"]),
    "detect, videos": ("detect own.pt clip.mp4 --out out", ["out/detections.jsonl", "out/clip.mp4"]),
    "evaluate save-detections": ("evaluate own.pt --save-detections d.json", ["d.json"]),
    "evaluate curves": ("evaluate own.pt --curves c.png", ["c.png"]),
    "evaluate plots": (
        "evaluate own.pt --plots p --worst 1",
        ["p/curves.png", "p/confusion.png", "p/class_curves.png", "p/worst/1-mine.png"],
    ),
    "profile plot": ("profile own.pt --threads 1 --plot p.png", ["p.png"]),
    "profile plot, vectors": ("profile own.pt --threads 1 --plot p.svg", ["p.svg"]),
    "bench report": (f"bench own.pt {FAST} --report page.html", ["page.html"]),
    "report": (f"report own.pt {FAST} --images 0 --out page.htm", ["page.htm"]),
}
"""What is known as the package's own by a mark inside the file."""


@pytest.fixture
def photo(hands: Path, workplace: Path) -> Path:
    """Return an image of a hand; a clip lies beside it."""
    write_video(Path("clip.mp4"), 3)
    Path("in").mkdir()
    return Path(shutil.copy(next(iter(sorted(hands.parent.glob("images/test/*")))), "in/photo.jpg"))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("case", WRITTEN)
def test_results_replace_results_alone(cli: Cli, monkeypatch: pytest.MonkeyPatch, photo: Path, case: str) -> None:
    words, names = WRITTEN[case]
    line = words.format(photo=photo).split()
    for name in names:
        leave(name)
    before = list_files()
    option = next(
        (word for word in line if word in ("--save-detections", "--curves", "--plots", "--plot", "--report")), "--out"
    )
    with monkeypatch.context() as patch:
        patch.setattr("yolo_prune.model.detector.Detector.forward", refuse_to_work)
        check_refused(cli(*line), *names, option=option)
    assert list_files() == before


def refuse_to_work(*_: object) -> None:
    """Fail where a command computes before it looks at its files."""
    raise AssertionError


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("case", WRITTEN)
def test_what_was_left_is_replaced_with_force_and_then_known(cli: Cli, photo: Path, case: str) -> None:
    words, names = WRITTEN[case]
    for name in names:
        leave(name)
    outcome = cli(*words.format(photo=photo).split(), "--force")
    assert outcome.code == 0, outcome.err
    made = [Path(name) for name in names if "mine" not in name]
    assert all(path.read_bytes() != MINE.encode() for path in made)
    check_own(made, force=False)
    assert not any(is_marked(path) for path in (photo, Path("clip.mp4"), Path("own.pt")))


@pytest.mark.usefixtures("own")
def test_detect_may_be_run_again(cli: Cli, photo: Path) -> None:
    for _ in range(2):
        assert cli("detect", "own.pt", photo, "clip.mp4", "--out", "out").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(
        ["clip.mp4", "detections.json", "detections.jsonl", "photo.png"]
    )
    leave("out/clip.mp4")
    assert cli("detect", "own.pt", "clip.mp4", "--out", "out", "--no-save").code == 0
    assert cli("detect", "own.pt", photo, "--out", "in").code == 0  # beside what it reads
    assert photo.is_file()


@pytest.mark.parametrize(
    ("name", "content", "is_own"),
    [
        ("a.json", "[]\n", True),
        ("a.json", '[{"image_id": 3, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}]', False),
        ("a.json", '[\n  {\n    "image_id": "a.jpg",\n    "category_id": 0,\n    "bbox": [\n', True),
        ("a.jsonl", '{"source": "a", "frame": 0, "time_s": 0.0, "detections": []}\n', True),
        ("a.jsonl", '{"frame": 0}\n', False),
        ("a.html", "<p>of yolo_prune</p>", False),
        ("a.mp4", "of yolo_prune", False),
        ("a.txt", "yolo_prune", False),
        ("a.png", "", False),
    ],
)
def test_a_mark_is_told_from_a_mention(workplace: Path, name: str, content: str, is_own: bool) -> None:
    Path(name).write_text(content)
    assert is_marked(Path(name)) == is_own
    assert not is_marked(Path("nowhere.png"))


FOLDERS = {
    "data synthetic out": "data synthetic --out taken",
    "data convert out": "data convert {hands} --to coco --out taken",
    "data vgg-hand out": "data vgg-hand --out taken",
    "config copy out": "config copy demo --out taken",
}
"""Commands that make a folder: one that holds anything is not touched."""
READ = {"checkpoint", "checkpoints", "config", "data", "weights", "teacher", "cfg", "file", "from_sensitivity", "plan"}
READ |= {"subset", "annotations", "detections", "images", "archive"}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_holds_something_is_not_touched(cli: Cli, hands: Path, case: str) -> None:
    leave("taken/demo.yaml")
    before = list_files()
    outcome = cli(*FOLDERS[case].format(hands=hands).split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith("error: taken")
    assert list_files() == before


def list_commands(app: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[..., object]]]:
    for one in app.registered_commands:
        if one.callback is not None:
            yield " ".join((*before, one.name or one.callback.__name__.replace("_", "-"))), one.callback
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from list_commands(group.typer_instance, (*before, str(group.name)))


def test_every_option_that_writes_is_tried() -> None:
    found = {
        f"{name} {one.name}"
        for name, callback in list_commands(command_line.app)
        for one in inspect.signature(callback).parameters.values()
        if "Path" in str(one.annotation) and one.name not in READ
    }
    by_out = {f"{words.split(',')[0]} out" for words in (*LEFT, *WRITTEN) if len(words.split(",")[0].split()) == 1}
    tried = {case.replace("-", "_") for case in WRITTEN} | {f"{case.split(',')[0]} out" for case in LEFT} | by_out
    assert found <= tried | set(FOLDERS), found - tried - set(FOLDERS)


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
