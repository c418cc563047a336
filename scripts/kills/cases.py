"""The commands that write, each as a short command line; and the commands that write nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from yolo_prune.cli.main import app

READERS = frozenset({"cfg show", "config reference", "config schema", "data anchors"})
"""Commands that print alone."""


@dataclass(frozen=True)
class Case:
    """A command line that writes."""

    words: str
    """What follows `yoloprune`."""
    resume: str = ""
    """What goes on with it, once `resumable` is there."""
    resumable: str = ""
    timed: tuple[str, ...] = ()
    """Files, and `stdout`, that hold measured times: they must be whole, and may differ."""


_SAVING = "--set training.batch_size=4 --set training.save_minutes=0.0001"
_TRAINING = "--batch-size 4 --save-minutes 0.0001 --device cpu"
_ROWS = "runs/train/best.pt pruned.pt --data hands/data.yaml --device cpu"

CASES: dict[str, Case] = {
    "train": Case(
        f"train --data hands/data.yaml --cfg tiny.cfg --epochs 3 {_TRAINING} --name mine",
        "train --resume --name mine",
        "runs/mine/last.pt",
    ),
    "train, workers": Case(
        f"train --data hands/data.yaml --cfg tiny.cfg --epochs 3 {_TRAINING} --name mine --workers 2",
        "train --resume --name mine",
        "runs/mine/last.pt",
    ),
    "finetune": Case(
        f"finetune pruned.pt --epochs 2 {_TRAINING} --name tuned",
        "finetune --resume --name tuned",
        "runs/tuned/last.pt",
    ),
    "prune": Case(
        f"prune runs/train/best.pt --ratio 0.5 --effort 2 --device cpu --name cut {_SAVING}",
        "prune --resume --name cut",
        "runs/cut/last.pt",
    ),
    "prune, one shot": Case("prune runs/train/best.pt --ratio 0.5 --one-shot --device cpu"),
    "prune, weights": Case("prune runs/train/best.pt --ratio 0.5 --granularity weight --device cpu"),
    "iterate": Case(
        "iterate runs/train/best.pt --step 0.2 --target-ratio 0.4 --epochs 1 --settle-epochs 1 --max-drop 1 --device cpu "
        "--name steps --set finetune.batch_size=4 --set finetune.save_minutes=0.0001",
        "iterate --resume --name steps",
        "runs/steps/steps.json",
    ),
    "run": Case("run stages.yaml", timed=("runs/all/bench", "runs/all/report.html", "stdout")),
    "plan": Case("plan runs/train/best.pt --ratio 0.5 --device cpu"),
    "sensitivity": Case(
        "sensitivity runs/train/best.pt --ratios 0.5,0.9 --device cpu --name measured",
        "sensitivity --resume --name measured",
        "runs/measured/sensitivity.json",
    ),
    "evaluate": Case(
        "evaluate runs/train/best.pt --device cpu --save-detections out/found.json --curves out/curves.png "
        "--plots out/plots --worst 2"
    ),
    "bench": Case(f"bench {_ROWS} --runs 2 --warmup 0 --report out/bench.html", timed=("out/bench.html", "stdout")),
    "bench, sparse": Case(
        f"bench {_ROWS} --runs 2 --warmup 0 --engine sparse --no-score --report out/bench.html",
        timed=("out/bench.html", "stdout"),
    ),
    "profile": Case(
        "profile runs/train/best.pt --device cpu --plot out/profile.png", timed=("out/profile.png", "stdout")
    ),
    "report": Case(f"report {_ROWS} --runs 2 --warmup 0 --out out/report.html", timed=("out/report.html",)),
    "export": Case("export runs/train/best.pt --format darknet,onnx,pytorch-yolov3 --out out/hand"),
    "export, openvino": Case("export runs/train/best.pt --format openvino,pt2 --out out/hand"),
    "detect": Case("detect runs/train/best.pt hands/images clip.mp4 --confidence 0.001 --device cpu --out out"),
    "detect, onnxruntime": Case(
        "detect runs/train/best.pt hands/images/test --engine onnxruntime --confidence 0.001 --device cpu --out out"
    ),
    "import": Case("import darknet/tiny.cfg --weights darknet/tiny.weights --out out/hand.pt"),
    "cfg make": Case("cfg make --arch yolov3-tiny --width 0.25 --out out/hand.cfg"),
    "config copy": Case("config copy demo --out out"),
    "data synthetic": Case("data synthetic --out drawn --train 48 --val 4 --test 4 --size 64"),
    "data check": Case("data check hands/data.yaml --out checked"),
    "data convert": Case("data convert hands/data.yaml --to voc --out converted"),
    "data vgg-hand": Case("data vgg-hand --archive vgg.tar.gz --any-counts --out vgg"),
}
"""The suite, by name: a command, or a command and what is tried of it."""

STAGES: dict[str, Any] = {
    "name": "all",
    "data": "hands/data.yaml",
    "device": "cpu",
    "train": {"cfg": "tiny.cfg", "epochs": 2, "batch_size": 4, "save_minutes": 0.0001},
    "prune": {"ratio": 0.5, "effort": 1},
    "finetune": {"epochs": 1, "batch_size": 4, "save_minutes": 0.0001},
    "bench": {"runs": 2, "warmup": 0},
}
"""What `run` is tried on."""


def list_commands() -> list[str]:
    """Return the names of all commands, such as `data check`."""
    return sorted(_walk(typer.main.get_command(app), ()))


def find_forgotten() -> list[str]:
    """Return the commands that are neither in the table nor said to write nothing, and those said to be that are not."""
    tried = {name.partition(",")[0] for name in CASES}
    return sorted((set(list_commands()) - tried - READERS) | ((tried | READERS) - set(list_commands())))


def _walk(command: Any, names: tuple[str, ...]) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(names)
        return
    for name, one in below.items():
        yield from _walk(one, (*names, name))
