"""Time single layers of a network, at any width, in the engine that the network is to run in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.layers import Conv, Layer, MaxPool, Shape, Shortcut, Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.engines.exported.open_vino import get_core
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import ConfigError
from yolo_prune.model.detector import activate
from yolo_prune.scraps import make_temporary_folder
from yolo_prune.shared_settings import TableEngine

TABLE_ENGINES = get_args(TableEngine)
RUNS, WARMUP = 9, 3
OF_MEMORY = ("Reorder", "ReorderInput", "ReorderOutput", "Parameter", "Input", "Result", "Output")
"""Operations that single layers have, and layers inside a network have not."""


@dataclass(frozen=True)
class LayerCase:
    """A layer that computes, with its widths; batch norm is folded."""

    kind: Literal["conv", "pool", "upsample", "add"]
    inputs: int
    """Input channels; all layers but convolutions have as many outputs."""
    outputs: int
    height: int
    """Of the input, as the width."""
    width: int
    size: int = 1
    stride: int = 1
    padding: int = 0
    """Convolutions: on each side. Pools: of both sides together."""
    groups: int = 1
    activation: str = "linear"

    @property
    def family(self) -> LayerCase:
        """The layer without its widths."""
        return replace(self, inputs=0, outputs=0, groups=min(self.groups, 2))

    def with_widths(self, inputs: int, outputs: int) -> LayerCase:
        """Return the layer with other widths; one with groups has a group for each channel."""
        if self.groups > 1:
            return replace(self, inputs=inputs, outputs=inputs, groups=inputs)
        return replace(self, inputs=inputs, outputs=outputs if self.kind == "conv" else inputs)


def make_case(layer: Layer, source: Shape, channels: int) -> LayerCase | None:
    """Return the case of a layer that reads `source` and has `channels` outputs, or None if it does not compute."""
    match layer:
        case Conv():
            return LayerCase(
                *("conv", source.channels, channels, source.height, source.width),
                *(layer.size, layer.stride, layer.padding, layer.groups, layer.activation),
            )
        case MaxPool():
            return LayerCase(
                "pool", channels, channels, source.height, source.width, layer.size, layer.stride, layer.padding
            )
        case Upsample():
            return LayerCase("upsample", channels, channels, source.height, source.width, stride=layer.stride)
        case Shortcut():
            return LayerCase("add", channels, channels, source.height, source.width, activation=layer.activation)
        case _:
            return None


def list_cases(network: Network) -> list[tuple[int, LayerCase]]:
    """Return the layers of a network that compute, with their numbers. Concatenations and decoding are not among them."""
    sources = (Shape(network.channels, network.height, network.width), *network.shapes)
    cases = []
    for index, (layer, source, shape) in enumerate(zip(network.layers, sources, network.shapes, strict=False)):
        if (case := make_case(layer, source, shape.channels)) is not None:
            cases.append((index, case))
    return cases


class LayerModule(nn.Module):
    """A layer with random weights in PyTorch."""

    def __init__(self, case: LayerCase) -> None:
        super().__init__()
        self.case = case
        if case.kind == "conv":
            self.conv = nn.Conv2d(case.inputs, case.outputs, case.size, case.stride, case.padding, groups=case.groups)
        if case.kind == "add":
            self.register_buffer("other", torch.rand(1, case.inputs, case.height, case.width))

    def forward(self, images: Tensor) -> Tensor:
        """Map (1, C, H, W) to (1, C', H', W')."""
        case = self.case
        match case.kind:
            case "conv":
                return activate(self.conv(images), case.activation)
            case "pool":
                before = case.padding // 2
                after = case.padding - before
                padded = (
                    functional.pad(images, (before, after, before, after), mode="replicate") if case.padding else images
                )
                return functional.max_pool2d(padded, case.size, case.stride)
            case "upsample":
                return functional.interpolate(images, scale_factor=case.stride, mode="nearest")
            case "add":
                return activate(images + self.get_buffer("other"), case.activation)


def make_layer_timer(engine: str, device: torch.device) -> Callable[[LayerCase], float]:
    """Return a function from a layer to the milliseconds that it takes for one image, the least of some runs.

    Raises:
        ConfigError: layers cannot be timed in the engine, or its package is not installed.
    """
    if engine not in TABLE_ENGINES:
        right = f"use one of {', '.join(TABLE_ENGINES)}"
        raise ConfigError(f"layers cannot be timed in {engine}", where="engine", right=right)
    if engine in ("onnxruntime", "openvino"):
        for package in ("onnx", engine):
            import_package(package, f"--engine {engine}")
        return _time_onnxruntime if engine == "onnxruntime" else _time_openvino
    return lambda case: _time_torch(case, device, engine == "cudagraph")


@torch.inference_mode()
def _time_torch(case: LayerCase, device: torch.device, is_graph: bool) -> float:
    module = LayerModule(case).to(device).to(memory_format=torch.channels_last).eval()
    images = torch.rand(1, case.inputs, case.height, case.width, device=device).to(memory_format=torch.channels_last)
    call: Callable[[], object] = lambda: module(images)  # noqa: E731
    for _ in range(WARMUP):
        call()
    if is_graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(images)
        call = graph.replay
    times = []
    for _ in range(RUNS):
        _synchronise(device)
        started = time.perf_counter()
        call()
        _synchronise(device)
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time_openvino(case: LayerCase) -> float:
    """Sum the times that OpenVINO itself measures of the operations, without those that change the layout in memory."""
    settings = {
        "PERF_COUNT": True,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    model = get_core().read_model(make_layer_onnx(case).SerializeToString())
    request = get_core().compile_model(model, "CPU", settings).create_infer_request()
    images, times = _draw(case), []
    for run in range(WARMUP + RUNS):
        request.infer([images])
        if run >= WARMUP:
            counted = [part for part in request.get_profiling_info() if part.node_type not in OF_MEMORY]
            times.append(sum(part.real_time.total_seconds() for part in counted))
    return 1e3 * float(min(times))


def _time_onnxruntime(case: LayerCase) -> float:
    """Sum the times that ONNX Runtime itself measures of the operations, without those that change the layout in memory."""
    runtime = import_package("onnxruntime", "--engine onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_profiling = True
    with make_temporary_folder() as folder:
        options.profile_file_prefix = str(folder / "profile")
        content = make_layer_onnx(case).SerializeToString()
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        images = {"images": _draw(case)}
        for _ in range(WARMUP + RUNS):
            session.run(None, images)
        events = json.loads(Path(session.end_profiling()).read_text())
    counted: dict[str, list[float]] = {}
    for event in events:
        kind = event.get("args", {}).get("op_name")
        if kind is not None and kind not in OF_MEMORY and event["name"].endswith("_kernel_time"):
            counted.setdefault(event["name"], []).append(event["dur"])
    return 1e-3 * sum(min(times[WARMUP:]) for times in counted.values())


def _draw(case: LayerCase) -> Any:
    return np.random.default_rng(0).random((1, case.inputs, case.height, case.width), np.float32)


_ONNX_ACTIVATIONS = {
    "leaky": ("LeakyRelu", {"alpha": 0.1}),
    "relu": ("Relu", {}),
    "mish": ("Mish", {}),
    "logistic": ("Sigmoid", {}),
    "elu": ("Elu", {}),
    "selu": ("Selu", {}),
    "tanh": ("Tanh", {}),
    "hard_swish": ("HardSwish", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6}),
    "swish": ("HardSwish", {}),
}
"""The operator of an activation, or one that costs as much; HardSwish stands for all others."""


def make_layer_onnx(case: LayerCase) -> Any:
    """Return a layer with random weights as an ONNX model from `images` to `outputs`."""
    onnx = import_package("onnx", "--engine")
    helper, arrays = onnx.helper, onnx.numpy_helper
    numbers = np.random.default_rng(0)
    constants: dict[str, Any] = {}
    match case.kind:
        case "conv":
            shape = (case.outputs, case.inputs // case.groups, case.size, case.size)
            constants = {"weights": numbers.random(shape, np.float32), "bias": numbers.random(case.outputs, np.float32)}
            sizes = {"strides": 2 * [case.stride], "pads": 4 * [case.padding], "group": case.groups}
            nodes = [helper.make_node("Conv", ["images", "weights", "bias"], ["raw"], **sizes)]
        case "pool":
            before = case.padding // 2
            pads = [before, before, case.padding - before, case.padding - before]
            nodes = [
                helper.make_node(
                    "MaxPool", ["images"], ["raw"], kernel_shape=2 * [case.size], strides=2 * [case.stride], pads=pads
                )
            ]
        case "upsample":
            constants = {"scales": np.array([1, 1, case.stride, case.stride], np.float32)}
            nodes = [
                helper.make_node(
                    "Resize",
                    ["images", "", "scales"],
                    ["raw"],
                    mode="nearest",
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
            ]
        case "add":
            constants = {"other": _draw(case)}
            nodes = [helper.make_node("Add", ["images", "other"], ["raw"])]
    if case.activation == "linear":
        nodes.append(helper.make_node("Identity", ["raw"], ["outputs"]))
    else:
        kind, facts = _ONNX_ACTIVATIONS.get(case.activation, ("HardSwish", {}))
        nodes.append(helper.make_node(kind, ["raw"], ["outputs"], **facts))
    kind_of = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("images", kind_of, [1, case.inputs, case.height, case.width])],
        [helper.make_tensor_value_info("outputs", kind_of, None)],
        [arrays.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
