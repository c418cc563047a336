from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from networks import make_small_network, networks

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import (
    SIGMOIDS,
    AvgPool,
    Conv,
    Gate,
    Layer,
    MaxPool,
    Reorg,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    get_sources,
)
from yolo_prune.darknet.network import Network
from yolo_prune.pruning.channels import make_channel_graph

Node = tuple[int, int]
"""Layer (-1 is the image) and channel."""


def tie_slowly(network: Network) -> tuple[list[list[Node]], list[set[Node]], set[Node]]:
    """Return every layer's output nodes, the sets of nodes that live and die together, and the frozen nodes."""
    outputs: dict[int, list[Node]] = {-1: [(-1, channel) for channel in range(network.channels)]}
    sets: dict[Node, set[Node]] = {node: {node} for node in outputs[-1]}
    frozen = set(outputs[-1])

    def tie(one: Node, other: Node) -> None:
        joined = sets[one] | sets[other]
        for node in joined:
            sets[node] = joined

    def tie_parts(nodes: list[Node], parts: int) -> None:
        length = len(nodes) // parts
        for place, node in enumerate(nodes):
            tie(nodes[place % length], node)

    for index, layer in enumerate(network.layers):
        inputs = outputs[index - 1]
        match layer:
            case Conv(filters=filters, groups=groups):
                outputs[index] = [(index, channel) for channel in range(filters)]
                sets |= {node: {node} for node in outputs[index]}
                if groups == len(inputs) > 1:
                    for channel, node in enumerate(outputs[index]):
                        tie(inputs[channel * groups // filters], node)
                elif groups > 1:
                    tie_parts(inputs, groups)
                    tie_parts(outputs[index], groups)
            case Route(sources=sources, groups=groups, group_id=group):
                outputs[index] = []
                for source in sources:
                    tie_parts(outputs[source], groups)
                    length = len(outputs[source]) // groups
                    outputs[index] += outputs[source][group * length : (group + 1) * length]
            case Shortcut(source=source):
                outputs[index] = inputs
                for one, other in zip(inputs, outputs[source], strict=False):
                    tie(one, other)
            case Reorg(stride=stride, is_mixed=is_mixed):
                outputs[index] = inputs * stride**2
                frozen |= set(inputs) if is_mixed else set()
            case Gate(source=source, factors=factors):
                outputs[index] = outputs[source]
                if factors == "pixels":
                    frozen |= set(inputs)
                else:
                    for one, other in zip(inputs, outputs[source], strict=True):
                        tie(one, other)
            case _:
                outputs[index] = inputs
        is_sigmoid = getattr(layer, "activation", "") in SIGMOIDS
        if isinstance(layer, Yolo) or (is_sigmoid and not is_factor_alone(network, index)):
            frozen |= set(outputs[index])
    unique = {id(members): members for members in sets.values()}
    return [outputs[index] for index in range(len(network.layers))], list(unique.values()), frozen


def is_factor_alone(network: Network, index: int) -> bool:
    """Return whether every layer that reads a convolution is a gate right after it, with a factor for each channel."""
    after = [layer for place, layer in enumerate(network.layers) if index in get_sources(layer, place)]
    return (
        isinstance(network.layers[index], Conv)
        and bool(after)
        and all(isinstance(layer, Gate) and layer.factors != "pixels" and layer.source != index for layer in after)
    )


@given(networks())
@settings(max_examples=60, deadline=None)
def test_equals_a_slow_union_of_single_channels(network: Network) -> None:
    graph = make_channel_graph(network)
    outputs, sets, frozen = tie_slowly(network)
    assert graph.size == len(sets)
    number = {node: place for place, members in enumerate(sets) for node in members}
    pairs = {
        (number[node], int(name))
        for nodes, names in zip(outputs, graph.writes, strict=True)
        for node, name in zip(nodes, names, strict=True)
    }
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
    is_frozen = {number[node] for node in frozen}
    assert all(graph.frozen[name] == (place in is_frozen) for place, name in pairs)


@given(networks())
@settings(max_examples=30, deadline=None)
def test_every_layer_reads_and_writes_what_its_shape_says(network: Network) -> None:
    graph = make_channel_graph(network)
    assert [len(ids) for ids in graph.writes] == [shape.channels for shape in network.shapes]
    for index, layer in enumerate(network.layers):
        if not isinstance(layer, Route):
            assert len(graph.reads[index]) == network.get_input_channels(index)
    members = np.sort(np.concatenate([group.ids for group in graph.groups]))
    assert members.tolist() == list(range(graph.size))
    for group in graph.groups:
        assert (graph.frozen[group.ids] == group.frozen).all()
        for conv in graph.conv_layers:
            assert np.isin(group.ids, graph.writes[conv]).all() == (conv in group.writers)
            assert np.isin(group.ids, graph.writes[conv]).any() == (conv in group.writers)


def test_the_five_rules_by_hand() -> None:
    network = make_small_network(
        Conv(2, 3, 1, 1),  # 3 4, after the image's 0 1 2
        MaxPool(2, 2, 1),
        Conv(2, 1),  # 5 6, which the shortcut makes 3 4
        Shortcut(1),
        Upsample(),
        Route((4, 0)),
        Conv(3, 1),  # 5 6 7
    )
    graph = make_channel_graph(network)
    assert [ids.tolist() for ids in graph.writes] == [
        [3, 4],
        [3, 4],
        [3, 4],
        [3, 4],
        [3, 4],
        [3, 4, 3, 4],
        [5, 6, 7],
        [8, 9, 10, 11, 12, 13],
        [8, 9, 10, 11, 12, 13],
    ]
    assert graph.reads[0].tolist() == [0, 1, 2]
    assert graph.reads[6].tolist() == [3, 4, 3, 4]
    assert np.flatnonzero(graph.frozen).tolist() == [0, 1, 2, *range(8, 14)]
    assert [(group.writers, group.ids.tolist(), group.frozen) for group in graph.groups] == [
        ((), [0, 1, 2], True),
        ((0, 2), [3, 4], False),
        ((6,), [5, 6, 7], False),
        ((7,), list(range(8, 14)), True),
    ]


@pytest.mark.parametrize(
    ("layers", "writes"),
    [
        ((Conv(4, 1), Route((0,), 2, 1)), [[3, 4, 3, 4], [3, 4]]),  # halves of a slice are one
        ((Conv(2, 1), Conv(4, 1, groups=2)), [[3, 4], [3, 3, 4, 4]]),  # depthwise, two of each
        ((Conv(4, 1), Conv(2, 1, groups=2)), [[3, 4, 3, 4], [5, 5]]),  # grouped: halves of either side are one
        ((Conv(3, 3, groups=3),), [[0, 1, 2]]),  # depthwise on the image
        ((Conv(2, 1), Conv(2, 1), Shortcut(0), Conv(2, 1), Shortcut(2)), [[3, 4]] * 5),  # all is one group
        ((Conv(2, 1), Conv(4, 1), Route((0, 0)), Shortcut(1)), [[3, 4], [3, 4, 3, 4], [3, 4, 3, 4], [3, 4, 3, 4]]),
        ((Conv(3, 1), Conv(2, 1), Shortcut(0)), [[3, 4, 5], [3, 4], [3, 4]]),  # of unequal channels the first
        ((Conv(2, 1), Conv(3, 1), Shortcut(0)), [[3, 4], [3, 4, 5], [3, 4, 5]]),
        ((Conv(2, 1), AvgPool(), Conv(2, 1), Gate(0, "channels")), [[3, 4]] * 4),
        ((Conv(2, 1), Conv(1, 1), Gate(0, "pixels")), [[3, 4], [5], [3, 4]]),
        ((Conv(2, 1), Reorg(2)), [[3, 4], [3, 4] * 4]),
    ],
)
def test_ties_by_hand(layers: tuple[Layer, ...], writes: list[list[int]]) -> None:
    graph = make_channel_graph(make_small_network(*layers))
    assert [ids.tolist() for ids in graph.writes[: len(layers)]] == writes


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
def test_a_sigmoid_factor_is_not_frozen_if_gates_alone_read_it(sigmoid: str) -> None:
    gate = (Conv(2, 1), AvgPool(), Conv(2, 1, activation=sigmoid), Gate(0, "channels"))
    assert make_channel_graph(make_small_network(*gate)).prunable[3:5].all()
    assert not make_channel_graph(make_small_network(*gate, Route((2,)))).prunable[3:5].any()


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
def test_a_sigmoid_channel_is_frozen(sigmoid: str) -> None:
    graph = make_channel_graph(make_small_network(Conv(2, 1, activation=sigmoid), Conv(3, 1)))
    assert graph.prunable[graph.writes[0]].tolist() == [False, False]
    assert graph.prunable[graph.writes[1]].all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_the_image_and_the_heads_are_frozen(arch: str) -> None:
    network = make_network(arch, classes=3, width=0.25)
    graph = make_channel_graph(network)
    assert graph.frozen.sum() == 3 + 24 * len(network.heads)
    assert {layer for group in graph.groups if group.frozen for layer in group.writers} == network.head_convs
