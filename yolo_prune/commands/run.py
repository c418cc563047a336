"""`run`: all stages in order; a stage is skipped if its inputs and settings have not changed since it finished.

train ─► sparse ─► prune ─► finetune ─► bench        runs/NAME/<stage>/stage.json records the inputs of each stage
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yolo_prune.commands.bench import BenchResult, bench, load_bench
from yolo_prune.commands.bench_rows import check_engines
from yolo_prune.commands.config import RunConfig
from yolo_prune.commands.data import choose_split, load_data
from yolo_prune.commands.lineage import adapt_finetune, adapt_prune
from yolo_prune.commands.prune import prune
from yolo_prune.commands.reporting.evidence import score_models
from yolo_prune.commands.reporting.gather import save_report
from yolo_prune.commands.run_folders import RUNS, find_in_folder, hold_run_folder
from yolo_prune.commands.train import find_checkpoints, resume_training, start_training
from yolo_prune.config import format_config, list_settings, parse_config
from yolo_prune.console import report
from yolo_prune.datasets.spec import measure_fingerprint
from yolo_prune.errors import ConfigError, PlanError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.previews import save_comparison
from yolo_prune.files import load_yaml, measure_sha256, save_json
from yolo_prune.launch import check_alone
from yolo_prune.model.checkpoint import load_checkpoint, load_usable
from yolo_prune.model.device import make_device
from yolo_prune.own_files import check_own
from yolo_prune.records import load_plain_json, load_record
from yolo_prune.shipped_configs import find_run
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.initial_model import check_files
from yolo_prune.training.saved_state import load_saved_state
from yolo_prune.training.signals import watch_signals
from yolo_prune.version import __version__

SHARED = {one.name for one in list_settings(RunConfig) if not one.is_nested} | {"weights"}
"""Settings that a stage takes from the whole run, or from the stage before."""


@dataclass(frozen=True)
class RunResult:
    """The checkpoints of a run, keyed by row name, and the result of bench."""

    checkpoints: dict[str, Path]
    bench: BenchResult


def load_run(path: Path) -> RunConfig:
    """Load the YAML file of a run.

    `prune` and `finetune` train with the settings of `train`, unless the file says otherwise.

    Raises:
        ConfigError: an unknown key (names the nearest known one), a value of the wrong type, or a key of a stage
            that the run sets for all stages.
    """
    path = find_run(path)
    values = load_yaml(path)
    for stage, settings in values.items():
        if isinstance(settings, dict):
            for key in SHARED & set(settings) - ({"weights"} if stage == "train" else set()):
                raise ConfigError(
                    "belongs to the whole run",
                    where=f"{path}: {stage}.{key}",
                    right="set it at the top, or leave it out",
                )
    trained = parse_config(RunConfig(), {key: value for key, value in values.items() if key == "train"}, path).train
    base = RunConfig(prune=adapt_prune(trained), finetune=adapt_finetune(trained))
    return parse_config(base, values, path)


def run_stages(config: RunConfig) -> RunResult:
    """Run every stage that is not finished, and return the checkpoints and the result of bench.

    Raises:
        ConfigError: torchrun started several processes, or the run is running in another process.
    """
    check_alone("run")
    device, config = make_device(config.device), _find_all_checkpoints(config)
    _check_stages(config, device)
    with hold_run_folder(RUNS / config.name, is_made=True):
        return _run_stages(config, RUNS / config.name, device)


def _run_stages(config: RunConfig, folder: Path, device: torch.device) -> RunResult:
    spec = load_data(config.data)
    split = choose_split(spec, config.bench.split)  # a missing split is reported now, not after hours
    samples = spec.samples(split)
    config = replace(config, data=spec.source)
    data = measure_fingerprint(spec)

    def train_stage(stage: str, settings: TrainConfig, parent: Path | None) -> Path:
        settings = replace(
            settings,
            data=config.data,
            device=config.device,
            seed=config.seed,
            weights=parent or config.weights or settings.weights,
        )
        place = folder / stage

        def work() -> Path:
            with watch_signals() as stop:
                if not (place / "last.pt").is_file():
                    best = start_training(settings, place, stage)
                elif load_saved_state(place / "last.pt")["is_done"]:
                    best = place / "best.pt"
                else:
                    best = resume_training(place)
            stop.check()  # a signal after the last epoch did not stop training; it must stop the stages
            return best

        return _once(place, "best.pt", (settings, data, _hash(settings.weights), _hash(settings.cfg)), work)

    checkpoints = {"Original": train_stage("train", config.train, None)}
    newest = checkpoints["Original"]
    if config.sparse is not None:
        newest = checkpoints["Sparse"] = train_stage("sparse", config.sparse, newest)
    parent = newest
    settings = replace(config.prune, data=config.data, device=config.device, seed=config.seed)

    def prune_stage() -> Path:
        result = prune(parent, settings, folder / "prune")
        report(result.format())
        return result.checkpoint

    made_of = (settings, data, *map(_hash, (parent, settings.plan, settings.from_sensitivity)))
    newest = checkpoints["Pruned"] = _once(folder / "prune", "pruned.pt", made_of, prune_stage)
    if config.finetune is not None:
        checkpoints["Finetuned"] = train_stage("finetune", config.finetune, newest)
    bench_settings = replace(config.bench, data=config.data, split=split, device=config.device)
    place = folder / "bench"

    page = bench_settings.report or folder / "report.html"

    def bench_stage() -> Path:
        bench(checkpoints, replace(bench_settings, report=page), place, title=config.name)
        ends = {name: checkpoints[name] for name in ("Original", list(checkpoints)[-1])}
        save_comparison(place / "detections.png", ends, samples, spec.names, device)
        return place / "bench.json"

    table = _once(
        place, "bench.json", (bench_settings, data, [_hash(path) for path in checkpoints.values()]), bench_stage
    )
    result = load_bench(table)
    if not page.is_file():  # deleted, or made by an older version: what was timed is not timed again
        models = {name: load_checkpoint(path) for name, path in checkpoints.items()}
        detection = DetectConfig(agnostic_nms=config.bench.agnostic_nms)
        evidence = None if result.split is None else score_models(models, spec, result.split, device, detection)
        save_report(page, replace(result, evidence=evidence).as_measured(), device, title=config.name)
    report(f"table in {place / 'bench.md'}, all of it on a page in {page}")
    return RunResult(checkpoints, replace(result, all_classes=config.bench.all_classes))


def _find_all_checkpoints(config: RunConfig) -> RunConfig:
    """Return the settings with the checkpoints of run folders in place of these, in every stage."""
    config = replace(config, weights=None if config.weights is None else find_in_folder(config.weights))
    stages: dict[str, Any] = {name: getattr(config, name) for name in ("train", "sparse", "finetune")}
    found: dict[str, Any] = {name: find_checkpoints(one) for name, one in stages.items() if one is not None}
    return replace(config, **found)


def _check_stages(config: RunConfig, device: torch.device) -> None:
    """Check what every stage needs but the data set, before this is drawn and hours are spent on the first stage.

    Raises:
        ConfigError: an engine of bench cannot run here.
        CfgError, WeightsError, CheckpointError, PlanError: a file is missing, or invalid.
    """
    check_files(replace(config.train, weights=config.weights or config.train.weights))
    for stage in (config.sparse, config.finetune):
        if stage is not None and stage.teacher is not None:
            load_usable(stage.teacher)
    for path in (config.prune.plan, config.prune.from_sensitivity):
        if path is not None:
            load_plain_json(path, PlanError, "name a file that plan or sensitivity wrote")
    check_engines(config.bench, device)
    if config.bench.report is not None:
        check_own([config.bench.report], force=config.bench.force, option="bench.report")


def _once(folder: Path, product: str, ingredients: tuple[Any, ...], work: Callable[[], Path]) -> Path:
    """Return the stage's product; make it unless it was already made from the same ingredients.

    A last.pt that `work` finds is of a run with these ingredients: one of other ingredients is deleted before.
    """
    made_of, note = _fingerprint(ingredients), folder / "stage.json"
    state = read_note(note)
    if state.made_of == made_of and (folder / product).is_file():
        report(f"{folder}: up to date")
        return folder / product
    if state.begun_of != made_of:
        (folder / "last.pt").unlink(missing_ok=True)
        save_json(note, {"begun_of": made_of})
    path = work()
    save_json(note, {"made_of": made_of})
    return path


@dataclass(frozen=True)
class _Note:
    """What stage.json holds: the fingerprint of what a stage was made of, or begun of if it is not done."""

    made_of: str | None = None
    begun_of: str | None = None


def read_note(note: Path) -> _Note:
    """Read a stage's note. A damaged one is an error: without it, hours of training would be thrown away."""
    if not note.is_file():
        return _Note()  # the stage was never started
    return load_record(_Note, note, ConfigError, "delete it, and the stage starts anew")


def _fingerprint(ingredients: tuple[Any, ...]) -> str:
    plain = [format_config(item) if hasattr(item, "__dataclass_fields__") else item for item in ingredients]
    return hashlib.sha256(json.dumps([__version__, plain], sort_keys=True).encode()).hexdigest()


def _hash(path: Path | None) -> str | None:
    return measure_sha256(path) if path is not None and path.is_file() else None
