"""Criterion auto: γ where training brought the pruned channels to zero, else images, else norms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import make_small_network, randomise_
from pruning_runs import change_state, prune, read_drops
from tiny import Cli
from torch import Tensor

from yolo_prune.commands.config import PruneConfig, SensitivityConfig
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import make_cost_budgets, make_plan
from yolo_prune.pruning.scores.auto import Choice, choose_criterion, measure_gammas

NETWORK = make_small_network(Conv(20, 3, 1, 1), Conv(20, 3, 1, 1), Conv(10, 1), Conv(20, 1), Shortcut(1))
PRUNABLE = 50


def make_sparse(zeroed: float, size: float = 0.0, scale: float = 1.0) -> Detector:
    """Return a network of which a share `zeroed` of the first convolution's, and of the tied pair's, γ are at `size`; all γ times `scale`."""
    model = randomise_(Detector(NETWORK))
    for layer, width in ((0, 20), (1, 20), (3, 20)):
        gamma = model.state_dict()[f"layers.{layer}.bn.weight"]
        gamma[: round(zeroed * width)] = size
        gamma *= scale
    return model


def choose(model: Detector, config: PlanConfig, has_images: bool = True) -> Choice:
    graph = make_channel_graph(NETWORK)
    budgets = make_cost_budgets(config, NETWORK, graph, measure_cost(NETWORK))
    return choose_criterion(model, graph, config, budgets, has_images)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize(("size", "ratio", "criterion"), [(0, 0.6, "bn-gamma"), (0.001, 0.6, "bn-gamma"), (0.1, 0.6, "obs"), (0, 0.62, "obs"), (0, 0.3, "bn-gamma")])  # fmt: skip
def test_γ_where_it_is_at_zero_in_all_that_is_pruned(size: float, ratio: float, criterion: str, scale: float) -> None:
    assert choose(make_sparse(0.75, size, scale), PlanConfig(ratio)).criterion == criterion


def test_the_reason_is_reported() -> None:
    choice = choose(make_sparse(0.75), PlanConfig(0.6))
    assert (choice.normalize, choice.why) == ("max", "all 30 channels to remove have a γ at zero")
    choice = choose(make_sparse(0.75), PlanConfig(0.7))
    assert (choice.criterion, choice.normalize, choice.scores) == ("obs", "none", None)
    assert choice.why == "γ is at zero in 60% of the prunable channels, but 5 of the 35 to remove still matter"
    choice = choose(make_sparse(0.75), PlanConfig(0.7), has_images=False)
    assert (choice.criterion, choice.normalize, choice.scores) == ("l2", "mean", None)
    assert choice.why.endswith("5 of the 35 to remove still matter; there are no images to look at")


def test_a_target_is_covered_by_γ_or_not() -> None:
    model, graph = make_sparse(0.75), make_channel_graph(NETWORK)
    full, plan = measure_cost(NETWORK, 16), make_plan(graph, measure_gammas(model, graph), PlanConfig(0.6))
    from yolo_prune.pruning.plans.plan import prune_network

    share = measure_cost(prune_network(NETWORK, plan), 16).macs / full.macs
    assert choose(model, PlanConfig(target_macs=share)).criterion == "bn-gamma"
    assert choose(model, PlanConfig(target_macs=share - 0.01)).criterion == "obs"


def test_γ_are_shares_of_the_largest_of_their_group_and_tied_ones_count_by_the_larger() -> None:
    model = make_sparse(0)
    state = model.state_dict()
    state["layers.0.bn.weight"].copy_(torch.linspace(0.1, 2.0, 20))
    state["layers.1.bn.weight"].copy_(torch.linspace(0, 0.19, 20))
    state["layers.3.bn.weight"].copy_(torch.linspace(-0.38, 0, 20))
    state["layers.2.bn.weight"].fill_(1e-7)  # a whole layer at zero
    gammas, graph = measure_gammas(model, make_channel_graph(NETWORK)), make_channel_graph(NETWORK)
    assert gammas[graph.writes[0]] == pytest.approx(np.linspace(0.05, 1, 20))
    assert gammas[graph.writes[1]] == pytest.approx(np.maximum(np.linspace(0, 0.5, 20), np.linspace(1, 0, 20)))
    assert not gammas[graph.writes[2]].any()


def zero_most(state: dict[str, Tensor]) -> None:
    for layer, count in ((0, 6), (5, 14)):
        state[f"layers.{layer}.bn.weight"][:count] = 0


def test_prune_says_which_it_took_and_why_and_prunes_by_it(cli: Cli, trained: Path) -> None:
    outcome = cli("prune", "--one-shot", trained, "--criterion", "auto", "--ratio", 0.5, "--recalibrate", 0)
    said = [line for line in outcome.err.splitlines() if "criterion auto" in line]
    assert len(said) == 1
    assert said[0].startswith("criterion auto takes obs: γ is at zero in 0% of the prunable channels, but 18 of the 18")
    provenance = load_checkpoint(Path(outcome.out.strip())).provenance
    assert provenance["recipe"]["criterion"] == "auto"
    drops = [read_drops(prune(cli, trained, "--ratio", 0.5, "--criterion", name)) for name in ("auto", "obs", "l2")]
    assert drops[0] == drops[1] != drops[2]

    sparse = change_state(trained, zero_most)
    outcome = cli("prune", "--one-shot", sparse, "--criterion", "auto", "--ratio", 0.55, "--recalibrate", 0)
    assert "criterion auto takes bn-gamma: all 20 channels to remove have a γ at zero" in outcome.err
    by_gamma = read_drops(prune(cli, sparse, "--criterion", "auto", "--ratio", 0.55))
    assert by_gamma == {(0,): list(range(6)), (1, 3): [], (2,): [], (5,): list(range(14))}


def test_without_images_it_takes_norms(cli: Cli, lone: Path) -> None:
    outcome = cli("prune", "--one-shot", lone, "--criterion", "auto", "--ratio", 0.5, "--recalibrate", 0)
    assert outcome.code == 0
    assert "criterion auto takes l2: " in outcome.err
    assert "there are no images to look at" in outcome.err
    by_norm = prune(cli, lone, "--criterion", "l2", "--normalize", "mean", "--ratio", 0.5)
    assert read_drops(prune(cli, lone, "--criterion", "auto", "--ratio", 0.5)) == read_drops(by_norm)
    assert cli("prune", "--one-shot", lone, "--criterion", "obs", "--recalibrate", 0).err == (
        "error: --data: the checkpoint names no data set; name a data.yaml, or use another --criterion\n"
    )


def test_a_plan_is_made_as_prune_makes_it(cli: Cli, trained: Path) -> None:
    words = ("--criterion", "auto", "--scope", "floor", "--floor", 0.5, "--ratio", 0.6)
    planned = cli("plan", trained, *words)
    assert "criterion auto takes obs" in planned.err
    assert Path(planned.out.strip()).read_bytes() == Path(prune(cli, trained, *words)["plan"]).read_bytes()


def test_what_auto_is_elsewhere() -> None:
    assert SensitivityConfig(criterion="auto").criterion == "obs"
    assert IterateConfig().resolved.criterion == "taylor"
    assert IterateConfig(granularity="weight").resolved.criterion == "bn-gamma"
    assert PruneConfig(granularity="weight", criterion="auto").weights.criterion == "bn-gamma"
