"""Run a network layer by layer on the same images, while its later layers still change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from yolo_prune.darknet.layers import get_sources
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import Detector, run_layer

STORED_BYTES = 768 * 2**20
"""Limit for stored activations of all images; beyond it, they are computed again for each layer."""


class Replay:
    """Computes the inputs of one layer after another, for batches of images.

    Activations are stored up to the last layer that `STORED_BYTES` allow; the layers after it are computed again.
    Layers before the one requested last must not change any more.
    """

    def __init__(self, model: Detector, batches: Sequence[Tensor], stored_bytes: int = STORED_BYTES) -> None:
        """Start from images: `batches` of (B, 3, H, W) in 0 … 1 on the model's device."""
        self._model, self._stored_bytes = model, stored_bytes
        self.images = sum(map(len, batches))
        self._start = 0
        """The first layer that is not stored."""
        self._stored: list[dict[int, Tensor]] = [{-1: model.take_images(batch)} for batch in batches]

    def iterate_inputs(self, layer: int) -> Iterator[Tensor]:
        """Yield for every batch the input (B, C, H, W) of a layer that has only one."""
        (source,) = get_sources(self._model.network.layers[layer], layer)
        self._advance(layer)
        for outputs in self._stored:
            yield self._run(outputs, layer)[source]

    def _advance(self, layer: int) -> None:
        """Store the outputs that `layer` and later layers read, if they fit into memory."""
        fresh, size = [], 0
        for outputs in self._stored:
            fresh.append(self._run(outputs, layer))
            size += sum(output.nbytes for output in fresh[-1].values())
            if size > self._stored_bytes:
                return
        self._stored, self._start = fresh, layer

    def _run(self, outputs: dict[int, Tensor], stop: int) -> dict[int, Tensor]:
        """Compute the layers before `stop`, and return the outputs that `stop` and later layers read."""
        outputs, network = dict(outputs), self._model.network
        for index in range(self._start, stop):
            layer = network.layers[index]
            inputs = [outputs[source] for source in get_sources(layer, index)]
            outputs[index] = run_layer(layer, self._model.layers[index], inputs)
            for source in [*outputs]:
                if source not in _find_live(network, index + 1):
                    del outputs[source]
        return outputs


def _find_live(network: Network, start: int) -> frozenset[int]:
    """Return the layers before `start` that `start` or a later layer reads."""
    layers = enumerate(network.layers)
    return frozenset(s for index, layer in layers if index >= start for s in get_sources(layer, index) if s < start)
