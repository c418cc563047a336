"""Pruning while training: what is pruned, what is left, what a stopped run does, and what happens without a data set."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import measure_difference
from tiny import PRUNABLE, SIDE, TINY_CFG, Cli, Killed, before_step, is_same, make_config

from yolo_prune.commands.config import PRUNE_TRAINING, PruneConfig
from yolo_prune.commands.lineage import adapt_finetune, adapt_prune, find_training, find_uncut
from yolo_prune.commands.prune import PruneResult, prune
from yolo_prune.commands.pruning.gradual import choose_effort, load_journal
from yolo_prune.commands.train import start_training
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.errors import ConfigError, Interrupted, PlanError, TimeUp
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import Plan, prune_network
from yolo_prune.pruning.plans.plan_file import load_plan
from yolo_prune.pruning.sparsity.zeroing import begin_removal, parse_removal
from yolo_prune.pruning.surgery.rebuild import mask, rebuild
from yolo_prune.training import removal as removal_module
from yolo_prune.training.config import TrainConfig

ORIGINAL = parse_cfg(TINY_CFG)
TRAINING = replace(PRUNE_TRAINING, batch_size=4, ema_fraction=0.5)
"""Three steps an epoch."""


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out gammas.png as well, which takes longer than an epoch of these."""
    monkeypatch.setattr("yolo_prune.training.epoch_end.draw_gammas", lambda *arguments: None)


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a run that was never stopped leaves."""
    return run(trained, tmp_path_factory.mktemp("whole")).checkpoint


def make(**changes: Any) -> PruneConfig:
    return PruneConfig(**{"effort": 4, "ratio": 0.6, "training": TRAINING, "device": "cpu", **changes})


def run(trained: Path, folder: Path, **changes: Any) -> PruneResult:
    result = prune(trained, make(**changes), folder)
    assert isinstance(result, PruneResult)
    return result


def test_just_the_ratio_is_pruned_and_all_files_agree(trained: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path / "run")
    pruned = load_checkpoint(result.checkpoint)
    made = load_plan(result.plan, ORIGINAL)
    assert int((~made.plan.keep).sum()) == round(0.6 * PRUNABLE)
    assert prune_network(ORIGINAL, made.plan) == pruned.network == parse_cfg(result.cfg.read_text())
    assert result.max_abs_difference < 1e-9
    cost = measure_cost(pruned.network, SIDE)
    assert (result.as_dict()["params"], result.as_dict()["macs"]) == (cost.params, cost.macs)
    assert result.damage is not None
    assert result.damage.images == 6
    best = load_checkpoint(tmp_path / "run/best.pt")
    assert is_same(pruned.state, best.state)
    assert pruned.provenance["parent"]["path"] == str(trained.resolve())
    assert pruned.provenance["stage"] == "prune"
    assert pruned.provenance["data"] == load_checkpoint(trained).provenance["data"]


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({"target_macs": 0.4}, ("macs", 0.4)), ({"target_params": 0.3}, ("params", 0.3))],
)
def test_targets_are_met_by_what_is_left(
    changes: dict[str, Any], limit: tuple[str, float], trained: Path, tmp_path: Path
) -> None:
    values = run(trained, tmp_path / "run", ratio=None, **changes).as_dict()
    assert values[limit[0]] <= limit[1] * values["before"][limit[0]]
    assert values["prune_ratio"] < 0.9


def test_floors_rounding_and_spared_layers_hold(trained: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path / "run", ratio=0.5, round_to=4, min_channels=3, spare=(5,))
    filters = [layer.filters for _, layer in load_checkpoint(result.checkpoint).network.convs]
    assert filters[4:] == [16, 12]
    assert all(count % 4 == 0 for count in filters)


@pytest.fixture(scope="module")
def wide(hands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of the tiny network with sixteen times as many channels, 64 to 256 in a group."""
    folder = tmp_path_factory.mktemp("wide")
    cfg = folder / "wide.cfg"
    cfg.write_text(re.sub(r"filters=(4|8|16)$", lambda found: f"filters={16 * int(found[1])}", TINY_CFG, flags=re.M))
    return start_training(make_config(hands, cfg, epochs=1, val_interval=0), folder / "train")


@pytest.mark.parametrize(
    ("changes", "multiple"),
    [
        ({}, 8),  # a sixteenth of 128
        ({"criterion": "l2"}, 8),
        ({"one_shot": True}, 8),
        ({"round_to": 4}, 4),
        ({"round_to": 1}, 1),
        ({"one_shot": True, "criterion": "l2"}, 1),
        ({"one_shot": True, "criterion": "bn-gamma"}, 1),
    ],
)
def test_widths_suit_engines_where_working_channels_are_pruned(
    changes: dict[str, Any], multiple: int, wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(wide, tmp_path / "run", effort=1, **changes)
    assert ("widths are multiples of 8, which are faster" in capsys.readouterr().err) == (multiple == 8)
    widths = [layer.filters for _, layer in load_checkpoint(result.checkpoint).network.convs][:-1]
    assert math.gcd(*widths) % multiple == 0
    assert result.planned.prune_ratio == pytest.approx(0.6, abs=0.001 if multiple == 1 else 0.02)


@pytest.mark.parametrize("one_shot", [False, True])
def test_all_channels_at_zero_are_pruned_and_no_other(one_shot: bool, wide: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(wide)
    model = checkpoint.make_model()
    with torch.no_grad():
        for index, _ in model.network.convs[:-1]:
            layer = model.get_conv(index)
            assert layer.bn is not None
            layer.bn.weight[5:] = layer.bn.bias[5:] = 0
    graph = make_channel_graph(model.network)
    kept = 5 * sum(not group.frozen for group in graph.groups)
    source = save_checkpoint(tmp_path / "zeros.pt", replace(checkpoint, state=model.state_dict()))
    result = run(source, tmp_path / "run", ratio=float(1 - kept / graph.prunable.sum()), one_shot=one_shot)
    widths = [layer.filters for _, layer in load_checkpoint(result.checkpoint).network.convs]
    assert widths[:-1] == [5] * (len(widths) - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": "l2"},
        {"criterion": "bn-gamma", "normalize": "mean"},
        {"scope": "layer", "criterion": "random"},
        {"criterion": "taylor", "score_batches": 1},
    ],
)
def test_a_named_criterion_says_what_is_pruned(changes: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    gradual = run(trained, tmp_path / "gradual", **changes)
    at_once = run(trained, tmp_path / "at_once", one_shot=True, **changes)
    one, other = (load_plan(result.plan, ORIGINAL).plan.keep for result in (gradual, at_once))
    np.testing.assert_array_equal(one, other)


def test_a_plan_is_carried_out_while_training(trained: Path, tmp_path: Path) -> None:
    first = run(trained, tmp_path / "first", one_shot=True, criterion="l1")
    again = run(trained, tmp_path / "again", ratio=None, plan=first.plan)
    assert load_checkpoint(again.checkpoint).network == load_checkpoint(first.checkpoint).network
    assert not torch.equal(
        load_checkpoint(again.checkpoint).state["layers.0.conv.weight"],
        load_checkpoint(first.checkpoint).state["layers.0.conv.weight"],
    )


def test_blocks_are_cut_before(trained: Path, tmp_path: Path) -> None:
    result = run(trained, tmp_path / "run", drop_blocks=1, ratio=0.3)
    pruned = load_checkpoint(result.checkpoint)
    assert len(pruned.network.convs) == len(ORIGINAL.convs) - 2
    assert find_uncut(pruned).path == trained.resolve()
    made = load_plan(result.plan, ORIGINAL)
    assert [block.shortcut for block in made.blocks] == [4]


@pytest.mark.parametrize("step", range(1, 13))
def test_killed_before_any_step_it_ends_in_the_same_bits(step: int, whole: Path, trained: Path, tmp_path: Path) -> None:
    def kill() -> None:
        raise Killed

    with pytest.raises(Killed), before_step(step, kill):
        run(trained, tmp_path / "stopped", training=replace(TRAINING, save_minutes=0.0))
    again = run(trained, tmp_path / "stopped", training=replace(TRAINING, save_minutes=0.0))
    one, other = load_checkpoint(whole), load_checkpoint(again.checkpoint)
    assert one.network == other.network
    assert is_same(one.state, other.state)


def test_its_time_up_a_run_is_resumed_by_its_name(
    cli: Cli, trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", trained, "--effort", 2, "--ratio", 0.6, "--device", "cpu")
    stopped = cli(*words, "--max-minutes", 0)
    assert stopped.code == 124
    assert not (workplace / "runs/prune/pruned.pt").exists()
    rejected = cli("prune", "--resume", "--ratio", 0.5)
    assert (rejected.code, rejected.err) == (
        2,
        "error: --ratio: a resumed run keeps its settings; leave it out, or start a new run; --max-minutes, --device may change\n",
    )
    done = cli("prune", "--resume", "--max-minutes", 60)
    assert (done.code, done.out) == (0, "runs/prune/pruned.pt\n"), done.err
    source, settings = load_journal(workplace / "runs/prune")
    assert source == trained.resolve()
    assert settings.ratio == 0.6
    again = cli("prune", "--resume", "--name", "nothing")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "there is nothing to resume" in again.err


def test_channels_that_training_brought_to_zero_are_cut_at_once(
    cli: Cli, hands: Path, tiny_cfg: Path, tmp_path: Path, workplace: Path
) -> None:
    settings = make_config(hands, tiny_cfg, sparsity="auto", sparsity_ratio=0.5, ema_fraction=0.0)
    sparse = start_training(settings, tmp_path / "sparse")
    outcome = cli("prune", sparse, "--ratio", 0.5, "--recalibrate", 0)
    assert outcome.code == 0
    assert "the channels to prune are at zero: they are removed at once" in outcome.err
    assert not (workplace / "runs/prune/last.pt").exists()
    further = cli("prune", sparse, "--ratio", 0.7, "--effort", 1, "--device", "cpu")
    assert (workplace / "runs/prune-2/last.pt").exists(), further.err


def test_a_changed_source_is_not_resumed(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.pt"
    source.write_bytes(trained.read_bytes())
    with pytest.raises(TimeUp):
        run(source, tmp_path / "run", max_minutes=0.0)
    source.write_bytes(trained.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="has changed since the run began; restore it, or start anew"):
        load_journal(tmp_path / "run")


def test_without_the_data_set_channels_are_pruned_at_once_and_that_is_reported(
    cli: Cli, hands: Path, tiny_cfg: Path, tmp_path: Path, workplace: Path
) -> None:
    checkpoint = load_checkpoint(make_orphan(hands, tiny_cfg, tmp_path))
    assert checkpoint.provenance["data"]["path"].endswith("moved/data.yaml")
    outcome = cli("prune", tmp_path / "orphan.pt", "--ratio", 0.5)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.err.splitlines() if "without training" in line]
    assert len(lines) == 1
    assert "--data names one" in lines[0]
    assert "no validation images to score on" in outcome.err
    named = cli("prune", tmp_path / "orphan.pt", "--data", tmp_path / "nowhere.yaml")
    assert (named.code, named.err.count("\n")) == (2, 1)


def make_orphan(hands: Path, tiny_cfg: Path, folder: Path) -> Path:
    """Write a checkpoint whose data set is not there any more."""
    from yolo_prune.model.checkpoint import Checkpoint, save_checkpoint

    model = Detector(parse_cfg(tiny_cfg.read_text()))
    provenance = {
        "stage": "train",
        "parent": None,
        "data": {"path": str(folder / "moved/data.yaml"), "fingerprint": "x"},
    }
    return save_checkpoint(folder / "orphan.pt", Checkpoint(model.network, model.state_dict(), ("hand",), provenance))


def test_what_is_out_of_reach_is_rejected_before_training(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"target_params: 0\.001 of the original cannot be reached"):
        run(trained, tmp_path / "run", ratio=None, target_params=0.001)
    with pytest.raises(PlanError, match=r"ratio: 0\.99 of 36 channels cannot be removed"):
        run(trained, tmp_path / "other", ratio=0.99)


def test_a_wrong_cut_is_noticed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: Detector, plan: Plan) -> Detector:
        slim = rebuild(model, plan)
        with torch.no_grad():
            slim.state_dict()["layers.1.conv.weight"].mul_(1.01)
        return slim

    monkeypatch.setattr(removal_module, "rebuild", spoil)
    with pytest.raises(PlanError, match="the rebuilt network differs from the masked one"):
        run(trained, tmp_path / "run")
    assert not (tmp_path / "run/pruned.pt").exists()


def test_a_ruined_network_is_reported(
    cli: Cli, trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "yolo_prune.commands.pruning.damage.RUINED_SHARE", 1e9
    )  # whatever the tiny network still finds is less than that
    outcome = cli("prune", trained, "--one-shot", "--ratio", 0.5)
    assert outcome.code == 0
    line = next(line for line in outcome.err.splitlines() if "is ruined" in line)
    assert "before" in line
    assert "after" in line


def test_removals_add_up(trained: Path, tmp_path: Path) -> None:
    run(trained, tmp_path / "run")
    removal = parse_removal(load_checkpoint(tmp_path / "run/last.pt").training["removal"])
    assert removal.original == ORIGINAL
    first = Plan(np.arange(make_channel_graph(ORIGINAL).size) % 5 != 4)
    first.keep[make_channel_graph(ORIGINAL).frozen] = True
    slim = prune_network(ORIGINAL, first)
    graph = make_channel_graph(slim)
    second = Plan((np.arange(graph.size) % 4 != 3) | graph.frozen)
    both = begin_removal(ORIGINAL).after(first, 0.0).after(second, 1e-12)
    assert prune_network(ORIGINAL, Plan(both.kept)) == prune_network(slim, second)
    assert both.difference == 1e-12
    model = load_checkpoint(trained).make_model().eval()
    assert measure_difference(rebuild(rebuild(model, first), second), mask(model, Plan(both.kept)), SIDE) < 1e-9


def test_how_long_it_trains_follows_from_the_checkpoint(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    assert choose_effort(checkpoint) == 4
    longer = replace(checkpoint, provenance={**checkpoint.provenance, "recipe": {"epochs": 31}})
    assert choose_effort(longer) == 16
    assert choose_effort(replace(checkpoint, provenance={"stage": "import"})) == 10


def test_finetune_learns_from_the_network_that_it_was_cut_from(cli: Cli, trained: Path, workplace: Path) -> None:
    assert cli("prune", trained, "--one-shot", "--ratio", 0.5).code == 0
    outcome = cli("finetune", "--epochs", 1)
    assert outcome.code == 0, outcome.err
    assert f"teacher: {trained.resolve()}" in outcome.err
    assert load_checkpoint(workplace / "runs/finetune/best.pt").provenance["recipe"]["teacher"] == str(
        trained.resolve()
    )
    alone = cli("finetune", "runs/prune/pruned.pt", "--no-teacher", "--epochs", 1)
    assert alone.code == 0
    assert "teacher" not in alone.err
    further = cli("finetune", "runs/finetune/best.pt", "--epochs", 1)
    assert f"teacher: {trained.resolve()}" in further.err
    both = cli("finetune", "--teacher", trained, "--no-teacher")
    assert (both.code, both.err) == (2, "error: --no-teacher: contradicts --teacher; leave one of them out\n")


def test_a_missing_or_changed_teacher_is_left_out(cli: Cli, trained: Path, tmp_path: Path, workplace: Path) -> None:
    source = tmp_path / "source.pt"
    source.write_bytes(trained.read_bytes())
    assert cli("prune", source, "--one-shot", "--ratio", 0.5).code == 0
    source.write_bytes(trained.read_bytes() + b"x")
    changed = cli("finetune", "--epochs", 1)
    assert changed.code == 0
    assert f"no teacher: {source}, which it comes from, has changed since" in changed.err
    source.unlink()
    missing = cli("finetune", "runs/prune/pruned.pt", "--epochs", 1)
    assert missing.code == 0
    assert f"no teacher: {source}, which it comes from, is not there" in missing.err


def test_settings_of_the_training_are_inherited(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    base = TrainConfig(data=hands, cfg=tiny_cfg, epochs=2, batch_size=6, device="cpu", val_interval=0)
    base = replace(base, augment=replace(base.augment, mosaic=0.0), loss=replace(base.loss, box=3.0))
    best = start_training(base, tmp_path / "base")
    trained = find_training(best)
    finetune, pruning = adapt_finetune(trained), adapt_prune(trained)
    for settings in (finetune, pruning.training):
        assert (settings.batch_size, settings.augment.mosaic, settings.loss.box) == (6, 0.0, 3.0)
    assert trained is not None
    assert [adapt_finetune(replace(trained, epochs=epochs)).epochs for epochs in (1, 12, 30)] == [1, 9, 23]
    assert finetune.parent_teacher
    assert pruning.training.remove


def test_a_zeroed_channel_is_cut_while_an_epoch_runs(trained: Path, tmp_path: Path) -> None:
    widths: list[int] = []
    remove = removal_module.remove_zeroed_

    def record(training: Any, *arguments: Any) -> bool:
        done = remove(training, *arguments)
        widths.append(sum(layer.filters for _, layer in training.model.network.convs))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.training.run.remove_zeroed_", record)
        run(trained, tmp_path / "run")
    assert len(widths) == 12 + 4  # before every step, and after every epoch
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) >= 3


def test_a_plan_of_auto_belongs_to_auto() -> None:
    with pytest.raises(ConfigError, match="remove: applies only to sparsity auto; leave it out"):
        TrainConfig(remove=True)
    with pytest.raises(ConfigError, match="sparsity_plan: applies only to sparsity auto"):
        TrainConfig(sparsity_plan=PlanConfig())


def test_journals_are_json(trained: Path, tmp_path: Path) -> None:
    with pytest.raises((TimeUp, Interrupted)):
        run(trained, tmp_path / "run", max_minutes=0.0)
    assert json.loads((tmp_path / "run/prune.json").read_text())["source"] == str(trained.resolve())
