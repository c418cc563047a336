"""The anchors of a network's heads: read them, replace them, and scale them with the input."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from yolo_prune.darknet.layers import Anchors, Layer, Network, Yolo, change_layers
from yolo_prune.errors import CfgError


def resize(network: Network, img_size: int) -> Network:
    """Return the network for square inputs of `img_size` pixels, with scaled anchors.

    Raises:
        CfgError: `img_size` is not a multiple of the network's stride.
    """
    if network.width == network.height == img_size:
        return network
    factor = img_size / network.width
    layers = tuple(
        replace(layer, anchors=tuple((round(w * factor, 2), round(h * factor, 2)) for w, h in layer.anchors))
        if isinstance(layer, Yolo)
        else layer
        for layer in network.layers
    )
    return replace(network, width=img_size, height=img_size, layers=layers)


def get_anchors(network: Network) -> Anchors:
    """Return the anchors that the heads' masks select, sorted by area; anchors that several heads share come once."""
    return tuple(anchors[index] for anchors, index in _find_slots(network))


def replace_anchors(network: Network, anchors: Anchors) -> Network:
    """Return the network with other anchors in place of those of `get_anchors`, matched in order of area.

    So each head keeps the same range of object sizes, relative to the other heads. Masks do not change, nor do anchors
    that no mask selects.

    Raises:
        CfgError: the number of anchors differs.
    """
    slots = _find_slots(network)
    if len(anchors) != len(slots):
        right = f"give the {len(slots)} that its heads use"
        raise CfgError(f"{len(anchors)} anchors do not fit the network", right=right)
    placed = dict(zip(slots, sorted(anchors, key=prod), strict=True))

    def change(_: int, layer: Layer) -> Layer:
        if not isinstance(layer, Yolo):
            return layer
        new = (placed.get((layer.anchors, index), old) for index, old in enumerate(layer.anchors))
        return replace(layer, anchors=tuple(new))

    return change_layers(network, change)


def _find_slots(network: Network) -> list[tuple[Anchors, int]]:
    """Return the pairs (list of anchors, index) that masks select, sorted by area; heads may share a pair."""
    slots = dict.fromkeys((head.anchors, index) for _, head in network.heads for index in sorted(head.mask))
    return sorted(slots, key=lambda slot: (prod(slot[0][slot[1]]), slot[1]))
