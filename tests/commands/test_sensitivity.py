"""What pruning one group after another costs: the table, the drop order that follows from it, and its command."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_small_network, randomise_
from tiny import PRUNABLE, SIDE, Cli, read_json

from yolo_prune.arrays import Float64Array
from yolo_prune.commands import sensitivity as stage
from yolo_prune.commands.config import SensitivityConfig
from yolo_prune.commands.sensitivity import resume_sensitivity, start_sensitivity
from yolo_prune.darknet.layers import Conv
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import Interrupted, PlanError, YoloPruneError
from yolo_prune.files import save_json
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan_file import measure_network_sha256
from yolo_prune.pruning.scores.sensitivity import (
    WORST_LOSS,
    GroupCurve,
    Sensitivity,
    load_sensitivity,
    parse_sensitivity,
    plan_group,
    rank_by_damage,
)

NETWORK = make_small_network(Conv(4, 3, 1, 1), Conv(6, 1), Conv(2, 1), Conv(1, 1))
"""Ids: image 0-2, then convolutions of 4, 6, 2 and 1, 3-6, 7-12, 13-14 and 15, the head from 16 on."""
GRAPH = make_channel_graph(NETWORK)
FOUR, SIX, TWO, ONE = ([*range(3, 7)], [*range(7, 13)], [13, 14], [15])
RISING = np.arange(GRAPH.size, dtype=float)

LAYERS = [(0,), (1, 3), (2,), (5,)]
"""The groups of the tiny network that can be pruned."""
MEASUREMENTS = 1 + 4 * len(LAYERS)
"""The whole network, and every group at every ratio."""
RATIOS = SensitivityConfig().ratios


def make_table(base: float, *curves: tuple[float, ...], metric: str = "map50", **changes: Any) -> Sensitivity:
    """Return a table of NETWORK at ratios of 0.25, 0.5, 0.75, a curve per convolution."""
    groups = tuple(GroupCurve((n,), c, tuple(s)) for n, (c, s) in enumerate(zip((4, 6, 2, 1), curves, strict=False)))
    table = Sensitivity(measure_network_sha256(NETWORK), metric, "bn-gamma", "mean", (0.25, 0.5, 0.75), base, groups)
    return replace(table, **changes)


FLAT = (1.0, 1.0, 1.0)
TABLE = make_table(1.0, (0.9, 0.8, 0.4), (0.8, 0.7, 0.4), (1.0, 0.9, 0.7), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("metric", "scores", "damages"),
    [
        ("map50", (0.7, 0.5, 0.2), (0.1, 0.3, 0.6)),
        ("map50", (0.9, 0.7, 0.75), (0, 0.1, 0.1)),  # better than whole is no damage, and none is undone
        ("map50", (0.7, np.nan, 0.5), (0.1, 0.8, 0.8)),  # NaN: all is lost
        ("loss", (1.0, 2.5, 4.0), (0.2, 1.7, 3.2)),
        ("loss", (0.5, 2.5, 2.0), (0, 1.7, 1.7)),
        ("loss", (0.9, np.inf, 2.0), (0.1, WORST_LOSS, WORST_LOSS)),
        ("loss", (np.nan, 1.0, 2.0), (WORST_LOSS,) * 3),
    ],
)
def test_damage_by_hand(metric: str, scores: tuple[float, ...], damages: tuple[float, ...]) -> None:
    table = make_table(0.8, scores, metric=metric)
    assert table.measure_damages(table.groups[0]) == pytest.approx(damages)


@given(st.lists(st.floats(0, 1) | st.just(np.nan), min_size=3, max_size=3), st.floats(0, 1), st.sampled_from(["map50", "loss"]))  # fmt: skip
@settings(deadline=None)
def test_damage_never_falls_and_is_never_negative(scores: list[float], base: float, metric: str) -> None:
    table = make_table(base, tuple(scores), metric=metric)
    damages = table.measure_damages(table.groups[0])
    assert damages[0] >= 0
    assert (np.diff(damages) >= 0).all()
    assert np.isfinite(damages).all()


@pytest.mark.parametrize(("ratio", "dropped"), [(0.1, 1), (0.25, 2), (0.5, 3), (0.75, 4), (0.9, 5), (0.99, 5)])
def test_a_group_alone_loses_its_least_important(ratio: float, dropped: int) -> None:
    importance = RISING.copy()
    importance[SIX] = [5, 3, 1, 1, 9, 2]
    group = next(group for group in GRAPH.groups if group.writers == (1,))
    keep = plan_group(GRAPH, importance, group, ratio).keep
    order = [9, 10, 12, 8, 7, 11]  # equal ones by number
    assert sorted(np.flatnonzero(~keep)) == sorted(order[:dropped])


def test_a_group_keeps_its_last_channel() -> None:
    group = next(group for group in GRAPH.groups if group.writers == (3,))
    assert plan_group(GRAPH, RISING, group, 0.9).keep.all()


def rank(table: Sensitivity, importance: Float64Array = RISING) -> Float64Array:
    return rank_by_damage(GRAPH, importance, table)


def test_ranks_by_hand() -> None:
    ranks = rank(TABLE)
    # 1, 2, 3 of 4 channels were dropped; without the last one all is lost, an AP50 of 1
    assert ranks[FOUR] == pytest.approx([0.1, 0.2, 0.6, 1.0], abs=2e-6)
    # 2, 3, 4 of 6: one alone is half way to two, five half way to all
    assert ranks[SIX] == pytest.approx([0.1, 0.2, 0.3, 0.6, 0.8, 1.0], abs=2e-6)
    # 0, 1, 1 of 2: the harder ratio says what one channel costs
    assert ranks[TWO] == pytest.approx([0.3, 1.0], abs=2e-6)
    assert ranks[ONE] == pytest.approx([1.0], abs=2e-6)
    assert np.isinf(np.delete(ranks, FOUR + SIX + TWO + ONE)).all()


def test_a_group_s_order_is_that_of_importance() -> None:
    importance = RISING.copy()
    importance[FOUR] = [3, 0, 2, 1]
    assert rank(TABLE, importance)[FOUR] == pytest.approx([1.0, 0.1, 0.6, 0.2], abs=2e-6)


def test_where_nothing_is_lost_importance_decides() -> None:
    importance = RISING.copy()
    importance[SIX] = [3, 0, 2, 5, 1, 4]
    ranks = rank(make_table(1.0, FLAT, FLAT, FLAT, FLAT), importance)
    assert np.argsort(ranks[SIX]).tolist() == np.argsort(importance[SIX]).tolist()
    assert len(set(ranks[SIX])) == 6
    assert np.sort(ranks[SIX])[:4].max() <= 2e-6  # as far as was measured


def test_a_group_is_not_emptied_for_free_beyond_what_was_measured() -> None:
    ranks = rank(make_table(0.6, (0.6, 0.6, 0.6), (0.59, 0.58, 0.5), FLAT, FLAT))
    assert ranks[FOUR] == pytest.approx([0, 0, 0, 0.6], abs=2e-6)
    gained = rank(make_table(2.0, (2.0, 2.0, 2.0), (2.5, 3.0, 7.0), (2.0, 2.0, 2.0), (2.0, 2.0, 2.0), metric="loss"))
    assert gained[FOUR] == pytest.approx([0, 0, 0, 5.0], abs=2e-6)


@given(
    st.lists(st.tuples(*[st.floats(0, 10) | st.just(np.nan)] * 3), min_size=4, max_size=4),
    st.floats(0, 10),
    st.sampled_from(["map50", "loss"]),
)
@settings(max_examples=50, deadline=None)
def test_ranks_rise_with_importance_in_every_group(curves: list[tuple[float, ...]], base: float, metric: str) -> None:
    ranks = rank(make_table(base, *curves, metric=metric))
    for ids in (FOUR, SIX, TWO, ONE):
        assert (np.diff(ranks[ids]) > 0).all()
        assert np.isfinite(ranks[ids]).all()


@pytest.mark.parametrize(
    "groups", [TABLE.groups[:-1], (*TABLE.groups[:-1], GroupCurve((3,), 2, FLAT)), ()], ids=["lacks", "other", "none"]
)
def test_a_group_without_a_curve_is_named(groups: tuple[GroupCurve, ...]) -> None:
    name = "layer 3" if groups else "layer 0"
    with pytest.raises(PlanError, match=f"^from_sensitivity: the group of {name} was not measured; finish the measur"):
        rank(replace(TABLE, groups=groups))


@pytest.mark.parametrize("table", [TABLE, make_table(2.0, (np.nan, 3.0, 4.0), metric="loss")], ids=["whole", "begun"])
def test_a_table_comes_back_from_disk(tmp_path: Path, table: Sensitivity) -> None:
    path = save_json(tmp_path / "a.json", table.as_dict())
    assert repr(load_sensitivity(path)) == repr(table)  # nan is not nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "yolo_prune plan"}, "is no sensitivity table; name a file that yoloprune sensitivity wrote"),
        ({"format_version": 2}, "has format version 2; this version reads format 1"),
        ({"ratios": [0.5, 0.25, 0.75]}, "ratios are no rising fractions"),
        ({"ratios": [0.25, 0.5, 1]}, "ratios[2] 1 is not less than 1"),
        ({"ratios": [], "groups": []}, "ratios are no rising fractions"),
        ({"ratios": [0.25, 0.5]}, "groups[0].scores has 3 scores of 2 ratios"),
        ({"groups": [{"layers": [0], "channels": 0, "scores": [1, 1, 1]}]}, "groups[0].channels 0 is not greater than 0"),
        ({"groups": [{"layers": [0], "channels": 4}]}, "lacks groups[0].scores; measure it again"),
        ({"groups": 3}, "groups 3 is not a valid array"),
        ({"base": None}, "base None is not a valid number"),
        ({"base": "good"}, "base 'good' is not a valid number"),
        ({"metric": "map"}, "metric 'map' is not 'map50' or 'loss'"),
        ({"groups": [{"layers": [10**400], "channels": 1e999, "scores": []}]}, "groups[0].channels is not a valid integer"),
    ],
)  # fmt: skip
def test_what_is_no_table(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**TABLE.as_dict(), **change}))
    with pytest.raises(PlanError) as caught:
        load_sensitivity(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON: st.SearchStrategy[Any] = st.deferred(
    lambda: LEAVES | st.lists(JSON, max_size=4) | st.dictionaries(st.text(), JSON, max_size=4)
)


@st.composite
def spoiled_tables(draw: st.DrawFn) -> Any:
    """Draw a table with anything in one place of it."""
    content = TABLE.as_dict()
    inside: dict[str, Any] = draw(st.sampled_from([content, *content["groups"]]))
    inside[draw(st.sampled_from(sorted(inside)))] = draw(JSON | st.lists(st.floats() | st.integers(), max_size=3))
    return content


@given(JSON | spoiled_tables())
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_table_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        table = load_sensitivity(path)
        ranks = rank(table)
    except PlanError:
        return
    assert np.isfinite(ranks[FOUR + SIX + TWO + ONE]).all()


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of whole measurements of the trained tiny network by metric; not to be changed."""
    folders: dict[Any, Path] = {metric: tmp_path_factory.mktemp(metric) for metric in ("map50", "loss")}
    for metric, folder in folders.items():
        start_sensitivity(trained, SensitivityConfig(metric=metric), folder)
    return folders


@contextmanager
def before_measurement(number: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Do something just before measurement `number`, counted from 1 since now; yield the list of their numbers."""
    done: list[int] = []
    make_judge = stage._make_judge

    def make(*arguments: Any) -> Callable[[Detector], float]:
        judge = make_judge(*arguments)

        def judge_and_count(model: Detector) -> float:
            done.append(len(done) + 1)
            if len(done) == number:
                act()
            return judge(model)

        return judge_and_count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_make_judge", make)
        yield done


def raise_signal() -> None:
    signal.raise_signal(signal.SIGTERM)


def stop_early(checkpoint: Path, folder: Path, **settings: Any) -> None:
    with before_measurement(4, raise_signal), pytest.raises(Interrupted):
        start_sensitivity(checkpoint, SensitivityConfig(**settings), folder)


def test_the_command_leaves_table_plot_and_path(cli: Cli, trained: Path, finished: dict[str, Path]) -> None:
    outcome = cli("sensitivity", trained)
    assert (outcome.code, outcome.out) == (0, "runs/sensitivity/sensitivity.json\n")
    assert Path("runs/sensitivity/sensitivity.json").read_bytes() == (finished["map50"] / stage.TABLE).read_bytes()
    assert not Path("runs/latest.json").exists()
    lines = outcome.err.splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == [
        f"group {n} of 4, layer {name}" for n, name in enumerate(("0", "1, 3", "2", "5"), 1)
    ]
    assert lines[4].startswith("AP50 lost when that share of one group alone is dropped; whole: 0.")
    assert lines[5].split() == ["layers", "channels", "25%", "50%", "75%", "90%"]
    table = load_sensitivity(Path("runs/sensitivity/sensitivity.json"))
    for line, curve in zip(lines[7:-2], table.groups, strict=True):
        assert len(line) == len(lines[5])
        assert line.split()[-5:] == [str(curve.channels), *(f"{one:.4f}" for one in table.measure_damages(curve))]
    assert lines[-2].endswith(": 4 groups measured; runs/sensitivity/sensitivity.png shows them")
    assert lines[-1] == f"next: yoloprune prune {trained} --from-sensitivity runs/sensitivity/sensitivity.json"
    height, width, _ = read_image(Path("runs/sensitivity/sensitivity.png")).shape
    assert 250 < height < 500 < width < 1000


def test_the_json_is_the_table(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("--ratios", "0.5,0.75", "--metric", "loss", "--images", 2, "--criterion", "l1", "--group-reduce", "sum")
    Path("settings.yaml").write_text("metric: map50\nname: filed\n")
    result = read_json(cli("sensitivity", trained, *words, "--config", "settings.yaml", "--data", hands, "--json"))
    path = Path(result.pop("sensitivity"))
    assert str(path) == "runs/filed/sensitivity.json"
    assert result.pop("plot") == "runs/filed/sensitivity.png"
    content = json.loads(path.read_text())
    recipe = content.pop("recipe")
    assert content == result
    assert recipe["settings"].items() >= {"metric": "loss", "images": 2, "data": str(hands.resolve())}.items()
    assert result.items() >= {"ratios": [0.5, 0.75], "criterion": "l1", "group_reduce": "sum"}.items()
    table = parse_sensitivity(result, "table")
    assert [curve.layers for curve in table.groups] == LAYERS
    assert [curve.channels for curve in table.groups] == [8, 8, 4, 16]


def test_a_score_is_that_of_the_network_pruned_there(cli: Cli, trained: Path, finished: dict[str, Path]) -> None:
    table = load_sensitivity(finished["map50"] / stage.TABLE)
    assert read_json(cli("evaluate", trained, "--json"))["map50"] == pytest.approx(table.base)
    gammas = [load_checkpoint(trained).state[f"layers.{layer}.bn.weight"].abs().double().numpy() for layer in (1, 3)]
    path = cli("plan", trained, "--ratio", 0).out.strip()
    plan = json.loads(Path(path).read_text())
    plan["groups"][1]["drop"] = np.argsort(gammas[0] + gammas[1])[:6].tolist()
    Path(path).write_text(json.dumps(plan))
    pruned = cli("prune", "--one-shot", trained, "--plan", path, "--recalibrate", 0).out.strip()
    assert read_json(cli("evaluate", pruned, "--json"))["map50"] == pytest.approx(table.groups[1].scores[2], abs=1e-6)


def test_the_loss_is_the_mean_over_images(trained: Path, hands: Path, finished: dict[str, Path]) -> None:
    data = DetectionDataset(load_spec(hands).samples("val"), 1, SIDE)
    model = load_checkpoint(trained).make_model().eval()
    (batch,) = make_loader(data, 6, shuffle=False, epoch=0)
    with torch.no_grad():
        loss = DetectionLoss(model.network).measure(model(normalise(batch.images)), batch.targets, SIDE, SIDE).total
    assert load_sensitivity(finished["loss"] / stage.TABLE).base == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("metric", ["map50", "loss"])
@pytest.mark.parametrize("number", [1, 7, MEASUREMENTS - 1])  # the whole, within a group, the last but one
def test_a_stopped_measurement_ends_in_the_same_bytes(
    cli: Cli, trained: Path, finished: dict[str, Path], metric: str, number: int
) -> None:
    with before_measurement(number, raise_signal) as done:
        stopped = cli("sensitivity", trained, "--metric", metric)
    assert (stopped.code, stopped.out) == (143, "")
    assert stopped.err.splitlines()[-1].startswith("stopped by signal 15; what was finished is on disk")
    assert len(done) == number
    path = Path("runs/sensitivity/sensitivity.json")
    assert len(load_sensitivity(path).groups) == (number - 1) // len(RATIOS)
    assert not path.with_name("sensitivity.png").exists()
    with before_measurement(99, raise_signal) as done:
        resumed = cli("sensitivity", "--resume", "--device", "cpu")
    assert (resumed.code, resumed.out) == (0, f"{path}\n")
    assert len(done) == MEASUREMENTS - 1 - (number - 1) // len(RATIOS) * len(RATIOS)
    for name in ("sensitivity.json", "sensitivity.png"):
        assert path.with_name(name).read_bytes() == (finished[metric] / name).read_bytes()


def test_layout_in_memory_changes_no_score(hands: Path, tmp_path: Path) -> None:
    """Kernels as PyTorch makes them, not as training leaves them, and a resumed start that never judges the whole."""
    network = make_small_network(Conv(16, 3, 2, 1), Conv(32, 3, 2, 1), Conv(16, 3, padding=1))
    state = randomise_(Detector(network), double=False).state_dict()
    provenance = {"data": {"path": str(hands)}}
    checkpoint = save_checkpoint(tmp_path / "a.pt", Checkpoint(network, state, ("hand",), provenance))
    start_sensitivity(checkpoint, SensitivityConfig(metric="loss"), tmp_path / "whole")
    stop_early(checkpoint, tmp_path / "stopped", metric="loss")
    resume_sensitivity(tmp_path / "stopped")
    assert (tmp_path / "stopped" / stage.TABLE).read_bytes() == (tmp_path / "whole" / stage.TABLE).read_bytes()


def test_a_finished_measurement_is_not_measured_again(cli: Cli, finished: dict[str, Path]) -> None:
    shutil.copytree(finished["map50"], "runs/sensitivity")
    Path("runs/sensitivity/sensitivity.png").unlink()  # it was killed just before that
    with before_measurement(99, raise_signal) as done:
        outcome = cli("sensitivity", "--resume")
    assert (outcome.code, outcome.out, done) == (0, "runs/sensitivity/sensitivity.json\n", [])
    assert outcome.err.startswith("runs/sensitivity/sensitivity.json: all 4 groups are measured\nAP50 lost when")
    for name in ("sensitivity.json", "sensitivity.png"):
        assert Path("runs/sensitivity", name).read_bytes() == (finished["map50"] / name).read_bytes()


def test_a_changed_checkpoint_cannot_be_resumed(trained: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copy(trained, tmp_path / "own.pt"))
    stop_early(checkpoint, tmp_path / "run")
    before = (tmp_path / "run" / stage.TABLE).read_bytes()
    loaded = load_checkpoint(checkpoint)
    save_checkpoint(checkpoint, replace(loaded, names=("other",)))
    with pytest.raises(PlanError, match=r"own\.pt: has changed since the measurement began; restore it, or start anew"):
        resume_sensitivity(tmp_path / "run")
    assert (tmp_path / "run" / stage.TABLE).read_bytes() == before
    shutil.copy(trained, checkpoint)
    assert len(resume_sensitivity(tmp_path / "run").table.groups) == len(LAYERS)


def test_changed_data_cannot_be_resumed(trained: Path, hands: Path, tmp_path: Path) -> None:
    data = shutil.copytree(hands.parent, tmp_path / "hands") / "data.yaml"
    stop_early(trained, tmp_path / "run", data=data)
    label = data.parent / "labels/val/000000.txt"
    label.write_text(f"{label.read_text()}0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(PlanError, match=r"data\.yaml: has changed since the measurement began; restore it"):
        resume_sensitivity(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("--ratios", "0.5"), "--ratios"),
        (("--metric", "loss"), "--metric"),
        (("--images", 3), "--images"),
        (("--criterion", "l1"), "--criterion"),
        (("--group-reduce", "max"), "--group-reduce"),
        (("--score-batches", 3), "--score-batches"),
        (("--seed", 1), "--seed"),
        (("--data", "data.yaml"), "--data"),
        (("--config", "a.yaml"), "--config"),
        (("a.pt",), "CHECKPOINT"),
    ],
)
def test_a_resumed_measurement_keeps_its_settings(cli: Cli, words: tuple[object, ...], place: str) -> None:
    outcome = cli("sensitivity", "--resume", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert (
        outcome.err
        == f"error: {place}: a resumed run keeps its settings; leave it out, or start a new run; --device may change\n"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "does not say how it was measured; measure it again"),
        ({"recipe": 3}, "does not say how it was measured; measure it again"),
        ({"recipe": {"checkpoint": 3}}, "does not say how it was measured"),
        ({"recipe": {"settings": ["a"]}}, "does not say how it was measured"),
        ({"recipe": {"settings": {"ratio": 1}}}, "unknown key ratio; did you mean ratios?"),
        ({"recipe": {"settings": {"metric": 1}}}, "1 is of the wrong type"),
        ({"recipe": {"checkpoint": "missing.pt"}}, "missing.pt: cannot be read (No such file"),
        ({"recipe": {"checkpoint": "\0"}}, "cannot be read"),
    ],
)
def test_a_table_that_does_not_say_how_it_was_made_cannot_be_resumed(
    finished: dict[str, Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    content = json.loads((finished["map50"] / stage.TABLE).read_text())
    recipe = content.pop("recipe")
    if "recipe" in change:
        content["recipe"] = {**recipe, **change["recipe"]} if isinstance(change["recipe"], dict) else change["recipe"]
    (tmp_path / stage.TABLE).write_text(json.dumps(content))
    with pytest.raises(YoloPruneError) as caught:
        resume_sensitivity(tmp_path)
    assert said in str(caught.value)


def test_a_nan_loss_is_the_worst(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 2.0, np.inf, np.nan, 3.0] + [1.5] * MEASUREMENTS)
    monkeypatch.setattr(stage, "_make_judge", lambda *arguments: lambda model: next(scores))
    outcome = cli("sensitivity", trained, "--metric", "loss", "--json")
    assert read_json(outcome)["groups"][0]["scores"] == [2.0, None, None, 3.0]
    assert outcome.err.splitlines()[-6].split()[2:] == ["1.0000", *["1000000.0000"] * 3]
    table = load_sensitivity(Path("runs/sensitivity/sensitivity.json"))
    assert table.measure_damages(table.groups[0]).tolist() == [1, WORST_LOSS, WORST_LOSS, WORST_LOSS]


def test_images_without_objects_measure_nothing(cli: Cli, trained: Path, hands: Path) -> None:
    data = Path(shutil.copytree(hands.parent, "hands"), "data.yaml")
    shutil.rmtree("hands/labels/val")
    outcome = cli("sensitivity", trained, "--data", data)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"error: {data}: the whole network's map50 is nan; measure a trained checkpoint on validation images with objects\n"
    )
    assert not Path("runs").exists()


def write_table(checkpoint: Path, **changes: Any) -> Path:
    """Write a table by which half of a group costs 0.9, 0.4, 0 and 0.1."""
    scores = zip(LAYERS, (8, 8, 4, 16), (0.0, 0.5, 0.9, 0.8), strict=True)
    groups = tuple(GroupCurve(layers, channels, (score,)) for layers, channels, score in scores)
    network = measure_network_sha256(load_checkpoint(checkpoint).network)
    table = Sensitivity(network, "map50", "bn-gamma", "mean", (0.5,), 0.9, groups)
    return save_json(Path("table.json"), replace(table, **changes).as_dict())


def read_drops(result: Any) -> list[list[int]]:
    return [group["drop"] for group in json.loads(Path(result["plan"]).read_text())["groups"]]


@pytest.mark.parametrize(("count", "dropped"), [(2, [0, 0, 2, 0]), (11, [0, 1, 2, 8]), (14, [1, 2, 2, 9]), (19, [2, 4, 2, 11]), (28, [6, 6, 2, 14])])  # fmt: skip
def test_every_group_is_pruned_up_to_the_same_damage(cli: Cli, trained: Path, count: int, dropped: list[int]) -> None:
    """Worked by hand: up to half a group, channel k of n costs 2·k/n of what half costs, from there on 0.9 is reached evenly.

    Two of every group stay.
    """
    words = ("--from-sensitivity", write_table(trained), "--ratio", count / PRUNABLE, "--recalibrate", 0, "--json")
    drops = read_drops(read_json(cli("prune", "--one-shot", trained, *words)))
    assert [len(drop) for drop in drops] == dropped
    state = load_checkpoint(trained).state
    for layers, drop in zip(LAYERS, drops, strict=True):
        gamma = sum(state[f"layers.{layer}.bn.weight"].abs().double().numpy() for layer in layers)
        assert drop == sorted(np.argsort(gamma)[: len(drop)].tolist())


def test_a_target_by_sensitivity_is_met_and_one_channel_less_would_miss_it(cli: Cli, trained: Path) -> None:
    words = ("prune", "--one-shot", trained, "--from-sensitivity", write_table(trained), "--recalibrate", 0, "--json")
    result = read_json(cli(*words, "--target-macs", 0.6))
    assert result["after"]["macs"] <= 0.6 * result["before"]["macs"]
    count = sum(map(len, read_drops(result)))
    less = read_json(cli(*words, "--ratio", (count - 1) / PRUNABLE))
    assert less["after"]["macs"] > 0.6 * less["before"]["macs"]
    assert len(read_drops(result)[0]) < len(read_drops(result)[3])


def test_a_measured_table_prunes(cli: Cli, trained: Path, finished: dict[str, Path]) -> None:
    table = finished["loss"] / stage.TABLE
    outcome = cli("prune", "--one-shot", trained, "--from-sensitivity", table, "--ratio", 0.5, "--spare", 5)
    assert (outcome.code, outcome.out) == (0, "runs/prune/pruned.pt\n"), outcome.err
    network = load_checkpoint(Path(outcome.out.strip())).network
    filters = [conv.filters for _, conv in network.convs]
    assert filters[4] == 16
    assert PRUNABLE - sum(filters[n] for n in (0, 1, 2, 4)) == round(0.5 * (PRUNABLE - 16))


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"network": "0" * 64}, "", "table.json: was measured on another network; measure this one with yoloprune sensitivity"),
        ({"criterion": "l1"}, "--criterion l2", "table.json: was measured by criterion l1; use criterion l1 here as well"),
        ({"group_reduce": "max"}, "", "table.json: was measured by group_reduce max; use group_reduce max here as well"),
        ({}, "--criterion l2", "table.json: was measured by criterion bn-gamma; use criterion bn-gamma here as well"),
        ({"groups": ()}, "", "--from-sensitivity: the group of layer 0 was not measured; finish the measurement with yoloprune sensitivity --resume"),
        ({}, "--drop-blocks 1", "--from-sensitivity: the table knows neither removed blocks, nor other orders than its own; leave out drop_blocks, scope and criterion random"),
        ({}, "--scope layer", "--from-sensitivity: the table knows neither removed blocks, nor other orders than its own; leave out drop_blocks, scope and criterion random"),
        ({}, "--criterion random", "--from-sensitivity: the table knows neither removed blocks, nor other orders than its own; leave out drop_blocks, scope and criterion random"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_rejected(
    cli: Cli, trained: Path, changes: dict[str, Any], words: str, said: str
) -> None:
    outcome = cli("prune", "--one-shot", trained, "--from-sensitivity", write_table(trained, **changes), *words.split())
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {said}\n")
    assert not Path("runs").exists()
