"""The commands that train: train, finetune, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from yolo_prune.cli.flags import Checkpoint, Config, Data, Device, Json, overlay, print_json
from yolo_prune.commands.config import FINETUNE
from yolo_prune.errors import ConfigError
from yolo_prune.training.config import RUNTIME, TrainConfig

_TRAIN = TrainConfig()
_SYNTHETIC = "the synthetic hands, drawn on first use"
_RESUME = (
    f"Take up the run NAME where it stopped; takes no other setting but {', '.join(RUNTIME[:-1])} and {RUNTIME[-1]}."
)

Sparsity: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="λ of sparsity training: 0 trains without; auto takes --sparsity-ratio of the channels to zero.",
        show_default=str(_TRAIN.sparsity),
    ),
]
SparsityRatio: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="The share of the channels that --sparsity auto brings to zero.", show_default=str(_TRAIN.sparsity_ratio)
    ),
]
Teacher: TypeAlias = Annotated[
    Path | None, typer.Option(help="A checkpoint to learn from beside the labels.", show_default=False)
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Processes that load pictures.", show_default="one for each core on CUDA, up to 16, else 0"),
]
MaxMinutes: TypeAlias = Annotated[
    float | None, typer.Option(help="Save and leave with exit code 124 after so many minutes.", show_default=False)
]
TensorBoard: TypeAlias = Annotated[
    bool | None,
    typer.Option("--tensorboard/--no-tensorboard", help="Write for TensorBoard too.", show_default="no-tensorboard"),
]


def train(
    data: Annotated[Path | None, typer.Option(help="A data.yaml.", show_default=_SYNTHETIC)] = None,
    cfg: Annotated[
        Path | None, typer.Option(help="A Darknet cfg file.", show_default="a quarter-width YOLOv3 at 192 px")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Start from a checkpoint (.pt), or fill the cfg from Darknet .weights, whole or a prefix.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training pictures.", show_default=str(_TRAIN.epochs))
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures per step.", show_default=str(_TRAIN.batch_size))
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="the cfg's or checkpoint's")
    ] = None,
    auto_anchors: Annotated[
        bool | None,
        typer.Option(
            "--auto-anchors/--no-auto-anchors",
            help="Find the network's anchors in the training boxes, as data anchors does.",
            show_default="no-auto-anchors",
        ),
    ] = None,
    sparsity: Sparsity = None,
    sparsity_ratio: SparsityRatio = None,
    teacher: Teacher = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default=str(_TRAIN.learning_rate))
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.", show_default=_TRAIN.optimizer)] = None,
    workers: Workers = None,
    max_minutes: MaxMinutes = None,
    tensorboard: TensorBoard = None,
    name: Annotated[str | None, typer.Option(help="The run's folder below runs/.", show_default=_TRAIN.name)] = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(help="Every random number follows from this one.", show_default=str(_TRAIN.seed))
    ] = None,
    config: Config = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help=_RESUME),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a detector and print the path of its best checkpoint."""
    flags = {
        "data": data, "cfg": cfg, "weights": weights, "epochs": epochs, "batch_size": batch_size, "img_size": img_size,
        "auto_anchors": auto_anchors, "sparsity": sparsity, "sparsity_ratio": sparsity_ratio, "teacher": teacher,
        "learning_rate": learning_rate, "optimizer": optimizer, "workers": workers, "max_minutes": max_minutes,
        "tensorboard": tensorboard, "name": name, "device": device, "seed": seed,
    }  # fmt: skip
    _print_trained("train", _train("train", _TRAIN, flags, config, resume), as_json)


def finetune(
    checkpoint: Checkpoint = None,
    data: Data = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training pictures.", show_default="three quarters of those before it was pruned"
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures per step.", show_default=str(FINETUNE.batch_size))
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Side of the square input in pixels.", show_default="the checkpoint's")
    ] = None,
    sparsity: Sparsity = None,
    sparsity_ratio: SparsityRatio = None,
    keep_zeros: Annotated[
        bool | None,
        typer.Option(
            "--keep-zeros/--no-keep-zeros",
            help="Weights that are zero stay so.",
            show_default="where prune put them there",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="A checkpoint to learn from beside the labels.", show_default="the one that it was cut from"),
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Learn from the labels alone.")] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default=str(FINETUNE.learning_rate))
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd.", show_default=FINETUNE.optimizer)] = None,
    workers: Workers = None,
    max_minutes: MaxMinutes = None,
    tensorboard: TensorBoard = None,
    name: Annotated[str | None, typer.Option(help="The run's folder below runs/.", show_default=FINETUNE.name)] = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(help="Every random number follows from this one.", show_default=str(FINETUNE.seed))
    ] = None,
    config: Config = None,
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME)] = False,
    as_json: Json = False,
) -> None:
    """Train a pruned checkpoint further and print the path of its best checkpoint."""
    from yolo_prune.commands.lineage import adapt_finetune, find_training
    from yolo_prune.commands.run_folders import resolve_checkpoint

    if no_teacher and teacher is not None:
        raise ConfigError("contradicts --teacher", where="--no-teacher", right="leave one of them out")
    weights = checkpoint if resume else resolve_checkpoint(checkpoint, "prune")
    base = FINETUNE if resume or weights is None else adapt_finetune(find_training(weights))
    flags = {
        "data": data, "weights": weights, "epochs": epochs, "batch_size": batch_size, "img_size": img_size,
        "sparsity": sparsity, "sparsity_ratio": sparsity_ratio, "keep_zeros": keep_zeros, "teacher": teacher,
        "learning_rate": learning_rate, "optimizer": optimizer, "workers": workers, "max_minutes": max_minutes,
        "tensorboard": tensorboard, "name": name, "device": device, "seed": seed,
        "parent_teacher": False if no_teacher else None,
    }  # fmt: skip
    _print_trained("finetune", _train("finetune", base, flags, config, resume), as_json)


def _train(stage: str, base: TrainConfig, flags: dict[str, Any], file: Path | None, resume: bool) -> Path:
    from yolo_prune.commands.run_folders import RUNS
    from yolo_prune.commands.train import launch_training, resume_training

    if not resume:
        return launch_training(overlay(base, file, flags), base.name, stage)
    given = [key for key, value in flags.items() if value is not None and key not in ("name", *RUNTIME)]
    if given or file is not None:
        flag = f"--{given[0].replace('_', '-')}" if given else "--config"
        raise ConfigError("a resumed run keeps its settings", where=flag, right="leave it out, or start a new run")
    changes = {key: flags[key] for key in RUNTIME if flags.get(key) is not None}
    return resume_training(RUNS / (flags["name"] or base.name), changes)


def _print_trained(stage: str, path: Path, as_json: bool) -> None:
    from yolo_prune.commands.run_folders import remember_latest
    from yolo_prune.training.distributed import is_speaker

    if not is_speaker():
        return
    remember_latest(stage, path)
    if not as_json:
        print(path)
        return
    from yolo_prune.model.checkpoint import load_checkpoint

    print_json({"checkpoint": str(path), **load_checkpoint(path).provenance["metrics"]})


def run(
    config: Annotated[Path, typer.Argument(help="A YAML file with the settings of every stage.")],
    data: Annotated[Path | None, typer.Option(help="A data.yaml.", show_default="the file's")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="What the first stage starts from.", show_default="the file's")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="the file's")] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder below runs/.", show_default="the file's")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Every random number follows from this one.", show_default="the file's")
    ] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
) -> None:
    """Train, prune, finetune and bench; stages that are up to date are skipped, a stopped one goes on."""
    from yolo_prune.cli.measure import print_bench
    from yolo_prune.commands.run import load_chain, run_chain

    flags: dict[str, Any] = {"data": data, "device": device, "name": name, "seed": seed}
    if weights is not None:
        flags["train"] = {"weights": weights}
    print_bench(run_chain(overlay(load_chain(config), None, flags)).bench, as_json, markdown)
