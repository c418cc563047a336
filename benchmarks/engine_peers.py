"""Other tools' engines for our detectors, and how engines are timed beside each other."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.darknet.network import Network
from yolo_prune.engines.exported.open_vino import get_core
from yolo_prune.model.detector import Detector

Call: TypeAlias = Callable[[], Any]
Times: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]
PAUSE_S = 0.02
"""Between calls: until then other engines' waiting threads keep a core busy."""
WARMUP = 2
OPSET = 17


@torch.no_grad()
def make_random_detector(network: Network, sparsity: float = 0.0, seed: int = 0) -> Detector:
    """Make a detector of random weights of a steady scale; of `sparsity` all convolutions but the first and the heads' are zero."""
    torch.manual_seed(seed)
    model = Detector(network).eval()
    for index, _ in network.convs:
        module = model.get_conv(index)
        kept = 1.0 if index == 0 or index in network.head_convs else 1 - sparsity
        module.conv.weight.copy_(draw_weights(tuple(module.conv.weight.shape), kept))
    return model


def draw_weights(shape: tuple[int, ...], kept: float) -> Tensor:
    """Return random weights of which those smaller than a limit are zero."""
    weight = torch.randn(shape)
    count = round((1 - kept) * weight.numel())
    if count:
        weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0
    scale = (2 * shape[0] / float(weight.pow(2).sum())) ** 0.5
    return weight.mul_(scale)


def export_onnx(model: nn.Module, images: Tensor, path: Path) -> Path:
    """Write what a module does to images of this one shape as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (images,), path, opset_version=OPSET, dynamo=False, input_names=["images"], verbose=False
        )
    return path


def make_onnxruntime_call(onnxruntime: Any, path: Path, images: Tensor, threads: int) -> Call:
    """Return a call of ONNX Runtime that gives its outputs as a list of arrays."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"images": images.numpy()})


def make_openvino_call(path: Path, images: Tensor, threads: int, **options: object) -> Call:
    """Return a call of OpenVINO in fp32 that gives its outputs by node."""
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    core = get_core()
    compiled = core.compile_model(core.read_model(path), "CPU", {**settings, **options})
    return partial(compiled.create_infer_request().infer, [images.numpy()])


def find_module(name: str) -> Any:
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def measure(calls: Mapping[str, Call], runs: int, clock: Callable[[], float], warmup: int = WARMUP) -> Times:
    """Return the seconds (runs,) of every call, all in turn in each round, each right after a call of the same engine.

    So a call finds caches and cores as in a stream of images: a core that sleeps takes milliseconds to join.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + runs):
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            call()
            started = clock()
            call()
            times[name].append(clock() - started)
    return {name: np.array(column[warmup:]) for name, column in times.items()}


def format_spread(values: np.ndarray[Any, Any], digits: int) -> str:
    """Return median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
