"""last.pt of a run that stopped: every part of its training state is checked before it is used."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import corrupt, refuse
from paths import FILES

from yolo_prune.commands.iterate import load_rows
from yolo_prune.commands.pruning.iterate_step import load_moments
from yolo_prune.commands.reporting.evidence import describe_weights
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.pruning.sparsity.zeroing import begin_removal
from yolo_prune.training.resume import restore
from yolo_prune.training.run import load_last
from yolo_prune.training.saved_state import check_run_provenance, read_removal
from yolo_prune.training.state import make_training_state

TENSORS = [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor(1.0), torch.zeros(36, dtype=torch.bool)]


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """Return a last.pt that holds all there is, in the middle of its third epoch: tmp_path/run/last.pt."""
    loaded = load_checkpoint(FILES / "last-0.1.0.pt")
    (row,) = loaded.training["rows"]
    training = {**loaded.training, "epoch": 2, "rows": [row, {**row, "epoch": 2}], "gammas": [[1, 2], [3, 4]]}
    training["removal"] = begin_removal(loaded.network).format_state()
    return save_checkpoint(tmp_path / "run/last.pt", replace(loaded, training=training))


def read(path: Path) -> None:
    """Read all that a resumed run and `iterate` read."""
    config, loaded = load_last(path.parent, {})
    model = loaded.make_last_step_model()
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    training = make_training_state(model, config, 9)
    read_removal(loaded, path)
    progress = restore(training, loaded, path.parent)
    assert progress.epoch == len(load_rows(path))
    load_moments(loaded, path)
    describe_weights(loaded)
    training.optimizer.zero_grad()
    for parameter in training.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    training.average.update(training.model)


def test_a_whole_one_is_read(last: Path) -> None:
    read(last)
    shutil.copy(FILES / "last-0.1.0.pt", last)
    read(last)


def test_single_corruptions_are_errors_of_this_package(last: Path) -> None:
    loaded = load_checkpoint(last)
    whole = copy.deepcopy(loaded.training)

    def read_with(value: Any) -> None:
        save_checkpoint(last, replace(loaded, state=state, training=value))
        read(last)

    state = {name: tensor.clone() for name, tensor in loaded.state.items()}
    loaded = replace(loaded, state=state, training={})
    tried, refused = corrupt(whole, read_with, TENSORS)
    assert refused > tried / 2


def put(*places: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(training: dict[str, Any]) -> None:
        part: Any = training
        for place in places[:-1]:
            part = part[place]
        part[places[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda training: training.pop("scaler"), "lacks scaler"),
        (put("epoch", value="2"), "epoch '2' is not a valid integer"),
        (put("epoch", value=1), "has 2 rows of 1 epochs"),
        (put("rows", 1, value={}), "rows [1] has other keys than [0]"),
        (put("rows", 0, "loss", value="low"), "rows[0].loss"),
        (put("best_map50", value=float("nan")), "best_map50 nan is not a finite number"),
        (put("tally", "losses", value=torch.zeros(3)), "stats.losses is no list of 5 losses"),
        (put("optimizer", "state", 0, "exp_avg", value=torch.zeros(2)), "optimizer.state[0].'exp_avg' does not fit"),
        (put("optimizer", "state", 99, value={"step": torch.zeros(())}), "optimizer.state[99] does not fit"),
        (put("optimizer", "param_groups", 0, "lr", value="high"), "optimizer.param_groups[0].lr is wrong"),
        (put("optimizer", "param_groups", 0, "params", value=[0]), "optimizer.param_groups[0].params does not fit"),
        (put("removal", "kept", value=torch.zeros(3, dtype=torch.bool)), "removal does not fit the network"),
        (put("average", value={}), "its cfg and tensors disagree about layers.0.bn.bias"),
    ],
)
def test_what_is_wrong_is_named(last: Path, change: Callable[[Any], object], said: str) -> None:
    loaded = load_checkpoint(last)
    training = copy.deepcopy(loaded.training)
    change(training)
    other = last.with_name("other") / "last.pt"
    save_checkpoint(other, replace(loaded, training=training))
    line = refuse(read, other)
    assert line.startswith(f"{other}: ")
    assert said in line


@pytest.mark.parametrize("key", ["recipe", "data", "stage"])
def test_a_run_s_provenance_is_needed(last: Path, key: str) -> None:
    loaded = load_checkpoint(last)
    assert refuse(lambda one: check_run_provenance(one, last), loaded.provenance) == ""
    provenance = {name: value for name, value in loaded.provenance.items() if name != key}
    line = refuse(lambda one: check_run_provenance(one, last), provenance)
    assert line.startswith(f"{last}: provenance: lacks {key}; ")


def test_moments_that_iterate_left_fit_the_network(last: Path) -> None:
    loaded: Checkpoint = load_checkpoint(last)
    moments = load_moments(loaded, last)
    left = replace(loaded, training={"moments": moments})
    assert load_moments(left, last).keys() == moments.keys()
    for wrong in (3, {"exp_avg": 3}, {"exp_avg": {"layers.0.bn.weight": torch.zeros(3)}}, {"exp_avg": {"x": torch.zeros(3)}}):  # fmt: skip
        line = refuse(lambda one: load_moments(one, last), replace(loaded, training={"moments": wrong}))
        assert line.startswith(f"{last}: training: moments")
