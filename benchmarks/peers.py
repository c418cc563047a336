"""What other ways to prune leave to finetune: python benchmarks/peers.py BASE OURS [--out runs/peers] [--seed 0]

Prunes the checkpoint BASE at once to the multiply–accumulates of OURS, which was made of it, in the ways of others, and writes a
checkpoint for each that `yoloprune finetune` and `yoloprune evaluate` take as any:

- group-norm, taylor: Torch-Pruning at its defaults, by the L2 norm of a group's weights and by first-order changes of the loss
- published: the published rule for YOLOv3: global γ, no channel that a shortcut ties, nor the convolutions before an upsampling
- random: the network of OURS, its weights random numbers
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch_pruning_peer import prune_to_macs

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Upsample
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.importance import score_channels
from yolo_prune.pruning.plan import make_cost_budgets, make_plan
from yolo_prune.pruning.settings import PlanConfig, ScoreConfig
from yolo_prune.pruning.surgery import rebuild
from yolo_prune.stages.calibration import iterate_batches, iterate_examples, pick_samples
from yolo_prune.stages.data import load_data_of
from yolo_prune.stages.settings import PruneConfig
from yolo_prune.training.recalibrate import recalibrate_

CPU = torch.device("cpu")
IMAGES = PruneConfig().recalibrate
"""Training images to take gradients and batch-norm statistics on."""


def main() -> None:
    """Write all of them, and print what is left in each."""
    parser = argparse.ArgumentParser(description="Other ways to prune, at the same multiply–accumulates.")
    parser.add_argument("base", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    base, ours = load_checkpoint(arguments.base), load_checkpoint(arguments.ours)
    spec = load_data_of(None, base.provenance, "the data set of BASE")
    full, goal = (measure_cost(one.network, base.img_size) for one in (base, ours))
    for name, make in list_peers(base, ours, spec, goal.macs / full.macs, arguments.seed).items():
        slim = make()
        if name != "random":
            recalibrate_(slim, iterate_batches(pick_samples(spec, "train", IMAGES, base.img_size)), CPU)
        provenance = make_provenance("prune", {"peer": name}, arguments.base, data=base.provenance.get("data"))
        left = Checkpoint(slim.network, slim.state_dict(), base.names, base.img_size, provenance)
        path = save_checkpoint(arguments.out / name / "pruned.pt", left)
        cost = measure_cost(slim.network, base.img_size)
        print(f"{path}: params {cost.params / full.params - 1:+.1%}, MACs {cost.macs / full.macs - 1:+.1%}", flush=True)


def list_peers(
    base: Checkpoint, ours: Checkpoint, spec: DataSpec, share: float, seed: int
) -> dict[str, Callable[[], Detector]]:
    """Return by name what makes each peer's network with at most `share` of the base's multiply–accumulates."""
    model = base.make_model().eval()
    examples = iterate_examples(pick_samples(spec, "train", IMAGES, base.img_size), CPU)

    def make_random() -> Detector:
        torch.manual_seed(seed)
        return Detector(ours.network)

    return {
        "group-norm": lambda: prune_to_macs(model, base.img_size, share)[0],
        "taylor": lambda: prune_to_macs(model, base.img_size, share, "taylor", examples)[0],
        "published": lambda: prune_as_published(model, base.img_size, share),
        "random": make_random,
    }


def prune_as_published(model: Detector, img_size: int, share: float) -> Detector:
    """Return what the published rule leaves: the smallest γ of all layers go, where neither shortcut nor upsampling follows.

    Source: tanluren/yolov3-channel-and-layer-pruning, normal pruning.
    """
    network, graph = model.network, make_channel_graph(model.network)
    spare = tuple(index - 1 for index, layer in enumerate(network.layers) if isinstance(layer, Upsample))
    config = PlanConfig(target_macs=share, shortcuts=False, min_channels=1, spare=spare)
    budgets = make_cost_budgets(config, network, graph, measure_cost(network, img_size), img_size)
    scores = score_channels(model, graph, ScoreConfig("bn-gamma"))
    return rebuild(model, make_plan(graph, scores, config, budgets))


if __name__ == "__main__":
    main()
