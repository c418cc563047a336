"""Which weights become zero, by hand and by law, and what is left of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import copy_state, is_same_state, make_images, make_small_network, networks, randomise_, run
from tiny import SIDE, TINY_CFG
from torch import Tensor
from torch.sparse._semi_structured_conversions import (  # what CUDA's kernels are given, made on the CPU
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from yolo_prune.config import parse_config
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError, YoloPruneError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.plans.weight_plan import (
    count_by_layer,
    count_nonzeros,
    find_prunable_layers,
    keep_pattern,
    make_weight_plan,
)
from yolo_prune.pruning.surgery.rebuild import zero_weights

TINY = parse_cfg(TINY_CFG)
PRUNABLE = {1: 8 * 8 * 9, 2: 8 * 4, 3: 4 * 8 * 9, 5: 8 * 16 * 9}
"""Its convolutions that are pruned unless told otherwise, and their weights."""


def make_tiny(seed: int = 0) -> Detector:
    return randomise_(Detector(TINY), seed)


def get_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.endswith("conv.weight")}


def rank_by_hand(model: Detector, criterion: str) -> list[tuple[float, int, int]]:
    """Return (score, layer, place) of every weight that may be zeroed, in the order of zeroing; a layer's highest is left out."""
    ranked = []
    for layer in PRUNABLE:
        module = model.get_conv(layer)
        scale = torch.ones(len(module.conv.weight), dtype=torch.float64)
        if criterion == "bn-gamma":
            assert module.bn is not None
            assert module.bn.running_var is not None
            scale = module.bn.weight.detach().abs() / (module.bn.running_var + 1e-5).sqrt()
        scores = (module.conv.weight.detach().abs() * scale.view(-1, 1, 1, 1)).flatten().tolist()
        own = sorted((score, layer, place) for place, score in enumerate(scores))
        ranked += own[:-1]
    return sorted(ranked)


def list_dropped(keep: Mapping[int, Tensor]) -> set[tuple[int, int]]:
    return {(layer, place) for layer, one in keep.items() for place in (~one).flatten().nonzero()[:, 0].tolist()}


@pytest.mark.parametrize("criterion", ["bn-gamma", "l1", "l2"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.9995])
def test_the_smallest_weights_are_zeroed_by_hand(criterion: Any, ratio: float) -> None:
    model = make_tiny()
    plan = make_weight_plan(model, WeightConfig(criterion, ratio))
    count = min(round(ratio * sum(PRUNABLE.values())), sum(PRUNABLE.values()) - len(PRUNABLE))
    assert list_dropped(plan.keep) == {(layer, place) for _, layer, place in rank_by_hand(model, criterion)[:count]}
    assert plan.ratio == pytest.approx(count / sum(PRUNABLE.values()))
    assert all(one.any() for one in plan.keep.values())


def test_by_layer_every_convolution_loses_the_same_share() -> None:
    plan = make_weight_plan(make_tiny(), WeightConfig("l1", 0.7, "layer"))
    assert {layer: int((~keep).sum()) for layer, keep in plan.keep.items()} == {
        layer: round(0.7 * weights) for layer, weights in PRUNABLE.items()
    }


def test_of_equal_weights_the_first_are_zeroed_and_the_last_stays() -> None:
    model = make_tiny()
    with torch.no_grad():
        for layer in PRUNABLE:
            model.get_conv(layer).conv.weight.fill_(-0.5)
    plan = make_weight_plan(model, WeightConfig("l1", 600 / sum(PRUNABLE.values())))
    free = [(layer, place) for layer, weights in PRUNABLE.items() for place in range(weights - 1)]
    assert list_dropped(plan.keep) == set(free[:600])


def test_the_scale_that_batch_norm_takes_out_is_no_matter() -> None:
    model = make_tiny()
    plan = make_weight_plan(model, WeightConfig("bn-gamma", 0.6))
    images, before = make_images(model, SIDE), [raw.detach() for raw in run(model, make_images(model, SIDE))]
    plain = make_weight_plan(model, WeightConfig("l1", 0.6))
    with torch.no_grad():
        for layer in PRUNABLE:
            module = model.get_conv(layer)
            assert module.bn is not None
            assert module.bn.running_mean is not None
            assert module.bn.running_var is not None
            factor = torch.linspace(0.1, 9, len(module.conv.weight), dtype=torch.float64)
            module.conv.weight.mul_(factor.view(-1, 1, 1, 1))
            module.bn.running_mean.mul_(factor)
            module.bn.running_var.copy_((module.bn.running_var + 1e-5) * factor**2 - 1e-5)
    for one, other in zip(before, run(model, images), strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    assert list_dropped(make_weight_plan(model, WeightConfig("bn-gamma", 0.6)).keep) == list_dropped(plan.keep)
    assert list_dropped(make_weight_plan(model, WeightConfig("l1", 0.6)).keep) != list_dropped(plain.keep)


CONFIGS = st.builds(
    WeightConfig,
    criterion=st.sampled_from(("bn-gamma", "l1")),
    ratio=st.floats(0, 0.999),
    scope=st.sampled_from(("global", "layer")),
    spare_ends=st.booleans(),
)


@given(networks(), CONFIGS, st.floats(0, 0.999), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_larger_ratio_drops_all_that_a_smaller_does(
    network: Network, config: WeightConfig, other: float, seed: int
) -> None:
    model = randomise_(Detector(network), seed)
    low, high = sorted((config.ratio, other))
    try:
        less, more = (make_weight_plan(model, replace(config, ratio=ratio)).keep for ratio in (low, high))
    except PlanError as error:
        assert error.where == "spare"  # noqa: PT017  # a network of nothing but ends
        return
    assert less.keys() == more.keys() == set(find_prunable_layers(network, config))
    assert all((more[layer] <= less[layer]).all() and more[layer].any() for layer in less)
    total = sum(keep.numel() for keep in less.values())
    dropped = sum(int((~keep).sum()) for keep in less.values())
    if config.scope == "global":
        assert dropped == min(round(low * total), total - len(less))
    else:
        assert all(int((~k).sum()) == min(round(low * k.numel()), k.numel() - 1) for k in less.values())
    again = make_weight_plan(model, replace(config, ratio=low)).keep
    assert all(torch.equal(again[layer], less[layer]) for layer in less)


@given(
    st.integers(1, 5),
    st.integers(1, 19),
    st.sampled_from((1, 3)),
    st.integers(2, 9).flatmap(lambda of: st.tuples(st.integers(1, of - 1), st.just(of))),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_a_pattern_holds_in_every_group(
    out: int, channels: int, side: int, pattern: tuple[int, int], seed: int
) -> None:
    kept, of = pattern
    scores = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 5, (out, channels, side, side)).astype(np.float32)
    )
    keep = keep_pattern(scores, kept, of)
    for row, col, filter_ in np.ndindex(side, side, out):
        for start in range(0, channels, of):
            own = scores[filter_, start : start + of, row, col].tolist()
            order = sorted(range(len(own)), key=lambda place: (own[place], place))
            stays = keep[filter_, start : start + of, row, col].nonzero()[:, 0].tolist()
            assert stays == sorted(order[-kept:])


def test_a_pattern_of_a_whole_network_spares_the_layers_it_is_given() -> None:
    model = make_tiny()
    plan = make_weight_plan(model, WeightConfig("l1", pattern="2:4", spare=(3,)))
    assert plan.keep.keys() == {1, 2, 5}
    assert all(
        torch.equal(keep, keep_pattern(model.get_conv(i).conv.weight.abs(), 2, 4)) for i, keep in plan.keep.items()
    )
    assert plan.ratio == 0.5
    whole = make_weight_plan(model, WeightConfig("l1", pattern="1:4", spare_ends=False))
    assert whole.keep.keys() == {0, 1, 2, 3, 5, 6}
    assert int(whole.keep[0].sum()) == 8 * 9  # of three channels one stays
    assert int(whole.keep[6].sum()) == 12 * 4


def test_two_of_four_is_what_pytorch_s_semi_structured_kernels_take() -> None:
    weight = torch.randn(64, 64, 1, 1, generator=torch.Generator().manual_seed(0))
    keep = keep_pattern(weight.abs(), 2, 4)
    rows = (weight * keep).view(64, 64).half()
    packed = sparse_semi_structured_from_dense_cutlass(rows)  # type: ignore[no-untyped-call]
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), rows)  # type: ignore[no-untyped-call]
    deep = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    matrix = (deep * keep_pattern(deep.abs(), 2, 4)).permute(0, 2, 3, 1).reshape(8, -1)
    assert (matrix.view(8, -1, 4).count_nonzero(2) == 2).all()


def test_zeroing_is_masking_and_leaves_the_rest() -> None:
    model = make_tiny()
    before = copy_state(model)
    plan = make_weight_plan(model, WeightConfig("l1", 0.8))
    pruned = zero_weights(model, plan)
    assert is_same_state(model, before)
    masked = {name: tensor.clone() for name, tensor in before.items()}
    for layer, keep in plan.keep.items():
        masked[f"layers.{layer}.conv.weight"] *= keep
    assert is_same_state(pruned, masked)
    for kernel in get_kernels(pruned.state_dict()).values():
        assert not torch.signbit(kernel[kernel == 0]).any()  # +0, which is stored as one bit
    reference = Detector(TINY).double().eval()
    reference.load_state_dict(masked)
    images = make_images(model, SIDE)
    for one, other in zip(run(pruned, images), run(reference, images), strict=True):
        assert torch.equal(one, other)


def test_what_is_left_is_counted_by_hand() -> None:
    model = make_tiny()
    pruned = zero_weights(model, make_weight_plan(model, WeightConfig("l1", 0.5, "layer")))
    cost = measure_cost(TINY, SIDE)
    zeroed = {layer: weights // 2 for layer, weights in PRUNABLE.items()}
    left = count_nonzeros(pruned)
    assert left.params == cost.params - sum(zeroed.values())
    areas = {1: 16 * 16, 2: 16 * 16, 3: 16 * 16, 5: 8 * 8}
    assert left.macs == cost.macs - sum(zeroed[layer] * area for layer, area in areas.items())
    assert count_by_layer(pruned)[1] == (1, 576, 288)
    assert count_nonzeros(model).macs == cost.macs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: parse_config(WeightConfig(), {"criterion": "taylor"}, "a.yaml"),
            "a.yaml: criterion: unknown criterion taylor; use bn-gamma, l1 or l2",
        ),
        (lambda: WeightConfig(ratio=1), "ratio: 1 is out of range; use a number from 0 to below 1"),
        (lambda: WeightConfig(ratio=math.nan), "ratio: nan is out of range"),
        (
            lambda: parse_config(WeightConfig(), {"scope": "all"}, "a.yaml"),
            "a.yaml: scope: unknown scope all; use global or layer",
        ),
        *(
            (lambda text=text: WeightConfig(pattern=text), f"pattern: {text!r} is no pattern; use N:M")
            for text in ("4:2", "2:2", "0:4", "2", "a:b", "2:4:8", " 2:4", "-1:4", "²:4", "")
        ),
        (
            lambda: make_weight_plan(make_tiny(), WeightConfig(spare=(1, 2, 3, 5))),
            "spare: every convolution is spared; spare fewer",
        ),
        (lambda: make_weight_plan(make_tiny(), WeightConfig(spare=(4,))), "spare: layer 4 is no convolution"),
    ],
)
def test_invalid_settings_are_rejected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(YoloPruneError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_a_network_of_ends_says_how_it_could_be_pruned() -> None:
    model = randomise_(Detector(make_small_network(Conv(4, 3, 1, 1))))
    with pytest.raises(PlanError, match="every convolution is spared; let its ends be pruned too, by --no-spare-ends"):
        make_weight_plan(model, WeightConfig())
    assert make_weight_plan(model, WeightConfig(spare_ends=False)).keep.keys() == {0, 1}


def test_a_nan_weight_is_rejected() -> None:
    model = make_tiny()
    with torch.no_grad():
        model.get_conv(3).conv.weight[0] = math.nan
    with pytest.raises(PlanError, match=r"layer 3: conv\.weight holds NaN"):
        make_weight_plan(model, WeightConfig())
