"""What a weight-pruned YOLOv3 takes on disk: python benchmarks/sparse_storage.py [--width 1] [--ratios 0.5,0.9]

Every kernel but the first and the heads' loses the share of its weights that are smallest; they are random, so that where
zeros stand has no pattern. One row per share: bytes of the checkpoint stored dense, with bitmask and values as
`save_checkpoint` does, with 32-bit indices and values, and with the 8-bit distances from one value to the next that sparse
rows allow (a zero is stored where a distance is longer); then the seconds that saving and loading take, medians of five.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.darknet.architectures import make_network
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.sparse_storage import is_worth_packing
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.plans.weight_plan import make_weight_plan
from yolo_prune.pruning.surgery.rebuild import zero_weights

REPEATS = 5
MB = 1e6
LONGEST = 255


def main() -> None:
    """Print a row per share of zeros."""
    parser = argparse.ArgumentParser(description="Bytes on disk and seconds of sparse checkpoints.")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--ratios", default="0.5,0.75,0.9,0.95,0.99")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Detector(make_network("yolov3", classes=1, width=arguments.width)).eval()
    print(
        "| zeros | dense | bitmask + values | indices + values | distances + values | save | load | save dense | load dense |"
    )
    print("| --- " * 9 + "|")
    for ratio in map(float, arguments.ratios.split(",")):
        pruned = zero_weights(model, make_weight_plan(model, WeightConfig("l1", ratio, "layer")))
        print(format_row(ratio, measure(pruned)), flush=True)


def measure(model: Detector) -> dict[str, float]:
    """Return bytes and seconds of each way."""
    state = model.state_dict()
    checkpoint = Checkpoint(model.network, state, ("hand",))
    with TemporaryDirectory() as folder:
        dense, packed = Path(folder) / "dense.pt", Path(folder) / "packed.pt"
        figures = {
            "save": take_time(lambda: save_checkpoint(packed, checkpoint)),
            "load": take_time(lambda: touch(load_checkpoint(packed).state)),
            "save dense": take_time(lambda: torch.save(state, dense)),
            "load dense": take_time(lambda: touch(torch.load(dense, weights_only=True, mmap=True))),
            "dense": dense.stat().st_size,
            "bitmask": packed.stat().st_size,
        }
        for name, pack in (("indices", pack_indices), ("distances", pack_distances)):
            stored = {key: pack(one) if is_worth_packing(one) else one for key, one in state.items()}
            torch.save(stored, dense)
            figures[name] = dense.stat().st_size
    return figures


def pack_indices(tensor: Tensor) -> dict[str, Any]:
    """Return where a tensor is not zero, as 32-bit numbers, and what it is there."""
    flat = tensor.flatten()
    places = flat.nonzero()[:, 0]
    return {"shape": list(tensor.shape), "indices": places.int(), "values": flat[places]}


def pack_distances(tensor: Tensor) -> dict[str, Any]:
    """Return the steps of at most 255 from one stored element to the next, and the elements, zeros among them."""
    flat = tensor.flatten().numpy()
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=-1)
    stops = (gaps - 1) // LONGEST  # so many zeros are stored on the way
    ends = np.cumsum(stops + 1) - 1
    steps = np.full(int(ends[-1]) + 1, LONGEST, dtype=np.uint8)
    steps[ends] = gaps - stops * LONGEST
    values = np.zeros(len(steps), dtype=flat.dtype)
    values[ends] = flat[places]
    return {"shape": list(tensor.shape), "steps": torch.from_numpy(steps), "values": torch.from_numpy(values)}


def touch(state: Mapping[str, Tensor]) -> None:
    """Read every tensor, which a mapped file would otherwise put off."""
    for tensor in state.values():
        tensor.clone()


def take_time(act: Callable[[], object]) -> float:
    """Return the median of the seconds that it takes."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def format_row(ratio: float, figures: Mapping[str, float]) -> str:
    """Return a row of the table."""
    sizes = [f"{figures[name] / MB:.1f} MB" for name in ("dense", "bitmask", "indices", "distances")]
    times = [f"{figures[name]:.2f} s" for name in ("save", "load", "save dense", "load dense")]
    return f"| {ratio:.0%} | {' | '.join(sizes + times)} |"


if __name__ == "__main__":
    main()
