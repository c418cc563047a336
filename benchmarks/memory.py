#!/usr/bin/env python3
"""Compare the memory that networks take on the CPU with the estimates of `cfg show`.

    python benchmarks/memory.py                        # all cases, a process each
    python benchmarks/memory.py yolov3@0.5:416:8:train # ARCH@WIDTH:SIDE:IMAGES:train or evaluate

What is measured is the growth of the resident memory over a small step that loads all code, to the peak of two training
steps with AdamW, or of a forward pass. Exits 1 if an estimate is off by more than a fifth.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import torch

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.config import Arch
from yolo_prune.darknet.memory import estimate_evaluation_bytes, estimate_training_bytes
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.batches import Batch
from yolo_prune.image_size import ImageSize
from yolo_prune.model.detector import Detector
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import make_training_state

CASES = (
    *(f"yolov3-tiny@1:416:{images}:{kind}" for kind in ("evaluate", "train") for images in (1, 8, 16, 32)),
    *("yolov3@1:416:1:evaluate", "yolov3@1:416:8:evaluate", "yolov3@0.5:416:4:evaluate", "yolov4@1:416:2:evaluate"),
    *("yolov3@1:416:1:train", "yolov3@1:416:2:train", "yolov3@0.5:416:8:train", "yolov3@0.25:224:16:train"),
    *("yolov3-tiny@1:128:32:train", "yolov4-tiny@1:416:4:train", "yolov4@0.25:224:16:train", "yolov4@0.5:416:4:train"),
)
MOST_OFF = 0.2


def main() -> int:
    """Measure the cases that are named, each in a process of its own if there are several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES)
    cases = parser.parse_args().cases
    if len(cases) > 1:
        return max(subprocess.run([sys.executable, __file__, case], check=False).returncode for case in cases)
    arch, side, images, kind = cases[0].split(":")
    arch, _, width = arch.partition("@")
    network = make_network(cast(Arch, arch), 1, float(width or 1), ImageSize(int(side), int(side)), None)
    measured = measure(network, int(images), trains=kind == "train")
    estimate = estimate_training_bytes if kind == "train" else estimate_evaluation_bytes
    estimated = estimate(network, int(images))
    print(
        f"{cases[0]:<28} measured {measured / 1e6:6.0f} MB, estimated {estimated / 1e6:6.0f} MB, {estimated / measured:.2f}"
    )
    return 0 if abs(measured / estimated - 1) <= MOST_OFF else 1


def measure(network: Network, images: int, trains: bool) -> int:
    """Return the bytes by which resident memory grows to its peak."""
    run_step(make_network("yolov3-tiny", 1, 0.1, ImageSize(64, 64), None), 1, trains)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = read_status("VmRSS")
    run_step(network, images, trains)
    return read_status("VmHWM") - before


def run_step(network: Network, images: int, trains: bool) -> None:
    """Take two training steps with a new model, or one forward pass."""
    model, size = Detector(network).to(memory_format=torch.channels_last), network.img_size
    pixels = torch.randint(0, 255, (images, size.height, size.width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    if not trains:
        with torch.inference_mode():
            model.eval()((pixels / 255).contiguous(memory_format=torch.channels_last))
        return
    config = TrainConfig()
    state = make_training_state(model, config, 100)
    state.learn()
    targets = torch.tensor([[index, 0, 0.5, 0.5, 0.2, 0.3, 0] for index in range(images)])
    for _ in range(2):
        train_step(state, Batch(pixels, targets, torch.arange(images)), config, StepRates(1e-3, 0.0, 0.0, False))


def read_status(key: str) -> int:
    """Return a number of /proc/self/status in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    sys.exit(main())
