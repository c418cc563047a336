"""Every command that uses a last.pt as a network takes its averaged weights; a resumed run takes the last step's."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Cli, is_same, read_json

from yolo_prune.commands import train as training_module
from yolo_prune.commands.iterate import start_iterate
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.pruning.iterate_step import load_moments
from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.errors import CheckpointError
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint
from yolo_prune.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("undrawn")
SMALL = ("--epochs", 1, "--batch-size", 6, "--device", "cpu")


@dataclass(frozen=True)
class Files:
    """A last.pt of a run that stopped, and what it would be if its averaged or its last weights were all it had."""

    last: Path
    averaged: Path
    raw: Path


@pytest.fixture(scope="module")
def files(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Write them with weights of the last step that are far from the averaged ones; not to be changed."""
    folder = tmp_path_factory.mktemp("last")
    source = load_checkpoint(trained.parent / "last.pt")
    random = torch.Generator().manual_seed(0)
    raw = {
        name: tensor * (0.5 + torch.rand(tensor.shape, generator=random)) if name.endswith("weight") else tensor
        for name, tensor in source.state.items()
    }
    training = {**source.training, "epoch": 2, "rows": source.training["rows"][1:], "is_done": False}
    last = replace(source, state=raw, training=training)
    weights = (("averaged", training["average"]), ("raw", raw))
    plain = {name: replace(source, state=state, training={}) for name, state in weights}
    return Files(
        save_checkpoint(folder / "run/last.pt", last),
        *(save_checkpoint(folder / name / "last.pt", checkpoint) for name, checkpoint in plain.items()),
    )


def get_state(path: str | Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(Path(path)).make_model().state_dict())


def run_evaluate(cli: Cli, path: Path, data: Path) -> Any:
    result = read_json(cli("evaluate", path, "--data", data, "--json"))
    return result["map50"], result["coco_ap"], result["curve"]


def run_bench(cli: Cli, path: Path, data: Path) -> Any:
    (row,) = read_json(cli("bench", path, "--data", data, "--runs", 1, "--warmup", 0, "--json"))["rows"]
    return row["map50"], row["map50_interval"], row["coco_ap"]


def run_detect(cli: Cli, path: Path, data: Path) -> Any:
    words = ("detect", path, data.parent / "images/val/000000.jpg", "--confidence", 0.001, "--json")
    return read_json(cli(*words))["detections"]


def run_export(cli: Cli, path: Path, data: Path) -> Any:
    return Path(read_json(cli("export", path, "--out", "out", "--force", "--json"))["weights"]).read_bytes()


def run_prune(cli: Cli, path: Path, data: Path) -> Any:
    result = read_json(
        cli("prune", "--one-shot", path, "--ratio", 0.5, "--data", data, "--name", f"p-{path.parent.name}", "--json")
    )
    return get_state(result["checkpoint"])


def run_weight_prune(cli: Cli, path: Path, data: Path) -> Any:
    words = ("--granularity", "weight", "--ratio", 0.5, "--recalibrate", 0)
    return get_state(read_json(cli("prune", path, *words, "--name", f"w-{path.parent.name}", "--json"))["checkpoint"])


def run_plan(cli: Cli, path: Path, data: Path) -> Any:
    outcome = cli("plan", path, "--ratio", 0.5, "--name", f"plan-{path.parent.name}")
    assert outcome.code == 0, outcome.err
    plan = json.loads(Path(outcome.out.strip()).read_text())
    return {key: value for key, value in plan.items() if not key.startswith("checkpoint")}


def run_sensitivity(cli: Cli, path: Path, data: Path) -> Any:
    words = ("--data", data, "--metric", "loss", "--ratios", "0.5", "--name", f"s-{path.parent.name}", "--json")
    result = read_json(cli("sensitivity", path, *words))
    return result["base"], result["groups"]


def run_teacher(cli: Cli, path: Path, data: Path) -> Any:
    cfg = Path("tiny.cfg")
    outcome = cli("train", "--data", data, "--cfg", cfg, "--teacher", path, *SMALL, "--name", f"t-{path.parent.name}")
    assert outcome.code == 0, outcome.err
    return load_checkpoint(Path(outcome.out.strip()).with_name("last.pt")).training["rows"][0]["teacher"]


def run_weights(cli: Cli, path: Path, data: Path) -> Any:
    outcome = cli("train", "--data", data, "--weights", path, *SMALL, "--name", f"t-{path.parent.name}")
    assert outcome.code == 0, outcome.err
    return load_checkpoint(Path(outcome.out.strip()).with_name("last.pt")).state


def run_finetune(cli: Cli, path: Path, data: Path) -> Any:
    outcome = cli("finetune", path, "--data", data, *SMALL, "--name", f"f-{path.parent.name}")
    assert outcome.code == 0, outcome.err
    return load_checkpoint(Path(outcome.out.strip()).with_name("last.pt")).state


COMMANDS = [
    run_evaluate,
    run_bench,
    run_detect,
    run_export,
    run_prune,
    run_weight_prune,
    run_plan,
    run_sensitivity,
    run_teacher,
    run_weights,
    run_finetune,
]


@pytest.mark.parametrize("run", COMMANDS, ids=[run.__name__ for run in COMMANDS])
def test_a_command_takes_the_averaged_weights(cli: Cli, hands: Path, tiny_cfg: Path, files: Files, run: Any) -> None:
    shutil.copy(tiny_cfg, "tiny.cfg")
    found, averaged, raw = (run(cli, path, hands) for path in (files.last, files.averaged, files.raw))
    assert is_same(found, averaged)
    assert not is_same(found, raw)  # else the test says nothing


def test_last_scores_what_the_run_reported(cli: Cli, hands: Path, trained: Path) -> None:
    last = trained.parent / "last.pt"
    reported = load_checkpoint(last).training["rows"][-1]["val_map50"]
    assert read_json(cli("evaluate", last, "--data", hands, "--json"))["map50"] == reported


def test_an_unfinished_run_is_reported_where_it_is_scored(cli: Cli, hands: Path, trained: Path, files: Files) -> None:
    said = "scoring run/last: 6 images, with the averaged weights after epoch 2 of 3"
    assert cli("evaluate", files.last, "--data", hands).err.splitlines() == [said]
    err = cli("bench", files.last, "--data", hands, "--runs", 1).err
    assert "scoring run/last on the test split: 6 images, with the averaged weights after epoch 2 of 3\n" in err
    for path in (trained, trained.parent / "last.pt", files.averaged):
        assert "weights" not in cli("evaluate", path, "--data", hands).err


def test_both_weights_can_be_asked_for(files: Files) -> None:
    last = load_checkpoint(files.last)
    assert is_same(last.make_model().state_dict(), last.training["average"])
    assert is_same(last.make_last_step_model().state_dict(), last.state)
    assert not is_same(last.state, last.training["average"])
    plain = load_checkpoint(files.raw)
    assert is_same(plain.make_model().state_dict(), plain.make_last_step_model().state_dict())


@pytest.mark.parametrize("average", ["no mapping", {}, {"layers.0.conv.weight": torch.zeros(1)}])
def test_averaged_weights_that_do_not_fit_are_named(files: Files, tmp_path: Path, average: Any) -> None:
    last = load_checkpoint(files.last)
    path = save_checkpoint(tmp_path / "bad.pt", replace(last, training={**last.training, "average": average}))
    with pytest.raises(CheckpointError, match=r"bad\.pt: its cfg and tensors disagree"):
        load_checkpoint(path)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Return the list in which every run, instead of training, leaves the weights that it would begin with."""
    states: list[dict[str, torch.Tensor]] = []

    def train(run: Any, model: Any, *_: Any, **__: Any) -> Path:
        states.append(model.state_dict())
        return Path(run.folder) / "best.pt"

    monkeypatch.setattr(training_module, "train", train)
    return states


def test_a_resumed_run_begins_with_the_last_step_s_weights(
    files: Files, tmp_path: Path, begun: list[dict[str, torch.Tensor]]
) -> None:
    shutil.copy(files.last, tmp_path / "last.pt")
    resume_training(tmp_path)
    assert is_same(begun[0], load_checkpoint(files.last).state)


def test_moments_belong_to_the_last_step_s_weights(
    hands: Path, files: Files, tmp_path: Path, begun: list[dict[str, torch.Tensor]]
) -> None:
    last = load_checkpoint(files.last)
    config = TrainConfig(data=hands, weights=files.last, device="cpu")
    start_training(config, tmp_path / "one", moments=load_moments(last, files.last))
    start_training(config, tmp_path / "two")
    assert is_same(begun[0], last.state)
    assert is_same(begun[1], last.training["average"])


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_iterate_cuts_the_last_step_s_weights_and_scores_the_averaged(
    hands: Path, files: Files, tmp_path: Path, granularity: Any
) -> None:
    config = IterateConfig(
        data=hands, granularity=granularity, criterion="l1", step=0.3, target_ratio=0.3, settle_epochs=0, max_drop=1.0,
        device="cpu", finetune=TrainConfig(batch_size=6),
    )  # fmt: skip
    journals = {
        path: start_iterate(path, config, tmp_path / path.parent.name).journal
        for path in (files.last, files.averaged, files.raw)
    }
    cuts = {path: load_checkpoint(tmp_path / path.parent.name / "01/pruned.pt").state for path in journals}
    assert is_same(cuts[files.last], cuts[files.raw])
    assert not is_same(cuts[files.last], cuts[files.averaged])
    reported = load_checkpoint(files.last).training["rows"][-1]["val_map50"]
    assert journals[files.last].steps[0].map50 == reported
    assert journals[files.last].steps[0].map50 == journals[files.averaged].steps[0].map50
