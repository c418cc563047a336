from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    ACTIVATIONS,
    SIDE,
    copy_state,
    is_same_state,
    make_head,
    make_images,
    make_small_network,
    measure_largest_gap,
    randomise_,
    run,
)
from torch import Tensor, nn

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import format_cfg, parse_cfg
from yolo_prune.darknet.layers import SIGMOIDS, Conv, Layer, MaxPool, Route, Shortcut, Upsample, Yolo
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.blocks import Block, drop_blocks, find_blocks, list_kept_layers, pick_blocks
from yolo_prune.pruning.scores.importance import score_blocks
from yolo_prune.pruning.surgery.rebuild import cut_blocks, zero_blocks

EXACT = 1e-9
ENDS_AT_ZERO = tuple(name for name in ACTIVATIONS if name not in SIGMOIDS)

# by hand, three layers per block: YOLOv3 has 1, 2, 8, 8, 4 after the convolutions 1, 5, 12, 37, 62; YOLOv4 the same
# numbers in its stages' inner paths, after the convolutions 4, 14, 27, 58, 89
YOLOV3_ENDS = (4, 8, 11, *range(15, 37, 3), *range(40, 62, 3), *range(65, 75, 3))
YOLOV4_ENDS = (7, 17, 20, *range(30, 52, 3), *range(61, 83, 3), *range(92, 102, 3))

YOLOV3 = make_network("yolov3", width=0.05)
YOLOV4 = make_network("yolov4", width=0.05)
CONV = Conv(4, 1)
POOL = MaxPool(3, 1, 2)


def find_ends(network: Network) -> list[int]:
    return [block.shortcut for block in find_blocks(network)]


@pytest.mark.parametrize(
    ("arch", "ends"),
    [
        ("yolov3", YOLOV3_ENDS),
        ("yolov3-spp", YOLOV3_ENDS),
        ("yolov4", YOLOV4_ENDS),
        ("yolov3-tiny", ()),
        ("yolov4-tiny", ()),
    ],
)
def test_blocks_of_the_known_networks(arch: str, ends: tuple[int, ...]) -> None:
    blocks = find_blocks(make_network(arch, width=0.05))
    assert blocks == tuple(Block(end - 3, end) for end in ends)
    assert len(blocks) in (23, 0)
    for block in blocks:
        assert list(block.layers) == [block.shortcut - 2, block.shortcut - 1, block.shortcut]
        assert block.last_conv == block.shortcut - 1


@pytest.mark.parametrize(
    ("layers", "ends"),
    [
        pytest.param((CONV, CONV, CONV, Shortcut(0)), [3], id="two convolutions"),
        pytest.param((CONV, CONV, Shortcut(0)), [2], id="one convolution"),
        pytest.param((CONV, CONV, Shortcut(0), CONV, Shortcut(2)), [2, 4], id="one behind the other"),
        pytest.param((CONV, Conv(4, 1, batch_normalize=False), Shortcut(0)), [2], id="no batch norm"),
        pytest.param((CONV, Conv(4, 3, 1, 1, 4), Shortcut(0)), [2], id="depthwise"),
        pytest.param((CONV, Conv(4, 1, activation="logistic"), CONV, Shortcut(0)), [3], id="logistic in the middle"),
        pytest.param((CONV, POOL, CONV, Shortcut(0)), [3], id="pooling in the middle"),
        pytest.param((CONV, CONV, CONV, Route((1, 2)), CONV, Shortcut(0)), [5], id="route inside the branch"),
        pytest.param((CONV, CONV, Route((0, 1)), CONV, Shortcut(0)), [4], id="route to the block's input"),
        pytest.param((CONV, CONV, Route((0,)), CONV, Shortcut(0)), [4], id="a layer that nobody reads"),
        pytest.param((CONV, CONV, Shortcut(0), Route((0, 2))), [2], id="input and sum read from outside"),
        pytest.param((CONV, CONV, CONV, Shortcut(0), Route((3, 1))), [], id="first of the branch read by a route"),
        pytest.param((CONV, CONV, CONV, Shortcut(0), Route((3, 2))), [], id="last of the branch read by a route"),
        pytest.param((CONV, CONV, CONV, Shortcut(0), CONV, Shortcut(1)), [], id="branch read by a shortcut"),
        pytest.param((CONV, CONV, CONV, Route((0,)), CONV, Shortcut(1)), [], id="branch reads what was before"),
        pytest.param((CONV, CONV, CONV, CONV, Shortcut(1), CONV, Shortcut(0)), [4], id="nested: the inner alone"),
        pytest.param((CONV, CONV, Shortcut(0), CONV, Shortcut(0)), [2], id="shortcut over a block"),
        pytest.param((CONV, CONV, POOL, Shortcut(0)), [], id="ends in a pooling"),
        pytest.param((CONV, CONV, Route((1,)), Shortcut(0)), [], id="ends in a route"),
        pytest.param((CONV, Conv(4, 1, 2), Upsample(), Shortcut(0)), [], id="ends in an enlargement"),
        pytest.param((CONV, CONV, Route((0,)), Shortcut(1)), [], id="the two inputs swapped"),
        pytest.param((CONV, CONV, Shortcut(1)), [], id="adds a layer to itself"),
        pytest.param((CONV, CONV, *make_head(), Route((1,)), CONV, Shortcut(0)), [], id="a head in the branch"),
        *[
            pytest.param((CONV, Conv(4, 1, activation=name), Shortcut(0)), [2], id=f"ends in {name}")
            for name in ENDS_AT_ZERO
        ],
        pytest.param((CONV, Conv(4, 1, activation="logistic"), Shortcut(0)), [], id="ends in logistic"),
        pytest.param((CONV, Conv(4, 1, activation="hard_sigmoid"), Shortcut(0)), [], id="ends in a hard sigmoid"),
        *[
            pytest.param((CONV, CONV, Shortcut(0, name)), [], id=f"{name} sum")
            for name in ACTIVATIONS
            if name != "linear"
        ],
    ],
)
def test_what_can_be_cut(layers: Sequence[Layer], ends: list[int]) -> None:
    network = make_small_network(*layers)
    assert find_ends(network) == ends
    for end in ends:
        model = randomise_(Detector(network))
        images, blocks = make_images(model), pick_blocks(network, [end])
        cut = run(cut_blocks(model, blocks), images)
        assert measure_largest_gap(cut, run(zero_blocks(model, blocks), images)) < EXACT
        assert measure_largest_gap(cut, run(model, images)) > 1e-3  # it did something


@pytest.mark.parametrize(
    "layers",
    [
        (CONV, CONV, Shortcut(0, "leaky")),
        (CONV, CONV, Shortcut(0, "mish")),
        (CONV, Conv(4, 1, activation="logistic"), Shortcut(0)),
        (CONV, CONV, POOL, Conv(4, 1, activation="logistic"), Shortcut(0)),
    ],
)
def test_to_cut_what_cannot_be_would_change_outputs(layers: Sequence[Layer]) -> None:
    network = make_small_network(*layers)
    model, block = randomise_(Detector(network)), Block(0, len(layers) - 1)
    images = make_images(model)
    cut, zeroed = run(cut_blocks(model, [block]), images), run(zero_blocks(model, [block]), images)
    assert measure_largest_gap(cut, zeroed) > 1e-3


def test_picked_blocks_are_in_order_and_once_each() -> None:
    assert pick_blocks(YOLOV3, [61, 36, 61]) == (Block(33, 36), Block(58, 61))
    assert pick_blocks(YOLOV3, YOLOV3_ENDS) == find_blocks(YOLOV3)
    assert pick_blocks(YOLOV3, ()) == ()


@pytest.mark.parametrize("wrong", [5, 10, 62, -1, 107])
def test_a_layer_that_ends_no_block_is_named(wrong: int) -> None:
    with pytest.raises(PlanError) as caught:
        pick_blocks(YOLOV3, [61, wrong])
    ends = ", ".join(map(str, YOLOV3_ENDS))
    assert str(caught.value) == f"layer {wrong}: ends no residual block that can be cut; name one of {ends}"


def test_a_network_without_blocks_says_so() -> None:
    with pytest.raises(PlanError, match=r"^layer 4: ends no residual block that can be cut; .*none"):
        pick_blocks(make_network("yolov3-tiny", width=0.05), [4])


def test_routes_to_a_cut_block_read_its_input() -> None:
    assert (YOLOV3.layers[86], YOLOV3.layers[98]) == (Route((85, 61)), Route((97, 36)))
    blocks = pick_blocks(YOLOV3, (36, 61))
    kept = [*range(34), *range(37, 59), *range(62, 107)]
    assert list_kept_layers(YOLOV3, blocks) == kept
    short = drop_blocks(YOLOV3, blocks)
    assert len(short.layers) == 101
    assert short.layers[86 - 6] == Route((85 - 6, 58 - 3))  # 58 ends the block before
    assert short.layers[98 - 6] == Route((97 - 6, 33))
    assert short.layers[55] == Shortcut(52)
    for new, old in enumerate(kept):
        if not isinstance(YOLOV3.layers[old], Route | Shortcut):
            assert short.layers[new] == YOLOV3.layers[old]


def test_routes_to_a_row_of_cut_blocks_read_what_went_into_the_first() -> None:
    short = drop_blocks(YOLOV3, pick_blocks(YOLOV3, range(40, 62, 3)))
    assert short.layers[86 - 24] == Route((85 - 24, 37))
    assert short.layers[98 - 24] == Route((97 - 24, 36))
    assert find_ends(short) == [*range(4, 5), 8, 11, *range(15, 37, 3), *range(65 - 24, 75 - 24, 3)]


def test_all_of_darknet_s_blocks_can_be_cut() -> None:
    for network in (YOLOV3, YOLOV4):
        short = drop_blocks(network, find_blocks(network))
        assert find_ends(short) == []
        assert not any(isinstance(layer, Shortcut) for layer in short.layers)
        assert len(short.layers) == len(network.layers) - 3 * 23
        assert [head for _, head in short.heads] == [head for _, head in network.heads]


class _Draft:
    """A network of blocks under construction; all its layers have one height and width."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.widths = [draw(st.integers(1, 5))]
        self.layers: list[Layer] = [Conv(self.widths[0], 3, 1, 1)]
        self.outside = [0]
        """The layers that are in no branch."""
        self.branches: dict[int, range] = {}
        """By the shortcuts that would end blocks, were nobody else to read these layers."""

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def add(self, layer: Layer, width: int) -> None:
        self.layers.append(layer)
        self.widths.append(width)

    def add_conv(self, width: int, activations: Sequence[str] = ACTIVATIONS, groups: int = 1) -> None:
        size, normalised = self.draw(st.sampled_from((1, 3))), self.draw(st.booleans())
        self.add(Conv(width, size, 1, size // 2, groups, normalised, self.draw(st.sampled_from(activations))), width)

    def add_layer(self, kind: str, readable: Sequence[int]) -> None:
        draw, width = self.draw, self.widths[-1]
        match kind:
            case "depthwise":
                self.add_conv(width, groups=width)
            case "pool":
                self.add(POOL, width)
            case "route":
                sources = draw(st.lists(st.sampled_from(readable), min_size=1, max_size=3))
                self.add(Route(tuple(sources)), sum(self.widths[source] for source in sources))
            case "slice" if even := [source for source in readable if self.widths[source] % 2 == 0]:
                source = draw(st.sampled_from(even))
                self.add(Route((source,), 2, draw(st.integers(0, 1))), self.widths[source] // 2)
            case _:
                self.add_conv(draw(st.integers(1, 5)))

    def add_block(self) -> None:
        source = self.last
        for kind in self.draw(st.lists(st.sampled_from(KINDS), max_size=2)):
            self.add_layer(kind, range(source, self.last + 1))
        is_sound = self.draw(st.sampled_from((True, True, True, True, False)))
        self.add_conv(self.widths[source], ENDS_AT_ZERO if is_sound else SIGMOIDS)
        self.add(Shortcut(source), self.widths[source])
        if is_sound:
            self.branches[self.last] = range(source + 1, self.last)

    def add_part(self, kind: str) -> None:
        match kind:
            case "block":
                self.add_block()
            case "spy":
                self.add_layer("route", range(self.last + 1))
            case _:
                self.add_layer(kind, self.outside)
        self.outside.append(self.last)

    def find_ends(self, heads: Sequence[Layer]) -> list[int]:
        """Return which shortcuts end blocks that no later layer reads the middle of."""
        layers = (*self.layers, *heads)
        return [
            end
            for end, branch in self.branches.items()
            if not any(isinstance(layer, Route) and set(layer.sources) & set(branch) for layer in layers[end:])
        ]


KINDS = ("conv", "depthwise", "pool", "route", "slice")
PARTS = ("block", "block", "block", "block", "block", "route", "spy", *KINDS)


@st.composite
def networks_of_blocks(draw: st.DrawFn) -> tuple[Network, list[int]]:
    """Draw a network of residual blocks, routes into their middle among them, and say which can be cut."""
    draft = _Draft(draw)
    for kind in draw(st.lists(st.sampled_from(PARTS), min_size=2, max_size=7)):
        draft.add_part(kind)
    heads: list[Layer] = [*make_head()]
    if draw(st.booleans()):
        heads += [Route((draw(st.sampled_from(draft.outside)),)), *make_head()]
    return Network(SIDE, SIDE, 3, (*draft.layers, *heads)), draft.find_ends(heads)


def pick_some(network: Network, choose: Callable[[int], bool]) -> tuple[Block, ...]:
    return tuple(block for number, block in enumerate(find_blocks(network)) if choose(number))


CHOICES = st.frozensets(st.integers(0, 4), max_size=3).map(lambda spared: lambda number: number not in spared)
"""Which blocks are cut, by their place among those that can be: mostly all."""


@given(networks_of_blocks())
@settings(max_examples=60, deadline=None)
def test_exactly_the_closed_blocks_are_found(drawn: tuple[Network, list[int]]) -> None:
    network, ends = drawn
    assert find_ends(network) == ends


@given(networks_of_blocks(), CHOICES, st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_cut_equals_zeroed_for_any_network_of_blocks(
    drawn: tuple[Network, list[int]], choose: Callable[[int], bool], seed: int
) -> None:
    network, _ = drawn
    model = randomise_(Detector(network), seed)
    before, images, blocks = copy_state(model), make_images(model, seed=seed), pick_some(network, choose)
    cut, zeroed = cut_blocks(model, blocks), zero_blocks(model, blocks)
    assert zeroed.network == network
    assert cut.network == drop_blocks(network, blocks)
    assert len(cut.network.layers) == len(network.layers) - sum(len(block.layers) for block in blocks)
    assert measure_largest_gap(run(cut, images), run(zeroed, images)) < EXACT
    assert is_same_state(model, before)


@torch.no_grad()
def settle_(model: Detector, images: Tensor) -> Detector:
    """Set the running statistics to those of the images in place, so that no layer's output is fainter than the last."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    return model.eval()


@pytest.mark.parametrize("network", [YOLOV3, YOLOV4], ids=["yolov3", "yolov4"])
@pytest.mark.parametrize("bits", [0b1, 0b11, 0b101101110010011010101, 2**23 - 1])
def test_cut_equals_zeroed_in_the_known_networks(network: Network, bits: int) -> None:
    model, blocks = randomise_(Detector(network), bits), pick_some(network, lambda number: bool(bits >> number & 1))
    images = make_images(model, 64)
    before = copy_state(settle_(model, images))
    cut, zeroed = run(cut_blocks(model, blocks), images), run(zero_blocks(model, blocks), images)
    assert measure_largest_gap(cut, zeroed) < EXACT
    assert measure_largest_gap(cut, run(model, images)) > 1e-2
    assert is_same_state(model, before)


@given(networks_of_blocks(), CHOICES)
@settings(max_examples=30, deadline=None)
def test_a_cut_network_is_a_cfg(drawn: tuple[Network, list[int]], choose: Callable[[int], bool]) -> None:
    network, _ = drawn
    short = drop_blocks(network, pick_some(network, choose))
    assert parse_cfg(format_cfg(short)) == short


@given(networks_of_blocks(), CHOICES)
@settings(max_examples=30, deadline=None)
def test_one_by_one_is_all_at_once(drawn: tuple[Network, list[int]], choose: Callable[[int], bool]) -> None:
    network, _ = drawn
    blocks, short = pick_some(network, choose), network
    for block in reversed(blocks):  # the last first, so that numbers before it stay
        short = drop_blocks(short, [block])
    assert short == drop_blocks(network, blocks)


@given(networks_of_blocks(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_cutting_none_is_the_identity(drawn: tuple[Network, list[int]], seed: int) -> None:
    network, _ = drawn
    model = randomise_(Detector(network), seed, double=False)
    before = copy_state(model)
    assert drop_blocks(network, ()) == network
    assert list_kept_layers(network, ()) == list(range(len(network.layers)))
    for twin in (cut_blocks(model, ()), zero_blocks(model, ())):
        assert twin.network == network
        assert is_same_state(twin, before)


def test_a_cut_model_has_the_kept_layers_tensors_and_settings() -> None:
    network = make_small_network(CONV, CONV, Shortcut(0), CONV, CONV, Shortcut(2))
    model = randomise_(Detector(network)).train()
    for index, _ in network.convs[:-1]:
        module = model.get_conv(index)
        assert module.bn is not None
        module.bn.eps, module.bn.momentum = 0.1 * index, 0.01 * index
    short = cut_blocks(model, pick_blocks(network, [2]))
    assert short.training
    for new, old in {0: 0, 1: 3, 2: 4}.items():
        one, other = short.layers[new], model.layers[old]
        assert isinstance(one, ConvLayer)
        assert isinstance(other, ConvLayer)
        assert one.bn is not None
        assert (one.bn.eps, one.bn.momentum) == (0.1 * old, 0.01 * old)
        for mine, its in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert mine.data_ptr() == its.data_ptr()
    assert all(parameter.requires_grad for parameter in short.parameters())


def test_a_zeroed_branch_has_zero_weights_and_the_rest_is_shared() -> None:
    network = make_small_network(CONV, CONV, Conv(4, 1, batch_normalize=False), Shortcut(0), CONV, Shortcut(3))
    model = randomise_(Detector(network))
    zeroed = zero_blocks(model, find_blocks(network))
    changed = {
        name for name, tensor in zeroed.state_dict().items() if tensor.data_ptr() != model.state_dict()[name].data_ptr()
    }
    zero = {"layers.2.conv.weight", "layers.2.conv.bias", "layers.4.bn.weight", "layers.4.bn.bias"}
    assert zero <= changed
    assert {name.rpartition(".")[0] for name in changed} == {"layers.2.conv", "layers.4.bn"}
    assert not any(zeroed.state_dict()[name].any() for name in zero)


def make_counting_model() -> Detector:
    """Return a model of two blocks that works on whole numbers: x is the red, s = x + (2x + 1), then s − s/2."""
    plain = Conv(1, 1, batch_normalize=False, activation="linear")
    model = Detector(make_small_network(plain, plain, Shortcut(0), plain, Shortcut(2))).double().train()
    state = model.state_dict()
    for index, (weight, bias) in {0: ([1.0, 0, 0], 0.0), 1: ([2.0], 1.0), 3: ([-0.5], 0.0)}.items():
        state[f"layers.{index}.conv.weight"].copy_(torch.tensor(weight).view(1, -1, 1, 1))
        state[f"layers.{index}.conv.bias"].fill_(bias)
    return model


def test_scores_of_blocks_by_hand() -> None:
    model = make_counting_model()
    before, blocks = copy_state(model), find_blocks(model.network)
    images = torch.zeros(2, 3, 1, 2, dtype=torch.float64)
    images[0, 0, 0, 1] = images[1, 0, 0, 0] = images[1, 0, 0, 1] = 1  # x: 0 1, 1 1
    # 2x + 1: 1 3, 3 3; s: 1 4, 4 4; s/2 is as long as s − s/2
    first = ((1 + 3 * 9) / (1 + 3 * 16)) ** 0.5
    assert score_blocks(model, blocks, [images]) == pytest.approx([first, 1])
    assert score_blocks(model, blocks[::-1], [images]) == pytest.approx([1, first])
    assert score_blocks(model, blocks[1:], [images]) == pytest.approx([1])
    assert score_blocks(model, (), [images]) == []
    assert model.training
    assert is_same_state(model, before)


@given(st.integers(0, 22), st.integers(0, 99))
@settings(max_examples=3, deadline=None)
def test_a_zeroed_block_scores_zero(number: int, seed: int) -> None:
    model, blocks = randomise_(Detector(YOLOV3), seed), find_blocks(YOLOV3)
    scores = score_blocks(zero_blocks(model, blocks[number : number + 1]), blocks, [make_images(model, 32)])
    assert [place for place, score in enumerate(scores) if score == 0] == [number]
    assert all(score > 0 for place, score in enumerate(scores) if place != number)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_scores_do_not_depend_on_batches(sizes: list[int], seed: int) -> None:
    network = make_small_network(Conv(4, 3, 1, 1), CONV, Conv(4, 3, 1, 1), Shortcut(0), CONV, Shortcut(3))
    model, blocks = randomise_(Detector(network), seed), find_blocks(network)
    images = make_images(model, batch=sum(sizes), seed=seed)
    whole = score_blocks(model.train(), blocks, [images])  # as the running statistics say, not the batch's own
    assert score_blocks(model, blocks, iter(torch.split(images, sizes))) == pytest.approx(whole, rel=1e-12)


@torch.no_grad()
def test_a_block_of_nothing_but_zeros_contributes_nothing() -> None:
    network = make_small_network(Conv(4, 1), Conv(4, 1), Conv(4, 1), Shortcut(0))
    model = randomise_(Detector(network))
    for name, tensor in model.named_parameters():
        if name.startswith(("layers.0.bn", "layers.2.bn")):
            tensor.zero_()
    assert score_blocks(model, find_blocks(network), [make_images(model)]) == [0]


def test_scores_without_images_are_rejected() -> None:
    model = make_counting_model()
    with pytest.raises(PlanError) as caught:
        score_blocks(model, find_blocks(model.network), [])
    assert str(caught.value) == "drop_blocks: there are no images to score blocks on; name a data set"
    assert model.training


def test_scores_of_a_broken_model_are_rejected() -> None:
    model = make_counting_model()
    model.state_dict()["layers.3.conv.weight"].fill_(float("nan"))
    with pytest.raises(PlanError, match=r"^layer 3: conv\.weight holds NaN"):
        score_blocks(model, find_blocks(model.network), [make_images(model)])


def test_heads_are_never_cut() -> None:
    for network in (YOLOV3, YOLOV4):
        kept = list_kept_layers(network, find_blocks(network))
        assert {index for index, layer in enumerate(network.layers) if isinstance(layer, Yolo)} <= set(kept)
        assert network.head_convs <= set(kept)
