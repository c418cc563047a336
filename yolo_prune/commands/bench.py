"""`bench`: the table of the case study, for any checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yolo_prune.benchmarking.latency import (
    describe_environment,
    draw_inputs,
    make_network_call,
    make_suppression_call,
    measure_latencies,
    timing_threads,
)
from yolo_prune.benchmarking.table import (
    IS_RUINED,
    RUINED_MARK,
    Row,
    Scores,
    explain_ruined,
    find_ruined,
    format_conditions,
    format_markdown,
    format_text,
    parse_row,
)
from yolo_prune.commands.data import choose_split, load_data_of
from yolo_prune.commands.measure_config import BenchConfig, EvaluateConfig
from yolo_prune.commands.run_folders import resolve_checkpoints
from yolo_prune.console import report
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.class_names import rename
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.engines.make import Engine, make_engine
from yolo_prune.engines.precision import choose_precision, computing_in
from yolo_prune.errors import ConfigError, OutputError
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.evaluate import Evaluation, evaluate
from yolo_prune.files import save_json, save_text
from yolo_prune.model.checkpoint import AVERAGE, Checkpoint, is_stored_packed, load_checkpoint
from yolo_prune.model.device import make_device

ROW_NAMES = {"train": "Original", "import": "Original", "sparse": "Sparse", "prune": "Pruned", "finetune": "Finetuned"}


@dataclass(frozen=True)
class BenchResult:
    """The table, and the conditions under which it was measured."""

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    split: str | None
    markdown: bool = False
    """Whether stdout is in Markdown."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        ruined = find_ruined(self.rows)
        rows = [{**row.as_dict(), IS_RUINED: flag} for row, flag in zip(self.rows, ruined, strict=True)]
        return {
            "environment": self.environment,
            "split": self.split,
            "rows": rows,
            "advice": explain_ruined(self.rows),
        }

    @property
    def stdout(self) -> str:
        """The table and its conditions."""
        return self.format(self.markdown)

    def format(self, markdown: bool = False) -> str:
        """Return the table and its conditions as text for a terminal, or in Markdown."""
        table = format_markdown(self.rows) if markdown else format_text(self.rows)
        advice, conditions = explain_ruined(self.rows), format_conditions(self.environment, self.rows, self.split)
        return "\n\n".join([table, *([] if advice is None else [f"{RUINED_MARK} {advice}."]), conditions])


def load_bench(path: Path) -> BenchResult:
    """Read a result that `bench` wrote.

    Raises:
        OutputError: the file cannot be read, or does not hold such a result.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return BenchResult(tuple(map(parse_row, values["rows"])), values["environment"], values["split"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError("holds no result of bench", where=path, right="delete it and run again") from error


def find_lineage(path: Path) -> dict[str, Path]:
    """Return a checkpoint and its ancestors that are still on disk, the oldest first, keyed by row name.

    A run between the original and the pruned network is the one with γ sparsity.
    """
    line = [(load_checkpoint(path).provenance, path)]
    while (parent := line[0][0].get("parent")) and Path(parent["path"]).is_file():
        line.insert(0, (load_checkpoint(Path(parent["path"])).provenance, Path(parent["path"])))
    rows: dict[str, Path] = {}
    for provenance, place in line:
        stage = provenance.get("stage", "train")
        sparsity = provenance.get("recipe", {}).get("sparsity", 0)
        name = "Sparse" if stage == "train" and rows and sparsity != 0 else ROW_NAMES.get(stage, stage)
        rows[name if name not in rows else f"{name} {len(rows) + 1}"] = place
    return rows


def name_rows(paths: list[Path]) -> dict[str, Path]:
    """Return checkpoints keyed by row name. A name is made of run folder and file, so that names are unique."""
    rows: dict[str, Path] = {}
    for path in paths:
        name = str(Path(path.parent.name, path.stem)) if path.parent.name else path.stem
        rows[name if name not in rows else str(path)] = path
    return rows


def choose_rows(arguments: Sequence[Path] | None) -> dict[str, Path]:
    """Return the checkpoints to bench, keyed by row name: the given ones, or one with its ancestors.

    One that is read from stdin (`-`), or the newest without any, brings its ancestors.

    Raises:
        ConfigError: there is none.
        CheckpointError: a file cannot be read.
    """
    paths = resolve_checkpoints(arguments)
    return find_lineage(paths[0]) if not arguments or list(arguments) == [Path("-")] else name_rows(paths)


def describe_weights(checkpoint: Checkpoint) -> str:
    """Return the end of a log line: the weights used of an unfinished run's last.pt, and its epoch; else ''."""
    training = checkpoint.training
    if AVERAGE not in training or training.get("is_done", True):
        return ""
    epochs = checkpoint.provenance.get("recipe", {}).get("epochs", "?")
    return f", with the averaged weights after epoch {training.get('epoch', '?')} of {epochs}"


@torch.inference_mode()
def bench(checkpoints: Mapping[str, Path], config: BenchConfig, folder: Path | None = None) -> BenchResult:
    """Measure cost, speed and score of checkpoints, keyed by row name. With `folder`, write bench.json and bench.md.

    Raises:
        ConfigError, CheckpointError, DatasetError: an input is invalid.
    """
    device = make_device(config.device)
    loaded = {name: load_for_scoring(path, config) for name, path in checkpoints.items()}
    if not loaded:
        raise ConfigError("no checkpoint to bench", where="CHECKPOINT", right="name at least one")
    trained = [
        checkpoint.provenance for checkpoint in loaded.values() if checkpoint.provenance.get("data")
    ]  # not imported
    spec = load_data_of(config.data, trained[0] if trained else {}, "--no-score") if config.score else None
    split = None if spec is None else choose_split(spec, config.split)
    engines = [
        make_engine(checkpoint.make_model().eval(), config.engine, device, config.precision)
        for checkpoint in loaded.values()
    ]
    scores = dict.fromkeys(loaded) if spec is None or split is None else _score(loaded, spec, split, config, device)
    precision = choose_precision(config.engine, config.precision, device)
    with timing_threads(config.threads), computing_in(precision):
        latencies = _time(loaded, engines, config, device)
        environment = {
            **describe_environment(device, config.engine, precision),
            "batch_size": config.batch_size,
            "runs": config.runs,
            "warmup": config.warmup,
        }
    result = BenchResult(_make_rows(checkpoints, loaded, scores, latencies, config), environment, split)
    if folder is not None:
        save_json(folder / "bench.json", result.as_dict())
        save_text(folder / "bench.md", result.format(markdown=True) + "\n")
    return result


def load_for_scoring(path: Path, config: EvaluateConfig | BenchConfig) -> Checkpoint:
    """Load a checkpoint, with the input size and the class names that settings give it.

    Raises:
        CheckpointError, CfgError, ConfigError: the file or a setting is invalid.
    """
    checkpoint = load_checkpoint(path).with_img_size(config.img_size)
    return replace(checkpoint, names=rename(checkpoint.names, config.class_map))


def _make_rows(
    checkpoints: Mapping[str, Path],
    loaded: Mapping[str, Checkpoint],
    scores: Mapping[str, Evaluation | None],
    latencies: Sequence[tuple[Any, Any]],
    config: BenchConfig,
) -> tuple[Row, ...]:
    first = next(iter(scores.values()))
    rows = []
    for (name, checkpoint), (network_ms, nms_ms) in zip(loaded.items(), latencies, strict=True):
        cost, score = measure_cost(checkpoint.network), scores[name]
        rows.append(
            Row(
                name=name,
                checkpoint=str(checkpoints[name]),
                img_size=cost.img_size.plain,
                **cost.as_dict(),
                latency_ms=network_ms,
                nms_ms=nms_ms,
                scores=None if score is None else _summarise(score, first),
                file_bytes=checkpoints[name].stat().st_size,
                is_stored_sparse=is_stored_packed(checkpoint),
            )
        )
    return tuple(rows)


def _summarise(score: Evaluation, first: Evaluation | None) -> Scores:
    difference = None if first is None or score is first else paired_difference(first.matches, score.matches)
    return Scores(score.score.map50, score.map50_interval, difference, score.coco_ap50, score.coco_ap)


def _score(
    loaded: Mapping[str, Checkpoint], spec: DataSpec, split: str, config: BenchConfig, device: torch.device
) -> dict[str, Evaluation | None]:
    samples = spec.samples(split)
    scores: dict[str, Evaluation | None] = {}
    for name, checkpoint in loaded.items():
        report(f"scoring {name} on the {split} split: {len(samples)} images{describe_weights(checkpoint)}")
        scores[name] = evaluate(checkpoint, samples, spec.names, device=device)
    return scores


def _time(
    loaded: Mapping[str, Checkpoint], engines: Sequence[Engine], config: BenchConfig, device: torch.device
) -> list[tuple[Any, Any]]:
    """Return each checkpoint's latency: of the network with decoding, and of NMS alone."""
    network_calls, suppression_calls = [], []
    for checkpoint, engine in zip(loaded.values(), engines, strict=True):
        images = draw_inputs(checkpoint.network, config.batch_size)
        images = images.to(device, memory_format=torch.channels_last)
        network_calls.append(make_network_call(engine, images))
        suppression_calls.append(make_suppression_call(engine, images, DetectConfig()))
    report(f"timing {len(network_calls)} checkpoints, {config.runs} interleaved runs each")
    times = measure_latencies(network_calls + suppression_calls, runs=config.runs, warmup=config.warmup, device=device)
    return list(zip(times[: len(loaded)], times[len(loaded) :], strict=True))
