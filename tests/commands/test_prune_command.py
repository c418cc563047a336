"""`prune` and `plan`: what every flag does to the network, and that a plan on disk is what prune does."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import make_small_network, randomise_
from numpy.typing import NDArray
from pruning_runs import AT_ONCE, change_state, prune, read_drops
from tiny import PRUNABLE, SIDE, TINY_CFG, Cli, is_same, read_json
from torch import Tensor

from yolo_prune.benchmarking.latency import Latency
from yolo_prune.benchmarking.latency_table import LatencyTable
from yolo_prune.commands.pruning import time_budgets as timing
from yolo_prune.commands.pruning.calibration import iterate_images, pick_samples
from yolo_prune.commands.pruning.damage import explain_high_ratio
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector

COSTS = {"params", "macs", "flops", "size_bytes"}
GROUPS = {(0,): 8, (1, 3): 8, (2,): 4, (5,): 16}
"""What of the tiny network can be pruned: the convolutions that write a group, and its channels."""
FREE = PRUNABLE - 2 * len(GROUPS)
"""The channels that a floor of two in every group leaves to drop."""
MS_PER_MAC = 1e-5
"""The rate of the clock that stands still for everything but multiply–accumulates."""
FULL_MS = MS_PER_MAC * measure_cost(parse_cfg(TINY_CFG), SIDE).macs

Scores = Mapping[tuple[int, ...], NDArray[np.float64]]


def load_state(result: Any) -> Mapping[str, Tensor]:
    return load_checkpoint(Path(result["checkpoint"])).state


def count_filters(result: Any) -> list[int]:
    return [conv.filters for _, conv in load_checkpoint(Path(result["checkpoint"])).network.convs]


def count_dropped(result: Any) -> int:
    return sum(map(len, read_drops(result).values()))


def score_by_hand(state: Mapping[str, Tensor], criterion: str, reduce: str = "mean") -> Scores:
    """Score the filters of the tiny network's convolutions, and combine those that a shortcut ties."""

    def score(layer: int) -> NDArray[np.float64]:
        filters = state[f"layers.{layer}.conv.weight"].double().flatten(1).numpy()
        match criterion:
            case "bn-gamma":
                return np.asarray(np.abs(state[f"layers.{layer}.bn.weight"].double().numpy()))
            case "l1":
                return np.asarray(np.abs(filters).sum(axis=1))
            case "l2":
                return np.asarray(np.sqrt((filters**2).sum(axis=1)))
            case _:
                return np.array([np.sqrt(((filters - one) ** 2).sum(axis=1)).sum() for one in filters])

    members = {layers: np.array([score(layer) for layer in layers]) for layers in GROUPS}
    return {layers: np.asarray(getattr(own, reduce)(axis=0)) for layers, own in members.items()}


def drop_by_hand(scores: Scores, count: int) -> dict[tuple[int, ...], list[int]]:
    """Drop the lowest scores, two of every group kept back."""
    free = sorted(
        (score, layers, int(channel))
        for layers, own in scores.items()
        for score, channel in zip(np.sort(own)[:-2], np.argsort(own), strict=False)
    )
    return {layers: sorted(c for _, group, c in free[:count] if group == layers) for layers in scores}


@pytest.fixture
def two_blocks(workplace: Path, hands: Path) -> Callable[[float, float], Path]:
    """Return what writes a checkpoint with two residual blocks, 1–3 and 4–6, their branches scaled by two factors."""
    conv = Conv(6, 3, padding=1)
    network = make_small_network(Conv(6, 3, 2, 1), *(conv, conv, Shortcut(0, "linear")), *(conv, conv, Shortcut(3, "linear")))  # fmt: skip

    def write(first: float, second: float) -> Path:
        model = randomise_(Detector(network), double=False)
        for layer, factor in ((2, first), (5, second)):
            module = model.get_conv(layer)
            assert module.bn is not None
            with torch.no_grad():
                module.bn.weight.mul_(factor)
                module.bn.bias.mul_(factor)
        provenance = {"stage": "train", "data": {"path": str(hands)}}
        return save_checkpoint(Path("blocks.pt"), Checkpoint(network, model.state_dict(), ("hand",), provenance))

    return write


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every network take `MS_PER_MAC` per multiply–accumulate, on any machine."""

    def pretend(networks: list[Network], **conditions: Any) -> list[Latency]:
        times = [MS_PER_MAC * measure_cost(network, SIDE).macs for network in networks]
        return [Latency(ms, ms, ms) for ms in times]

    monkeypatch.setattr(timing, "make_timed_call", lambda model, engine, device: model.network)
    monkeypatch.setattr(timing, "measure_latencies", pretend)
    monkeypatch.setattr(timing, "measure_table", lambda *parts: PretendedTable({}))


class PretendedTable(LatencyTable):
    """Knows a share of what every network takes."""

    def sum_layers(self, network: Network) -> float:
        return 0.7 * MS_PER_MAC * measure_cost(network, SIDE).macs


@pytest.mark.parametrize("criterion", ["bn-gamma", "l1", "l2", "fpgm"])
def test_a_criterion_drops_what_it_says_by_hand(cli: Cli, trained: Path, criterion: str) -> None:
    result = prune(cli, trained, "--ratio", 0.5, "--criterion", criterion)
    scores = score_by_hand(load_checkpoint(trained).state, criterion)
    assert read_drops(result) == drop_by_hand(scores, PRUNABLE // 2)


@pytest.mark.parametrize("criterion", ["bn-gamma", "l1", "l2", "taylor"])
def test_dead_channels_are_pruned_first(cli: Cli, trained: Path, criterion: str) -> None:
    dead = {(0,): [5, 6], (1, 3): [0, 4, 7], (2,): [1], (5,): [2, 3, 11]}

    def kill(state: dict[str, Tensor]) -> None:
        for layers, channels in dead.items():
            for layer in layers:
                for part in ("conv.weight", "bn.weight", "bn.bias"):
                    state[f"layers.{layer}.{part}"][channels] = 0

    result = prune(cli, change_state(trained, kill), "--ratio", 9 / PRUNABLE, "--criterion", criterion)
    assert read_drops(result) == dead


def test_a_seed_is_a_random_net(cli: Cli, trained: Path) -> None:
    words = ("--ratio", 0.5, "--criterion", "random", "--seed")
    one, same, other = (prune(cli, trained, *words, seed) for seed in (3, 3, 4))
    assert one["checkpoint"] != same["checkpoint"]
    assert Path(one["plan"]).read_bytes() == Path(same["plan"]).read_bytes()
    assert is_same(load_state(one), load_state(same))
    assert read_drops(one) != read_drops(other)
    assert count_dropped(one) == count_dropped(other) == PRUNABLE // 2


def test_the_same_prune_twice_gives_the_same_tensors(cli: Cli, trained: Path) -> None:
    words = (
        "prune",
        "--one-shot",
        trained,
        "--target-params",
        0.4,
        "--criterion",
        "taylor",
        "--fold",
        "mean",
        "--json",
    )
    one, same = (read_json(cli(*words)) for _ in range(2))
    assert is_same(load_state(one), load_state(same))
    assert {**one, "checkpoint": "", "cfg": "", "plan": ""} == {**same, "checkpoint": "", "cfg": "", "plan": ""}


@pytest.mark.parametrize(
    "targets",
    [
        {"params": 0.4},
        {"macs": 0.5},
        {"params": 0.7, "macs": 0.3},
        {"params": 0.3, "macs": 0.7},
        {"params": 0.25, "macs": 0.25},
    ],
    ids=str,
)
def test_a_target_is_met_and_one_channel_less_would_miss_it(cli: Cli, trained: Path, targets: dict[str, float]) -> None:
    result = prune(cli, trained, *(word for name, share in targets.items() for word in (f"--target-{name}", share)))
    assert all(result["after"][name] <= share * result["before"][name] for name, share in targets.items())
    less = prune(cli, trained, "--ratio", (count_dropped(result) - 1) / PRUNABLE)
    assert count_dropped(less) == count_dropped(result) - 1
    assert any(less["after"][name] > share * less["before"][name] for name, share in targets.items())


def test_a_target_that_is_met_already_drops_nothing(cli: Cli, trained: Path) -> None:
    result = prune(cli, trained, "--target-params", 1, "--target-macs", 1)
    assert result["after"] == result["before"]
    assert result["prune_ratio"] == 0


def test_a_ratio_beside_a_target_is_the_least_that_is_pruned(cli: Cli, trained: Path) -> None:
    assert count_dropped(prune(cli, trained, "--ratio", 0.5, "--target-params", 0.9)) == PRUNABLE // 2
    both, alone = (prune(cli, trained, *words, "--target-params", 0.3) for words in (("--ratio", 0.1), ()))
    assert read_drops(both) == read_drops(alone)


def test_the_default_ratio_is_four_fifths(cli: Cli, trained: Path) -> None:
    result = prune(cli, trained, "--min-channels", 1)
    assert count_dropped(result) == round(0.8 * PRUNABLE)


@pytest.mark.parametrize("speedup", [1, 1.4, 2.5])
@pytest.mark.usefixtures("clock")
def test_a_speed_is_met_and_one_channel_less_would_miss_it(cli: Cli, trained: Path, speedup: float) -> None:
    result = prune(cli, trained, "--target-speedup", speedup)
    assert result["before"]["latency_ms"] == pytest.approx(FULL_MS)
    assert result["after"]["latency_ms"] == pytest.approx(MS_PER_MAC * result["macs"])
    assert result["before"]["latency_ms"] / result["after"]["latency_ms"] >= speedup
    if speedup == 1:
        assert result["prune_ratio"] == 0
        return
    less = prune(cli, trained, "--ratio", (count_dropped(result) - 1) / PRUNABLE)
    assert less["before"]["macs"] / less["after"]["macs"] < speedup
    assert "latency_ms" not in less["after"]


@pytest.mark.usefixtures("clock")
def test_a_time_is_met_and_one_channel_less_would_miss_it(cli: Cli, trained: Path) -> None:
    outcome = cli("prune", *AT_ONCE, trained, "--recalibrate", 0, "--target-latency-ms", 0.5 * FULL_MS, "--json")
    result = read_json(outcome)
    assert result["after"]["latency_ms"] <= 0.5 * FULL_MS
    less = prune(cli, trained, "--ratio", (count_dropped(result) - 1) / PRUNABLE)
    assert MS_PER_MAC * less["macs"] > 0.5 * FULL_MS
    one, other = (result[when]["latency_ms"] for when in ("before", "after"))
    assert f"{one:.2f} → {other:.2f} ms ({one / other:.2f} times as fast)" in outcome.err


@pytest.mark.parametrize("setting", ["target_latency_ms", "target_speedup", "target_macs", "target_params"])
@pytest.mark.usefixtures("clock")
def test_a_target_out_of_reach_names_the_nearest_that_can_be_had(cli: Cli, trained: Path, setting: str) -> None:
    flag, wish = f"--{setting.replace('_', '-')}", 99 if setting == "target_speedup" else 1e-3
    outcome = cli("prune", *AT_ONCE, trained, flag, wish)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: --{setting.replace('_', '-')}: ")
    assert "cannot be reached: min_channels=2 leaves " in outcome.err
    word = "at most" if setting == "target_speedup" else "at least"
    told = outcome.err.partition(f"; use {word} ")[2].partition(", or a smaller min_channels")[0]
    assert prune(cli, trained, flag, told)["checkpoint"] == "runs/prune/pruned.pt"
    assert "min_channels=1 leaves" in cli("prune", *AT_ONCE, trained, flag, wish, "--min-channels", 1).err


@pytest.mark.usefixtures("clock")
def test_a_time_that_the_original_takes_is_rejected(cli: Cli, trained: Path) -> None:
    outcome = cli("prune", *AT_ONCE, trained, "--target-latency-ms", 6)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"error: --target-latency-ms: 6 ms is above the original's cost, which is {FULL_MS:.2f} ms here; use less\n"
    )


def test_times_that_spread_are_no_measure(
    cli: Cli, trained: Path, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, drift = vars(timing)["measure_latencies"], itertools.cycle((1.0, 1.6, 0.7))

    def measure(calls: list[Any], **conditions: Any) -> list[Latency]:
        share = next(drift)
        return [Latency(*(share * value for value in (one.p5, one.p50, one.p95))) for one in calm(calls, **conditions)]

    monkeypatch.setattr(timing, "measure_latencies", measure)
    outcome = cli("prune", *AT_ONCE, trained, "--target-speedup", 1.5)
    assert (outcome.code, outcome.out) == (2, "")
    assert "times are no measure here: medians of 7 runs go from " in outcome.err
    assert not list(Path("runs").rglob("pruned*"))


def test_a_time_that_is_missed_on_the_clock_is_an_error(
    cli: Cli, trained: Path, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruned networks take as long as the original, whatever the table says."""
    calm, calls = vars(timing)["measure_latencies"], itertools.count()

    def measure(networks: list[Any], **conditions: Any) -> list[Latency]:
        first, *others = calm(networks, **conditions)
        return [first, *(others if next(calls) < timing.BLOCKS else [first])]  # the thinner networks come first

    monkeypatch.setattr(timing, "measure_latencies", measure)
    outcome = cli("prune", *AT_ONCE, trained, "--target-speedup", 2)
    assert (outcome.code, outcome.out) == (2, "")
    assert "error: --target-speedup: the plan that should meet it takes" in outcome.err
    assert not list(Path("runs").rglob("pruned*"))


def test_a_real_clock_tells_a_time(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SPREAD", math.inf)  # tests run beside others
    model = load_checkpoint(trained).make_model().eval()
    before, after = timing.Stopwatch(model, torch.device("cpu")).measure(
        Detector(timing.make_thin(model.network, 0.06, 1)).eval()
    )
    assert before > 0
    assert after > 0


def test_by_layer_every_group_loses_the_same_share(cli: Cli, trained: Path) -> None:
    result = prune(cli, trained, "--ratio", 0.5, "--scope", "layer")
    assert count_filters(result) == [4, 4, 2, 4, 8, 12]
    by_hand = score_by_hand(load_checkpoint(trained).state, "bn-gamma")
    halves = {layers: sorted(np.argsort(scores)[: len(scores) // 2].tolist()) for layers, scores in by_hand.items()}
    assert read_drops(result) == halves


def test_normalised_a_layer_s_scale_is_no_matter(cli: Cli, trained: Path) -> None:
    def shrink(state: dict[str, Tensor]) -> None:
        state["layers.5.bn.weight"] *= 0.01

    changed = change_state(trained, shrink)
    for how in ("mean", "max"):
        words = ("--ratio", 0.5, "--normalize", how)
        assert read_drops(prune(cli, changed, *words)) == read_drops(prune(cli, trained, *words))
    assert len(read_drops(prune(cli, changed, "--ratio", 0.5))[5,]) == 14  # all but its floor


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_tied_scores_are_combined_as_told(cli: Cli, trained: Path, reduce: str) -> None:
    def spread(state: dict[str, Tensor]) -> None:
        state["layers.1.bn.weight"] *= torch.linspace(0.1, 1.6, 8)
        state["layers.3.bn.weight"] *= torch.linspace(1.6, 0.1, 8)

    changed = change_state(trained, spread)
    expected = {
        how: drop_by_hand(score_by_hand(load_checkpoint(changed).state, "bn-gamma", how), PRUNABLE // 2)
        for how in ("mean", "max", "sum")
    }
    assert expected["mean"] != expected["max"] != expected["sum"] != expected["mean"]
    assert read_drops(prune(cli, changed, "--ratio", 0.5, "--group-reduce", reduce)) == expected[reduce]


def test_what_is_spared_stays_whole_with_what_is_tied_to_it(cli: Cli, trained: Path) -> None:
    filters = count_filters(prune(cli, trained, "--ratio", 0.5, "--spare", "3,5"))
    assert (filters[1], filters[3], filters[4]) == (8, 8, 16)
    assert sum(filters) < 56
    filters = count_filters(prune(cli, trained, "--ratio", 0.5, "--no-shortcuts"))
    assert (filters[1], filters[3]) == (8, 8)


def test_a_floor_holds_what_importance_would_take(cli: Cli, trained: Path) -> None:
    def fade(state: dict[str, Tensor]) -> None:
        for name in ("layers.0.bn.weight", "layers.5.bn.weight"):
            state[name] *= 1e-3

    faint = change_state(trained, fade)

    def prune_to(*words: object) -> list[int]:
        filters = count_filters(prune(cli, faint, "--ratio", 0.6, *words))
        assert PRUNABLE - sum(filters[:3]) - filters[4] == 22  # the fourth is tied to the second
        return filters

    free = prune_to()
    assert (free[0], free[4]) == (2, 2)
    assert prune_to("--scope", "floor", "--floor", 0)[:5] == free[:5]
    for words, floor in (((), 0.25), (("--floor", 0.75), 0.75)):
        held = prune_to("--scope", "floor", *words)
        assert held[0] >= floor * (1 - 22 / 36) * 8
        assert held[4] >= floor * (1 - 22 / 36) * 16
        assert held[4] > free[4] or floor < 0.3


def test_filters_come_in_eights(cli: Cli, trained: Path) -> None:
    filters = count_filters(prune(cli, trained, "--ratio", 0.75, "--round-to", 8))
    assert filters == [8, 8, 4, 8, 8, 12]  # a group of four has no eight to keep


@pytest.mark.parametrize(("factors", "dropped"), [((0.1, 1), 3), ((1, 0.1), 6)])
def test_the_block_that_adds_least_is_cut(
    cli: Cli, two_blocks: Callable[[float, float], Path], factors: tuple[float, float], dropped: int
) -> None:
    outcome = cli(
        "prune", *AT_ONCE, two_blocks(*factors), "--ratio", 0, "--drop-blocks", 1, "--recalibrate", 0, "--json"
    )
    result = read_json(outcome)
    assert result["dropped_blocks"] == [dropped]
    assert f"block {dropped - 2}–{dropped} contributes " in outcome.err
    assert outcome.err.count("and is cut") == outcome.err.count("and stays") == 1
    network = load_checkpoint(Path(result["checkpoint"])).network
    assert [type(layer).__name__ for layer in network.layers] == ["Conv", "Conv", "Conv", "Shortcut", "Conv", "Yolo"]
    assert result["max_abs_difference"] < 1e-9
    before, after = (load_checkpoint(Path(path)).state for path in ("blocks.pt", result["checkpoint"]))
    stays = 4 if dropped == 3 else 1
    assert torch.equal(after["layers.1.conv.weight"], before[f"layers.{stays}.conv.weight"])


def test_a_block_with_a_spared_layer_is_not_cut(cli: Cli, two_blocks: Callable[[float, float], Path]) -> None:
    checkpoint = two_blocks(0.1, 1)
    result = prune(cli, checkpoint, "--ratio", 0, "--drop-blocks", 1, "--spare", 1)
    assert result["dropped_blocks"] == [6]


def test_spared_layers_are_named_as_before_the_cut(cli: Cli, trained: Path) -> None:
    result = prune(cli, trained, "--ratio", 0.4, "--drop-blocks", 1, "--spare", 5)
    filters = count_filters(result)
    assert len(filters) == 4
    assert filters[2] == 16
    assert max(filters[:2]) < 8 or sum(filters[:2]) < 16


def test_a_cut_counts_towards_a_target(cli: Cli, trained: Path) -> None:
    full = measure_cost(parse_cfg(TINY_CFG), SIDE).params
    block = (8 * 4 + 2 * 4) + (4 * 8 * 9 + 2 * 8)
    share = (full - block) / full
    enough, short = (prune(cli, trained, "--target-params", s, "--drop-blocks", 1) for s in (share, share - 1e-4))
    assert enough["before"]["params"] == full
    assert enough["after"]["params"] == full - block
    assert enough["prune_ratio"] == 0
    assert count_dropped(short) == 1


def test_a_fold_is_what_consumers_absorb(cli: Cli, trained: Path) -> None:
    words = ("--ratio", 0.5, "--fold")
    leaky, mean, none, fitted = (
        load_state(prune(cli, trained, *words, how)) for how in ("leaky", "mean", "none", "regress")
    )
    for name in leaky:
        is_taken_up = name.endswith(("bn.running_mean", "conv.bias")) and not name.startswith("layers.0.")
        assert torch.equal(leaky[name], none[name]) is not is_taken_up, name
        assert torch.equal(mean[name], leaky[name]) is not is_taken_up, name
        assert torch.equal(mean[name], none[name]) is not is_taken_up, name
        is_fitted = is_taken_up or (name.endswith("conv.weight") and not name.startswith("layers.0."))
        assert torch.equal(fitted[name], none[name]) is not is_fitted, name


def test_regress_is_nearer_to_the_network_than_a_constant_and_repeats(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("--ratio", 0.5, "--criterion", "obs", "--fold")
    ways = [prune(cli, trained, *words, how) for how in ("regress", "mean", "regress")]
    assert is_same(load_state(ways[0]), load_state(ways[2]))
    images = next(iterate_images(pick_samples(load_spec(hands), "val", 8, SIDE), torch.device("cpu")))

    def predict(path: str | Path) -> Tensor:
        with torch.no_grad():
            return torch.cat([head.flatten() for head in load_checkpoint(Path(path)).make_model().eval()(images)])

    whole, fitted, mean = predict(trained), *(predict(way["checkpoint"]) for way in ways[:2])
    assert (fitted - whole).square().mean() < 0.8 * (mean - whole).square().mean()
    assert ways[0]["max_abs_difference"] < 1e-9


def test_only_what_looks_at_images_needs_data(cli: Cli, lone: Path) -> None:
    for fold in ("leaky", "none"):
        assert prune(cli, lone, "--ratio", 0.5, "--fold", fold)["recalibrated_on"] == 0
    for words, ways in (
        (("--fold", "mean", "--recalibrate", 0), "--fold leaky"),
        (("--fold", "regress", "--recalibrate", 0), "--fold leaky"),
        (("--criterion", "taylor", "--recalibrate", 0), "another --criterion"),
        (("--drop-blocks", 1), "--drop-blocks 0 and --recalibrate 0"),
        ((), "--recalibrate 0"),
    ):
        outcome = cli("prune", *AT_ONCE, lone, *words)
        assert outcome.err == (f"error: --data: the checkpoint names no data set; name a data.yaml, or use {ways}\n"), (
            words
        )


def test_settings_come_from_a_file_and_flags_override_it(cli: Cli, trained: Path) -> None:
    Path("prune.yaml").write_text(
        "ratio: 0.9\ntarget_macs: 0.8\ncriterion: l1\ngroup_reduce: max\nscope: layer\nnormalize: max\nspare: [3]\n"
        "round_to: 2\nmin_channels: 1\nfold: none\nrecalibrate: 0\nname: filed\nseed: 5\nimages: 8\n"
    )
    result = read_json(cli("prune", "--one-shot", trained, "--config", "prune.yaml", "--ratio", 0.25, "--json"))
    assert result["checkpoint"] == "runs/filed/pruned.pt"
    assert count_filters(result) == [6, 8, 4, 8, 12, 12]  # of four, one or two stay
    recipe = load_checkpoint(Path(result["checkpoint"])).provenance["recipe"]
    wanted = {"ratio": 0.25, "target_macs": 0.8, "criterion": "l1", "group_reduce": "max", "scope": "layer"}
    wanted |= {"normalize": "max", "spare": [3], "round_to": 2, "min_channels": 1, "fold": "none", "recalibrate": 0}
    wanted |= {"name": "filed", "seed": 5, "images": 8, "plan": None, "from_sensitivity": None, "drop_blocks": 0}
    assert {key: recipe[key] for key in wanted} == wanted


def test_the_json_says_what_was_saved(cli: Cli, trained: Path) -> None:
    result = prune(cli, trained, "--target-macs", 0.5, "--drop-blocks", 1, "--fold", "mean")
    assert result.keys() == {
        *("checkpoint", "cfg", "plan", "prune_ratio", "dropped_blocks", "before", "after"),
        *("max_abs_difference", "recalibrated_on", "map50_before", "map50_after", "scored_images", *COSTS),
    }
    assert result["before"].keys() == result["after"].keys() == COSTS
    assert {key: result[key] for key in COSTS} == result["after"]
    shown = read_json(cli("cfg", "show", result["cfg"], "--json"))
    assert {key: shown[key] for key in COSTS} == result["after"]
    assert result["dropped_blocks"] == [4]
    provenance = load_checkpoint(Path(result["checkpoint"])).provenance
    assert provenance["metrics"]["after"] == result["after"]
    plan = json.loads(Path(result["plan"]).read_text())
    assert {key: plan[key] for key in COSTS} == result["after"]


def test_what_was_pruned_is_finetuned_and_benched(cli: Cli, trained: Path) -> None:
    words = ("--target-params", 0.4, "--drop-blocks", 1, "--criterion", "taylor", "--fold", "mean")
    assert cli("prune", *AT_ONCE, trained, *words).out == "runs/prune/pruned.pt\n"
    assert cli("finetune", "--epochs", 1, "--batch-size", 12).out == "runs/finetune/best.pt\n"
    rows = read_json(cli("bench", "--no-score", "--runs", 1, "--warmup", 0, "--json"))["rows"]
    assert [row["name"] for row in rows] == ["Original", "Pruned", "Finetuned"]
    assert rows[2]["params"] == rows[1]["params"] <= 0.4 * rows[0]["params"]


def test_a_plan_is_written_and_nothing_pruned(cli: Cli, lone: Path) -> None:
    words = (lone, "--ratio", 0.5, "--criterion", "l2", "--json")
    plan, dry = read_json(cli("plan", *words)), read_json(cli("prune", *AT_ONCE, *words, "--dry-run"))
    assert (plan["plan"], plan["plot"]) == ("runs/plan/plan.json", "runs/plan/plan.png")
    assert dry["plan"] == "runs/plan-2/plan.json"
    for name in ("plan", "plot"):
        assert Path(plan.pop(name)).read_bytes() == Path(dry.pop(name)).read_bytes()
    assert plan == dry
    assert {str(path.relative_to("runs")) for path in Path("runs").rglob("*.*")} == {
        *("plan/plan.json", "plan/plan.png", "plan-2/plan.json", "plan-2/plan.png")
    }
    pruned = prune(cli, lone, "--ratio", 0.5, "--criterion", "l2")
    assert plan["after"] == pruned["after"]
    assert Path("runs/plan/plan.json").read_bytes() == Path(pruned["plan"]).read_bytes()


def test_a_plan_prints_its_path_and_the_layers(cli: Cli, lone: Path) -> None:
    outcome = cli("plan", lone, "--ratio", 0.5, "--criterion", "bn-gamma", "--name", "mine")
    assert (outcome.code, outcome.out) == (0, "runs/mine/plan.json\n")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("warning: 18 of the 18 channels to prune have a γ above 0.01")
    assert [line.split()[0] for line in lines[1:9]] == ["layer", "0", "1", "2", "3", "5", "6", "all"]
    assert lines[8].split()[1] == "-50.0%"
    assert cli("plan", lone, "--name", "mine").err.startswith("error: --name: runs/mine already holds a run")
    assert "(default: plan)" in cli("plan", "--help").out.replace("\n", " ").replace("  ", "")
    assert not {"--fold", "--recalibrate", "--dry-run"} & set(cli("plan", "--help").out.split())


def test_a_cut_layer_is_named_so(cli: Cli, trained: Path) -> None:
    outcome = cli("plan", trained, "--ratio", 0, "--drop-blocks", 1)
    lines = {line.split()[0]: line.split() for line in outcome.err.splitlines()}
    assert [index for index in ("0", "1", "2", "3", "5", "6") if lines[index][3] == "cut"] == ["2", "3"]
    assert json.loads(Path("runs/plan/plan.json").read_text())["blocks"] == [4]


@pytest.mark.parametrize(
    "words", [("--ratio", 0.5), ("--target-macs", 0.4, "--drop-blocks", 1)], ids=["ratio", "block"]
)
def test_a_plan_applied_is_the_direct_prune(cli: Cli, trained: Path, words: tuple[object, ...]) -> None:
    path = cli("plan", trained, *words).out.strip()
    planned, direct = (
        read_json(cli("prune", "--one-shot", trained, *how, "--json")) for how in (("--plan", path), words)
    )
    assert is_same(load_state(planned), load_state(direct))
    assert Path(planned["cfg"]).read_bytes() == Path(direct["cfg"]).read_bytes()
    assert planned["recalibrated_on"] == 12
    assert planned["dropped_blocks"] == direct["dropped_blocks"]


def edit_plan(path: str, **drops: list[int]) -> None:
    """Write other numbers into a plan by the first layer of the group."""
    plan = json.loads(Path(path).read_text())
    for group in plan["groups"]:
        group["drop"] = drops.get(f"l{group['layers'][0]}", group["drop"])
    Path(path).write_text(json.dumps(plan))


def test_an_edited_plan_drops_exactly_what_it_names(cli: Cli, lone: Path) -> None:
    path = cli("plan", lone, "--ratio", 0.5).out.strip()
    edit_plan(path, l0=[1], l1=[7, 0], l2=[], l5=[15, 3, 4])
    result = prune(cli, lone, "--plan", path, "--fold", "none")
    before, after = load_checkpoint(lone).state, load_state(result)
    kept = {
        0: [0, 2, 3, 4, 5, 6, 7],
        1: [1, 2, 3, 4, 5, 6],
        2: [0, 1, 2, 3],
        3: [1, 2, 3, 4, 5, 6],
        5: [n for n in range(16) if n not in (3, 4, 15)],
        6: list(range(12)),
    }
    reads = {0: [0, 1, 2], 1: kept[0], 2: kept[1], 3: kept[2], 5: kept[3], 6: kept[5]}
    for layer, rows in kept.items():
        name = f"layers.{layer}.conv.weight"
        assert torch.equal(after[name], before[name][rows][:, reads[layer]])
        if layer != 6:
            for part in ("weight", "bias", "running_mean", "running_var"):
                assert torch.equal(after[f"layers.{layer}.bn.{part}"], before[f"layers.{layer}.bn.{part}"][rows])
    shown = read_json(cli("plan", lone, "--plan", path, "--json"))
    assert shown["after"] == result["after"]
    assert shown["plan"] == "runs/plan-2/plan.json"
    assert shown["prune_ratio"] == 6 / PRUNABLE


def test_a_block_can_be_cut_by_hand(cli: Cli, lone: Path) -> None:
    path = cli("plan", lone, "--ratio", 0).out.strip()
    plan = json.loads(Path(path).read_text())
    plan["blocks"] = [4]
    plan["groups"] = [{"layers": [n], "channels": c, "drop": [0]} for n, c in ((0, 8), (1, 8), (2, 16))]
    Path(path).write_text(json.dumps(plan))
    assert count_filters(prune(cli, lone, "--plan", path)) == [7, 7, 15, 12]


def test_a_line_of_a_plan_is_a_group(cli: Cli, lone: Path) -> None:
    lines = Path(cli("plan", lone, "--ratio", 0.5).out.strip()).read_text().splitlines()
    groups = [json.loads(line.strip().rstrip(",")) for line in lines if line.startswith('    {"layers"')]
    assert {tuple(group["layers"]): group["channels"] for group in groups} == GROUPS


@pytest.mark.parametrize(
    "words",
    [
        "--ratio 0.5", "--target-params 0.5", "--target-macs 0.5", "--target-speedup 2", "--target-latency-ms 1",
        "--criterion l1", "--group-reduce max", "--scope layer", "--floor 0.5", "--normalize mean", "--score-batches 2", "--spare 3",
        "--no-shortcuts", "--min-channels 1", "--round-to 8", "--drop-blocks 1", "--from-sensitivity a.json",
    ],
)  # fmt: skip
def test_a_plan_leaves_nothing_to_choose(cli: Cli, trained: Path, words: str) -> None:
    flag = words.split()[0].replace("--no-", "--")
    outcome = cli("prune", "--one-shot", trained, "--plan", "plan.json", *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: {flag}: a plan already says what to remove; leave it out, or the plan\n"


@pytest.mark.parametrize(("images", "expected"), [(1, [0]), (5, [0, 2, 4, 7, 9]), (8, [0, 1, 3, 4, 6, 7, 9, 10]), (99, list(range(12)))])  # fmt: skip
def test_images_are_spread_over_the_split(hands: Path, images: int, expected: list[int]) -> None:
    spec = load_spec(hands)
    samples = list(spec.samples("train"))
    picked = pick_samples(spec, "train", images, SIDE).samples
    assert [samples.index(sample) for sample in picked] == expected


def test_pruned_channels_that_still_work_are_counted(cli: Cli, trained: Path, workplace: Path) -> None:
    checkpoint = load_checkpoint(trained)
    state = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    for name, tensor in state.items():
        if name.endswith("bn.weight"):
            tensor.fill_(0.1)
    state["layers.5.bn.weight"][:9] = 0.001
    sparse = save_checkpoint(workplace / "sparse.pt", replace(checkpoint, state=state))
    said = "channels to prune have a γ above 0.01"
    without = [("--ratio", 0.25), ("--ratio", 0.5, "--criterion", "l1"), ("--ratio", 0.5, "--normalize", "mean")]
    assert all(said not in cli("prune", *AT_ONCE, sparse, "--recalibrate", 0, *words).err for words in without)
    outcome = cli("prune", *AT_ONCE, sparse, "--recalibrate", 0, "--ratio", 0.5)
    assert outcome.code == 0
    assert f"9 of the 18 {said}: removing them costs mAP; 25% of the prunable channels are near zero" in outcome.err


@pytest.mark.parametrize(("gamma", "seen"), [(0.0, 0), (1e-7, 0), (0.001, 12)])
def test_batch_norm_is_measured_anew_where_something_that_worked_is_cut(
    cli: Cli, trained: Path, workplace: Path, gamma: float, seen: int
) -> None:
    checkpoint = load_checkpoint(trained)
    state = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    for name, tensor in state.items():
        if name.endswith("bn.weight"):
            tensor.fill_(0.1)
    state["layers.5.bn.weight"][:9] = gamma
    sparse = save_checkpoint(workplace / "sparse.pt", replace(checkpoint, state=state))
    outcome = cli("prune", *AT_ONCE, sparse, "--ratio", 0.25, "--json")
    assert ("only channels at zero are pruned: batch norm keeps" in outcome.err) == (seen == 0)
    result = read_json(outcome)
    assert result["recalibrated_on"] == seen
    means = {name: tensor for name, tensor in load_state(result).items() if name.endswith("running_mean")}
    kept = {
        name: torch.equal(tensor, state[name]) for name, tensor in means.items() if tensor.shape == state[name].shape
    }
    assert set(kept.values()) == {seen == 0}


@pytest.mark.parametrize(("ratio", "is_high"), [(0.0, False), (0.8, False), (0.84, False), (0.86, True), (0.95, True)])
def test_a_ratio_from_which_no_finetune_recovered_is_reported(ratio: float, is_high: bool) -> None:
    advice = explain_high_ratio(ratio)
    assert (advice is not None) is is_high
    assert advice is None or (f"ratio {ratio:.2f}" in advice and "at 0.8;" in advice)


def test_a_high_ratio_is_reported_before_any_work(cli: Cli, trained: Path) -> None:
    assert cli("prune", trained, "--ratio", 0.95).err.startswith(
        "warning: ratio 0.95: in our experiments finetune did not recover"
    )
    assert "in our experiments" not in cli("prune", *AT_ONCE, trained, "--ratio", 0.5).err


def test_a_high_ratio_that_a_target_needs_is_reported(cli: Cli, workplace: Path) -> None:
    network = make_small_network(Conv(40, 3, 1, 1), Conv(40, 3, 1, 1), Conv(40, 1))
    model = Detector(network)
    path = save_checkpoint(Path("wide.pt"), Checkpoint(network, model.state_dict(), ("hand",)))
    words = ("--target-macs", 0.02, "--round-to", 1, "--recalibrate", 0)
    outcome = cli("prune", "--one-shot", "--criterion", "l2", "--fold", "leaky", path, *words)
    assert outcome.code == 0, outcome.err
    assert "in our experiments finetune did not recover" in outcome.err
