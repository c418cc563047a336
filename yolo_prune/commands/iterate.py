"""`iterate`: prune a few channels, or zero a few weights, finetune, and repeat, until the target or a drop in AP50.

    original ─► score ─► drop 5 % ─► rebuild ─► finetune ─► validate ─► … ─► settle
                  ▲                                │
                  └──── squared gradients, kept ───┘

runs/NAME/steps.json lists the finished steps. runs/NAME/NN/ is step NN: pruned.pt is the network before finetuning,
last.pt and best.pt after it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from yolo_prune.commands.data import load_data_of
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.pruning.iterate_report import draw_frontier, format_steps
from yolo_prune.commands.pruning.iterate_step import Limits, cut, cut_weights, load_cut, load_moments
from yolo_prune.commands.results import Summary
from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.config import format_config, parse_config
from yolo_prune.console import report
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.errors import CheckpointError, ConfigError, YoloPruneError
from yolo_prune.evaluation.evaluate import measure_score_of
from yolo_prune.files import measure_sha256, save_json
from yolo_prune.image_size import make_size
from yolo_prune.launch import check_alone
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.device import make_device
from yolo_prune.pruning.plans.weight_plan import count_nonzeros
from yolo_prune.records import PathText, load_record
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.resume import Run
from yolo_prune.training.run_data import Datasets, load_datasets
from yolo_prune.training.saved_state import load_saved_state
from yolo_prune.training.signals import StopSignal, watch_signals

STEPS = "steps.json"
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SETTLE = "settle"
SEED_STRIDE = 1_000_003
"""The difference between the seeds of two steps, so large that runs with neighbouring seeds share no step's seed."""


@dataclass(frozen=True)
class Step:
    """A finished step."""

    name: str
    """The name of its folder; `original` for the network that the run started from."""
    ratio: Share
    """The share of the original's prunable channels, or weights, that are pruned."""
    params: PositiveInt
    macs: PositiveInt
    map50: Share | None
    """AP50 on the validation split after finetuning; None if it was not measured."""
    epochs: NonNegativeInt
    """Number of finetuning epochs."""
    seconds: Seconds
    checkpoint: PathText


@dataclass
class Journal:
    """The state of a run on disk: its settings, the checkpoint that it started from, and the finished steps."""

    source: PathText
    source_sha256: str
    recipe: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    is_done: bool = False
    reason: str = ""
    """Why the run stopped pruning."""


@dataclass(frozen=True)
class IterateResult:
    """The result of `iterate`."""

    checkpoint: Path
    steps: Path
    plot: Path
    journal: Journal

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        rows = [asdict(step) for step in self.journal.steps]
        paths = {"checkpoint": str(self.checkpoint), "steps": str(self.steps), "plot": str(self.plot)}
        return {**paths, "reason": self.journal.reason, "rows": rows}

    @property
    def stdout(self) -> str:
        """The last good checkpoint's path."""
        return str(self.checkpoint)

    @property
    def summary(self) -> Summary:
        """How much is left, and the command that may follow."""
        first, last = self.journal.steps[0], self.journal.steps[-1]
        changes = f"params {last.params / first.params - 1:+.1%}, MACs {last.macs / first.macs - 1:+.1%}"
        scored = "" if first.map50 is None or last.map50 is None else f", val AP50 {first.map50:.4f} → {last.map50:.4f}"
        line = f"{changes}{scored}; {self.plot} shows the steps"
        return Summary(line, ("bench", str(self.checkpoint), "--lineage"))

    def format(self) -> str:
        """Return the table of steps, and why the run stopped pruning."""
        return f"{format_steps([asdict(step) for step in self.journal.steps])}\n{self.journal.reason}"


def start_iterate(source: Path, config: IterateConfig, folder: Path) -> IterateResult:
    """Prune a checkpoint step by step in `folder`.

    Raises:
        CheckpointError, ConfigError, DatasetError, PlanError: an input is invalid, or the target is out of reach.
        Interrupted, TimeUp: the run was stopped; `resume_iterate` continues it.
    """
    check_alone("iterate")
    spec = load_data_of(config.data, load_checkpoint(source).provenance)
    config = replace(config.resolved, data=spec.source)
    journal = Journal(str(source.resolve()), measure_sha256(source), format_config(config))
    try:
        return _go_on(folder, config, journal, spec)
    except YoloPruneError:
        if not any(folder.glob("*/*.pt")):  # the first step cannot be taken: there is nothing to resume
            (folder / STEPS).unlink(missing_ok=True)
        raise


def resume_iterate(folder: Path, changes: dict[str, Any]) -> IterateResult:
    """Continue the run in `folder`; `changes` may set device and max_minutes.

    Raises:
        ConfigError: there is nothing to resume, or the checkpoint that the run started from has changed.
    """
    path = folder / STEPS
    if not path.is_file():
        raise ConfigError("there is nothing to resume", where=path, right="name a run folder that iterate left")
    journal = load_record(Journal, path, ConfigError, "name a run folder that iterate left")
    config = parse_config(IterateConfig(), {**journal.recipe, **changes}, path)
    if not Path(journal.source).is_file() or measure_sha256(Path(journal.source)) != journal.source_sha256:
        raise ConfigError("has changed since the run began", where=journal.source, right="restore it, or start anew")
    return _go_on(folder, config, journal, load_data_of(config.data, {}))


def _go_on(folder: Path, config: IterateConfig, journal: Journal, spec: DataSpec) -> IterateResult:
    with watch_signals(config.max_minutes) as stop:
        iteration = _make_iteration(folder, config, journal, spec, stop)
        if not journal.steps:
            _finish(iteration, _measure_original(iteration))
        while not journal.is_done:
            stop.check()
            if journal.reason:
                _settle(iteration)
            else:
                _take_step(iteration)
    plot = draw_frontier(folder / "frontier.png", [asdict(step) for step in journal.steps], config.max_drop)
    return IterateResult(Path(journal.steps[-1].checkpoint), folder / STEPS, plot, journal)


@dataclass(frozen=True)
class _Iteration:
    """The inputs and the state of a run of `iterate`."""

    folder: Path
    config: IterateConfig
    journal: Journal
    spec: DataSpec
    device: torch.device
    datasets: Datasets
    stop: StopSignal
    network: Network
    """The original network."""
    cost: Cost
    """The cost of the original network."""

    @property
    def original(self) -> Step:
        return self.journal.steps[0]


def _make_iteration(
    folder: Path, config: IterateConfig, journal: Journal, spec: DataSpec, stop: StopSignal
) -> _Iteration:
    checkpoint, device = load_checkpoint(Path(journal.source)), make_device(config.device)
    settings = _make_settings(config, Path(journal.source), 1, 0)
    run = Run(settings, spec, "iterate", folder, make_size(settings.img_size or checkpoint.img_size), {}, device)
    cost = measure_cost(checkpoint.network)
    return _Iteration(folder, config, journal, spec, device, load_datasets(run), stop, checkpoint.network, cost)


def _measure_original(iteration: _Iteration) -> Step:
    """Score the network that the run started from. Use the averaged weights of a last.pt, as every step does."""
    checkpoint = load_checkpoint(Path(iteration.journal.source))
    model = checkpoint.make_model()
    cost = count_nonzeros(model) if iteration.config.granularity == "weight" else iteration.cost
    placed = model.to(iteration.device).to(memory_format=torch.channels_last).eval()
    score = measure_score_of(
        placed, iteration.datasets[1], device=iteration.device, batch_size=iteration.config.finetune.batch_size
    )
    return Step("original", 0.0, cost.params, cost.macs, score.map50, 0, 0.0, iteration.journal.source)


def _take_step(iteration: _Iteration) -> None:
    """Prune, finetune, and record the step; set the journal's `reason` if it was the last step."""
    config, journal = iteration.config, iteration.journal
    number = len(journal.steps)
    place = iteration.folder / f"{number:02d}"
    began, before = time.monotonic(), journal.steps[-1]
    limits = Limits(iteration.network, iteration.cost, min(config.target_ratio, number * config.step))
    previous = Path(before.checkpoint) if number == 1 else Path(before.checkpoint).with_name("last.pt")
    if (place / "pruned.pt").is_file():  # reuse the cut of a stopped step: one found by timing might differ now
        made = load_cut(place / "pruned.pt")
    elif config.granularity == "weight":
        made = cut_weights(previous, place / "pruned.pt", config, limits)
    else:
        made = cut(previous, place / "pruned.pt", config, limits, iteration.spec, iteration.device)
    is_last = made.meets_target or limits.ratio >= config.target_ratio
    is_scored = is_last or number % config.score_every == 0
    best = _train(iteration, _make_step_settings(iteration, place / "pruned.pt", is_scored), place)
    rows = load_rows(place / "last.pt")
    step = Step(
        place.name,
        made.ratio,
        made.params,
        made.macs,
        rows[-1]["val_map50"],
        len(rows),
        time.monotonic() - began,
        str(best),
    )
    if _is_lost(iteration, step):
        journal.reason = f"step {place.name} lost more than {config.max_drop:g} AP50: {_find_good(iteration).name} was the last good one"
    elif is_last:
        journal.reason = "the target is reached"
    _finish(iteration, step)


def load_rows(last: Path) -> list[dict[str, Any]]:
    """Return the rows of the finished training that left a last.pt.

    Raises:
        CheckpointError: it has none.
    """
    rows: list[dict[str, Any]] = load_saved_state(last)["rows"]
    if not rows:
        raise CheckpointError("has no epoch", where=f"{last}: training", right="start anew")
    return rows


def _settle(iteration: _Iteration) -> None:
    """Finetune the last good network with a falling learning rate, and end the run."""
    config, good = iteration.config, _find_good(iteration)
    iteration.journal.is_done = True
    if not config.settle_epochs or good.name == "original":
        _finish(iteration, replace(good, name=SETTLE, epochs=0, seconds=0.0))
        return
    began = time.monotonic()
    source = Path(good.checkpoint).with_name("last.pt")  # it holds the optimizer's moments
    number = len(iteration.journal.steps)
    settings = _make_settings(config, source, config.settle_epochs, config.settle_epochs, number)
    best = _train(iteration, settings, iteration.folder / SETTLE)
    rows = load_rows(iteration.folder / SETTLE / "last.pt")
    _finish(
        iteration,
        replace(
            good,
            name=SETTLE,
            map50=rows[-1]["val_map50"],
            epochs=len(rows),
            seconds=time.monotonic() - began,
            checkpoint=str(best),
        ),
    )


def _train(iteration: _Iteration, settings: TrainConfig, place: Path) -> Path:
    """Finetune in a step's folder, or resume a stopped finetuning there, and return its best checkpoint."""
    minutes = iteration.stop.minutes_left
    last = place / "last.pt"
    if last.is_file():
        if load_saved_state(last)["is_done"]:
            return place / "best.pt"
        changes = {"max_minutes": minutes, "device": iteration.config.device}
        return resume_training(place, changes, datasets=iteration.datasets)
    assert settings.weights is not None
    moments = load_moments(load_checkpoint(settings.weights), settings.weights)
    settings = replace(settings, max_minutes=minutes)
    return start_training(settings, place, "iterate", moments=moments, datasets=iteration.datasets)


def _make_step_settings(iteration: _Iteration, weights: Path, is_scored: bool) -> TrainConfig:
    config, original = iteration.config, iteration.original.map50
    goal = None if config.recover is None or original is None else max(0.0, original - config.recover)
    interval = 1 if goal is not None else config.epochs if is_scored else 0
    settings = _make_settings(config, weights, config.epochs, interval, len(iteration.journal.steps))
    return replace(settings, schedule="constant", goal=goal)


def _make_settings(
    config: IterateConfig, weights: Path, epochs: int, val_interval: int, number: int = 0
) -> TrainConfig:
    """Return the settings to finetune step `number`. Each step has its own seed for image order and augmentation."""
    return replace(
        config.finetune,
        data=config.data,
        weights=weights,
        epochs=epochs,
        val_interval=val_interval,
        seed=(config.seed + SEED_STRIDE * number) % (1 << 63),
        device=config.device,
        name=config.name,
    )


def _is_lost(iteration: _Iteration, step: Step) -> bool:
    original = iteration.original.map50
    return original is not None and step.map50 is not None and step.map50 < original - iteration.config.max_drop


def _find_good(iteration: _Iteration) -> Step:
    """Return the last step whose AP50 was measured and has not dropped too far."""
    steps = reversed(iteration.journal.steps)
    good = (step for step in steps if step.map50 is not None and not _is_lost(iteration, step))
    return next(good, iteration.original)


def _finish(iteration: _Iteration, step: Step) -> None:
    iteration.journal.steps.append(step)
    save_json(iteration.folder / STEPS, asdict(iteration.journal))
    report(format_steps([asdict(step)], heading=step.name == "original"))
