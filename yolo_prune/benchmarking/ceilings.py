"""What the machine could do at best, measured in the same run, and which of it bounds a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from yolo_prune.benchmarking.latency import Call, measure_latencies
from yolo_prune.darknet.memory import count_live_bytes
from yolo_prune.darknet.network import Network

RUNS, WARMUP = 5, 2
SIDE, CHANNELS = 52, 128
"""Of the convolution that the highest rate is measured with: large enough, and one that YOLOv3 has."""
COPIED_FLOATS = 32 * 1024 * 1024
SMALL_CALLS = 200


@dataclass(frozen=True)
class Ceilings:
    """The best rates of a device with the threads that it is timed with, in float32."""

    macs_per_s: float
    """Of a large 3×3 convolution."""
    bytes_per_s: float
    """Read and written by a large copy."""
    launch_s: float
    """The time of one operation on one number."""


@torch.inference_mode()
def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure what a device can do at best."""
    images = torch.rand(1, CHANNELS, SIDE, SIDE, device=device).to(memory_format=torch.channels_last)
    weights = torch.rand(CHANNELS, CHANNELS, 3, 3, device=device).to(memory_format=torch.channels_last)
    source = torch.rand(COPIED_FLOATS, device=device)
    target, small = torch.empty_like(source), torch.rand(1, device=device)

    def call_small() -> None:
        for _ in range(SMALL_CALLS):
            small.add_(1)

    calls: list[Call] = [
        lambda: functional.conv2d(images, weights, padding=1),
        lambda: target.copy_(source),
        call_small,
    ]
    conv_ms, copy_ms, small_ms = (
        latency.p50 for latency in measure_latencies(calls, runs=RUNS, warmup=WARMUP, device=device)
    )
    return Ceilings(
        macs_per_s=1e3 * 9 * CHANNELS**2 * SIDE**2 / conv_ms,
        bytes_per_s=1e3 * 2 * 4 * COPIED_FLOATS / copy_ms,
        launch_s=1e-3 * small_ms / SMALL_CALLS,
    )


def explain_bound(network: Network, macs: int, batch_size: int, time_ms: float, ceilings: Ceilings) -> str:
    """Return what bounds a network most, and the share of its time that this would take at the device's best rate.

    Args:
        macs: multiply–accumulates of one image.
        time_ms: of one call with `batch_size` images.
    """
    shares = {
        "compute": macs * batch_size / ceilings.macs_per_s,
        "memory": count_moved_bytes(network, batch_size) / ceilings.bytes_per_s,
        "launch": len(network.layers) * ceilings.launch_s,
    }
    name = max(shares, key=lambda key: shares[key])
    return f"{name} ({1e3 * shares[name] / time_ms:.0%})"


def count_moved_bytes(network: Network, batch_size: int) -> int:
    """Return the bytes that layers read and write in float32 if nothing stays in caches: weights once, outputs twice."""
    outputs = sum(shape.channels * shape.height * shape.width for shape in network.shapes)
    return 4 * (2 * batch_size * outputs + count_weights(network))


def count_peak_bytes(network: Network, batch_size: int) -> int:
    """Return the bytes of the weights, and of the outputs that are in use at once, in float32."""
    return count_live_bytes(network, batch_size) + 4 * count_weights(network)


def count_weights(network: Network) -> int:
    """Return the number of weights and biases with batch norm folded."""
    return sum(
        conv.filters * (network.get_input_channels(index) // conv.groups * conv.size**2 + 1)
        for index, conv in network.convs
    )
