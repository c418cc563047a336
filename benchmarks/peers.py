"""Networks pruned in other ways, to be finetuned beside ours: python benchmarks/peers.py BASE OURS [--out runs/peers] [--seed 0]

Prunes the checkpoint BASE at once to the multiply–accumulates of OURS, which was pruned from it, and writes a checkpoint for each way,
for `yoloprune finetune` and `yoloprune evaluate`:

- group-norm, taylor: Torch-Pruning at its defaults, by the L2 norm of a group's weights and by first-order changes of the loss
- published: the published rule for YOLOv3: global γ, no channel that a shortcut ties, nor the convolutions before an upsampling
- random: the network of OURS with random weights
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from criteria import prune_by_peer
from peer_checkpoints import PUBLISHED, list_methods, save_peer

from yolo_prune.commands.data import load_data_of
from yolo_prune.commands.prune import prune
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector


def main() -> None:
    """Write all of them, and print the cost of each."""
    parser = argparse.ArgumentParser(description="Other ways to prune, at the same multiply–accumulates.")
    parser.add_argument("base", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    base, ours = load_checkpoint(arguments.base), load_checkpoint(arguments.ours)
    spec = load_data_of(None, base.provenance)
    full = measure_cost(base.network)
    share = measure_cost(ours.network).macs / full.macs
    for name, criterion in {"group-norm": "l2", "taylor": "taylor"}.items():
        prune_by_peer(arguments.base, base, spec, share, arguments.out / name, criterion)
    config = replace(list_methods(base.network)[PUBLISHED], target_macs=share, data=spec.source, device="cpu")
    prune(arguments.base, config, arguments.out / "published")
    torch.manual_seed(arguments.seed)
    recipe = {"seed": arguments.seed}
    save_peer(arguments.out / "random", Detector(ours.network), arguments.base, base, recipe)
    for name in ("group-norm", "taylor", "published", "random"):
        path = arguments.out / name / "pruned.pt"
        cost = measure_cost(load_checkpoint(path).network)
        print(f"{path}: params {cost.params / full.params - 1:+.1%}, MACs {cost.macs / full.macs - 1:+.1%}")


if __name__ == "__main__":
    main()
