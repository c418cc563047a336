"""Whether two source trees compute the same: python benchmarks/same_bits.py BEFORE AFTER [--seed 0]

Runs train, prune (while it trains, and at once), finetune, iterate (channels and weights) and evaluate with the source of each tree, on one
thread, on the same few drawn hands, and compares what they leave: every tensor of every checkpoint to the bit, the
numbers of evaluate to the last digit. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

COMMANDS: dict[str, str] = {
    "train": "train --data hands/data.yaml --cfg {cfg} --img-size 96 --epochs 3 --batch-size 8 --seed {seed}",
    "train sparse": "train --data hands/data.yaml --cfg {cfg} --img-size 96 --epochs 2 --batch-size 8 --seed {seed} --sparsity 0.01 --optimizer sgd --name sparse",
    "prune": "prune runs/train/best.pt --ratio 0.6 --effort 4 --seed {seed}",
    "prune at once": "prune runs/train/best.pt --ratio 0.5 --one-shot --name once",
    "prune by γ": "prune runs/sparse/best.pt --ratio 0.3 --one-shot --criterion bn-gamma --name gamma",
    "prune weights": "prune runs/train/best.pt --ratio 0.7 --granularity weight --name weights",
    "finetune": "finetune runs/prune/pruned.pt --epochs 2 --seed {seed}",
    "iterate": "iterate runs/train/best.pt --step 0.2 --target-ratio 0.4 --max-drop 1 --seed {seed}",
    "iterate weights": "iterate runs/train/best.pt --granularity weight --criterion l1 --step 0.3 --target-ratio 0.6 --max-drop 1 --seed {seed} --name weight-steps",
    "evaluate": "evaluate runs/train/best.pt runs/prune/pruned.pt runs/finetune/best.pt --data hands/data.yaml --split test --json",
}
RENAMED: dict[Any, str] = {"tally": "stats"}
"""Keys by their older names."""
IGNORED = ("seconds", "path", "images_per_s", "sha256")


def run(tree: Path, line: str, folder: Path) -> str:
    """Run one command with the source of a tree, and return its stdout.

    Raises:
        SystemExit: it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "yolo_prune", *line.split()], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree}: yoloprune {line}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def list_tensors(value: Any, name: str = "") -> dict[str, Any]:
    """Return every tensor in nested dictionaries and lists by its path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {
        path: tensor
        for key, part in parts
        for path, tensor in list_tensors(part, f"{name}/{RENAMED.get(key, key)}").items()
    }


def compare_checkpoints(before: Path, after: Path) -> tuple[int, list[str]]:
    """Return how many tensors two checkpoints have, and the names of those that differ in a bit or are in one alone."""
    one, other = (list_tensors(torch.load(path, weights_only=True)) for path in (before, after))
    same = [name for name in one.keys() & other.keys() if torch.equal(one[name], other[name])]
    return len(one), sorted((one.keys() | other.keys()) - set(same))


def list_numbers(value: Any, name: str = "") -> dict[str, Any]:
    """Return every number of a JSON value by its path, but for times and places."""
    if isinstance(value, dict):
        parts: Any = ((key, part) for key, part in value.items() if key not in IGNORED)
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {name: value} if isinstance(value, int | float) else {}
    return {path: number for key, part in parts for path, number in list_numbers(part, f"{name}/{key}").items()}


def main() -> int:
    """Run all commands with both trees and say what differs."""
    parser = argparse.ArgumentParser(description="Whether two source trees compute the same.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trees = [arguments.before.resolve(), arguments.after.resolve()]
    is_same = True
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("before", "after")]
        for tree, folder in zip(trees, folders, strict=True):
            folder.mkdir()
            run(
                tree,
                f"data synthetic --out hands --train 24 --val 8 --test 8 --size 96 --seed {arguments.seed}",
                folder,
            )
            line = "cfg make --arch yolov3-tiny --width 0.25 --img-size 96 --out tiny.cfg"
            run(tree, line, folder)
        for name, line in COMMANDS.items():
            line = line.format(cfg="tiny.cfg", seed=arguments.seed)
            before, after = (run(tree, line, folder) for tree, folder in zip(trees, folders, strict=True))
            if name == "evaluate":
                one, other = (list_numbers(json.loads(text)) for text in (before, after))
                differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
                print(f"{name}: {len(one)} numbers, {len(differing)} differ {differing[:3] or ''}")
                is_same &= not differing
        files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.pt"))
        for file in files:
            count, differing = compare_checkpoints(*(folder / file for folder in folders))
            print(f"{file}: {count} tensors, {len(differing)} differ {differing[:3] or ''}")
            is_same &= not differing
    print("the same" if is_same else "NOT the same")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
