"""The published pruned hand net, from its filter counts."""

from __future__ import annotations

from dataclasses import replace

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Layer, Network, change_layers

RESIDUALS = (
    (64, (25,)),
    (128, (25, 39)),
    (256, (27, 39, 45, 49, 38, 46, 49, 51)),
    (512, (38, 34, 42, 56, 47, 38, 45, 30)),
    (1024, (48, 41, 31, 22)),
)
"""Per stage: the filters that its shortcuts tie, left alone, and those of each block's 1×1 convolution."""
HEADS = ((50, 52, 50, 47, 54, 130, 18), (256, 47, 32, 38, 68, 64, 107, 18), (128, 55, 38, 24, 41, 46, 96, 18))
"""Per head: its convolutions, of which the 256 and the 128 before the upsamplings were left alone."""


def make_published_network() -> Network:
    """Return YOLOv3 with one class and the filters of the published net.

    Source: Lam1360/YOLOv3-model-pruning, config/prune_yolov3-hand.cfg.
    """
    counts = [19]
    for tied, inner in RESIDUALS:
        counts += [tied, *(count for block in inner for count in (block, tied))]
    counts += [count for head in HEADS for count in head]
    network = make_network("yolov3")
    filters = dict(zip((index for index, _ in network.convs), counts, strict=True))

    def slim(index: int, layer: Layer) -> Layer:
        return replace(layer, filters=filters[index]) if isinstance(layer, Conv) else layer

    return change_layers(network, slim)


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
