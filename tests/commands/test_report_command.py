"""`report`, and `bench --report`: a page for whatever bench can measure."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from networks import make_small_network
from tiny import Cli

from yolo_prune.cli import main as command_line
from yolo_prune.commands import run as run_module
from yolo_prune.commands import runs
from yolo_prune.commands.bench import BenchResult
from yolo_prune.commands.reporting import gather
from yolo_prune.commands.reporting.networks import list_widths, match_layers
from yolo_prune.commands.reporting.stages import describe_stage
from yolo_prune.commands.run import load_run, run_stages
from yolo_prune.config import format_config
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.errors import Interrupted
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.blocks import drop_blocks, find_blocks
from yolo_prune.report.data import Report

FAST = ("--runs", 1, "--warmup", 0, "--device", "cpu", "--threads", 1)
CUT = ("--one-shot", "--ratio", 0.5, "--recalibrate", 0, "--criterion", "l2", "--fold", "leaky", "--device", "cpu")


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """Return the list in which every report is left from now on."""
    reports: list[Report] = []
    make = gather.gather_report

    def record(*arguments: Any) -> Report:
        reports.append(make(*arguments))
        return reports[-1]

    monkeypatch.setattr(gather, "gather_report", record)
    return reports


def test_without_a_run_the_newest_comes_with_its_ancestors(cli: Cli, trained: Path, gathered: list[Report]) -> None:
    assert cli("prune", trained, *CUT).code == 0
    outcome = cli("report", *FAST, "--images", 2)
    assert (outcome.code, outcome.out) == (0, "runs/report/report.html\n"), outcome.err
    (report,) = gathered
    assert report.models == ("Original", "Pruned")
    assert [stage.kind for stage in report.stages] == ["train", "prune"]
    assert report.stages[0].epochs[-1]["epoch"] == 3
    assert {one.group for one in report.widths if one.layer in (1, 3)} == {"A"}
    assert all(one.before is not None and 0 < one.after <= one.before for one in report.widths)
    assert all(one.before_ms and one.after_ms for one in report.times)
    assert len(report.comparisons) == 2
    assert report.reasons.keys() == {"gammas", "epochs"}
    assert "beside the file of Pruned" in report.reasons["epochs"]
    assert "<h2>Results</h2>" in Path("runs/report/report.html").read_text()


def test_bench_writes_the_same_page_beside_its_table(cli: Cli, trained: Path, gathered: list[Report]) -> None:
    outcome = cli("bench", trained, *FAST, "--report", "page.html")
    assert outcome.out.startswith("model")
    assert gathered[0].models == ("train/best",)
    assert gathered[0].widths[0].before is None
    assert "Left of the line" not in Path("page.html").read_text()
    wrong = cli("bench", trained, "--report", "page.pdf")
    assert (wrong.code, wrong.err) == (
        2,
        "error: --report: page.pdf is no HTML file; name a file that ends in .html\n",
    )
    assert "--out: page.txt is no HTML file" in cli("report", trained, "--out", "page.txt").err


def test_without_scores_there_are_costs_and_layers(cli: Cli, trained: Path, gathered: list[Report]) -> None:
    outcome = cli("report", trained, *FAST, "--no-score")
    assert outcome.code == 0, outcome.err
    (report,) = gathered
    assert report.widths
    assert report.times
    assert {"curves", "comparisons", "mistakes"} <= report.reasons.keys()


def test_a_split_without_objects(cli: Cli, trained: Path, hands: Path, gathered: list[Report]) -> None:
    data = shutil.copytree(hands.parent, Path("blank")) / "data.yaml"
    for label in data.parent.glob("labels/test/*.txt"):
        label.write_text("")
    outcome = cli("report", trained, "--data", data, "--lineage", *FAST)
    assert outcome.code == 0, outcome.err
    (report,) = gathered
    assert (report.curves, report.objects) == ((), 0)
    assert "no precision or recall" in report.reasons["curves"]
    assert len(report.comparisons) == 6


def test_an_exported_file_and_a_checkpoint(cli: Cli, trained: Path, gathered: list[Report]) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    assert cli("export", trained, "--format", "onnx", "--out", "tiny.onnx").code == 0
    words = ("--engine", "onnxruntime", *FAST)
    assert cli("report", trained, "tiny.onnx", *words).code == 0
    assert "exported file, which does not say what its layers are" in gathered[-1].reasons["widths"]
    assert gathered[-1].stages[1].kind == "exported"
    assert cli("report", "tiny.onnx", trained, *words).code == 0
    assert "the first model is an exported file" in gathered[-1].reasons["widths"]
    assert gathered[-1].widths[0].before is None
    assert gathered[-1].times_engine == "onnxruntime"


def test_an_imported_network_of_eighty_classes(cli: Cli, hands: Path, gathered: list[Report]) -> None:
    names = [f"class {number}" for number in range(80)]
    Path("all.names").write_text("\n".join(names))
    data = shutil.copytree(hands.parent, Path("many")) / "data.yaml"
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), "names": names}))
    make = (
        "cfg",
        "make",
        "--arch",
        "yolov3-tiny",
        "--classes",
        80,
        "--width",
        0.0625,
        "--img-size",
        64,
        "--out",
        "t.cfg",
    )
    assert cli(*make).code == 0
    assert cli("import", "t.cfg", "--names", "all.names").code == 0
    outcome = cli("report", "-", "--data", data, *FAST, stdin="runs/import/t.pt\n")
    assert outcome.code == 0, outcome.err
    (report,) = gathered
    assert report.stages[0].command == "yoloprune import t.cfg"
    page = Path("runs/report/report.html")
    assert "AP of every class" in page.read_text()
    assert page.stat().st_size < 3_000_000


def test_a_network_whose_parent_is_gone(cli: Cli, trained: Path, hands: Path, gathered: list[Report]) -> None:
    base = Path(shutil.copy(trained, "base.pt"))
    assert cli("prune", base, *CUT).code == 0
    base.unlink()
    outcome = cli("report", *FAST, "--data", hands)
    assert outcome.code == 0, outcome.err
    (report,) = gathered
    assert report.models == ("Pruned",)
    assert report.stages[0].command.startswith(f"yoloprune prune {base.resolve()}")


def test_a_network_of_other_layers_stands_alone(cli: Cli, trained: Path, gathered: list[Report]) -> None:
    assert cli("cfg", "make", "--arch", "yolov3-tiny", "--width", 0.0625, "--out", "t.cfg").code == 0
    assert cli("import", "t.cfg", "--out", "t.pt").code == 0
    assert cli("report", trained, "t.pt", "--no-score", "--img-size", 64, *FAST).code == 0
    (report,) = gathered
    assert all(one.before is None for one in report.widths)
    assert all(one.before_ms is None for one in report.times)
    assert "the first model has other layers" in report.reasons["times"]


def test_layers_of_removed_blocks_have_no_channels_left() -> None:
    conv = Conv(4, 3, 1, 1)
    network = make_small_network(conv, conv, Shortcut(0), conv, conv, Shortcut(2))
    (first, *_) = find_blocks(network)
    short = drop_blocks(network, [first])
    model = Detector(short)
    provenance = {"metrics": {"dropped_blocks": [first.shortcut]}}
    places = match_layers(network, short, [Checkpoint(short, model.state_dict(), ("hand",), provenance)])
    assert places == [0, 3, 4, 5, 6, 7]
    widths, _ = list_widths(network, short, places)
    assert [(one.layer, one.after) for one in widths] == [(0, 4), (1, 0), (3, 4), (4, 4), (6, 6)]
    assert match_layers(network, short, []) is None


def test_a_wider_network_was_not_pruned_from_a_narrower_one() -> None:
    narrow, wide = make_network("yolov3-tiny", 1, 0.0625, 64), make_network("yolov3-tiny", 1, 0.125, 64)
    assert match_layers(wide, narrow, []) is not None
    assert match_layers(narrow, wide, []) is None


def parse_command(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Return what a command would be run with, instead of running it."""
    taken: list[tuple[Any, ...]] = []

    def take(*arguments: Any) -> None:
        taken.append(arguments)
        raise Interrupted(0)

    for name in ("run_train", "run_prune"):
        monkeypatch.setattr(runs, name, take)
    words: Sequence[str] = shlex.split(text.replace("\\\n", ""))
    with pytest.raises(Interrupted):
        command_line.app(list(words)[1:], standalone_mode=False)
    return taken[0]


IGNORED = {"name", "device", "keep_zeros", "parent_teacher", "weights", "max_minutes"}


def test_the_commands_have_the_settings_that_were_used(hostile_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile_run)
    files = {"train": "best.pt", "sparse": "best.pt", "prune": "pruned.pt", "finetune": "best.pt"}
    for stage, name in files.items():
        path = Path("runs/hostile", stage, name).resolve()
        checkpoint = load_checkpoint(path)
        command = describe_stage(stage, path, checkpoint).command
        taken = parse_command(command, monkeypatch)
        config = next(one for one in taken if hasattr(one, "__dataclass_fields__"))
        recipe = checkpoint.provenance["recipe"]
        made = {key: value for key, value in format_config(config).items() if key not in IGNORED}
        assert made == {key: value for key, value in recipe.items() if key not in IGNORED}, command


def test_the_command_of_iterate_is_in_its_journal(cli: Cli, trained: Path) -> None:
    words = ("--step", 0.25, "--target-ratio", 0.25, "--epochs", 1, "--settle-epochs", 0, "--device", "cpu")
    path = Path(cli("iterate", trained, *words).out.strip())
    stage = describe_stage("Iterated", path, load_checkpoint(path))
    assert stage.command.startswith(f"yoloprune iterate {trained.resolve()} \\\n")
    assert {"--step 0.25", "--target-ratio 0.25", "--settle-epochs 0"} <= {
        line.strip(" \\") for line in stage.command.splitlines()
    }


def test_settings_of_another_version_make_no_command(trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    recipe = {**checkpoint.provenance["recipe"], "no_such_setting": 1}
    odd = replace(checkpoint, provenance={**checkpoint.provenance, "recipe": recipe})
    stage = describe_stage("Odd", save_checkpoint(tmp_path / "odd.pt", odd), odd)
    assert stage.command == ""
    assert "no_such_setting: 1" in stage.settings


@pytest.mark.parametrize("text", ["epoch,loss\n1,x\n", "\0", "a,b\n1,2,3\n"])
def test_results_that_are_damaged_are_left_out(trained: Path, tmp_path: Path, text: str) -> None:
    path = Path(shutil.copy(trained, tmp_path / "best.pt"))
    (tmp_path / "results.csv").write_text(text)
    assert describe_stage("Odd", path, load_checkpoint(path)).epochs == ()


def test_a_run_writes_its_page_and_measures_nothing_twice(
    hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.chdir(shutil.copytree(hostile_run, tmp_path / "place"))
    page = Path("runs/hostile/report.html")
    before = page.read_text()

    def fail(*arguments: Any, **keywords: Any) -> BenchResult:
        raise AssertionError("measured again")

    monkeypatch.setattr(run_module, "bench", fail)
    stamp = page.stat().st_mtime_ns
    run_stages(load_run(Path("stages.yaml")))
    assert page.stat().st_mtime_ns == stamp
    page.unlink()
    run_stages(load_run(Path("stages.yaml")))
    parts = [text.partition('<section id="times">') for text in (before, page.read_text())]
    heads = [text[0].partition("<main>")[2] for text in parts]
    assert unescape(heads[0]) == unescape(heads[1])
