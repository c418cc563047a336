"""The anchors of a network's heads: read them, replace them, and scale them with the input."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from yolo_prune.darknet.layers import Anchors, Layer, Yolo
from yolo_prune.darknet.network import Network, change_layers
from yolo_prune.errors import CfgError
from yolo_prune.image_size import AnySize, make_size


def set_img_size(network: Network, img_size: AnySize) -> Network:
    """Return the network for inputs of another size; anchors stay as they are.

    Raises:
        CfgError: `img_size` is not made of multiples of the network's stride.
    """
    size = make_size(img_size)
    return network if size == network.img_size else replace(network, width=size.width, height=size.height)


def resize(network: Network, img_size: AnySize) -> Network:
    """Return the network for inputs of another size, with anchors scaled as an image is that has the new shape.

    Raises:
        CfgError: `img_size` is not made of multiples of the network's stride.
    """
    size = make_size(img_size)
    if size == network.img_size:
        return network
    factor = max(size.width / network.width, size.height / network.height)
    layers = tuple(
        replace(layer, anchors=tuple((round(w * factor, 2), round(h * factor, 2)) for w, h in layer.anchors))
        if isinstance(layer, Yolo)
        else layer
        for layer in network.layers
    )
    return replace(network, width=size.width, height=size.height, layers=layers)


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
