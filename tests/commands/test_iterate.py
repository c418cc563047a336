"""Pruning step by step: what a step cuts and carries, when steps end, and that a stopped run ends the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import networks, randomise_
from tiny import PRUNABLE, SIDE, TINY_CFG, Cli, Killed, before_step, is_same, read_json

from yolo_prune.commands import iterate as module
from yolo_prune.commands.iterate import IterateResult, resume_iterate, start_iterate
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.pruning.iterate_step import cut
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError, Interrupted, PlanError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import ScoreConfig
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.scores.importance import score_by_squares
from yolo_prune.pruning.surgery.rebuild import rebuild, slice_tensors
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.optimizer import MEAN_SQUARE, get_moments, slice_moments
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState, make_training_state

pytestmark = pytest.mark.usefixtures("undrawn")
FINETUNE = TrainConfig(batch_size=6, learning_rate=1e-3, warmup_fraction=0.0)


def make_iterate_config(**changes: Any) -> IterateConfig:
    values: dict[str, Any] = {"step": 0.2, "target_ratio": 0.5, "settle_epochs": 1, "max_drop": 1.0, "device": "cpu"}
    return IterateConfig(**{**values, "finetune": FINETUNE, **changes})


@pytest.fixture(scope="module")
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> IterateResult:
    """Return what three steps and a settling left; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.training.report._draw_results", lambda path, rows: None)
        return start_iterate(trained, make_iterate_config(), tmp_path_factory.mktemp("iterate") / "run")


def test_steps_reach_the_target_and_say_so(done: IterateResult) -> None:
    steps = done.journal.steps
    assert [step.name for step in steps] == ["original", "01", "02", "03", "settle"]
    assert [round(step.ratio * PRUNABLE) for step in steps] == [0, 7, 14, 18, 18]
    assert done.journal.reason == "the target is reached"
    assert [step.params for step in steps[:4]] == sorted((step.params for step in steps[:4]), reverse=True)
    assert done.checkpoint == done.steps.parent / "settle/best.pt"
    assert done.plot.read_bytes().startswith(b"\x89PNG")
    for step in steps[1:]:
        network = load_checkpoint(Path(step.checkpoint)).network
        assert int(make_channel_graph(network).prunable.sum()) == PRUNABLE - round(step.ratio * PRUNABLE)
    assert json.loads(done.steps.read_text())["is_done"]


def test_a_step_begins_with_what_the_one_before_left(done: IterateResult) -> None:
    folder = done.steps.parent
    before, cut = load_checkpoint(folder / "01/last.pt"), load_checkpoint(folder / "02/pruned.pt")
    moments = get_moments(before.training["optimizer"], before.make_model())
    kept = cut.training["moments"]
    assert {name: tuple(one.shape) for name, one in kept[MEAN_SQUARE].items()} == {
        name: tuple(one.shape) for name, one in cut.make_model().named_parameters()
    }
    values = set(moments[MEAN_SQUARE]["layers.0.bn.weight"].tolist())
    assert set(kept[MEAN_SQUARE]["layers.0.bn.weight"].tolist()) <= values
    assert cut.provenance["parent"]["path"] == str(folder / "01/last.pt")


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8])
def test_a_killed_run_ends_the_same(done: IterateResult, trained: Path, tmp_path: Path, step: int) -> None:
    def kill() -> None:
        raise Killed

    with before_step(step, kill), pytest.raises(Killed):
        start_iterate(trained, make_iterate_config(), tmp_path / "run")
    again = resume_iterate(tmp_path / "run", {})
    assert is_same(load_checkpoint(again.checkpoint).state, load_checkpoint(done.checkpoint).state)
    for one, other in zip(again.journal.steps, done.journal.steps, strict=True):
        assert (one.name, one.ratio, one.params, one.map50, one.epochs) == (
            other.name,
            other.ratio,
            other.params,
            other.map50,
            other.epochs,
        )


def test_a_step_that_was_stopped_is_not_cut_again(trained: Path, tmp_path: Path) -> None:
    def kill() -> None:
        raise Killed

    with before_step(4, kill), pytest.raises(Killed):  # the second step's last
        start_iterate(trained, make_iterate_config(), tmp_path / "run")
    cuts: list[str] = []

    def record(previous: Path, out: Path, *arguments: Any) -> Any:
        cuts.append(out.parent.name)
        return cut(previous, out, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cut", record)
        resume_iterate(tmp_path / "run", {})
    assert cuts == ["03"]


def test_a_signal_and_the_end_of_time_stop_between_steps(trained: Path, tmp_path: Path) -> None:
    with before_step(2, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Interrupted) as stop:
        start_iterate(trained, make_iterate_config(), tmp_path / "run")
    assert stop.value.exit_code == 143
    with pytest.raises(Interrupted) as stop:
        resume_iterate(tmp_path / "run", {"max_minutes": 0.0})
    assert stop.value.exit_code == 124
    assert resume_iterate(tmp_path / "run", {"max_minutes": 60.0}).journal.is_done


def test_every_step_sees_images_of_its_own(trained: Path, tmp_path: Path) -> None:
    orders: list[list[int]] = []
    step = epoch_module.train_step

    def record(training: Any, batch: Any, *arguments: Any) -> torch.Tensor:
        orders.append([*batch.indices.tolist(), int(batch.images.sum())])
        return step(training, batch, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_module, "train_step", record)
        start_iterate(trained, make_iterate_config(settle_epochs=1), tmp_path / "run")
    assert len(orders) == 8
    assert len({tuple(order) for order in orders}) == 8


def test_too_much_lost_ends_with_the_last_good_network(trained: Path, tmp_path: Path) -> None:
    """Given scores: the second step falls by more than it may."""
    scores = iter((0.50, 0.42, 0.47))

    def tell(run: Any, training: Any, progress: Any, rates: Any, val: Any, say: Any) -> None:
        finish(run, training, progress, rates, val, say)
        progress.rows[-1]["val_map50"] = next(scores)
        save_last(run, training, progress)

    from yolo_prune.training import epoch_end, resume
    from yolo_prune.training import run as run_module

    finish, save_last = epoch_end.finish_epoch, resume.save_last
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "finish_epoch", tell)
        patch.setattr(module, "measure_score_of", lambda *arguments, **named: type("Score", (), {"map50": 0.52}))
        result = start_iterate(trained, make_iterate_config(max_drop=0.05), tmp_path / "run")
    assert [step.name for step in result.journal.steps] == ["original", "01", "02", "settle"]
    assert result.journal.reason == "step 02 lost more than 0.05 AP50: 01 was the last good one"
    first, settled = result.journal.steps[1], result.journal.steps[-1]
    assert (settled.params, settled.ratio, settled.map50) == (first.params, first.ratio, 0.47)


def test_a_first_step_that_loses_too_much_gives_the_original_back(trained: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measure_score_of", lambda *arguments, **named: type("Score", (), {"map50": 1.0}))
        result = start_iterate(trained, make_iterate_config(max_drop=0.01), tmp_path / "run")
    assert [step.name for step in result.journal.steps] == ["original", "01", "settle"]
    assert result.checkpoint == trained


def test_steps_may_end_early_and_validate_seldom(trained: Path, tmp_path: Path) -> None:
    result = start_iterate(
        trained, make_iterate_config(step=0.1, score_every=3, settle_epochs=0, epochs=2), tmp_path / "seldom"
    )
    assert [step.map50 is None for step in result.journal.steps] == [False, True, True, False, True, False, False]
    assert {step.epochs for step in result.journal.steps[1:-1]} == {2}
    assert result.checkpoint == tmp_path / "seldom/05/best.pt"
    recovered = start_iterate(trained, make_iterate_config(recover=1.0, epochs=5), tmp_path / "early")
    assert [step.epochs for step in recovered.journal.steps[1:-1]] == [1, 1, 1]


@pytest.mark.parametrize(("target", "name"), [("target_params", "params"), ("target_macs", "macs")])
def test_a_target_ends_the_steps_as_soon_as_it_is_met(trained: Path, tmp_path: Path, target: str, name: str) -> None:
    config = make_iterate_config(step=0.2, target_ratio=0.9, settle_epochs=0, **{target: 0.6})
    steps = start_iterate(trained, config, tmp_path / "run").journal.steps
    shares = [getattr(step, name) / getattr(steps[0], name) for step in steps]
    assert all(share > 0.6 for share in shares[:-2])
    assert 0.45 < shares[-1] <= 0.6
    assert steps[-2].ratio < 0.2 * (len(steps) - 2)  # the last step went only as far as it had to


def test_a_target_out_of_reach_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"target_params: .*at least"):
        start_iterate(trained, make_iterate_config(target_params=0.01), tmp_path / "run")


@pytest.fixture(scope="module")
def zeroed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> IterateResult:
    """Return what three steps over single weights left; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.training.report._draw_results", lambda path, rows: None)
        config = make_iterate_config(granularity="weight", step=0.3, target_ratio=0.8)
        return start_iterate(trained, config, tmp_path_factory.mktemp("iterate") / "run")


def count_zeros(path: Path) -> int:
    state = load_checkpoint(path).state
    return sum(int((tensor == 0).sum()) for name, tensor in state.items() if name.endswith("conv.weight"))


def test_weights_are_zeroed_step_by_step_and_stay_zero(zeroed: IterateResult) -> None:
    steps = zeroed.journal.steps
    prunable = sum(8 * 8 * 9 if layer in (1,) else 0 for layer in range(7)) + 8 * 4 + 4 * 8 * 9 + 8 * 16 * 9
    assert [round(step.ratio * prunable) for step in steps] == [
        0,
        *[round(one * prunable) for one in (0.3, 0.6, 0.8, 0.8)],
    ]
    for step in steps[1:]:
        cut = Path(step.checkpoint).with_name("pruned.pt")
        for path in [Path(step.checkpoint), *[cut][: cut.exists()]]:
            assert count_zeros(path) == round(step.ratio * prunable)
        assert step.params == steps[0].params - round(step.ratio * prunable)
        assert load_checkpoint(Path(step.checkpoint)).keeps_zeros
        assert step.macs < steps[0].macs
    assert steps[0].macs == 536_576


def test_a_killed_run_over_weights_ends_the_same(zeroed: IterateResult, trained: Path, tmp_path: Path) -> None:
    def kill() -> None:
        raise Killed

    config = make_iterate_config(granularity="weight", step=0.3, target_ratio=0.8)
    with before_step(4, kill), pytest.raises(Killed):
        start_iterate(trained, config, tmp_path / "run")
    again = resume_iterate(tmp_path / "run", {})
    assert is_same(load_checkpoint(again.checkpoint).state, load_checkpoint(zeroed.checkpoint).state)


def test_weights_stop_at_a_share_of_parameters(trained: Path, tmp_path: Path) -> None:
    config = make_iterate_config(granularity="weight", step=0.3, target_ratio=0.9, target_params=0.5, settle_epochs=0)
    steps = start_iterate(trained, config, tmp_path / "run").journal.steps
    assert steps[-1].params == pytest.approx(0.5 * steps[0].params, abs=1)
    with pytest.raises(PlanError, match=r"target_params: 0\.05 is out of reach; use more than 0\.\d+, the share of"):
        start_iterate(trained, make_iterate_config(granularity="weight", target_params=0.05), tmp_path / "far")


@given(networks(), st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_tensors_are_cut_as_the_network_is(network: Network, seed: int, share: float) -> None:
    model, graph = randomise_(Detector(network), seed), make_channel_graph(network)
    keep = graph.frozen | (np.random.default_rng(seed).random(graph.size) < share)
    for group in graph.groups:
        keep[group.ids[0]] = True
    plan = Plan(keep)
    state = rebuild(model, plan).state_dict()
    assert is_same(slice_tensors(network, plan, model.state_dict()), dict(state))


def take_steps(training: TrainingState, config: TrainConfig, data: Path, count: int) -> list[float]:
    images = DetectionDataset(load_spec(data).samples("train"), 1, SIDE)
    (batch,) = make_loader(images, 12, shuffle=False, epoch=0)
    return [float(train_step(training, batch, config, StepRates(1e-3))[0]) for _ in range(count)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_optimizer_continues_as_if_nothing_had_happened(hands: Path, optimizer: Any) -> None:
    """Cut nothing, carry the moments over to a new training state, and the next steps are the same bits."""
    config = TrainConfig(batch_size=12, optimizer=optimizer)
    torch.manual_seed(0)
    one = make_training_state(Detector(parse_cfg(TINY_CFG)).train(), config, 10)
    take_steps(one, config, hands, 3)
    graph = make_channel_graph(one.model.network)
    plan = Plan(np.ones(graph.size, dtype=bool))
    moments = slice_moments(one.model.network, plan, get_moments(one.optimizer.state_dict(), one.model))
    other = make_training_state(rebuild(one.model, plan).train(), config, 10, moments=moments)
    assert take_steps(one, config, hands, 3) == take_steps(other, config, hands, 3)
    assert is_same(one.model.state_dict(), other.model.state_dict())


def test_moments_of_another_kind_are_left(hands: Path) -> None:
    config = TrainConfig(batch_size=12)
    torch.manual_seed(0)
    adamw = make_training_state(Detector(parse_cfg(TINY_CFG)).train(), config, 10)
    take_steps(adamw, config, hands, 1)
    moments = get_moments(adamw.optimizer.state_dict(), adamw.model)
    sgd = TrainConfig(batch_size=12, optimizer="sgd")
    plain, carried = (
        make_training_state(Detector(parse_cfg(TINY_CFG)).train(), sgd, 10, moments=one) for one in (None, moments)
    )
    carried.model.load_state_dict(plain.model.state_dict())
    assert take_steps(plain, sgd, hands, 2) == take_steps(carried, sgd, hands, 2)


def test_squared_gradients_score_by_hand() -> None:
    model = randomise_(Detector(parse_cfg(TINY_CFG)), 0)
    graph = make_channel_graph(model.network)
    squares = {name: torch.full_like(parameter, 4.0) for name, parameter in model.named_parameters()}
    scores = score_by_squares(model, graph, ScoreConfig(group_reduce="sum"), squares)
    gamma, beta = (model.get_parameter(f"layers.2.bn.{part}").detach() for part in ("weight", "bias"))
    expected = 2 * (gamma.square() + beta.square()).sqrt()
    assert scores[graph.writes[2]] == pytest.approx(expected.double().numpy(), rel=1e-6)
    head = (
        model.get_parameter("layers.6.conv.weight").detach().flatten(1),
        model.get_parameter("layers.6.conv.bias").detach(),
    )
    expected = 2 * (head[0].square().sum(1) + head[1].square()).sqrt()
    assert scores[graph.writes[6]] == pytest.approx(expected.double().numpy(), rel=1e-6)


def test_the_command_line(cli: Cli, trained: Path, hands: Path) -> None:
    words = (
        "iterate",
        trained,
        "--step",
        0.3,
        "--target-ratio",
        0.5,
        "--settle-epochs",
        0,
        "--device",
        "cpu",
        "--max-drop",
        1,
    )
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "runs/iterate/02/best.pt\n"
    lines = outcome.err.splitlines()
    assert lines[-3] == "the target is reached"
    assert lines[-2].startswith("done in ")
    assert lines[-1] == "next: yoloprune bench runs/iterate/02/best.pt --lineage"
    assert [line.split()[0] for line in lines[-8:-3]] == ["step", "original", "01", "02", "settle"]
    rows = read_json(cli(*words, "--json"))["rows"]
    assert [row["name"] for row in rows] == ["original", "01", "02", "settle"]
    assert cli("bench", "--no-score", "--runs", 1).code == 0  # finds what was left
    rejected = cli("iterate", "--resume", "--step", 0.1)
    assert (rejected.code, rejected.err) == (
        2,
        "error: --step: a resumed run keeps its settings; leave it out, or start a new run; --device, --max-minutes may change\n",
    )
    nothing = cli("iterate", "--resume", "--name", "none")
    assert nothing.code == 2
    assert "runs/none/steps.json: there is nothing to resume" in nothing.err


@pytest.mark.parametrize(
    "text", ["[]", '{"steps": 3}', '{"steps": [{"a": 1}], "source": "", "source_sha256": "", "recipe": {}}', "x"]
)
def test_a_broken_journal_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.json").write_text(text)
    with pytest.raises(ConfigError, match=r"steps\.json"):
        resume_iterate(tmp_path, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0.0}, "step: 0 is out of range; use a number between 0 and 1"),
        ({"target_ratio": 1.0}, "target_ratio: 1 is out of range"),
        ({"scope": "group"}, "scope: unknown scope group; use global, layer or floor"),
        ({"epochs": 0}, "epochs: 0 is out of range; use a whole number from 1"),
        ({"finetune": TrainConfig(sparsity=0.1)}, "finetune.sparsity: does not go with steps"),
        ({"criterion": "size"}, "criterion: unknown criterion size"),
        ({"granularity": "block"}, "granularity: unknown granularity block; use channel or weight"),
        ({"granularity": "weight", "target_macs": 0.5}, "target_macs: means nothing to granularity weight"),
        ({"granularity": "weight", "criterion": "fpgm"}, "criterion: unknown criterion fpgm for granularity weight"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        IterateConfig(**changes)
