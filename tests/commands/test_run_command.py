from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from tiny import DRAW_RESULTS, Killed, before_step, is_same

from yolo_prune.commands import run as run_module
from yolo_prune.commands.bench import find_lineage
from yolo_prune.commands.run import RunResult, load_run, run_stages
from yolo_prune.datasets.images import read_image
from yolo_prune.errors import ConfigError, DatasetError, Interrupted, YoloPruneError
from yolo_prune.model.checkpoint import load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training.epoch import train_step

Run = Callable[..., RunResult]


def write_run(folder: Path, data: Path, cfg: Path) -> Path:
    """Write a run file with one or two epochs a stage."""
    stages: dict[str, Any] = {
        "name": "tiny",
        "data": str(data),
        "device": "cpu",
        "train": {"cfg": str(cfg), "epochs": 2, "batch_size": 6},
        "sparse": {"epochs": 1, "batch_size": 6, "sparsity": 0.5},
        "prune": {"ratio": 0.5, "effort": 1},
        "finetune": {"epochs": 1, "batch_size": 6},
        "bench": {"runs": 2, "warmup": 0},
    }
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump(stages))
    return path


@pytest.fixture(scope="module")
def finished(hands: Path, tiny_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which `yoloprune run` has finished, with the data set and the cfg that it worked on."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(hands.parent, folder / "hands")
    shutil.copy(tiny_cfg, folder / "tiny.cfg")
    write_run(folder, Path("hands/data.yaml"), Path("tiny.cfg"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(DRAW_RESULTS, lambda path, rows: None)
        run_stages(load_run(Path("stages.yaml")))
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> Path:
    """Work in a copy of the finished run."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "place"))
    return Path("runs/tiny")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list in which every stage that does work from now on leaves its name."""
    names: list[str] = []

    def record(name: str, find: Callable[..., str]) -> None:
        work = getattr(run_module, name)

        def recorded(*arguments: Any) -> Any:
            names.append(find(*arguments))
            return work(*arguments)

        monkeypatch.setattr(run_module, name, recorded)

    record("start_training", lambda settings, place, stage: f"start {stage}")
    record("resume_training", lambda place: f"resume {place.name}")
    record("prune", lambda source, settings, place: place.name)
    return names


def change(**stages: Any) -> None:
    """Change settings in the run's file."""
    values = yaml.safe_load(Path("stages.yaml").read_text())
    for stage, settings in stages.items():
        values[stage] = {**values[stage], **settings} if isinstance(settings, dict) else settings
    Path("stages.yaml").write_text(yaml.safe_dump(values))


def again() -> RunResult:
    return run_stages(load_run(Path("stages.yaml")))


def test_a_run_leaves_every_stage_and_the_table(place: Path) -> None:
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    for stage in ("train", "sparse", "finetune"):
        assert {f"{stage}/{name}" for name in ("config.yaml", "last.pt", "best.pt", "stage.json")} <= files
    assert {"prune/pruned.pt", "prune/pruned.cfg", "prune/stage.json"} <= files
    assert {path for path in files if path.startswith("bench/")} == {
        f"bench/{name}" for name in ("bench.json", "bench.md", "detections.png", "stage.json")
    }
    rows = json.loads((place / "bench/bench.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["Original", "Sparse", "Pruned", "Finetuned"]
    assert rows[0]["params"] == rows[1]["params"] > rows[2]["params"] == rows[3]["params"]
    table = (place / "bench/bench.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:6]] == [row["name"] for row in rows]
    assert read_image(place / "bench/detections.png").shape[1] == 2 * (64 + 2) + 2


def test_a_run_that_found_its_own_sparsity_is_the_sparse_one(place: Path) -> None:
    trained, files = load_checkpoint(place / "train/best.pt"), [Path("base.pt"), Path("sparse.pt")]
    for sparsity, parent, file in zip((0.0, "auto"), (None, files[0]), files, strict=True):
        provenance = make_provenance("train", {"sparsity": sparsity}, parent)
        save_checkpoint(file, replace(trained, provenance=provenance))
    assert list(find_lineage(files[1])) == ["Original", "Sparse"]


def test_every_stage_starts_where_the_one_before_it_ended(finished: Path) -> None:
    folder = finished / "runs/tiny"
    parents = {
        stage: load_checkpoint(folder / stage / name).provenance["parent"]
        for stage, name in (
            ("train", "best.pt"),
            ("sparse", "best.pt"),
            ("prune", "pruned.pt"),
            ("finetune", "best.pt"),
        )
    }
    assert parents.pop("train") is None
    assert {stage: parent["path"] for stage, parent in parents.items()} == {
        "sparse": str(folder / "train/best.pt"),
        "prune": str(folder / "sparse/best.pt"),
        "finetune": str(folder / "prune/pruned.pt"),
    }


def test_a_second_run_does_nothing_and_tells_the_same(
    place: Path, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    result = again()
    assert done == []
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert result.bench.format(markdown=True) + "\n" == (place / "bench/bench.md").read_text()
    err = capsys.readouterr().err
    for stage in ("train", "sparse", "prune", "finetune", "bench"):
        assert f"runs/tiny/{stage}: up to date\n" in err
    assert result.checkpoints == {
        "Original": place / "train/best.pt",
        "Sparse": place / "sparse/best.pt",
        "Pruned": place / "prune/pruned.pt",
        "Finetuned": place / "finetune/best.pt",
    }
    assert [row.name for row in result.bench.rows] == list(result.checkpoints)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bench": {"runs": 1}}, []),
        ({"finetune": {"epochs": 2}}, ["start finetune"]),
        ({"prune": {"ratio": 0.25}}, ["prune", "start finetune"]),
        ({"sparse": None}, ["prune", "start finetune"]),
        ({"finetune": None}, []),
        ({"seed": 1}, ["start train", "start sparse", "prune", "start finetune"]),
    ],
    ids=["bench", "finetune", "ratio", "no-sparse", "no-finetune", "seed"],
)
def test_a_change_redoes_its_stage_and_those_after_it(
    done: list[str], changes: dict[str, Any], expected: list[str]
) -> None:
    table = Path("runs/tiny/bench/bench.json")
    before = table.stat().st_mtime_ns
    change(**changes)
    again()
    assert done == expected
    pruned = load_checkpoint(Path("runs/tiny/prune/pruned.pt"))
    assert pruned.provenance["recipe"]["seed"] == changes.get("seed", 0)
    after = table.stat().st_mtime_ns
    assert after > before
    again()
    assert done == expected
    assert table.stat().st_mtime_ns == after


@pytest.mark.usefixtures("place")
def test_changed_files_redo_everything(done: list[str]) -> None:
    everything = ["start train", "start sparse", "prune", "start finetune"]
    label = Path("hands/labels/train/000000.txt")
    label.write_text(f"{label.read_text()}0 0.5 0.5 0.1 0.1\n")
    again()
    assert done == everything
    cfg = Path("tiny.cfg")
    cfg.write_text(cfg.read_text().replace("filters=16", "filters=20"))
    result = again()
    assert done == 2 * everything
    assert 20 in {layer.filters for _, layer in load_checkpoint(result.checkpoints["Original"]).network.convs}


def test_a_lost_checkpoint_is_made_again(place: Path, done: list[str]) -> None:
    before = load_checkpoint(place / "sparse/best.pt")
    (place / "sparse/best.pt").unlink()
    again()
    assert done[0] == "start sparse"
    assert is_same(load_checkpoint(place / "sparse/best.pt").state, before.state)


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_a_stopped_stage_is_resumed(place: Path, done: list[str], stage: str) -> None:
    change(**{stage: {"learning_rate": 3e-3, "epochs": 2}})
    steps = 0

    def stop(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:  # the second epoch's first of two
            signal.raise_signal(signal.SIGTERM)
        return train_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_module, "train_step", stop)
        with pytest.raises(Interrupted):
            again()
    assert done == [f"start {stage}"]
    assert load_checkpoint(place / stage / "last.pt").training["epoch"] == 1
    again()
    assert done[1] == f"resume {stage}"
    assert f"start {stage}" not in done[1:]
    assert load_checkpoint(place / stage / "last.pt").training["epoch"] == 2
    seen = list(done)
    again()
    assert done == seen


def test_a_signal_after_a_stage_s_last_step_stops_the_run(place: Path, done: list[str]) -> None:
    change(train={"learning_rate": 3e-3, "epochs": 1})
    with before_step(2, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Interrupted):  # of two
        again()
    assert done == ["start train"]
    again()
    assert "start train" not in done[1:]
    assert "start sparse" in done


def test_a_stage_that_ended_unnoticed_is_not_trained_again(place: Path, done: list[str]) -> None:
    note = place / "train/stage.json"
    note.write_text(json.dumps({"begun_of": json.loads(note.read_text())["made_of"]}))
    again()
    assert done == []
    assert "made_of" in json.loads(note.read_text())


def test_a_stopped_stage_with_other_settings_starts_again(place: Path, done: list[str]) -> None:
    note = place / "finetune/stage.json"
    note.write_text(json.dumps({"begun_of": json.loads(note.read_text())["made_of"]}))
    change(finetune={"epochs": 2})
    again()
    assert done == ["start finetune"]
    assert load_checkpoint(place / "finetune/last.pt").training["epoch"] == 2


def test_a_stage_killed_before_its_first_word_starts_again(place: Path, done: list[str]) -> None:
    """What lies there then is of the run before, with other settings."""
    change(finetune={"epochs": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "start_training", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            again()
    again()
    assert done == ["start finetune"]
    assert load_checkpoint(place / "finetune/best.pt").provenance["recipe"]["epochs"] == 3


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", r"stages\.yaml:1: unknown key trian; did you mean train\?"),
        ("train: {epoch: 3}", r"stages\.yaml:1: unknown key train\.epoch; did you mean train\.epochs\?"),
        (
            "train: {epochs: many}",
            r"stages\.yaml:1: train\.epochs: 'many' is of the wrong type",
        ),
        ("prune: 0.5", r"stages\.yaml:1: prune: 0\.5 is no mapping"),
        ("finetune: {seed: 1}", r"stages\.yaml: finetune\.seed: belongs to the whole run; set it at the top"),
        ("sparse: {weights: a.pt}", r"stages\.yaml: sparse\.weights: belongs to the whole run"),
        (
            "sparse: {auto_anchors: true}",
            r"stages\.yaml:1: sparse\.auto_anchors: starts from a checkpoint, whose heads",
        ),
        ("finetune: {auto_anchors: true}", r"stages\.yaml:1: finetune\.auto_anchors: starts from a checkpoint"),
        ("prune: {ratio: 1}", r"stages\.yaml:1: prune\.ratio: 1 is out of range"),
        ("name: ../up", r"stages\.yaml:1: name: '\.\./up' is no folder name"),
        ("train: [", r"stages\.yaml:1: is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, message: str) -> None:
    Path("stages.yaml").write_text(text)
    with pytest.raises(YoloPruneError, match=f"^{message}"):
        load_run(Path("stages.yaml"))


@pytest.mark.usefixtures("workplace")
def test_nothing_is_begun_where_the_end_is_out_of_reach(hands: Path, tiny_cfg: Path) -> None:
    path = write_run(Path(), hands, tiny_cfg)
    change(bench={"split": "tset"})
    with pytest.raises(DatasetError, match="there are no images for tset; use one of train, val, test"):
        run_stages(load_run(path))
    change(device="tpu")
    with pytest.raises(ConfigError, match="unknown device tpu"):
        run_stages(load_run(path))
    assert not Path("runs").exists()
