"""What zeros are worth: python benchmarks/sparse_engine.py [--cfg configs/yolov3-hand.cfg] [--img-size 416] [--sparsity 0.9,0.95]

Random weights, the smallest of every convolution set to zero but in the first one and the heads', run by the sparse engine
beside the dense ones: PyTorch with batch norm folded, in both of its layouts, and, where they can be imported, ONNX Runtime
and OpenVINO, the latter also told that weights are sparse. With --layers instead each kind of convolution by itself, beside
PyTorch's dense one and, for 1×1, its product with a sparse CSR matrix. All take turns; a ratio is formed within each round,
and printed as median [quartiles]. The roofline is what the non-zeros would take at the rate of PyTorch's fastest dense
convolution here.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from engine_peers import (
    Call,
    draw_weights,
    export_onnx,
    find_module,
    format_spread,
    make_onnxruntime_call,
    make_openvino_call,
    make_random_detector,
    measure,
)
from torch import Tensor
from torch.nn import functional

from yolo_prune.benchmarking.latency import describe_environment
from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.engines.sparse.build import load_kernel
from yolo_prune.engines.sparse.engine import SparseDetector
from yolo_prune.engines.sparse.packing import can_pack, pack_weights
from yolo_prune.engines.sparse.planes import Planes
from yolo_prune.engines.sparse.steps import Block, Step, make_conv_step, make_split_step
from yolo_prune.engines.sparse.tiling import Limits
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.model.fold import fold_batchnorm

SPARSE = "sparse"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PEAK_LAYERS = ((256, 512, 3, 26), (128, 256, 3, 52), (512, 256, 1, 26))
"""Channels in and out, kernel and side of the convolutions whose fastest counts as the machine's dense rate."""


@dataclass(frozen=True)
class LayerKind:
    """A convolution and how often the network has it."""

    channels: int
    layer: Conv
    side: int
    count: int


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="The sparse engine beside dense ones.")
    parser.add_argument("--cfg", type=Path, default=Path("configs/yolov3-hand.cfg"))
    parser.add_argument("--img-size", type=int, default=416)
    parser.add_argument("--sparsity", default="0.9,0.95", help="shares of zeros")
    parser.add_argument("--checkpoint", type=Path, help="a network with zeros of its own instead of random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--layers", action="store_true", help="each kind of convolution by itself instead")
    parser.add_argument("--instructions", default="native", help="native, avx2 or portable")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread on a busy machine"
    )
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock cpu sums over threads: use --threads 1")
    torch.set_num_threads(arguments.threads)
    if arguments.checkpoint:
        source, model = arguments.checkpoint, load_resized(arguments.checkpoint, arguments.img_size)
        network = model.network
    else:
        source, network = arguments.cfg, resize(load_cfg(arguments.cfg), arguments.img_size)
    environment = describe_environment(torch.device("cpu"), SPARSE)
    peak = measure_peak(arguments.runs, CLOCKS[arguments.clock])
    print(
        f"{source} at {arguments.img_size} px, batch 1, fp32, {arguments.runs} interleaved rounds, {arguments.clock} time"
    )
    print(f"{environment['device']}, {arguments.threads} threads, PyTorch {environment['torch']}, ", end="")
    print(f"kernel for {arguments.instructions} instructions, dense rate {peak / 1e9:.0f} GFLOP/s\n")
    if arguments.checkpoint:
        bench_network(model, peak, arguments)
        return
    for sparsity in map(float, arguments.sparsity.split(",")):
        if arguments.layers:
            bench_layers(network, sparsity, peak, arguments)
        else:
            bench_network(make_random_detector(network, sparsity), peak, arguments)


def load_resized(path: Path, img_size: int) -> Detector:
    """Return a checkpoint's network for images of another size."""
    checkpoint = load_checkpoint(path)
    model = Detector(resize(checkpoint.network, img_size)).eval()
    model.load_state_dict(checkpoint.make_model().state_dict())
    return model


def bench_network(model: Detector, peak: float, arguments: argparse.Namespace) -> None:
    """Print the whole network's times in all engines."""
    network = model.network
    images = torch.rand(1, network.channels, network.height, network.width)
    engine = SparseDetector(model, instructions=arguments.instructions)
    folded = fold_batchnorm(model)
    dense, found = folded(images), engine(images)
    gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(dense, found, strict=True))
    calls: dict[str, Call] = {SPARSE: lambda: engine(images), "PyTorch": lambda: folded(images)}
    last_images = images.to(memory_format=torch.channels_last)
    last = fold_batchnorm(model).to(memory_format=torch.channels_last)
    calls["PyTorch, channels last"] = lambda: last(last_images)
    with tempfile.TemporaryDirectory() as folder:
        calls |= make_peers(folded, images, Path(folder) / "model.onnx", arguments.threads)
    times = measure(calls, arguments.runs, CLOCKS[arguments.clock])
    flops = count_flops(engine)
    print(
        f"### {measure_sparsity(model):.1%} zeros, {len(engine.sparse_layers)} of {len(network.convs)} convolutions sparse\n"
    )
    print("| engine | ms | times sparse |\n| --- | --- | --- |")
    for name, column in times.items():
        print(f"| {name} | {format_spread(1e3 * column, 1)} | {format_spread(column / times[SPARSE], 2)} |")
    best = min((name for name in times if name != SPARSE), key=lambda name: float(np.median(times[name])))
    took = float(np.median(times[SPARSE]))
    print(f"\nBest dense: {best}, {format_spread(times[best] / times[SPARSE], 2)} times as long as sparse. ", end="")
    print(
        f"{flops / 1e9:.2f} GFLOP of non-zeros, {flops / took / 1e9:.0f} GFLOP/s; the roofline is {1e3 * flops / peak:.1f} ms, ",
        end="",
    )
    print(f"of which {flops / peak / took:.0%} are reached. Largest gap to dense: {gap:.1e} of the largest output.\n")


def measure_sparsity(model: Detector) -> float:
    """Return the share of zeros among the weights of the convolutions that may have any."""
    spared = {0, *model.network.head_convs}
    modules = [model.layers[index] for index, _ in model.network.convs if index not in spared]
    weights = [module.conv.weight for module in modules if isinstance(module, ConvLayer)]
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)


def make_peers(folded: Detector, images: Tensor, path: Path, threads: int) -> dict[str, Call]:
    """Return calls of other engines by name, of those that can be imported."""
    export_onnx(folded, images, path)
    calls = dict[str, Call]()
    if (onnxruntime := find_module("onnxruntime")) is not None:
        calls[f"ONNX Runtime {onnxruntime.__version__}"] = make_onnxruntime_call(onnxruntime, path, images, threads)
    if (openvino := find_module("openvino")) is not None:
        name = f"OpenVINO {openvino.__version__.split('-')[0]}"
        calls[name] = make_openvino_call(path, images, threads)
        sparse = make_openvino_call(path, images, threads, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=0.8)
        calls["OpenVINO, sparse weights"] = sparse
    return calls


def measure_peak(runs: int, clock: Callable[[], float]) -> float:
    """Return the FLOP/s of PyTorch's fastest dense convolution in its fastest round."""
    calls: dict[str, Call] = {}
    flops = {}
    for channels, filters, size, side in PEAK_LAYERS:
        name = f"{channels} {size}"
        images = torch.rand(1, channels, side, side).to(memory_format=torch.channels_last)
        weight = torch.rand(filters, channels, size, size).to(memory_format=torch.channels_last)
        calls[name] = partial(functional.conv2d, images, weight, padding=size // 2)
        flops[name] = 2 * weight.numel() * side**2
    times = measure(calls, runs, clock)
    return max(float(flops[name] / column.min()) for name, column in times.items())


def count_flops(engine: SparseDetector) -> int:
    """Return two for each non-zero weight and pixel."""
    total = 0
    for index, _ in engine.network.convs:
        module = engine.get_conv(index)
        shape = engine.network.shapes[index]
        total += 2 * int(module.conv.weight.count_nonzero()) * shape.height * shape.width
    return total


def bench_layers(network: Network, sparsity: float, peak: float, arguments: argparse.Namespace) -> None:
    """Print a row per kind of convolution: dense-equivalent GFLOP/s, and how much longer others take."""
    print(f"### {sparsity:.1%} zeros\n")
    print("| layer | n | ms | GFLOP/s of non-zeros | as if dense | roofline | PyTorch | CSR |")
    print("| --- " * 8 + "|")
    for kind in list_kinds(network):
        calls, flops = make_layer_calls(kind, sparsity, arguments)
        times = measure(calls, arguments.runs, CLOCKS[arguments.clock])
        took = float(np.median(times[SPARSE]))
        layer = kind.layer
        ratios = [format_spread(times[name] / times[SPARSE], 1) if name in times else "" for name in ("PyTorch", "CSR")]
        cells = [
            f"{kind.channels} → {layer.filters}, {layer.size}×{layer.size}/{layer.stride} @{kind.side}", str(kind.count),
            format_spread(1e3 * times[SPARSE], 2), f"{flops / took / 1e9:.0f}",
            f"{flops / (1 - sparsity) / took / 1e9:.0f}", f"{flops / peak / took:.0%}", *ratios,
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


def list_kinds(network: Network) -> list[LayerKind]:
    """Return the convolutions that get zeros, alike ones once."""
    counts: dict[tuple[int, Conv, int], int] = {}
    for index, layer in network.convs:
        if index and index not in network.head_convs and can_pack(layer):
            key = (network.get_input_channels(index), layer, network.shapes[index].height * layer.stride)
            counts[key] = counts.get(key, 0) + 1
    return [LayerKind(*key, count) for key, count in counts.items()]


def make_layer_calls(kind: LayerKind, sparsity: float, arguments: argparse.Namespace) -> tuple[dict[str, Call], int]:
    """Return calls of one convolution by engine, and the FLOP of its non-zeros."""
    layer, kernel = kind.layer, load_kernel(arguments.instructions)
    weight = draw_weights((layer.filters, kind.channels, layer.size, layer.size), 1 - sparsity)
    bias, images = torch.rand(layer.filters), torch.rand(1, kind.channels, kind.side, kind.side)
    planes = Planes(kind.channels, kind.side, kind.side)
    image = source = Block(planes.make_buffer(1), planes, 1)
    image.pixels.copy_(images)
    steps = []
    if layer.stride == 2:
        planes = planes.halve(layer.size)
        source = Block(planes.make_buffer(1), planes, 1)
        steps.append(make_split_step(image, source))
    side = -(-kind.side // layer.stride)
    planes = Planes(layer.filters, side, side)
    target = Block(planes.make_buffer(1), planes, 1)
    limits = Limits(kernel.count_lanes(), kernel.count_vectors(), kernel.count_rows())
    step, kept = make_conv_step(limits, pack_weights(weight, layer.stride), bias, "leaky", source, target)
    array = (Step * (len(steps) + 1))(*steps, step)
    last_images, last_weight = (part.to(memory_format=torch.channels_last) for part in (images, weight))
    calls: dict[str, Call] = {
        SPARSE: partial(run_alone, kernel, array, arguments.threads, (kept, image, source, target)),
        "PyTorch": lambda: functional.leaky_relu_(
            functional.conv2d(last_images, last_weight, bias, layer.stride, layer.padding), 0.1
        ),
    }
    if layer.size == 1 and layer.stride == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch calls its CSR a beta
            matrix = weight[:, :, 0, 0].to_sparse_csr()
        columns = images[0].flatten(1)
        calls["CSR"] = lambda: functional.leaky_relu_(matrix @ columns + bias[:, None], 0.1)
    return calls, 2 * int(weight.count_nonzero()) * side**2


def run_alone(kernel: ctypes.CDLL, steps: ctypes.Array[Step], threads: int, _alive: object) -> None:
    """Run a layer's steps, whose memory `_alive` keeps."""
    assert kernel.run_steps(steps, len(steps), threads) == 0


if __name__ == "__main__":
    main()
