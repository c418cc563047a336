"""Data sets of several classes: scores by class, plots, worst images and names, in evaluate, bench and detect."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from many_classes import make_cfg, make_checkpoint, make_data, write_results
from PIL import Image
from tiny import Cli, read_json

from yolo_prune.benchmarking.class_table import MANY, NAME_WIDTH

LONG = "a class whose name is much longer than any table has room for, and goes on"
NAMES = ["left", "right", LONG, "none"]
"""The last has no objects."""


@pytest.fixture
def data(hands: Path, workplace: Path) -> Path:
    return make_data(hands, workplace / "four", NAMES, empty=1)


@pytest.fixture
def checkpoint(data: Path, workplace: Path) -> Path:
    return make_checkpoint(Path("four.pt"), data, NAMES)


def check_width(text: str) -> None:
    for line in text.splitlines():
        if not line.startswith("scoring "):
            assert len(line) <= 80, line


def test_evaluate_shows_classes_and_what_has_no_objects_has_no_ap(cli: Cli, checkpoint: Path, data: Path) -> None:
    perfect = write_results(Path("perfect.json"), data, "test")
    words = ("evaluate", "--detections", perfect, "--data", data, "--split", "test")
    text = cli(*words).out
    result = read_json(cli(*words, "--json"))
    assert [one["name"] for one in result["classes"]] == NAMES
    assert sum(one["instances"] for one in result["classes"]) == result["instances"]
    assert [(one["ap50"], one["recall"]) for one in result["classes"][:3]] == [(1, 1)] * 3
    assert result["classes"][3] == {"name": "none", "instances": 0, "ap50": None, "precision": None, "recall": None}
    assert result["map50"] == 1
    lines = text.splitlines()
    head = next(
        number for number, line in enumerate(lines) if line.split() == ["class", "objects", "AP", "precision", "recall"]
    )
    rows = lines[head + 2 : head + 6]
    assert [row.split()[0] for row in rows] == ["left", "right", "a", "none"]
    assert rows[0].split()[2:] == ["1.0000", "1.000", "1.000"]
    assert rows[3].split() == ["none", "0", "–", "–", "–"]
    assert "…" in rows[2]
    assert len(rows[2].partition("  ")[0]) <= NAME_WIDTH
    assert "1 of 4 classes have no objects" in text
    check_width(text)


def test_models_have_a_table_each_with_the_change_from_the_first(cli: Cli, data: Path) -> None:
    perfect = write_results(Path("perfect.json"), data, "test")
    worse = write_results(Path("worse.json"), data, "test", every=2)
    words = ("evaluate", "--detections", perfect, "--detections", worse, "--data", data, "--split", "test")
    text = cli(*words).out
    first, second = read_json(cli(*words, "--json")), read_json(cli(*words, "--json"))["compared"][0]
    change = second["classes"][0]["ap50"] - first["classes"][0]["ap50"]
    assert change < 0
    rows = [line.split() for line in text.splitlines() if line.startswith("left ")]
    assert [len(row) for row in rows] == [5, 6]
    assert rows[1][3] == f"{change:+.4f}"
    assert text.count("By class, ") == 2
    check_width(text)


def test_one_class_has_no_table(cli: Cli, hands: Path) -> None:
    perfect = write_results(Path("perfect.json"), hands, "test")
    words = ("evaluate", "--detections", perfect, "--data", hands, "--split", "test")
    assert "By class" not in cli(*words).out
    assert [one["name"] for one in read_json(cli(*words, "--json"))["classes"]] == ["hand"]


def test_of_many_classes_the_worst_and_the_largest_are_shown(cli: Cli, hands: Path) -> None:
    names = [f"class {number}" if number else "zebra" for number in range(80)]
    data = make_data(hands, Path("eighty").absolute(), names, empty=75)
    found = write_results(Path("found.json"), data, "test", every=3)
    words = ("evaluate", "--detections", found, "--data", data, "--split", "test")
    text = cli(*words).out
    assert "lowest AP first" in text
    assert "most objects first" in text
    assert "All 80 classes: --all-classes, or --json." in text
    assert text.count("\nzebra ") == 2
    assert "class 79" not in text
    every = cli(*words, "--all-classes").out
    assert every.count("\nzebra ") == 1
    assert every.count("\nclass ") == 79 + 1  # and the heading
    assert "--all-classes" not in every
    check_width(text + every)
    assert len(read_json(cli(*words, "--json"))["classes"]) == 80 > MANY


def test_bench_shows_classes_in_every_form(cli: Cli, checkpoint: Path, data: Path) -> None:
    words = (
        "bench",
        checkpoint,
        checkpoint.resolve(),
        "--runs",
        1,
        "--warmup",
        0,
        "--device",
        "cpu",
        "--split",
        "test",
    )
    text, markdown = cli(*words).out, cli(*words, "--markdown").out
    result = read_json(cli(*words, "--json"))
    classes = result["rows"][0]["classes"]
    assert [one["name"] for one in classes] == NAMES
    assert result["rows"][1]["classes"] == classes
    details = text.index("bound by")
    assert text.index("By class, four\n") > details
    assert text.count("By class, ") == 2
    assert "| class | objects | AP | precision | recall |" in markdown
    assert "| class | objects | AP | change | precision | recall |" in markdown
    assert f"| left | {classes[0]['instances']} | {classes[0]['ap50']:.4f} |" in markdown
    evaluated = read_json(cli("evaluate", checkpoint, "--split", "test", "--json"))
    assert evaluated["classes"] == classes
    (row, _) = csv.DictReader(io.StringIO(cli(*words, "--csv").out))
    assert float(row["classes_left_ap50"]) == classes[0]["ap50"]
    assert row["classes_none_ap50"] == "nan"


def test_agnostic_nms_is_heard_everywhere(cli: Cli, checkpoint: Path, data: Path) -> None:
    """Over all classes together fewer detections are left."""
    counts = {}
    for name, words in {"each": (), "all": ("--agnostic-nms",)}.items():
        scored = read_json(
            cli("evaluate", checkpoint, "--split", "test", "--save-detections", f"{name}.json", *words, "--json")
        )
        counts[name] = len(json.loads(Path(f"{name}.json").read_text()))
        bench = ("bench", checkpoint, "--runs", 1, "--warmup", 0, "--split", "test", "--device", "cpu", "--json")
        (row,) = read_json(cli(*bench, *words))["rows"]
        assert row["map50"] == scored["map50"]
        photos = data.parent / "images/test"
        found = read_json(cli("detect", checkpoint, photos, "--confidence", 0.001, "--out", name, *words, "--json"))
        counts[f"detect, {name}"] = len(found["detections"])
    assert counts["all"] < counts["each"]
    assert counts["detect, all"] < counts["detect, each"]


def test_training_validates_with_agnostic_nms(cli: Cli, data: Path) -> None:
    Path("four.cfg").write_text(make_cfg(4))
    words = ("train", "--data", data, "--cfg", "four.cfg", "--epochs", 1, "--batch-size", 6, "--device", "cpu")
    for name, more in {"each": (), "all": ("--agnostic-nms",)}.items():
        outcome = cli(*words, "--name", name, *more)
        assert outcome.code == 0, outcome.err
        best = outcome.out.strip()
        (row,) = csv.DictReader(io.StringIO(Path(f"runs/{name}/results.csv").read_text()))
        scored = read_json(cli("evaluate", best, *more, "--json"))
        assert float(row["val_map50"]) == pytest.approx(scored["map50"], abs=1e-6)
        assert float(row["classes"]) > 0  # the class loss


def test_results_name_the_classes_and_are_read_back(cli: Cli, checkpoint: Path, data: Path, trained: Path) -> None:
    words = ("--split", "test", "--json")
    once = read_json(cli("evaluate", checkpoint, "--save-detections", "found.json", *words))
    rows = json.loads(Path("found.json").read_text())
    assert rows
    assert all(row["category_name"] == NAMES[row["category_id"]] for row in rows)
    assert all(row.keys() == {"image_id", "category_id", "category_name", "bbox", "score"} for row in rows)
    again = read_json(cli("evaluate", "--detections", "found.json", "--data", data, *words))
    assert again["classes"] == once["classes"]
    assert again["confusion"] == once["confusion"]
    photo = next((data.parent / "images/test").iterdir())
    found = read_json(cli("detect", checkpoint, photo, "--confidence", 0.001, "--out", "out", "--json"))["detections"]
    assert {row["category_name"] for row in found} <= set(NAMES)
    assert found


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_plots_are_drawn(cli: Cli, hands: Path, classes: int) -> None:
    data = make_data(hands, Path("data").absolute(), [f"class {number}" for number in range(1, classes + 1)])
    found = write_results(Path("found.json"), data, "test", every=3)
    words = ("evaluate", "--detections", found, "--data", data, "--split", "test", "--plots", "plots", "--worst", 2)
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    names = sorted(path.relative_to("plots").as_posix() for path in Path("plots").rglob("*.png"))
    worst = [name for name in names if name.startswith("worst/")]
    assert [name for name in names if name not in worst] == ["class_curves.png", "confusion.png", "curves.png"]
    assert [name[:8] for name in worst] == ["worst/1-", "worst/2-"]
    for name in names:
        with Image.open(f"plots/{name}") as image:
            assert min(image.size) > 60
    with Image.open("plots/confusion.png") as image:
        assert (image.width > 1500) == (classes == 80)
    for name in ("confusion.png", "class_curves.png", "curves.png", "worst"):
        assert f"plots/{name}" in outcome.err


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("has_objects", [False, True])
@pytest.mark.parametrize("has_detections", [False, True])
def test_plots_are_drawn_of_nothing(
    cli: Cli, hands: Path, classes: int, has_objects: bool, has_detections: bool
) -> None:
    data = make_data(hands, Path("data").absolute(), [f"class {number}" for number in range(1, classes + 1)])
    found = write_results(Path("found.json"), data, "test")
    if not has_detections:
        found.write_text("[]")
    if not has_objects:
        shutil.rmtree("data/labels/test")
    words = ("evaluate", "--detections", found, "--data", data, "--split", "test", "--plots", "plots", "--worst", 1)
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert len(list(Path("plots").glob("*.png"))) == 3
    assert len(list(Path("plots/worst").glob("*.png"))) == int(has_objects or has_detections)
    assert "confidence nan." not in outcome.out


def test_names_that_fonts_and_formulas_do_not_have_are_drawn(cli: Cli, hands: Path) -> None:
    data = make_data(hands, Path("data").absolute(), ["手", "costs $5 or $6", "x" * 200])
    found = write_results(Path("found.json"), data, "test")
    outcome = cli("evaluate", "--detections", found, "--data", data, "--split", "test", "--plots", "plots")
    assert outcome.code == 0, outcome.err


def test_several_models_have_a_folder_each(cli: Cli, data: Path) -> None:
    one, two = (write_results(Path(f"{name}.json"), data, "test", every=every) for name, every in (("a", 1), ("b", 2)))
    words = ("--data", data, "--split", "test", "--plots", "plots", "--worst", 3)
    text = cli("evaluate", "--detections", one, "--detections", two, *words).out
    files = {path.relative_to("plots").as_posix() for path in Path("plots").rglob("*.png")}
    assert {"curves.png", "a/confusion.png", "b/confusion.png", "a/class_curves.png"} <= files
    assert sum(name.startswith("b/worst/") for name in files) == 3
    assert sum(name.startswith("a/worst/") for name in files) == 3
    assert text.count("\nImages with the most loss, ") == 2


def test_the_worst_images_are_those_with_the_most_loss(cli: Cli, hands: Path) -> None:
    perfect = write_results(Path("perfect.json"), hands, "test", score=1.0)
    rows = json.loads(perfect.read_text())
    images = sorted({row["image_id"] for row in rows})
    bad, worse = images[0], images[1]
    count = sum(row["image_id"] == worse for row in rows)
    for row in rows:
        if row["image_id"] == bad:
            row["score"] = 0.9
    kept = [row for row in rows if row["image_id"] != worse]
    Path("found.json").write_text(json.dumps(kept))
    words = ("evaluate", "--detections", "found.json", "--data", hands, "--split", "test", "--worst", 20)
    worst = read_json(cli(*words, "--json"))["worst"]
    assert [one["image"] for one in worst] == [worse, bad]
    assert worst[0] == {"image": worse, "loss": count, "instances": count, "missed": count, "false_alarms": 0}
    assert worst[1]["loss"] == pytest.approx(0.01 * sum(row["image_id"] == bad for row in kept), rel=1e-4)
    text = cli(*words).out
    assert text.index(worse) < text.index(bad)
    assert read_json(cli(*words[:-2], "--json"))["worst"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--worst", "-1"), "--worst: -1 is out of range; use a whole number from 0"),
        (("--worst", "many"), "--worst"),
        (("--plots", "taken"), "--plots: taken is a file; name a folder"),
        (
            ("--agnostic-nms",),
            "--agnostic-nms: detections of files are taken as they are, without NMS; name a checkpoint",
        ),
    ],
)
def test_bad_values_are_one_line(cli: Cli, hands: Path, words: tuple[str, ...], message: str) -> None:
    Path("taken").write_text("")
    found = write_results(Path("found.json"), hands, "test")
    outcome = cli("evaluate", "--detections", found, "--data", hands, "--split", "test", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
