"""`bench`: the table of the case study, for any checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from yolo_prune.benchmarking.bench_file import load_rows
from yolo_prune.benchmarking.ceilings import Ceilings, count_peak_bytes, explain_bound, measure_ceilings
from yolo_prune.benchmarking.class_table import format_classes
from yolo_prune.benchmarking.details import format_csv, format_details
from yolo_prune.benchmarking.latency import (
    choose_clock,
    describe_environment,
    timing_threads,
)
from yolo_prune.benchmarking.table import (
    IS_RUINED,
    RUINED_MARK,
    Row,
    Scores,
    explain_ruined,
    find_ruined,
    format_cells_markdown,
    format_conditions,
    format_markdown,
    format_text,
)
from yolo_prune.commands.bench_rows import (
    Entry,
    Times,
    list_entries,
    pick_images,
    prepare_engine,
    time_rows,
)
from yolo_prune.commands.data import choose_split, load_data_of
from yolo_prune.commands.lineage import find_parent
from yolo_prune.commands.measure_config import BenchConfig, EvaluateConfig, MeasurementConfig
from yolo_prune.commands.reporting.evidence import Evidence, score_models
from yolo_prune.commands.reporting.gather import Measured, save_report
from yolo_prune.commands.run_folders import resolve_checkpoints
from yolo_prune.console import warn
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.class_names import rename
from yolo_prune.engines.exported.model import is_exported
from yolo_prune.engines.precision import computing_in
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.classes.scores import measure_class_scores
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.evaluate import Evaluation
from yolo_prune.evaluation.models import Model, load_model
from yolo_prune.export.formats import measure_bytes
from yolo_prune.files import save_json, save_text
from yolo_prune.model.checkpoint import Checkpoint, is_stored_packed, load_checkpoint
from yolo_prune.model.device import make_device
from yolo_prune.own_files import check_own
from yolo_prune.scraps import make_temporary_folder
from yolo_prune.text_tables import format_table, wrap

ROW_NAMES = {
    "train": "Original",
    "import": "Original",
    "sparse": "Sparse",
    "prune": "Pruned",
    "finetune": "Finetuned",
    "iterate": "Iterated",
}


@dataclass(frozen=True)
class BenchResult:
    """The table, and the conditions under which it was measured."""

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    split: str | None
    form: str = "text"
    """What stdout is: text, markdown or csv."""
    all_classes: bool = False
    """Whether `format` shows every class of many."""
    evidence: Evidence | None = field(default=None, repr=False, compare=False)
    """What the scores were measured from, for a page; None without scores, and if the result was read from a file."""

    def as_measured(self) -> Measured:
        """Return what a page is made from."""
        return Measured(self.rows, self.environment, self.split, self.evidence)

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
        return format_csv(self.rows) if self.form == "csv" else self.format(self.form == "markdown")

    def format(self, markdown: bool = False) -> str:
        """Return the table and its conditions as text for a terminal, or in Markdown."""
        table = format_markdown(self.rows) if markdown else format_text(self.rows)
        details = format_details(self.rows)
        more = format_cells_markdown(details) if markdown else format_table(details, can_turn=True)
        advice, conditions = explain_ruined(self.rows), format_conditions(self.environment, self.rows, self.split)
        scored = {row.name: row.scores.classes for row in self.rows if row.scores is not None}
        classes = format_classes(scored, all_classes=self.all_classes, markdown=markdown) if scored else ""
        notes = [f"{RUINED_MARK} {advice}." if advice else "", conditions]
        parts = [table, *(notes if markdown else map(wrap, notes)), more, classes]
        return "\n\n".join(part for part in parts if part)


def load_bench(path: Path) -> BenchResult:
    """Read a result that `bench` wrote.

    Raises:
        OutputError: the file cannot be read, or a key is missing or wrong; names it.
    """
    return BenchResult(*load_rows(path))


def find_lineage(path: Path) -> dict[str, Path]:
    """Return a checkpoint and its ancestors that are still on disk, the oldest first, keyed by row name.

    A run between the original and the pruned network is the one with γ sparsity. What lies at an ancestor's path, but
    is another file by its SHA-256, is left out with a warning.
    """
    line = [(load_checkpoint(path), path)]
    while (parent := find_parent(line[0][0])) is not None:
        if parent.path is None:
            if (recorded := Path(line[0][0].provenance["parent"]["path"])).is_file():
                warn(f"{line[0][1]}: {recorded}, which it comes from, has changed since: it is left out")
            break
        line.insert(0, (load_checkpoint(parent.path), parent.path))
    rows: dict[str, Path] = {}
    for checkpoint, place in line:
        provenance = checkpoint.provenance
        stage = provenance.get("stage", "train")
        sparsity = provenance.get("recipe", {}).get("sparsity", 0)
        name = "Sparse" if stage == "train" and rows and sparsity != 0 else ROW_NAMES.get(stage, stage)
        rows[_find_free(name, rows)] = place
    return rows


def _find_free(name: str, rows: Mapping[str, Path]) -> str:
    """Return the name, with a number from 2 on if a row has it."""
    names = (name, *(f"{name} {number}" for number in range(2, len(rows) + 2)))
    return next(free for free in names if free not in rows)


def name_rows(paths: Sequence[Path]) -> dict[str, Path]:
    """Return paths keyed by row name: folder and file, and as many folders above as tell them all apart.

    A path that is given again gets a number.
    """
    distinct = set(paths)
    deepest = max((len(path.parts) for path in distinct), default=0)
    depth = next((depth for depth in range(2, deepest) if len({_name_row(path, depth) for path in distinct}) == len(distinct)), deepest)  # fmt: skip
    rows: dict[str, Path] = {}
    for path in paths:
        rows[_find_free(_name_row(path, depth), rows)] = path
    return rows


def _name_row(path: Path, depth: int) -> str:
    return str(Path(*path.with_suffix("").parts[-depth:]))


def choose_rows(arguments: Sequence[Path] | None, has_lineage: bool = False) -> dict[str, Path]:
    """Return the checkpoints to bench, keyed by row name: the given ones, or one with its ancestors.

    One that is read from stdin (`-`), or the newest without any, brings its ancestors; with `has_lineage` each does.

    Raises:
        ConfigError: there is none.
        CheckpointError: a file cannot be read.
    """
    paths = resolve_checkpoints(arguments)
    if not arguments or list(arguments) == [Path("-")]:
        return find_lineage(paths[0])
    if not has_lineage:
        return name_rows(paths)
    lines = [find_lineage(path).values() if not is_exported(path) else [path] for path in paths]
    return name_rows(list(dict.fromkeys(path for line in lines for path in line)))


def bench(
    checkpoints: Mapping[str, Path], config: BenchConfig, out: Path | None = None, title: str = ""
) -> BenchResult:
    """Measure checkpoints and exported files as `measure` does. With `out`, write bench.json and bench.md.

    Args:
        title: of the page, where the settings name one.

    Raises:
        ConfigError, CheckpointError, DatasetError: an input is invalid.
        OutputError: a file cannot be written.
    """
    if config.report is not None:
        check_own([config.report], force=config.force, inputs=checkpoints.values(), option="--report")
    result = replace(measure(checkpoints, config), all_classes=config.all_classes)
    if out is not None:
        save_json(out / "bench.json", result.as_dict())
        save_text(out / "bench.md", result.format(markdown=True) + "\n")
    if config.report is not None:
        save_report(config.report, result.as_measured(), make_device(config.device), title=title)
    return result


@torch.inference_mode()
def measure(checkpoints: Mapping[str, Path], config: MeasurementConfig) -> BenchResult:
    """Measure cost, speed and score of checkpoints and exported files, keyed by row name.

    Each checkpoint is timed in every engine of the settings, an exported file in its own.

    Raises:
        ConfigError, CheckpointError, DatasetError: an input is invalid.
    """
    device = make_device(config.device)
    loaded = {name: load_for_scoring(path, config) for name, path in checkpoints.items()}
    if not loaded:
        raise ConfigError("no checkpoint to bench", where="CHECKPOINT", right="name at least one")
    trained = [model.provenance for model in loaded.values() if model.provenance.get("data")]  # not imported
    spec = load_data_of(config.data, trained[0] if trained else {}, "--no-score") if config.score else None
    split = None if spec is None else choose_split(spec, config.split)
    entries = list_entries(checkpoints, loaded, config, device)
    with make_temporary_folder() as folder:
        # What cannot be made is an error before anything is scored. Exported files are loaded with the threads of the timing.
        makers = [prepare_engine(entry, device, folder / str(number)) for number, entry in enumerate(entries)]
        evidence = (
            None
            if spec is None or split is None
            else score_models(loaded, spec, split, device, DetectConfig(agnostic_nms=config.agnostic_nms))
        )
        images = pick_images(entries, spec, split)
        with timing_threads(max(config.threads, default=None)), computing_in(entries[0].precision):
            entries = [replace(entry, threads=entry.threads or torch.get_num_threads()) for entry in entries]
            clock = choose_clock(config.clock, device, torch.get_num_threads())
            times = time_rows(entries, makers, images, config, device, clock)
            ceilings = _measure_ceilings(entries, device)
            environment = {
                **describe_environment(
                    device, _join(entry.engine for entry in entries), _join(entry.precision for entry in entries)
                ),
                "threads": list(ceilings),
                "batch_size": list(config.batch_size),
                "runs": config.runs,
                "warmup": config.warmup,
                "clock": clock,
                "nms_on": "noise" if spec is None else f"images of the {split} split",
                "ceilings": [asdict(one) for one in ceilings.values()],
            }
    scores = {} if evidence is None else evidence.evaluations
    names = () if spec is None else spec.names
    rows = _make_rows(entries, scores, names, times, ceilings)
    return BenchResult(rows, environment, split, evidence=evidence)


def load_for_scoring(path: Path, config: EvaluateConfig | MeasurementConfig) -> Model:
    """Load a checkpoint or an exported file, with the input size and the class names that settings give it.

    Raises:
        CheckpointError, CfgError, ConfigError: the file or a setting is invalid.
    """
    model = load_model(path).with_img_size(config.img_size)
    return model.with_names(rename(model.names, config.class_map))


def _join(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _measure_ceilings(entries: Sequence[Entry], device: torch.device) -> dict[int | None, Ceilings]:
    """Return the ceilings by the number of threads."""
    ceilings = {}
    for entry in {entry.threads: entry for entry in entries}.values():
        with entry.running():
            ceilings[entry.threads] = measure_ceilings(device)
    return ceilings


def _make_rows(
    entries: Sequence[Entry],
    scores: Mapping[str, Evaluation],
    names: Sequence[str],
    times: Sequence[Times],
    ceilings: Mapping[int | None, Ceilings],
) -> tuple[Row, ...]:
    first = next(iter(scores.values()), None)
    rows = []
    for entry, time in zip(entries, times, strict=True):
        score = scores.get(entry.name)
        costs = _get_costs(entry.model)
        network = entry.model.network if isinstance(entry.model, Checkpoint) else None
        memory = (
            time.memory_bytes if network is None or time.memory_bytes else count_peak_bytes(network, entry.batch_size)
        )
        rows.append(
            Row(
                name=entry.name,
                engine=entry.engine,
                checkpoint=str(entry.path),
                img_size=entry.model.img_size.plain,
                **costs,
                latency_ms=time.network,
                nms_ms=time.nms,
                scores=None if score is None else _summarise(score, first, names),
                file_bytes=measure_bytes(entry.path),
                is_stored_sparse=isinstance(entry.model, Checkpoint) and is_stored_packed(entry.model),
                precision=entry.precision,
                batch_size=entry.batch_size,
                threads=entry.threads,
                decode_ms=time.decoding,
                memory_bytes=memory,
                bound=None
                if network is None
                else explain_bound(network, costs["macs"], entry.batch_size, time.network.p50, ceilings[entry.threads]),
            )
        )
    return tuple(rows)


def _get_costs(model: Model) -> dict[str, int]:
    if isinstance(model, Checkpoint):
        return measure_cost(model.network).as_dict()
    facts = model.metadata
    return {"params": facts.params, "macs": facts.macs, "flops": 2 * facts.macs, "size_bytes": facts.size_bytes}


def _summarise(score: Evaluation, first: Evaluation | None, names: Sequence[str]) -> Scores:
    difference = None if first is None or score is first else paired_difference(first.matches, score.matches)
    classes = measure_class_scores(score.matches, score.score, names)
    return Scores(score.score.map50, score.map50_interval, difference, score.coco_ap50, score.coco_ap, classes)
