"""Stage `controls`: other ways to the same sizes, from the same original: the published rule, and random weights.

It needs what the stage `case-study` left in the same folder: the original, and its network pruned by 82 %.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peer_checkpoints import PUBLISHED, list_methods, save_peer

from gpu.case_study import format_results as format_results
from gpu.case_study import score
from gpu.job import Job, parse_job
from yolo_prune.commands.prune import prune
from yolo_prune.commands.runs import make_finetune_defaults, run_train
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector


def run(job: Job) -> None:
    """Prune the original by the published rule to the MACs of ours, and start ours anew; finetune both alike, and score."""
    study: dict[str, Any] = job.load("case-study")
    os.chdir(job.folder)
    base_path = Path("runs/base/best.pt")
    pruned = sorted(Path("runs").glob("pruned-*/pruned.pt"))
    if not study or not base_path.is_file() or not pruned:
        sys.exit("the stage case-study has left no pruned network here; run it first, with the same --out")
    base, ours = load_checkpoint(base_path), load_checkpoint(pruned[0])
    share = measure_cost(ours.network).macs / measure_cost(base.network).macs
    data = job.find_data()
    method = replace(list_methods(base.network)[PUBLISHED], target_macs=share, data=data, device=job.device)
    prune(base_path, method, Path("controls/published"))
    torch.manual_seed(job.seed)
    save_peer(Path("controls/random"), Detector(ours.network), base_path, base, {"seed": job.seed})
    tuned = pruned[0].parents[1] / pruned[0].parent.name.replace("pruned", "finetuned") / "best.pt"
    checkpoints = {"Original": base_path, "ours": tuned}
    epochs = study["epochs"]
    job.results |= {"epochs": epochs, "rows": []}
    for name in ("published", "random"):
        settings = replace(
            make_finetune_defaults(Path("controls", name, "pruned.pt")), weights=Path("controls", name, "pruned.pt"),
            epochs=epochs["prune"] + epochs["finetune"], val_interval=epochs["prune"] + epochs["finetune"], seed=job.seed,
            device=job.device, name=f"control-{name}",
        )  # fmt: skip
        checkpoints[name] = run_train(settings, "finetune").checkpoint
        score(job, checkpoints, data)


if __name__ == "__main__":
    run(parse_job())
