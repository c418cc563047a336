#!/usr/bin/env python3
"""Kill a short training run at random moments, resume it each time, and compare its end with that of an unbroken run.

.venv/bin/python scripts/kill_runs.py [--kills 20] [--seed 0] [--folder FOLDER]

Exits 0 if last.pt and best.pt hold the same bits and the same rows of results, else 1 with the first difference.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import format_cfg
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.model.checkpoint import load_checkpoint

INCIDENTAL = {"images_per_s", "git_revision", "recipe"}
"""What may differ: clocks, a commit between two runs, and in the recipe the folder's name."""
LONGEST_PAUSE_S = 0.4
"""A few epochs' time."""
SETTINGS: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 4,
    "val_interval": 10,
    "sparsity": "auto",
    "sparsity_rest": 0.2,
    "save_minutes": 0.001,
    "device": "cpu",
}


def main() -> int:
    """Run, break, compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Kill a training run at random moments and resume it.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = arguments.folder or Path(scratch)
        prepare(folder)
        finish(start(folder, "--config", "settings.yaml", "--name", "whole"))
        kills = break_run(folder, arguments.kills, random.Random(arguments.seed))
        difference = compare(folder / "runs/whole", folder / "runs/broken")
    enough = kills == arguments.kills
    print(f"{kills} kills: {difference or 'the same bits'}{'' if enough else f'; wanted {arguments.kills}'}")
    return 0 if enough and difference is None else 1


def prepare(folder: Path) -> None:
    """Write a small data set, a small cfg and the settings."""
    hands = make_dataset(folder / "hands", SyntheticConfig(train=24, val=6, test=1, size_px=64), workers=1)
    cfg = folder / "small.cfg"
    cfg.write_text(format_cfg(make_network("yolov3-tiny", 1, 0.05, 64)))
    settings = {**SETTINGS, "data": str(hands.resolve()), "cfg": str(cfg.resolve())}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start `yoloprune train` in a folder, and return once it says that it trains."""
    command = [sys.executable, "-m", "yolo_prune", "train", *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(("train:", "resuming")):
            return process
    raise SystemExit(f"the run did not start: {''.join(said)}")


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run to end well."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed with {process.returncode}: {said}")


def break_run(folder: Path, wanted: int, moments: random.Random) -> int:
    """Train with SIGKILLs at random moments, and return how many there were before the run's end.

    Moments are told by the epochs that the run has reported, and a part of a second more, so that they spread over the whole
    run however fast the machine is.
    """
    words: tuple[str, ...] = ("--config", "settings.yaml")
    most = int(1.6 * SETTINGS["epochs"] / (wanted + 1))
    for kills in range(wanted):
        process = start(folder, *words, "--name", "broken")
        if not wait_for_epochs(process, moments.randrange(most)):
            return kills
        time.sleep(moments.uniform(0, LONGEST_PAUSE_S))
        process.kill()
        process.communicate()
        if (folder / "runs/broken/last.pt").exists():
            words = ("--resume", "--workers", str(moments.choice((0, 2))))
    finish(start(folder, *words, "--name", "broken"))
    return wanted


def wait_for_epochs(process: subprocess.Popen[str], count: int) -> bool:
    """Wait until a run has reported so many epochs; return whether it still runs."""
    assert process.stderr is not None
    while count and (line := process.stderr.readline()):
        count -= line.startswith("epoch")
    return not count and process.poll() is None


def compare(one: Path, other: Path) -> str | None:
    """Return the first difference between two runs' last.pt and best.pt, or None."""
    for name in ("last.pt", "best.pt"):
        left, right = (load_checkpoint(folder / name) for folder in (one, other))
        for part in ("state", "training", "provenance"):
            if (place := find_difference(getattr(left, part), getattr(right, part), f"{name}: {part}")) is not None:
                return f"{place} differs"
    return None


def find_difference(one: Any, other: Any, place: str) -> str | None:
    """Return where two nests of mappings, sequences, tensors and values differ first, or None."""
    if isinstance(one, torch.Tensor):
        return None if isinstance(other, torch.Tensor) and torch.equal(one, other) else place
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        pairs = [(key, one[key], other[key]) for key in one if key not in INCIDENTAL]
    elif isinstance(one, Sequence) and not isinstance(one, str) and len(one) == len(other):
        pairs = [(number, *pair) for number, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else place
    return next(filter(None, (find_difference(a, b, f"{place}.{key}") for key, a, b in pairs)), None)


if __name__ == "__main__":
    sys.exit(main())
