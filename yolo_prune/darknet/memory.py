"""Estimates of the memory that a network needs, from the sizes of its weights and of its layers' outputs.

    training     weights, average, gradients, moments ─┬─ what every layer keeps for the backward pass, and gradients of outputs
    evaluation   weights ──────────────────────────────┴─ the outputs that a later layer reads

What is right of the line grows with the number of images. The tensors are those of `Detector.forward` and of PyTorch's
backward functions, one by one; what PyTorch's allocator and kernels need besides was measured on CPUs. What PyTorch needs
before it has any tensor, about half a gigabyte, is not included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from yolo_prune.darknet.cost import BYTES_PER_WEIGHT, measure_cost
from yolo_prune.darknet.layers import (
    Conv,
    Gate,
    Layer,
    MaxPool,
    Reorg,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
    get_sources,
)
from yolo_prune.darknet.network import Network, infer_shapes
from yolo_prune.image_size import AnySize, make_size
from yolo_prune.memory import format_bytes

IN_PLACE = ("linear", "leaky", "relu")
"""Activations that overwrite what they read."""
INDEX_BYTES = 8
"""Max pooling keeps the place of every maximum."""
LOSS_COPIES = 3
"""Copies of the heads' outputs that the loss makes."""
KERNEL_BYTES = 400_000
"""Code and buffers of oneDNN for one convolution."""
REORDERED_SHARE = 0.6
"""Of the weights: copies in the order in which oneDNN computes their gradients."""
TRAINING_SPARE, EVALUATION_SPARE = (0.4, 130 * 10**6), (0.25, 60 * 10**6)
"""What the allocator keeps of freed memory: a share of what grows with the number of images, and the most in bytes."""
PYTORCH_BYTES = 5 * 10**8
"""What a process needs once PyTorch is imported."""


@dataclass(frozen=True)
class Memory:
    """Estimates for one network, image size and number of images, beside PyTorch itself."""

    batch_size: int
    train_bytes: int
    evaluate_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the estimates for JSON output."""
        return {"batch_size": self.batch_size, "train": self.train_bytes, "evaluate": self.evaluate_bytes}


def estimate_memory(network: Network, batch_size: int, img_size: AnySize | None = None) -> Memory:
    """Estimate the memory for training with AdamW in fp32, and for a forward pass; see `estimate_training_bytes`."""
    return Memory(
        batch_size,
        estimate_training_bytes(network, batch_size, img_size),
        estimate_evaluation_bytes(network, batch_size, img_size),
    )


def estimate_training_bytes(
    network: Network,
    batch_size: int,
    img_size: AnySize | None = None,
    *,
    moments: int = 2,
    value_bytes: int = BYTES_PER_WEIGHT,
    teacher: Network | None = None,
) -> int:
    """Return the bytes of memory that a training step needs.

    Args:
        batch_size: images that go through the network at once.
        img_size: by default the network's own.
        moments: values that the optimizer keeps of each weight: 2 for AdamW, 1 for SGD with momentum.
        value_bytes: of one value of a layer's output: 2 in mixed precision.
        teacher: a network whose outputs are learnt.

    Raises:
        CfgError: a network cannot have that input size.
    """
    weights, sizes = _count_weights(network), _OutputSizes(network, img_size, batch_size, value_bytes)
    step, kept = max(sizes.follow_backward()), sizes.count_kept()
    fixed = round(weights * (2 + moments + REORDERED_SHARE)) + KERNEL_BYTES * len(network.convs)
    if value_bytes < BYTES_PER_WEIGHT:
        fixed += weights * value_bytes // BYTES_PER_WEIGHT  # the copies that convolutions are computed with
    if teacher is not None:
        fixed += _count_weights(teacher) + KERNEL_BYTES * len(teacher.convs)
        step = max(step, kept + max(_OutputSizes(teacher, img_size, batch_size, value_bytes).follow_forward()))
    return fixed + _add_spare(step, *TRAINING_SPARE)


def estimate_evaluation_bytes(
    network: Network, batch_size: int, img_size: AnySize | None = None, value_bytes: int = BYTES_PER_WEIGHT
) -> int:
    """Return the bytes of memory that a forward pass without gradients needs; see `estimate_training_bytes`."""
    step = max(_OutputSizes(network, img_size, batch_size, value_bytes).follow_forward())
    return _count_weights(network) + KERNEL_BYTES * len(network.convs) + _add_spare(step, *EVALUATION_SPARE)


def count_live_bytes(network: Network, batch_size: int) -> int:
    """Return the bytes of the outputs that are in use at once in a forward pass with batch norm folded, in fp32."""
    return max(_OutputSizes(network, None, batch_size, BYTES_PER_WEIGHT, is_folded=True).follow_forward())


def format_memory(memory: Memory) -> str:
    """Return the estimates in one line."""
    train, evaluate = (format_bytes(value) for value in (memory.train_bytes, memory.evaluate_bytes))
    return (
        f"memory for {memory.batch_size} images at once: {train} to train, {evaluate} to evaluate, "
        f"and {format_bytes(PYTORCH_BYTES)} for PyTorch itself"
    )


def is_view(layer: Layer) -> bool:
    """Return whether a layer's output is its input, or a part of it, and needs no memory of its own."""
    is_new = isinstance(layer, Conv | MaxPool | Upsample | Reorg | Shortcut | Gate)
    return not (is_new or (isinstance(layer, Route) and len(layer.sources) > 1))


def _count_weights(network: Network) -> int:
    return measure_cost(network).size_bytes


def _add_spare(step: int, share: float, most: int) -> int:
    return step + min(round(share * step), most)


class _OutputSizes:
    """The bytes of every layer's output for a batch."""

    def __init__(
        self, network: Network, img_size: AnySize | None, batch_size: int, value_bytes: int, is_folded: bool = False
    ) -> None:
        size = network.img_size if img_size is None else make_size(img_size)
        shapes = (
            Shape(network.channels, size.height, size.width),
            *infer_shapes(network, size.height, size.width),
        )
        self.network, self._value_bytes, self._is_folded = network, value_bytes, is_folded
        self.outputs = {index: prod(shape) * batch_size * value_bytes for index, shape in enumerate(shapes, -1)}
        """By the layer's number; −1 is the image."""

    def count_kept(self) -> int:
        """Return what all layers keep from the forward to the backward pass."""
        return self.outputs[-1] + sum(self._keep(index) for index in range(len(self.network.layers)))

    def follow_forward(self) -> Iterator[int]:
        """Yield the bytes in use at each layer, if outputs are freed after the last layer that reads them."""
        layers = self.network.layers
        last = {index: index for index in range(-1, len(layers))}
        for index, layer in enumerate(layers):
            is_head = isinstance(layer, Yolo)
            last |= dict.fromkeys(get_sources(layer, index), len(layers) if is_head else index)
        live = {-1: self.outputs[-1]}
        for index, layer in enumerate(layers):
            live[index] = 0 if is_view(layer) else self.outputs[index]
            has_norm = isinstance(layer, Conv) and layer.batch_normalize and not self._is_folded
            yield sum(live.values()) + (live[index] if has_norm else 0)
            if not is_view(layer):  # else another name holds the same memory
                live = {source: size for source, size in live.items() if last[source] > index}

    def follow_backward(self) -> Iterator[int]:
        """Yield the bytes in use at each layer, last to first: kept outputs, gradients of outputs and of weights."""
        costs = measure_cost(self.network).layers
        kept, of_weights = self.count_kept(), 0
        gradients = Counter({index: LOSS_COPIES * self.outputs[index] for index, _ in self.network.heads})
        yield kept + gradients.total()
        for index, layer in reversed([*enumerate(self.network.layers)]):
            del gradients[index]
            own, before = self.outputs[index], self.outputs[index - 1] if index else 0
            held = kept + of_weights + gradients.total()
            if isinstance(layer, Conv):
                of_weights += costs[index].size_bytes
                yield held + 2 * own  # of the activation
                yield held - self._keep(index) + own + costs[index].size_bytes + max(2 * own, own + before)
            elif not is_view(layer):
                yield held + own + before
            kept -= self._keep(index)
            for source in get_sources(layer, index):
                gradients[source] = self.outputs[source]
            del gradients[-1]
        yield of_weights

    def _keep(self, index: int) -> int:
        own = self.outputs[index]
        match layer := self.network.layers[index]:
            case Conv():
                return own * (1 + layer.batch_normalize + (layer.activation not in IN_PLACE))
            case MaxPool():
                return own + own * INDEX_BYTES // self._value_bytes
            case Yolo():
                return LOSS_COPIES * own
            case _:
                return 0 if is_view(layer) else own
