"""Which criterion to prune by: python benchmarks/criteria.py CHECKPOINT --data data.yaml [--macs 0.5,0.2,0.1] [--epochs 1]

Prunes one trained checkpoint by every criterion to the same shares of its multiply–accumulates, each with the same
recalibration and the same short finetune, scores it before and after that on the validation split, and prints a Markdown
table. Beside our criteria stand the published rule for YOLOv3 (global γ, no channel that a shortcut ties, nor the
convolutions before an upsampling) and Torch-Pruning at its defaults. A run that was stopped resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peer_checkpoints import list_methods, save_peer
from torch_pruning_peer import prune_to_macs

from yolo_prune.commands.config import FINETUNE, PruneConfig
from yolo_prune.commands.prune import prune
from yolo_prune.commands.pruning.calibration import iterate_examples, iterate_images, pick_samples
from yolo_prune.commands.train import start_training
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.datasets.spec import DataSpec, load_spec
from yolo_prune.errors import PlanError
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.evaluate import Evaluation, evaluate
from yolo_prune.evaluation.matching import Matches
from yolo_prune.files import save_json
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.pruning.config import ON_IMAGES
from yolo_prune.pruning.surgery.recalibrate import recalibrate_

CPU = torch.device("cpu")
NO_FOLDER = str.maketrans(" ,:γ", "---g")
TORCH_PRUNING = "Torch-Pruning, l2, same share of every layer"


def main() -> None:
    """Fill the table cell by cell and print it."""
    parser = argparse.ArgumentParser(description="Criteria against budgets.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/criteria"))
    parser.add_argument("--macs", default="0.5,0.2,0.1", help="shares of the MACs that stay")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    source, spec = load_checkpoint(arguments.checkpoint), load_spec(arguments.data)
    whole, cost = score(source, spec), measure_cost(source.network)
    cells: list[dict[str, Any]] = []
    for share in map(float, arguments.macs.split(",")):
        for name in [*list_methods(source.network), TORCH_PRUNING]:
            folder = arguments.out / f"{share:g}" / name.split(":")[0].translate(NO_FOLDER)
            cell = folder / "cell.json"
            if not cell.is_file():
                save_json(cell, fill_cell(arguments, source, spec, whole, name, share, folder))
            cells.append(json.loads(cell.read_text()))
            print(cells[-1], flush=True)
    print(format_table(cells, whole, cost, source, arguments.epochs))


def fill_cell(
    arguments: argparse.Namespace,
    source: Checkpoint,
    spec: DataSpec,
    whole: Evaluation,
    name: str,
    share: float,
    folder: Path,
) -> dict[str, Any]:
    """Prune, score, finetune, score again."""
    facts: dict[str, Any] = {"name": name, "share": share}
    try:
        if name == TORCH_PRUNING:
            pruned = prune_by_peer(arguments.checkpoint, source, spec, share, folder)
        else:
            config = replace(list_methods(source.network)[name], target_macs=share, data=spec.source, device="cpu")
            pruned = prune(arguments.checkpoint, config, folder).checkpoint
    except PlanError as error:
        return {**facts, "cannot": str(error)}
    training = replace(
        FINETUNE, data=spec.source, weights=pruned, epochs=arguments.epochs, device="cpu",
        learning_rate=arguments.learning_rate, val_interval=arguments.epochs, close_mosaic_fraction=1.0,
    )  # fmt: skip
    finetuned = start_training(training, folder / "finetune", "finetune")
    (folder / "finetune" / "last.pt").unlink()
    before, after = load_checkpoint(pruned), load_checkpoint(finetuned)
    cost, full = measure_cost(before.network), measure_cost(source.network)
    return {
        **facts,
        "params": cost.params / full.params,
        "macs": cost.macs / full.macs,
        "before": score(before, spec).score.map50,
        **describe_after(whole.matches, score(after, spec)),
    }


def describe_after(whole: Sequence[Matches], evaluation: Evaluation) -> dict[str, Any]:
    """Return the score after finetuning, and its paired difference to the whole network with the interval's ends."""
    return {"after": evaluation.score.map50, "difference": paired_difference(whole, evaluation.matches)}


def prune_by_peer(
    path: Path, source: Checkpoint, spec: DataSpec, share: float, folder: Path, criterion: str = "l2"
) -> Path:
    """Write what Torch-Pruning makes of the checkpoint at the smallest ratio that meets the share of MACs."""
    images = pick_samples(spec, "train", PruneConfig().recalibrate, source.img_size)
    examples = iterate_examples(images, CPU) if criterion in ON_IMAGES else ()
    pruned, ratio = prune_to_macs(source.make_model().eval(), share, criterion, examples)
    recalibrate_(pruned, iterate_images(images, CPU), CPU)
    return save_peer(folder, pruned, path, source, {"criterion": criterion, "pruning_ratio": ratio})


def score(checkpoint: Checkpoint, spec: DataSpec) -> Evaluation:
    """Score a checkpoint on the validation split."""
    return evaluate(checkpoint, spec.samples("val"), spec.names, device=CPU)


def format_table(cells: list[dict[str, Any]], whole: Evaluation, cost: Cost, source: Checkpoint, epochs: int) -> str:
    """Return the cells as a Markdown table with the conditions below."""
    lines = [
        "| MACs | params | pruned by | AP50 | finetuned | against the whole |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        if "cannot" in cell:
            lines.append(f"| {cell['share'] - 1:+.0%} | | {cell['name']} | cannot: {cell['cannot']} | | |")
            continue
        difference, low, high = cell["difference"]
        lines.append(
            f"| {cell['macs'] - 1:+.0%} | {cell['params'] - 1:+.0%} | {cell['name']} | {cell['before']:.3f} "
            f"| {cell['after']:.3f} | {difference:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
    low, high = whole.map50_interval
    lines.append(
        f"\nThe whole network: {cost.params / 1e6:.2f}M params, {cost.macs / 1e6:.0f}M MACs at {source.img_size} px, AP50 "
        f"{whole.score.map50:.3f} [{low:.3f}, {high:.3f}] on {whole.score.images} validation images. Finetuned for {epochs} epochs, "
        "one seed; brackets are 95 % bootstrap intervals over images of the paired difference."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
