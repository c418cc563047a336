"""Sparsity training: λ over its steps, λ found for a ratio, channels zeroed one after another, zeros that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_images, measure_difference, networks, randomise_
from tiny import PRUNABLE, SIDE, TINY_CFG, UNUSED_CFG, make_config

from yolo_prune.commands.train import start_training
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig, ScoreConfig
from yolo_prune.pruning.plans.plan import make_threshold_plan
from yolo_prune.pruning.scores.importance import score_by_squares
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity
from yolo_prune.pruning.sparsity.zeroing import GradualZeroing, begin_removal
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import mask, rebuild
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch_end import make_slim
from yolo_prune.training.report import BINS, count_gammas, draw_gammas
from yolo_prune.training.schedule import AUTO_REST, SORTING, find_sparsity, measure_rates, measure_step_size

STEPS = 100
FLOOR = PlanConfig().min_channels


def make_sparsity(network: Network, seed: int = 0) -> tuple[Detector, GammaSparsity]:
    model = randomise_(Detector(network), seed)
    return model, GammaSparsity(model, make_channel_graph(network))


def make_zeroing(model: Detector, ratio: float) -> GradualZeroing:
    return GradualZeroing(model, begin_removal(model.network), PlanConfig(ratio=ratio))


def list_shrinkages(config: TrainConfig, sparsity: float) -> list[float]:
    return [measure_rates(config, sparsity, step, STEPS).shrinkage for step in range(STEPS)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_shrinkage_follows_rate_ramp_and_rest(optimizer: Any) -> None:
    config = TrainConfig(optimizer=optimizer, sparsity=0.5, sparsity_ramp=0.2, sparsity_rest=0.3)
    shrinkages = list_shrinkages(config, 0.5)
    for step, shrinkage in enumerate(shrinkages):
        rates = measure_rates(config, 0.5, step, STEPS)
        level = 0 if step >= 70 else min(1, (step + 1) / 20)
        assert shrinkage == pytest.approx(measure_step_size(config, rates.learning_rate) * 0.5 * level)
        assert rates.keeps_zeros == (step >= 70)
        assert rates.zeroed == 0


def test_a_plain_run_is_not_shrunk() -> None:
    assert list_shrinkages(TrainConfig(), 0.0) == [0] * STEPS


@pytest.mark.parametrize(
    "changes", [{}, {"sparsity_ramp": 0.2}, {"sparsity_rest": 0.0}, {"sparsity_rest": 0.95}, {"optimizer": "adamw"}]
)
def test_auto_zeroes_channels_one_after_another_and_the_others_rest(changes: dict[str, Any]) -> None:
    config = TrainConfig(**{"optimizer": "sgd", "sparsity": "auto", "sparsity_ratio": 0.8, **changes})
    _, sparsity = make_sparsity(parse_cfg(TINY_CFG))
    found = find_sparsity(config, sparsity, STEPS)
    gammas = sparsity.measure()
    way = np.quantile(gammas[np.isfinite(gammas)], 0.8)
    schedule = [measure_rates(config, found, step, STEPS) for step in range(STEPS)]
    sorting = round(SORTING * STEPS)
    shrunk = sum(rates.shrinkage for rates in schedule)
    assert shrunk == pytest.approx(way if config.optimizer == "sgd" else 0)  # unopposed they just arrive
    assert not any(rates.shrinkage for rates in schedule[sorting:])
    assert not any(rates.zeroed or rates.keeps_zeros for rates in schedule[:sorting])
    rest = AUTO_REST if config.sparsity_rest is None else config.sparsity_rest
    end = max(sorting + 1, round((1 - rest) * STEPS))
    assert all(rates.keeps_zeros for rates in schedule[sorting:])
    assert [rates.zeroed > 0 for rates in schedule] == [sorting <= step < end for step in range(STEPS)]
    shares = [rates.zeroed for rates in schedule[sorting:end]]
    assert shares[-1] == 1
    growth = np.diff([0.0, *shares])
    assert (growth > 0).all()
    assert (np.diff(growth) <= 1e-12).all()  # more slowly the fewer are left


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_just_the_wanted_channels_reach_zero_however_the_task_pulls(optimizer: Any) -> None:
    config = TrainConfig(optimizer=optimizer, sparsity="auto", sparsity_ratio=0.5)
    model, sparsity = make_sparsity(parse_cfg(TINY_CFG))
    zeroing = make_zeroing(model, 0.5)
    found = find_sparsity(config, sparsity, STEPS)
    gammas = [parameter for name, parameter in model.named_parameters() if name.endswith("bn.weight")]
    for step in range(STEPS):
        rates = measure_rates(config, found, step, STEPS)
        zeros = sparsity.find_zeros()
        with torch.no_grad():  # a task that wants every channel larger
            for gamma in gammas:
                gamma.add_(0.02 * torch.where(gamma >= 0, 1.0, -1.0))
        if rates.keeps_zeros:
            sparsity.clear_(zeros)
        sparsity.shrink_(rates.shrinkage)
        if rates.zeroed:
            zeroing.zero_channels_(rates.zeroed)
    assert (sparsity.measure() == 0).sum() == pytest.approx(PRUNABLE / 2, abs=FLOOR * 4)  # floors may be at zero too
    assert sparsity.measure()[np.isfinite(sparsity.measure())].max() > 1


def test_auto_has_nothing_to_do_where_channels_are_at_zero() -> None:
    _, sparsity = make_sparsity(parse_cfg(TINY_CFG))
    sparsity.shrink_(1e6)
    config = TrainConfig(sparsity="auto", sparsity_ratio=0.5)
    with pytest.raises(ConfigError, match=r"sparsity: 0\.5 of the channels are at zero already; prune, or raise"):
        find_sparsity(config, sparsity, STEPS)


@given(networks(), st.floats(0.05, 0.95), st.floats(0, 1), st.integers(0, 99), st.booleans())
@settings(max_examples=30, deadline=None)
def test_those_worth_least_are_zeroed_and_every_group_keeps_its_best(
    network: Network, ratio: float, way: float, seed: int, is_told: bool
) -> None:
    if not any(conv.batch_normalize for _, conv in network.convs):
        return
    model, sparsity = make_sparsity(network, seed)
    zeroing, graph = make_zeroing(model, ratio * measure_trained(model)), make_channel_graph(network)
    before = sparsity.measure()
    worth = np.random.default_rng(seed).random(graph.size) if is_told else before
    told = torch.from_numpy(worth) if is_told else None
    chosen = ~zeroing.make_plan(told).keep
    zeroing.zero_channels_(way, told)
    after = sparsity.measure()
    present = np.isfinite(before)
    zeroed = present & (after == 0)
    assert (after[~zeroed] == before[~zeroed]).all()
    assert zeroed.sum() == round(way * chosen.sum())
    assert chosen[zeroed].all()
    floors = np.zeros(graph.size, dtype=bool)
    for group in graph.groups:
        floors[group.ids[np.argsort(-worth[group.ids], kind="stable")[:FLOOR]]] = True
    free = present & ~zeroed & ~floors
    assert not free.any() or not zeroed.any() or worth[free].min() >= worth[zeroed].max()
    for group in graph.groups:
        assert group.frozen or not zeroed[group.ids].all()
    zeroing.zero_channels_(way, None if told is None else 1 - told)
    assert (sparsity.measure()[zeroed] == 0).all()  # what is zero stays so
    assert (sparsity.measure() == 0).sum() == zeroed.sum()


def measure_trained(model: Detector) -> float:
    """Return a share below which any ratio leaves the floors of a model's normalised groups."""
    graph = make_channel_graph(model.network)
    present = np.isfinite(GammaSparsity(model, graph).measure())
    sizes = [len(group.ids) for group in graph.groups if present[group.ids].all()]
    return max(0.0, sum(max(0, size - FLOOR) for size in sizes) / max(1, sum(sizes)) - 1e-9)


@given(networks(), st.floats(0.1, 0.9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_what_is_zeroed_can_be_cut_out_exactly_to_the_borders(network: Network, share: float, seed: int) -> None:
    if not any(conv.batch_normalize for _, conv in network.convs):
        return
    model, sparsity = make_sparsity(network, seed)
    make_zeroing(model, share * measure_trained(model)).zero_channels_(1.0)
    plan = make_threshold_plan(make_channel_graph(network), sparsity.measure(), 1e-6, PlanConfig())
    slim = rebuild(model, plan, carry_constants(model, plan))
    images = make_images(model, 64)
    with torch.no_grad():
        for one, other in zip(model.eval()(images), slim.eval()(images), strict=True):
            assert float((one - other).abs().max()) < 1e-9 * max(1.0, float(one.abs().max()))


def test_worth_is_what_kept_squares_score_squared() -> None:
    model, sparsity = make_sparsity(parse_cfg(TINY_CFG))
    graph, generator = make_channel_graph(model.network), torch.Generator().manual_seed(0)
    squares = {
        name: torch.rand(one.shape, generator=generator, dtype=one.dtype) for name, one in model.named_parameters()
    }
    names = {one: name for name, one in model.named_parameters()}
    worth = sparsity.measure_worth(lambda parameter: squares[names[parameter]]).numpy()
    scores = score_by_squares(model, graph, ScoreConfig(criterion="taylor", normalize="none"), squares)
    expected = np.zeros(graph.size)
    for layer in graph.conv_layers:
        module = model.get_conv(layer)
        if module.bn is not None:
            gamma, beta = (getattr(module.bn, part).detach() for part in ("weight", "bias"))
            one, other = (squares[f"layers.{layer}.bn.{part}"] for part in ("weight", "bias"))
            np.add.at(expected, graph.writes[layer], (gamma.square() * one + beta.square() * other).numpy())
    np.testing.assert_allclose(worth, expected, rtol=1e-12)
    alone = [group.ids for group in graph.groups if len(group.writers) == 1 and not group.frozen]
    assert alone
    for ids in alone:
        np.testing.assert_allclose(worth[ids], scores[ids] ** 2, rtol=1e-12)


def test_channels_that_no_head_looks_at_are_worth_nothing(hands: Path, tmp_path: Path) -> None:
    (cfg := tmp_path / "unused.cfg").write_text(UNUSED_CFG)
    start_training(make_config(hands, cfg, sparsity="auto", sparsity_ratio=0.6), tmp_path / "run")
    gamma = load_checkpoint(tmp_path / "run/last.pt").state["layers.6.bn.weight"]
    assert int((gamma == 0).sum()) == len(gamma) - FLOOR


def test_zeros_stay_while_others_recover(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    zeros: list[int] = []
    find = GammaSparsity.find_zeros

    def record(sparsity: GammaSparsity) -> torch.Tensor:
        found = find(sparsity)
        zeros.append(int(found.sum()))
        return found

    changes = {"sparsity": 3.0, "sparsity_rest": 0.5, "learning_rate": 0.02, "optimizer": "sgd", "epochs": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GammaSparsity, "find_zeros", record)
        start_training(make_config(hands, tiny_cfg, **changes), tmp_path / "run")
    assert len(zeros) == 6  # the last half of twelve steps
    assert zeros[0] > 0
    assert len(set(zeros)) == 1
    gammas = [
        tensor for name, tensor in load_checkpoint(tmp_path / "run/last.pt").state.items() if name.endswith("bn.weight")
    ]
    assert sum(int((gamma == 0).sum()) for gamma in gammas) >= zeros[0]


@given(networks(), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_threshold_s_plan_drops_what_is_below_but_for_the_floor(
    network: Network, threshold: float, seed: int
) -> None:
    graph = make_channel_graph(network)
    importance = np.random.default_rng(seed).random(graph.size)
    plan = make_threshold_plan(graph, importance, threshold, PlanConfig())
    assert plan.keep[graph.frozen].all()
    assert plan.keep[importance >= threshold].all()
    for group in graph.groups:
        if not group.frozen:
            kept = int(plan.keep[group.ids].sum())
            assert kept == max(min(2, len(group.ids)), int((importance[group.ids] >= threshold).sum()))


def test_what_a_prune_would_leave_gives_the_masked_network_s_outputs() -> None:
    model, sparsity = make_sparsity(parse_cfg(TINY_CFG), seed=3)
    sparsity.shrink_(float(np.median(sparsity.measure()[np.isfinite(sparsity.measure())])))
    gammas = sparsity.measure()
    slim = make_slim(model, gammas, 1e-6)
    plan = make_threshold_plan(make_channel_graph(model.network), gammas, 1e-6, PlanConfig())
    assert 0 < (~plan.keep).sum() < PRUNABLE
    assert measure_difference(slim, rebuild(model, plan, carry_constants(model, plan)), SIDE) == 0
    assert measure_cost(slim.network, SIDE).params < measure_cost(model.network, SIDE).params
    with torch.no_grad():  # the whole network's zeroed channels give act(β), which the slim one's consumers absorbed
        images = make_images(model, 256)
        inner = [
            (one - other)[..., 3:-3, 3:-3].abs().max()
            for one, other in zip(model.eval()(images), slim(images), strict=True)
        ]
    assert float(max(inner)) < 1e-4
    assert measure_difference(mask(model, plan), rebuild(model, plan), SIDE) < 1e-9


def test_a_sparse_run_reports_what_a_prune_would_leave(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    config = make_config(hands, tiny_cfg, sparsity="auto", sparsity_ratio=0.6, optimizer="sgd", learning_rate=0.05)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.commands.train.report", lines.append)
        best = start_training(config, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt").training
    row = last["rows"][-1]
    assert row["pruned_params"] < measure_cost(parse_cfg(TINY_CFG), SIDE).params
    assert row["channels_below"] / row["channels"] >= 0.5
    model = load_checkpoint(best).make_model()
    gammas = GammaSparsity(model, make_channel_graph(model.network)).measure()
    cost = measure_cost(make_slim(model, gammas, 0.01).network, SIDE)
    assert (row["pruned_params"], row["pruned_macs"]) == (cost.params, cost.macs)
    assert 0 <= row["pruned_map50"] <= 1
    assert f"sparsity: λ = {last['sparsity']:.4g}, 22 of 36 channels to zero in 9 steps" in lines
    assert [sum(counts) for counts in last["gammas"]] == [PRUNABLE] * 3
    assert (tmp_path / "run/gammas.png").stat().st_size > 5000


def test_sizes_are_counted_by_hand() -> None:
    counts = count_gammas(np.array([0.0, 1e-7, 1e-5, 0.99e-1, 1.01e-1, 9.99, 50.0, np.inf]))
    assert len(counts) == BINS
    assert sum(counts) == 7
    assert counts[0] == 3
    assert counts[BINS * 4 // 6 - 1 : BINS * 4 // 6 + 1] == [1, 1]
    assert counts[-1] == 2


def test_the_plot_of_gammas_can_be_drawn_of_one_epoch(tmp_path: Path) -> None:
    path = draw_gammas(tmp_path / "gammas.png", [count_gammas(np.array([0.1, 0.001]))], 0.01)
    assert path.read_bytes().startswith(b"\x89PNG")
