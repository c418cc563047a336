"""Classes are matched by name: a data set that numbers them otherwise neither teaches nor scores wrongly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY_CFG, Cli, read_json

from yolo_prune.datasets.class_names import match_names, number_as, rename
from yolo_prune.datasets.labels import load_objects
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.detections import make_detections
from yolo_prune.evaluation.evaluate import renumber
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint

TWO = TINY_CFG.replace("filters=12", "filters=14").replace("classes=1", "classes=2")


@pytest.mark.parametrize(
    ("own", "others", "places"),
    [
        (("a", "b"), ("a", "b"), None),
        (("a", "b"), ("b", "a"), (1, 0)),
        (("a", "b", "c"), ("c",), (-1, -1, 0)),
        (("0", "1"), ("b", "a"), None),
        (("class_0", "class_1"), ("b", "a"), None),
        (("hand",), ("Hand",), None),
        (("a", "b"), ("x", "y"), (-1, -1)),
    ],
)
def test_names_are_found_among_others(own: tuple[str, ...], others: tuple[str, ...], places: object) -> None:
    assert match_names(own, others) == places


def test_detections_of_classes_that_are_not_there_are_left_out() -> None:
    found = make_detections([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]], [0.9, 0.8, 0.7], [2, 0, 1])
    assert renumber(found, (-1, 1, 0)).classes.tolist() == [0, 1]
    assert renumber(found, (-1, 1, 0)).scores == pytest.approx([0.9, 0.7])


@pytest.fixture
def two(hands: Path, workplace: Path) -> Path:
    """Return a data set of two classes: the hands in turn are left and right."""
    shutil.copytree(hands.parent, workplace / "two")
    for number, path in enumerate(sorted((workplace / "two/labels").rglob("*.txt"))):
        path.write_text("".join(f"{number % 2}{line[1:]}\n" for line in path.read_text().splitlines()))
    data = workplace / "two/data.yaml"
    data.write_text("train: images/train\nval: images/val\nnames: [left, right]\n")
    return data


def swap(data: Path) -> Path:
    """Return the same data set with its classes numbered the other way round."""
    other = data.parent.with_name("swapped")
    shutil.copytree(data.parent, other)
    for path in (other / "labels").rglob("*.txt"):
        path.write_text("".join(f"{1 - int(line[0])}{line[1:]}\n" for line in path.read_text().splitlines()))
    (other / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [right, left]\n")
    return other / "data.yaml"


def test_the_order_of_classes_changes_neither_training_nor_scores(cli: Cli, two: Path) -> None:
    Path("two.cfg").write_text(TWO)
    small = ("--batch-size", 6, "--device", "cpu", "--workers", 0)
    assert cli("train", "--data", two, "--cfg", "two.cfg", "--epochs", 2, *small).code == 0
    swapped = swap(two)
    scores = [
        read_json(cli("evaluate", "runs/train/best.pt", "--data", data, "--json", "--device", "cpu"))
        for data in (two, swapped)
    ]
    assert scores[0]["map50"] == scores[1]["map50"]
    for name, data in (("one", two), ("other", swapped)):
        outcome = cli("train", "--data", data, "--weights", "runs/train/best.pt", "--epochs", 1, "--name", name, *small)
        assert outcome.code == 0, outcome.err
    assert "classes are numbered as in the network, by their names: left, right" in outcome.err
    one, other = (load_checkpoint(Path("runs", name, "best.pt")) for name in ("one", "other"))
    assert other.names == ("left", "right")
    for key, tensor in one.state.items():
        assert np.array_equal(tensor.numpy(), other.state[key].numpy()), key


def test_other_names_are_errors(cli: Cli, two: Path) -> None:
    Path("two.cfg").write_text(TWO)
    outcome = cli("import", "two.cfg", "--names", "left,foot")
    assert outcome.code == 0, outcome.err
    path = "runs/import/two.pt"
    outcome = cli("evaluate", path, "--data", two, "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(
        "error: --data: the network does not know the class right, but left, foot;"
    )
    outcome = cli("train", "--data", two, "--weights", path, "--epochs", 1, "--device", "cpu")
    assert outcome.err.splitlines()[-1] == (
        f"error: {path}: the network has the classes left, foot, the data set left, right; use a data set with the "
        "network's classes"
    )


def test_a_network_of_more_classes_is_scored_on_those_of_the_data_set(cli: Cli, hands: Path) -> None:
    Path("two.cfg").write_text(TWO)
    assert cli("import", "two.cfg", "--names", "foot,hand").code == 0
    outcome = cli("evaluate", "runs/import/two.pt", "--data", hands, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "classes are matched by their names: hand" in outcome.err


def test_classes_of_other_names_are_mapped(cli: Cli, hands: Path) -> None:
    Path("two.cfg").write_text(TWO)
    assert cli("import", "two.cfg", "--names", "left,right").code == 0
    for command in ("evaluate", "bench"):
        words = (command, "runs/import/two.pt", "--data", hands, "--device", "cpu")
        assert cli(*words).code == 2
        outcome = cli(*words, "--map", "left=hand,right=hand")
        assert outcome.code == 0, outcome.err
        assert "classes are matched by their names: hand" in outcome.err
        outcome = cli(*words, "--map", "foot=hand")
        assert outcome.err.splitlines()[-1] == (
            "error: --map: the network does not know the class foot, but left, right; name one of its classes before the ="
        )
        outcome = cli(*words, "--map", "left")
        assert outcome.err.splitlines()[-1] == "error: --map: 'left' is no NETWORK=DATA; write person=pedestrian"


def test_a_class_is_scored_by_the_name_that_the_map_gives_it() -> None:
    assert rename(("car", "truck", "dog"), ("car=vehicle", "truck = vehicle")) == ("vehicle", "vehicle", "dog")
    assert rename(("a", "b"), ("a=b", "b=a")) == ("b", "a")
    assert match_names(rename(("car", "truck", "dog"), ("car=vehicle", "truck=vehicle")), ("dog", "vehicle")) == (
        1,
        1,
        0,
    )


def test_names_may_be_in_a_file(cli: Cli) -> None:
    Path("two.cfg").write_text(TWO)
    Path("obj.names").write_text("left\nright\n\n")
    assert cli("import", "two.cfg", "--names", "obj.names").code == 0
    assert load_checkpoint(Path("runs/import/two.pt")).names == ("left", "right")


def test_labels_get_the_network_s_numbers(two: Path) -> None:
    spec = load_spec(two)
    other = number_as(spec, ("right", "left"), Path("net.pt"))
    for one, same in zip(spec.samples("train"), other.samples("train"), strict=True):
        assert load_objects(same, 2)[:, 0].tolist() == (1 - load_objects(one, 2)[:, 0]).tolist()
    with pytest.raises(ConfigError, match=r"net\.pt: the network has the classes left, the data set left, right"):
        number_as(spec, ("left",), Path("net.pt"))


def test_a_checkpoint_without_names_takes_the_numbers(cli: Cli, two: Path, workplace: Path) -> None:
    Path("two.cfg").write_text(TWO)
    assert cli("import", "two.cfg").code == 0
    checkpoint = load_checkpoint(Path("runs/import/two.pt"))
    save_checkpoint(workplace / "same.pt", replace(checkpoint, names=("left", "right")))
    scores = [
        read_json(cli("evaluate", path, "--data", two, "--json", "--device", "cpu"))["map50"]
        for path in ("runs/import/two.pt", "same.pt")
    ]
    assert scores[0] == scores[1]
