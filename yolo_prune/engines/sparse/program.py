"""A network for images of one size, as a list of steps on buffers; the kernel runs most of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from yolo_prune.darknet.layers import Conv, Layer, MaxPool, Route, Shortcut, Upsample, Yolo, get_sources
from yolo_prune.darknet.network import infer_shapes
from yolo_prune.engines.sparse.packing import PackedWeights
from yolo_prune.engines.sparse.planes import Planes
from yolo_prune.engines.sparse.steps import (
    ACTIVATIONS,
    Block,
    Step,
    make_add_step,
    make_conv_step,
    make_copy_step,
    make_pool_step,
    make_reading_step,
    make_split_step,
    make_writing_step,
    point_at_images_,
)
from yolo_prune.engines.sparse.tiling import Limits
from yolo_prune.errors import EngineError
from yolo_prune.model.detector import Detector, Heads, activate, run_layer

Call = Callable[[], None]
MOST_FLOATS = 2**30
"""The most floats of a layer's output for one image: offsets have 32 bits, and a split input is twice as large."""


class Program:
    """The steps of a detector for images of one shape. It has its own buffers, so only one caller may use it at a time.

    Convolutions in `packed` skip zeros. Other layers use the kernel or, if it does not support them, PyTorch on views.
    """

    def __init__(
        self, model: Detector, packed: Mapping[int, PackedWeights], kernel: ctypes.CDLL, shape: tuple[int, ...]
    ) -> None:
        self._kernel = kernel
        self._limits = Limits(kernel.count_lanes(), kernel.count_vectors(), kernel.count_rows())
        self._model = model
        self._packed = packed
        self._batch, channels, height, width = shape
        self._shapes = infer_shapes(model.network, height, width)
        self._readers = _count_readers(model)
        self._blocks: dict[int, Block] = {}
        self._free: dict[Planes, list[Tensor]] = {}
        self._kept: list[Any] = []
        self._plan: list[Step | Call] = []
        self._check(shape)
        self._build(Planes(channels, height, width))
        self._parts = _join(self._plan)
        self._reading, self._writing = self._find_ends()

    def run(self, images: Tensor, threads: int) -> Heads:
        """Map float32 images (B, 3, H, W) to raw heads.

        Raises:
            EngineError: the system gives too few threads.
        """
        point_at_images_(self._reading, images)
        heads = []
        for step, shape in self._writing:
            heads.append(torch.empty(shape))
            step.output = heads[-1].data_ptr()
        for part in self._parts:
            if not isinstance(part, ctypes.Array):
                part()
            elif self._kernel.run_steps(part, len(part), threads):
                right = "use fewer threads"
                raise EngineError(f"the system gives no {threads} threads", where="threads", right=right)
        return heads

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape[1] != self._model.network.channels:
            right = f"use images of {self._model.network.channels} channels"
            raise EngineError(f"cannot read images of {shape[1]} channels", where="engine sparse", right=right)
        if max(Planes(*shape).image for shape in self._shapes) > MOST_FLOATS:
            right = "use a smaller img_size"
            raise EngineError(f"cannot address images of {shape[3]}x{shape[2]} px", where="engine sparse", right=right)

    def _build(self, image: Planes) -> None:
        self._blocks[-1] = self._make_block(image)
        self._plan.append(make_reading_step(self._blocks[-1]))
        for index, layer in enumerate(self._model.network.layers):
            inputs = [self._blocks[source] for source in get_sources(layer, index)]
            self._blocks[index] = self._add_layer(index, layer, inputs)
            for source in self._model._last_reads.get(index, ()):
                self._release(self._blocks.pop(source))

    def _add_layer(self, index: int, layer: Layer, inputs: list[Block]) -> Block:
        match layer:
            case Conv() if index in self._packed:
                return self._add_conv(index, layer, inputs[0])
            case Shortcut() if self._is_fused(index):
                return inputs[0]
            case Shortcut(activation=activation) if activation in ACTIVATIONS and self._is_even(index):
                target = self._make_block(Planes(*self._shapes[index]))
                self._plan.append(make_add_step(inputs[0], inputs[1], target, activation))
            case MaxPool():
                target = self._make_block(Planes(*self._shapes[index]))
                self._plan.append(make_pool_step(inputs[0], target, layer))
            case Upsample(stride=factor):
                target = self._make_block(Planes(*self._shapes[index]))
                self._plan.append(make_copy_step(inputs[0], target, target.planes.channels, factor))
            case Route(sources=(_,), groups=1):
                return inputs[0]
            case Route():
                target = self._add_route(layer, inputs, Planes(*self._shapes[index]))
            case Yolo():
                self._plan.append(make_writing_step(inputs[0]))
                return inputs[0]
            case _:
                target = self._make_block(Planes(*self._shapes[index]))
                self._plan.append(self._make_call(index, layer, inputs, target))
        return target

    def _add_conv(self, index: int, layer: Conv, source: Block) -> Block:
        spare = None
        if layer.stride == 2:
            spare = self._make_block(source.planes.halve(layer.size))
            self._plan.append(make_split_step(source, spare))
            source = spare
        target = self._make_block(Planes(*self._shapes[index]))
        module = self._model.get_conv(index)
        is_native = module.activation in ACTIVATIONS
        assert module.conv.bias is not None
        after = self._model.network.layers[index + 1]
        added = self._blocks[after.source] if isinstance(after, Shortcut) and self._is_fused(index + 1) else None
        activation = module.activation if is_native else "linear"
        step, kept = make_conv_step(
            self._limits, self._packed[index], module.conv.bias, activation, source, target, added
        )
        self._plan.append(step)
        self._kept.append(kept)
        if not is_native:
            pixels = target.pixels
            self._plan.append(lambda: _activate_(pixels, module.activation))
        if spare is not None:
            self._release(spare)
        return target

    def _add_route(self, layer: Route, inputs: list[Block], planes: Planes) -> Block:
        target, first = self._make_block(planes), 0
        for source in inputs:
            count = source.planes.channels // layer.groups
            part = Block(source.buffer, source.planes, source.batch, source.first + layer.group_id * count)
            self._plan.append(make_copy_step(part, Block(target.buffer, planes, target.batch, first), count))
            first += count
        return target

    def _make_call(self, index: int, layer: Layer, inputs: list[Block], target: Block) -> Call:
        module, sources, pixels = self._model.layers[index], [block.pixels for block in inputs], target.pixels

        def call() -> None:
            pixels.copy_(run_layer(layer, module, sources))

        return call

    def _is_even(self, index: int) -> bool:
        """Return whether all inputs of a layer have the shape of its output."""
        sources = get_sources(self._model.network.layers[index], index)
        return all(self._shapes[source] == self._shapes[index] for source in sources)

    def _is_fused(self, index: int) -> bool:
        """Return whether the convolution before shortcut `index` adds the shortcut's other input to its output."""
        layers = self._model.network.layers
        layer, before = layers[index], layers[index - 1]
        return (
            isinstance(layer, Shortcut) and layer.activation == "linear" and layer.source != index - 1
            and index - 1 in self._packed and isinstance(before, Conv) and before.activation in ACTIVATIONS
            and self._readers[index - 1] == 1 and self._is_even(index)
        )  # fmt: skip

    def _make_block(self, planes: Planes) -> Block:
        """Return a block with zero padding: a new one, or one of the same layout that no later step reads."""
        spare = self._free.get(planes)
        block = Block(spare.pop() if spare else planes.make_buffer(self._batch), planes, self._batch)
        self._kept.append(block)
        return block

    def _release(self, block: Block) -> None:
        if all(block.buffer is not other.buffer for other in self._blocks.values()):
            self._free.setdefault(block.planes, []).append(block.buffer)

    def _find_ends(self) -> tuple[Step, list[tuple[Step, tuple[int, ...]]]]:
        """Return the steps, as stored in the kernel's arrays, that read the images and that write the heads."""
        steps = [step for part in self._parts if isinstance(part, ctypes.Array) for step in part]
        writing = [step for step in steps if not step.output]
        shapes = [(self._batch, *self._shapes[index]) for index, _ in self._model.network.heads]
        return steps[0], list(zip(writing, shapes, strict=True))


def _count_readers(model: Detector) -> dict[int, int]:
    readers = dict.fromkeys(range(-1, len(model.network.layers)), 0)
    for index, layer in enumerate(model.network.layers):
        for source in get_sources(layer, index):
            readers[source] += 1
    return readers


def _join(plan: list[Step | Call]) -> list[Any]:
    """Return the plan with consecutive kernel steps joined to one array, which the kernel runs in one call."""
    parts: list[Any] = []
    run: list[Step] = []
    for entry in [*plan, None]:
        if isinstance(entry, Step):
            run.append(entry)
            continue
        if run:
            parts.append((Step * len(run))(*run))
            run = []
        if entry is not None:
            parts.append(entry)
    return parts


def _activate_(pixels: Tensor, activation: str) -> None:
    pixels.copy_(activate(pixels, activation))
