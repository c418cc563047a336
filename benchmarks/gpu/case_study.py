"""Stage `case-study`: train yolov3-hand, prune it to four sizes, finetune each, and score all on the test split.

The time is shared out beforehand, by the images per second that the stage `throughput` measured; every training has as many
epochs, and a learning-rate schedule as long, as its share allows.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpu.job import Job, parse_job
from gpu.networks import TINY_LEFT
from yolo_prune.commands.config import PruneConfig
from yolo_prune.commands.evaluate import EvaluateResult, evaluate_models
from yolo_prune.commands.measure_config import EvaluateConfig
from yolo_prune.commands.runs import make_finetune_defaults, make_prune_defaults, run_prune, run_train
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.config import TrainConfig

LEFT = (0.18, 0.10, 0.05, 0.02)
"""Shares of the parameters that are left: the published 82 % fewer, then 90, 95 and 98 % fewer."""
BASE_SHARE, PRUNE_SHARE, FINETUNE_SHARE = 0.40, 0.09, 0.06
"""Of the time: of the training, and of each prune and finetune."""
PRUNE_COST, FINETUNE_COST = 0.9, 0.7
"""What an epoch of prune and of finetune takes, in epochs of the original's training; both run the teacher as well."""
OVERHEAD_S = 8.0
"""Reading data, validation and saving, for each of the runs."""
LARGEST_FILE = 16 << 20
"""Checkpoints of pruned networks up to so many bytes are kept in the folder of results."""
BATCH, TINY_BATCH = 64, 4
IMAGES_PER_S = 300.0
"""If nothing was measured."""


@dataclass(frozen=True)
class Epochs:
    """How many epochs each training has."""

    base: int
    prune: int
    finetune: int


def share_out(seconds: float, images: int, images_per_s: float, targets: int) -> Epochs:
    """Return the epochs that fit into `seconds`, at least one each."""
    free = max(0.0, seconds - OVERHEAD_S * (1 + 2 * targets))
    epoch_s = images / images_per_s
    return Epochs(
        max(1, math.floor(BASE_SHARE * free / epoch_s)),
        max(1, math.floor(PRUNE_SHARE * free / (PRUNE_COST * epoch_s))),
        max(1, math.floor(FINETUNE_SHARE * free / (FINETUNE_COST * epoch_s))),
    )


def run(job: Job) -> None:
    """Train, then prune, finetune and score, size by size."""
    data, targets = job.find_data(), (TINY_LEFT,) if job.is_tiny else LEFT
    spec = load_spec(data)
    rows = [row for row in job.load("throughput").get("rows", ()) if "loader" in row]
    images_per_s = max((row["loader"] for row in rows), default=IMAGES_PER_S)
    epochs = (
        Epochs(2, 2, 1)
        if job.is_tiny
        else share_out(job.seconds, len(spec.samples("train")), images_per_s, len(targets))
    )
    job.results |= {"epochs": asdict(epochs), "images_per_s": images_per_s, "data": spec.source.name, "rows": []}
    job.save()
    os.chdir(job.folder)
    began = time.monotonic()
    config = TrainConfig(
        data=data, cfg=write_cfg(job), weights=None if job.weights is None else Path(job.weights), epochs=epochs.base, seed=job.seed,
        batch_size=TINY_BATCH if job.is_tiny else BATCH, device=job.device, val_interval=epochs.base, name="base",
    )  # fmt: skip
    base = run_train(config).checkpoint
    job.results["train_s"] = time.monotonic() - began
    checkpoints = {"Original": base}
    for left in targets:
        score(job, checkpoints, data)  # so that something stands should the time run out
        name = f"{100 * (1 - left):.0f}"
        pruned, tuned = prune_and_finetune(base, left, name, epochs, job)
        checkpoints |= {f"−{name} % pruned": pruned, f"−{name} % finetuned": tuned}
        keep(tuned, job.folder / f"finetuned-{name}.pt")
    score(job, checkpoints, data)


def write_cfg(job: Job) -> Path:
    """Write the cfg of the original network."""
    return save_cfg(make_network("yolov3", width=job.width, img_size=job.img_size), job.folder / "original.cfg")


def prune_and_finetune(base: Path, left: float, name: str, epochs: Epochs, job: Job) -> tuple[Path, Path]:
    """Prune to a share of the parameters while training, finetune with the original as teacher; return both checkpoints."""
    defaults: PruneConfig = make_prune_defaults(base)
    settings = replace(
        defaults, target_params=left, effort=epochs.prune, seed=job.seed, device=job.device, name=f"pruned-{name}",
        training=replace(defaults.training, val_interval=epochs.prune),
    )  # fmt: skip
    pruned = run_prune(base, settings).checkpoint
    tuning = replace(
        make_finetune_defaults(pruned), weights=pruned, epochs=epochs.finetune, val_interval=epochs.finetune, seed=job.seed,
        device=job.device, name=f"finetuned-{name}",
    )  # fmt: skip
    return pruned, run_train(tuning, "finetune").checkpoint


def score(job: Job, checkpoints: dict[str, Path], data: Path) -> None:
    """Score all checkpoints on the test split, and on each list of test images beside the data set; record the rows."""
    paths = list(checkpoints.values())
    config = EvaluateConfig(data=data, split="test", device=job.device)
    parts = {"test": evaluate_models(paths, [], config)}
    parts |= {
        place.stem: evaluate_models(paths, [], replace(config, subset=place))
        for place in sorted(data.parent.glob("test_*.txt"))
    }
    rows = []
    for number, (name, path) in enumerate(checkpoints.items()):
        checkpoint = load_checkpoint(path)
        cost = measure_cost(checkpoint.network)
        rows.append({
            "name": name, "params": cost.params, "macs": cost.macs, "size_bytes": cost.size_bytes,
            "scores": {part: read(found, number) for part, found in parts.items()},
        })  # fmt: skip
    job.results["rows"] = rows
    job.save()


def read(found: EvaluateResult, number: int) -> dict[str, Any]:
    """Return a model's AP50, its interval and the paired difference to the first."""
    model = found.models[number]
    score = model.evaluation.score
    return {"ap50": score.map50, "interval": model.evaluation.map50_interval, "difference": model.difference}


def keep(checkpoint: Path, place: Path) -> None:
    """Copy a checkpoint to the results, if it is not too large."""
    if checkpoint.stat().st_size <= LARGEST_FILE:
        shutil.copyfile(checkpoint, place)


def format_results(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    if not results.get("rows"):
        return "Nothing was scored."
    first, parts = results["rows"][0], list(results["rows"][0]["scores"])
    epochs = results["epochs"]
    lines = [
        f"Epochs: {epochs['base']} of training, {epochs['prune']} of each prune, {epochs['finetune']} of each finetune.",
        "",
        "| model | params | size | FLOPs (MACs) | " + " | ".join(f"AP50, {part}" for part in parts) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(parts),
    ]
    for row in results["rows"]:
        shares = [f"({row[key] / first[key] - 1:+.1%})" if row is not first else "" for key in ("params", "macs")]
        cells = [
            row["name"],
            f"{row['params'] / 1e6:.2f}M {shares[0]}",
            f"{row['size_bytes'] / 1e6:.1f}MB",
            f"{row['macs'] / 1e9:.2f}G {shares[1]}",
        ]
        for part in parts:
            one = row["scores"][part]
            low, high = one["interval"]
            text = f"{one['ap50']:.4f} [{low:.3f}, {high:.3f}]"
            if one["difference"] is not None and row is not first:
                value, low, high = one["difference"]
                text += f" ({value:+.4f} [{low:+.3f}, {high:+.3f}])"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(parse_job())
