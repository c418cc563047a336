"""Damaged JSON files of runs, plans and tables: each is an error of this package that names file and key."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import BUDGET, corrupt, nest, refuse
from networks import make_small_network
from tiny import Cli

from yolo_prune.benchmarking.latency import Latency
from yolo_prune.benchmarking.table import Row, Scores
from yolo_prune.commands import iterate as iterate_module
from yolo_prune.commands import sensitivity as sensitivity_module
from yolo_prune.commands.bench import BenchResult, load_bench
from yolo_prune.commands.config import PruneConfig, SensitivityConfig
from yolo_prune.commands.iterate import IterateResult, Journal, Step, resume_iterate
from yolo_prune.commands.pruning.gradual import JOURNAL, load_journal
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.run import read_note
from yolo_prune.commands.run_folders import RUNS, find_latest, remember_latest
from yolo_prune.commands.sensitivity import resume_sensitivity
from yolo_prune.config import format_config
from yolo_prune.darknet.layers import Conv
from yolo_prune.datasets.spec import DataSpec, load_spec, measure_fingerprint
from yolo_prune.evaluation.classes.scores import ClassScore
from yolo_prune.files import measure_sha256, save_json
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.plans.plan_file import BlockPlan, format_plan, load_plan
from yolo_prune.pruning.scores.sensitivity import GroupCurve, Sensitivity, load_sensitivity, rank_by_damage


@dataclass(frozen=True)
class Kind:
    """A file, what it holds, and a function that reads it as a command does."""

    path: Path
    whole: Any
    read: Callable[[Path], object]


def make_steps(hands: Path, trained: Path) -> Kind:
    recipe = format_config(IterateConfig(data=hands, device="cpu").resolved)
    steps = [Step(name, 0.1, 9, 9, None, 1, 1.0, str(trained)) for name in ("original", "01")]
    journal = Journal(str(trained), measure_sha256(trained), recipe, steps, True, "the target is reached")
    whole = json.loads(json.dumps(journal, default=lambda one: vars(one)))

    def read(path: Path) -> object:
        result = resume_iterate(path.parent, {})
        return result.as_dict(), result.summary, result.format()

    return Kind(Path("run/steps.json"), whole, read)


def make_prune(hands: Path, trained: Path) -> Kind:
    recipe = format_config(PruneConfig(ratio=0.5, data=hands))
    about = {"source": str(trained), "sha256": measure_sha256(trained), "recipe": recipe, "blocks": [8]}
    return Kind(Path("run") / JOURNAL, about, lambda path: load_journal(path.parent))


def make_stage(hands: Path, trained: Path) -> Kind:
    return Kind(Path("run/stage.json"), {"made_of": "1" * 64, "begun_of": "2" * 64}, read_note)


def make_table(hands: Path, trained: Path) -> Kind:
    graph = make_channel_graph(make_small_network(Conv(4, 3, 1, 1), Conv(6, 1)))
    curves = tuple(GroupCurve(group.writers, len(group.ids), (0.7, 0.4)) for group in graph.groups if not group.frozen)
    table = Sensitivity("a" * 64, "map50", "bn-gamma", "mean", (0.25, 0.5), 0.7, curves)
    recipe = {"checkpoint": str(trained), "sha256": measure_sha256(trained), "data_fingerprint": measure_fingerprint(load_spec(hands)), "settings": format_config(SensitivityConfig(data=hands))}  # fmt: skip

    def read(path: Path) -> None:
        rank_by_damage(graph, graph.prunable.astype(np.float64), load_sensitivity(path))
        resume_sensitivity(path.parent)

    return Kind(Path("run/sensitivity.json"), {**table.as_dict(), "recipe": recipe}, read)


def make_plan(hands: Path, trained: Path) -> Kind:
    network = make_small_network(Conv(4, 3, 1, 1), Conv(6, 1))
    keep = make_channel_graph(network).prunable.copy()
    keep[:] = True
    keep[:2] = False
    whole = format_plan(network, BlockPlan((), Plan(keep)))
    return Kind(Path("plan.json"), json.loads(json.dumps(whole)), lambda path: load_plan(path, network))


def make_bench(hands: Path, trained: Path) -> Kind:
    scores = Scores(
        0.5, (0.4, 0.6), (0.1, 0.0, 0.2), 0.4, 0.2, tuple(ClassScore(one, 3, 0.5, 0.4, 0.3) for one in "ab")
    )
    times = Latency(1.0, 2.0, 3.0)
    row = Row(
        str(trained), str(trained), 64, 9, 9, 18, 36, times, times, scores, "folded", 40, precision="fp32", threads=1
    )
    first = replace(row, name="Original", scores=replace(scores, map50_difference=None), decode_ms=times)
    environment = {
        "device": "CPU",
        "engine": "folded",
        "precision": "fp32",
        "runs": 3,
        "threads": [1],
        "batch_size": [1],
    }
    whole = BenchResult((first, row, replace(row, name="Unscored", scores=None)), environment, "test").as_dict()

    def read(path: Path) -> object:
        result = load_bench(path)
        return result.as_dict(), *(replace(result, form=form).stdout for form in ("text", "markdown", "csv"))

    return Kind(Path("run/bench.json"), json.loads(json.dumps(whole)), read)


KINDS = (make_steps, make_prune, make_stage, make_table, make_plan, make_bench)


def make_result(folder: Path, config: IterateConfig, journal: Journal, spec: DataSpec) -> IterateResult:
    """Return what iterate makes of a journal without more steps; without any it measures the original."""
    journal = journal if journal.steps else replace(journal, steps=[Step("original", 0.0, 1, 1, None, 0, 0.0, "a.pt")])
    return IterateResult(Path(journal.steps[-1].checkpoint), folder, folder, journal)


@pytest.fixture
def kind(request: pytest.FixtureRequest, hands: Path, trained: Path, workplace: Path) -> Iterator[Kind]:
    """Return one of `KINDS`; what would measure or train is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterate_module, "_go_on", make_result)
        patch.setattr(sensitivity_module, "_measure", lambda *_: None)
        made = request.param(hands, trained)
        made.path.parent.mkdir(exist_ok=True)
        (made.path.parent / "last.pt").touch()
        yield made


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_single_corruptions_are_errors_of_this_package(kind: Kind) -> None:
    assert refuse(kind.read, write_json(kind.path, kind.whole)) == ""
    tried, refused = corrupt(kind.whole, lambda value: kind.read(write_json(kind.path, value)))
    assert refused > tried / 3


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_the_whole_may_be_anything(kind: Kind) -> None:
    values: tuple[Any, ...] = (None, 3, "text", [], [[]], {}, nest(70), 10**400)
    for value in values:
        if kind.path.name == "stage.json" and value == {}:
            continue  # of a stage that was never started
        assert refuse(kind.read, write_json(kind.path, value)).startswith(str(kind.path)), value
    for text in ("", "{", "[" * 100_000, "\xff", "1" * 5000, '{"a": 1e999}', '{"a": "\\ud800"}'):
        kind.path.write_text(text, encoding="latin-1")
        if not (kind.path.name == "stage.json" and "a" in text):  # another version may write other keys
            assert refuse(kind.read, kind.path).startswith(str(kind.path)), text[:20]


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_damaged_text_is_read_or_an_error_of_this_package(kind: Kind) -> None:
    whole, chance = json.dumps(kind.whole).encode(), random.Random(0)
    for _ in range(BUDGET // 4):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        kind.path.write_bytes(content)
        refuse(kind.read, kind.path)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (make_steps, {"steps": [{"name": "original"}]}, "lacks steps[0].ratio; name a run folder that iterate left"),
        (make_steps, {"source": 3}, "source 3 is not a valid string"),
        (make_steps, {"source": "a\0b"}, "source 'a\\x00b' cannot be a path"),
        (make_prune, {"blocks": [-1]}, "blocks[0] -1 is not greater than or equal to 0"),
        (make_stage, {"made_of": 3}, "made_of 3 is not a valid string; delete it, and the stage starts anew"),
        (make_table, {"base": "high"}, "base 'high' is not a valid number; measure it again"),
        (make_bench, {"rows": []}, "rows is empty; delete it and run again"),
        (make_bench, {"environment": {"device": "CPU"}}, "lacks environment.engine; delete it and run again"),
        (make_plan, {"groups": [{"layers": [[1]]}]}, "[[1]] is no list of whole numbers"),
    ],
    indirect=["kind"],
)  # fmt: skip
def test_file_and_key_are_named(kind: Kind, change: dict[str, Any], said: str) -> None:
    line = refuse(kind.read, write_json(kind.path, {**kind.whole, **change}))
    assert line.startswith(f"{kind.path}: ")
    assert said in line


@pytest.mark.parametrize("value", [3, "text", [1], {"train": 3}, {"train": "a\0b"}, {"train": "x" * 300}, nest(70)])
def test_a_damaged_record_of_the_newest_is_written_anew(workplace: Path, value: Any) -> None:
    save_json(RUNS / "latest.json", value)
    assert refuse(lambda _: find_latest("train"), None).startswith("CHECKPOINT: no checkpoint of train below runs; ")
    checkpoint = Path("a.pt")
    checkpoint.touch()
    remember_latest("train", checkpoint)
    assert find_latest("train") == checkpoint


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("iterate --resume --name iterated", "runs/iterated/steps.json: lacks source; name a run folder"),
        ("prune --resume --name pruned", "runs/pruned/prune.json: lacks source; name a run folder"),
        ("sensitivity --resume --name measured", "runs/measured/sensitivity.json: is no sensitivity table; name"),
        ("prune {pt} --one-shot --plan runs/plan.json", "runs/plan.json: is not a plan; name a file"),
        ("bench cut.pt --no-score", "cut.pt: cannot be read (it is damaged or no checkpoint); name a .pt file"),
        ("bench flipped.pt --no-score", "flipped.pt: is damaged: "),
        ("train --resume --name flipped", "runs/flipped/last.pt: is damaged: "),
        ("train --weights flipped.pt", "flipped.pt: is damaged: "),
    ],
)
def test_the_command_line_ends_with_one_line(cli: Cli, hands: Path, trained: Path, words: str, place: str) -> None:
    for path in ("iterated/steps.json", "pruned/prune.json", "measured/sensitivity.json", "plan.json"):
        save_json(RUNS / path, {})
    (RUNS / "pruned/last.pt").touch()
    content = bytearray(trained.read_bytes())
    Path("cut.pt").write_bytes(content[:-100])
    with zipfile.ZipFile(trained) as file:
        name = max(file.infolist(), key=lambda one: "/data/" in one.filename and one.file_size).filename
    content[content.index(name.encode()) + 200] ^= 1
    (RUNS / "flipped").mkdir()
    for flipped in (Path("flipped.pt"), RUNS / "flipped/last.pt"):
        flipped.write_bytes(content)
    outcome = cli(*words.format(pt=trained).split(), *(["--data", hands] if "--weights" in words else []))
    assert outcome.code == 2
    assert outcome.out == ""
    assert place in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
