"""The published pruned hand net, from its filter counts."""

from __future__ import annotations

from gpu.networks import RESIDUALS, make_published_network

from yolo_prune.darknet.cost import measure_cost


def test_costs_what_is_published() -> None:
    cost = measure_cost(make_published_network(), 416)
    assert f"{cost.params / 1e6:.2f}M {cost.macs / 1e9:.2f}G {cost.size_bytes / 1e6:.1f}MB" == "10.85M 9.48G 43.5MB"


def test_what_was_left_alone_holds_most_of_it() -> None:
    """28 tied convolutions and the two before the upsamplings: 92 % of the parameters, 89 % of the MACs."""
    network = make_published_network()
    cost = measure_cost(network, 416)
    alone = {tied for tied, _ in RESIDUALS}
    kept = [
        cost.layers[index]
        for index, conv in network.convs
        if (index <= 74 and conv.filters in alone) or conv.filters in (256, 128)
    ]
    assert len(kept) == 30
    assert round(sum(layer.params for layer in kept) / cost.params, 2) == 0.92
    assert round(sum(layer.macs for layer in kept) / cost.macs, 2) == 0.89
