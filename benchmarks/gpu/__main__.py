"""Run the stages and write the summary: see scripts/gpu --help."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from gpu.environment import describe
from gpu.job import Job
from gpu.stages import DEFAULT, STAGES, run_stages
from gpu.summary import format_summary
from yolo_prune.files import save_json, save_text

SUMMARY_S = 5.0
"""Seconds of the budget that are kept for the summary."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/gpu", description="Measure what only a GPU can settle, in stages.")
    parser.add_argument("--stages", default=",".join(DEFAULT), help=f"of {', '.join(STAGES)}, in the order to run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the summary, figures and logs")
    parser.add_argument("--data", type=Path, help="a data.yaml (default: drawn hands)")
    parser.add_argument("--weights", type=Path, help="Darknet weights to train yolov3-hand from (default: random)")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds that all stages share")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small network on small images: a rehearsal")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.stages = arguments.stages.split(",")
    if unknown := [name for name in arguments.stages if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]}; use some of {', '.join(STAGES)}")
    for name in ("data", "weights"):
        path = getattr(arguments, name)
        if path is not None and not path.is_file():
            parser.error(f"--{name}: there is no file {path}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: no CUDA device was found; use cpu, and --tiny")
    return arguments


def main() -> None:
    """Run the stages, write summary.md and summary.json, print the first, and exit with 1 if a stage is not done."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in STAGES:
        (arguments.out / f"{name}.json").unlink(missing_ok=True)  # of an earlier call
    data, weights = (None if path is None else str(path.resolve()) for path in (arguments.data, arguments.weights))
    out = str(arguments.out.resolve())
    job = Job("", 0.0, out, arguments.device, arguments.tiny, data, weights, arguments.seed)
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    outcomes = run_stages([STAGES[name] for name in arguments.stages], job, arguments.budget_s - SUMMARY_S)
    summary = {
        "settings": {key: value if isinstance(value, int | float | list) else str(value) for key, value in settings.items()},
        "environment": describe(job.place),
        "stages": [{**asdict(one), "results": job.load(one.stage)} for one in outcomes],
    }  # fmt: skip
    save_json(arguments.out / "summary.json", summary)
    text = format_summary(summary)
    save_text(arguments.out / "summary.md", text)
    print(text)
    sys.exit(0 if all(one.state == "done" for one in outcomes) else 1)


if __name__ == "__main__":
    main()
