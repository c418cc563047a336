"""Which split `bench` and `run` score on, and what is said where a data set has no test split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import Cli, read_json

from yolo_prune.commands import bench as bench_module
from yolo_prune.commands.measure_config import BenchConfig
from yolo_prune.commands.run import load_run, run_stages
from yolo_prune.config import parse_config
from yolo_prune.errors import DatasetError

WITHOUT = "path: .\ntrain: images/train\nval: images/val\nnames: [hand]\n"
MISSING = WITHOUT + "test: images/nowhere\n"
SMALL = ("--epochs", 1, "--batch-size", 6)


@pytest.fixture
def data(workplace: Path, hands: Path) -> Path:
    """Return ./hands/data.yaml, a copy that a test may write anew."""
    shutil.copytree(hands.parent, workplace / "hands")
    return Path("hands/data.yaml")


def find_lines(text: str, part: str) -> list[str]:
    return [line for line in text.splitlines() if part in line]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WITHOUT, "hands/data.yaml: there is no test split"),
        (MISSING, "hands/data.yaml: test: there is no folder hands/images/nowhere"),
    ],
    ids=["no-test", "missing-folder"],
)
def test_a_pipe_ends_in_a_table_on_val_where_there_is_no_test_split(
    cli: Cli, data: Path, tiny_cfg: Path, text: str, reason: str
) -> None:
    data.write_text(text)
    trained = cli("train", "--data", data, "--cfg", tiny_cfg, *SMALL)
    hint = f"{reason}: bench will score on val, the split that training chooses its epoch by"
    assert find_lines(trained.err, "test") == [hint]
    pruned = cli("prune", "--one-shot", "--ratio", 0.5, "-", stdin=trained.out)
    finetuned = cli("finetune", "-", *SMALL, stdin=pruned.out)
    (line,) = find_lines(finetuned.err, "bench will score")
    assert line.replace(f"{Path.cwd()}/", "") == hint
    table = cli("bench", "-", "--runs", 1, stdin=finetuned.out)
    assert table.code == 0, table.err
    assert (
        table.err.splitlines()[0].replace(f"{Path.cwd()}/", "")
        == f"warning: {reason}: scoring on val, the split that training chooses its epoch by"
    )
    assert "scoring Original on the val split: 6 images" in table.err
    assert ", on the val split; " in table.out
    assert read_json(cli("bench", "--runs", 1, "--json"))["split"] == "val"


def test_a_test_split_is_taken_and_nothing_is_reported(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    trained = cli("train", "--data", hands, "--cfg", tiny_cfg, *SMALL)
    assert not find_lines(trained.err, "split")
    outcome = cli("bench", "--runs", 1, "--json")
    assert outcome.err.splitlines()[0] == "scoring Original on the test split: 6 images"
    assert read_json(outcome)["split"] == "test"
    assert read_json(cli("bench", "--runs", 1, "--json", "--split", "val"))["split"] == "val"
    unscored = cli("bench", "--runs", 1, "--json", "--no-score")
    assert read_json(unscored)["split"] is None
    assert not find_lines(unscored.err, "split")


def test_training_that_does_not_choose_by_val_says_less(cli: Cli, data: Path, tiny_cfg: Path) -> None:
    data.write_text(WITHOUT)
    Path("fast.yaml").write_text("val_interval: 0\n")
    outcome = cli("train", "--data", data, "--cfg", tiny_cfg, *SMALL, "--config", "fast.yaml")
    assert outcome.code == 0, outcome.err
    assert find_lines(outcome.err, "test") == ["hands/data.yaml: there is no test split: bench will score on val"]


@pytest.mark.parametrize(("text", "said"), [(WITHOUT, "there are no images for test"), (MISSING, "images/nowhere")])
def test_a_named_split_that_is_not_there_is_rejected_before_anything_else(
    cli: Cli, data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    data.write_text(text)
    for work in ("prepare_engine", "score_models", "time_rows"):
        monkeypatch.setattr(bench_module, work, lambda *_, **__: pytest.fail("work was begun"))
    for command in ("bench", "evaluate"):
        outcome = cli(command, trained, "--data", data, "--split", "test")
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("error: hands/data.yaml: test: ")
        assert said in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("check", "hands/data.yaml"), ("convert", "hands/data.yaml", "--to", "coco", "--out", "out")]
)
def test_what_works_on_every_split_rejects_a_missing_one(cli: Cli, data: Path, words: tuple[str, ...]) -> None:
    data.write_text(MISSING)
    outcome = cli("data", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "hands/data.yaml: test: there is no folder hands/images/nowhere; " in outcome.err
    assert not Path("out").exists()
    assert not Path("runs").exists()


def write_stages(data: Path, tiny_cfg: Path, **bench: Any) -> Path:
    stages: dict[str, Any] = {
        "name": "tiny",
        "data": str(data),
        "device": "cpu",
        "train": {"cfg": str(tiny_cfg), "epochs": 1, "batch_size": 6},
        "prune": {"ratio": 0.5, "recalibrate": 0, "one_shot": True},
        "finetune": None,
        "bench": {"runs": 1, "warmup": 0, **bench},
    }
    Path("stages.yaml").write_text(yaml.safe_dump(stages))
    return Path("stages.yaml")


@pytest.mark.usefixtures("undrawn")
def test_the_run_command_follows_the_same_rule(data: Path, tiny_cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text(MISSING)
    with pytest.raises(DatasetError, match=r"test: there is no folder hands/images/nowhere"):
        run_stages(load_run(write_stages(data, tiny_cfg, split="test")))
    assert not Path("runs").exists()
    result = run_stages(load_run(write_stages(data, tiny_cfg)))
    err = capsys.readouterr().err
    reason = "hands/data.yaml: test: there is no folder hands/images/nowhere"
    said = f"warning: {reason}: scoring on val, the split that training chooses its epoch by"
    assert err.splitlines()[0] == said
    assert find_lines(err, "nowhere") == [said]
    assert result.bench.split == "val"
    assert json.loads(Path("runs/tiny/bench/bench.json").read_text())["split"] == "val"
    assert ", on the val split; " in Path("runs/tiny/bench/bench.md").read_text()
    assert Path("runs/tiny/bench/detections.png").is_file()
    before = Path("runs/tiny/bench/bench.json").stat().st_mtime_ns
    run_stages(load_run(write_stages(data, tiny_cfg, split="val")))  # the same table, by name
    assert Path("runs/tiny/bench/bench.json").stat().st_mtime_ns == before


def test_a_file_may_leave_the_split_open() -> None:
    assert BenchConfig().split is None
    assert parse_config(BenchConfig(), {"split": None}, "file").split is None
    assert parse_config(BenchConfig(), {"split": "val"}, "file").split == "val"
