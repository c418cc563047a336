"""The table of the case study: one row per model, with each later row's change relative to the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from yolo_prune.benchmarking.latency import Latency
from yolo_prune.evaluation.classes.scores import ClassScore, parse_class_scores
from yolo_prune.image_size import read_size
from yolo_prune.text_tables import format_count, format_table

IS_RUINED = "is_ruined"
"""The key in JSON output that marks the row of a ruined network; see `find_ruined`."""


@dataclass(frozen=True)
class Scores:
    """How well a model detects. Intervals are bootstrap intervals over images."""

    map50: float
    map50_interval: tuple[float, float]
    map50_difference: tuple[float, float, float] | None
    """The difference from the first row, and the ends of its paired bootstrap interval."""
    coco_ap50: float
    coco_ap: float
    classes: tuple[ClassScore, ...] = ()
    """One per class; empty in results of older versions."""


@dataclass(frozen=True)
class Row:
    """One model's figures; `scores` is None if none were measured."""

    name: str
    checkpoint: str
    img_size: int | str
    """The side of a square input, or WIDTHxHEIGHT."""
    params: int
    macs: int
    flops: int
    size_bytes: int
    latency_ms: Latency
    nms_ms: Latency
    scores: Scores | None
    engine: str = ""
    """What ran it; empty in results of older versions."""
    file_bytes: int | None = None
    """Size of the checkpoint on disk; None in results of older versions, which did not measure it."""
    is_stored_sparse: bool = False
    """Whether the file stores zeros as single bits."""
    precision: str = ""
    """In what it computed; empty in results of older versions."""
    batch_size: int = 1
    """Images of a timed call."""
    threads: int | None = None
    """CPU threads; None in results of older versions."""
    decode_ms: Latency | None = None
    """Of decoding alone; None where it is inside the engine, and in results of older versions."""
    memory_bytes: int | None = None
    """On CUDA the peak that was measured; on the CPU what weights and outputs that are alive at once take."""
    bound: str | None = None
    """What bounds the network most, and the share of its time that this would take at the device's best rate."""

    @property
    def image_ms(self) -> float:
        """Milliseconds for each image of a call, at the median."""
        return self.latency_ms.p50 / self.batch_size

    @property
    def images_per_s(self) -> float:
        """Images per second, at the median."""
        return 1e3 / self.image_ms

    def as_dict(self) -> dict[str, Any]:
        """Return the row under the names that JSON output uses, with the scores at the same level."""
        row = asdict(self)
        scores = row.pop("scores")
        return {**row, **(scores or {field.name: None for field in fields(Scores)})}


def parse_row(values: Mapping[str, Any]) -> Row:
    """Make a row from the dictionary of `as_dict`, read from JSON; raise KeyError or TypeError if it is not one."""
    values = {key: value for key, value in values.items() if key != IS_RUINED}  # computed from the scores
    classes = parse_class_scores(values.pop("classes", None) or ())
    scores = {field.name: values.pop(field.name) for field in fields(Scores) if field.name != "classes"}
    for name in ("latency_ms", "nms_ms", "decode_ms"):
        values[name] = Latency(**values[name]) if values.get(name) is not None else None
    if scores["map50_interval"] is None:
        return Row(**values, scores=None)
    for name, value in scores.items():
        if isinstance(value, list | tuple):
            scores[name] = tuple(math.nan if item is None else item for item in value)
        elif value is None and name != "map50_difference":
            scores[name] = math.nan
    return Row(**values, scores=Scores(**scores, classes=classes))


RUINED_SHARE = 0.1
"""A network is ruined if its AP50 is less than this share of the first row's."""
RUINED_MARK = "†"
"""Marks the mAP of a ruined network in the table."""


def find_ruined(rows: Sequence[Row]) -> list[bool]:
    """Return for each row whether its network is ruined: its AP50 is under a tenth of the first row's."""
    scores = [math.nan if row.scores is None else row.scores.map50 for row in rows]
    return [score < RUINED_SHARE * scores[0] for score in scores]


def explain_ruined(rows: Sequence[Row]) -> str | None:
    """Return a line that names the ruined networks and what would help, or None if there are none."""
    names = [row.name for row, is_ruined in zip(rows, find_ruined(rows), strict=True) if is_ruined]
    if not names:
        return None
    what = "as it stands the network is" if len(names) == 1 else "as they stand the networks are"
    return f"{', '.join(names)}: mAP is under a tenth of the first row's, {what} ruined; prune less, or finetune longer"


CONDITIONS: Mapping[str, Callable[[Row], str]] = {
    "engine": lambda row: row.engine,
    "precision": lambda row: row.precision,
    "batch": lambda row: str(row.batch_size),
    "threads": lambda row: str(row.threads),
}
"""Columns next to the name, each where rows differ in it."""
HEADINGS = ("model", "params", "size", "FLOPs (MACs)", "inference", "mAP")
TIME_HEADING, IMAGE_HEADING = "inference", "inference/image"
"""The heading of milliseconds per call, and per image where batch sizes differ."""
FILE_HEADING = "file"
"""Heading of the column next to the size, if some file stores zeros as single bits."""


def format_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the table's cells, with the headings first."""
    is_varied = len({row.batch_size for row in rows}) > 1
    headings = tuple(IMAGE_HEADING if is_varied and name == TIME_HEADING else name for name in HEADINGS)
    cells = [headings, *(_format_row(row, rows[0] if number else None, is_varied) for number, row in enumerate(rows))]
    cells[1:] = [
        (*line[:-1], f"{line[-1]} {RUINED_MARK}") if is_ruined else line
        for line, is_ruined in zip(cells[1:], find_ruined(rows), strict=True)
    ]
    cells = add_conditions(cells, rows)
    if not has_sparse_files(rows):
        return cells
    place = cells[0].index("size") + 1
    files = [FILE_HEADING, *(_format_file(row, rows[0] if number else None) for number, row in enumerate(rows))]
    return [(*line[:place], file, *line[place:]) for line, file in zip(cells, files, strict=True)]


def add_conditions(
    cells: Sequence[tuple[str, ...]], rows: Sequence[Row], always: Collection[str] = ()
) -> list[tuple[str, ...]]:
    """Return cells, the headings first, with the columns in which rows differ next to the name, and those of `always`."""
    shown = [name for name, get in CONDITIONS.items() if name in always or len(set(map(get, rows))) > 1]
    columns = [shown, *([CONDITIONS[name](row) or "–" for name in shown] for row in rows)]
    return [(line[0], *more, *line[1:]) for line, more in zip(cells, columns, strict=True)]


def has_sparse_files(rows: Sequence[Row]) -> bool:
    """Return whether the table has a column of file sizes."""
    return any(row.is_stored_sparse for row in rows)


def _format_file(row: Row, first: Row | None) -> str:
    if row.file_bytes is None:
        return "–"
    text = f"{row.file_bytes / 1e6:.1f}MB"
    return f"{text} ({row.file_bytes / first.file_bytes - 1:+.0%})" if first is not None and first.file_bytes else text


def _format_row(row: Row, first: Row | None, is_per_image: bool) -> tuple[str, ...]:
    texts: tuple[str, ...] = (
        format_count(row.params),
        f"{row.size_bytes / 1e6:.1f}MB",
        format_count(row.macs),
        f"{row.image_ms if is_per_image else row.latency_ms.p50:.1f}ms",
    )
    if first is not None:
        changes = (now / before - 1 for now, before in zip(_list_costs(row), _list_costs(first), strict=True))
        texts = tuple(f"{text} ({change:+.0%})" for text, change in zip(texts, changes, strict=True))
    return (row.name, *texts, _format_score(row))


def _list_costs(row: Row) -> tuple[float, ...]:
    return row.params, row.size_bytes, row.macs, row.image_ms


def _format_score(row: Row) -> str:
    if row.scores is None:
        return "–"
    if math.isnan(row.scores.map50):
        return "no ground truth"
    low, high = row.scores.map50_interval
    text = f"{row.scores.map50:.4f} [{low:.3f}, {high:.3f}]"
    if row.scores.map50_difference is not None:
        text += " ({:+.4f} [{:+.3f}, {:+.3f}])".format(*row.scores.map50_difference)
    return text


def format_text(rows: Sequence[Row]) -> str:
    """Return the table as text columns for a terminal."""
    return format_table(format_rows(rows))


def format_markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    return format_cells_markdown(format_rows(rows))


def format_cells_markdown(cells: Sequence[tuple[str, ...]]) -> str:
    """Return cells, the headings first, in Markdown."""
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, "|" + " --- |" * len(cells[0]), *body])


def format_conditions(environment: dict[str, Any], rows: Sequence[Row], split: str | None) -> str:
    """Return a few lines that state the conditions of the measurement."""
    sizes = sorted({read_size(row.img_size) for row in rows})
    lines = [
        f"Inference: network with decoding, batch {_join(environment['batch_size'])}, {environment['precision']}, {environment['engine']} engine, "
        f"{' and '.join(map(str, sizes))} px, median of {environment['runs']} interleaved runs on {environment['device']} "
        f"({_join_threads(environment['threads'])}{', CPU time' if environment.get('clock') == 'cpu' else ''}); NMS apart, median "
        + ", ".join(f"{row.nms_ms.p50:.2f}" for row in rows)
        + f" ms per image on {environment.get('nms_on', 'noise')}.",
        "Memory is the measured peak on CUDA, and on the CPU what weights and the outputs that are alive at once take. Bound by: the highest of "
        "multiply–accumulates, bytes and launches over the device's best rates, measured in the same run, and its share of the time.",
        "FLOPs are multiply–accumulates of the convolutions; size is fp32 weights with BN statistics.",
    ]
    if has_sparse_files(rows):
        lines.append("File is the checkpoint on disk, where zeros of pruned weights are stored as single bits.")
    if split is not None:
        lines.append(
            f"mAP: AP at IoU 0.5, all points, on the {split} split; in brackets 95 % bootstrap intervals over images, of the value and of the paired difference to the first row."
        )
    return "\n".join(lines)


def _join_threads(value: Any) -> str:
    return f"{_join(value)} {'thread' if value in (1, [1]) else 'threads'}"


def _join(value: Any) -> str:
    """Return a number, or several, in words; older results hold one number."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
