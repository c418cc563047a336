"""Export checkpoints in every format and precision that is installed, and print what each file gives: parity, size, time, AP50.

    python benchmarks/deploy.py ORIGINAL.pt [PRUNED.pt …] --data hands/data.yaml --out files --threads 1,2

Latency is timed interleaved in one run, for each number of threads, and shown as a share of the original's in PyTorch as it was
trained (eager). AP50 of each file is compared with that of its own checkpoint, with the paired bootstrap interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from yolo_prune.commands.bench import bench
from yolo_prune.commands.export import ExportResult, export
from yolo_prune.commands.measure_config import BenchConfig
from yolo_prune.console import report
from yolo_prune.errors import YoloPruneError
from yolo_prune.export.config import ExportConfig
from yolo_prune.export.formats import FORMATS, measure_bytes

PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "ncnn": ("ncnn", "pnnx"),
    "litert": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    "executorch": ("executorch",),
    "pt2": ("torch",),
    "coreml": ("coremltools",),
}
"""What each format needs, whose versions are printed."""


@dataclass(frozen=True)
class Export:
    """A file made from a checkpoint."""

    source: Path
    format: str
    precision: str
    result: ExportResult

    @property
    def path(self) -> Path:
        """The file."""
        return self.result.files[self.format]


def export_all(sources: Sequence[Path], formats: Sequence[str], data: Path, out: Path) -> list[Export]:
    """Export each checkpoint in every precision of the formats; what cannot be made is reported."""
    made = []
    for source in sources:
        for precision in ("fp32", "fp16", "int8"):
            wanted = tuple(format for format in formats if precision in FORMATS[format].precisions)
            try:
                result = _export(source, wanted, precision, data, out) if wanted else ExportResult({})
                made += [Export(source, format, precision, result) for format in wanted]
            except YoloPruneError as error:
                report(f"{source.stem}, {precision}, with the others: {error}")
                made += _export_each(source, wanted, precision, data, out)
    return made


def _export(source: Path, formats: Sequence[str], precision: str, data: Path, out: Path) -> ExportResult:
    config = ExportConfig(
        format=tuple(formats),
        out=out / f"{source.stem}-{precision}",
        precision=precision,  # type: ignore[arg-type]  # one of three
        data=data,
        verify_map=True,
        card=False,
    )
    return export(source, config)


def _export_each(source: Path, formats: Sequence[str], precision: str, data: Path, out: Path) -> list[Export]:
    made = []
    for format in formats:
        try:
            made.append(Export(source, format, precision, _export(source, [format], precision, data, out)))
        except YoloPruneError as error:
            report(f"{source.stem}, {format}, {precision}: {error}")
    return made


def time_all(
    sources: Sequence[Path], made: Sequence[Export], threads: Sequence[int], runs: int
) -> dict[int, dict[str, float]]:
    """Return by threads the median milliseconds of each file, and of each checkpoint as `PATH eager` and `PATH folded`."""
    run_here = [one.path for one in made if FORMATS[one.format].is_run_here]
    rows = {str(path): path for path in (*sources, *run_here)}
    config = BenchConfig(engine=("eager", "folded"), score=False, device="cpu", runs=runs, threads=tuple(threads))
    result = bench(rows, config)
    times: dict[int, dict[str, float]] = {number: {} for number in threads}
    for row in result.rows:
        is_file = row.checkpoint not in map(str, sources)
        assert row.threads is not None
        times[row.threads][row.checkpoint if is_file else f"{row.checkpoint} {row.engine}"] = row.latency_ms.p50
    return times


def format_table(sources: Sequence[Path], made: Sequence[Export], times: dict[int, dict[str, float]]) -> list[str]:
    """Return the lines of the table in Markdown."""
    shares = [f"time, {threads} thread{'s' if threads > 1 else ''}" for threads in times]
    lines = [
        "| network | format | precision | largest difference: scores, boxes | size | "
        + " | ".join(shares)
        + " | AP50 against its checkpoint |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(shares) + " --- |",
    ]
    first = f"{sources[0]} eager"
    for source in sources:
        for engine in ("eager", "folded"):
            cells = [_format_time(of, f"{source} {engine}", first) for of in times.values()]
            size = f"{source.stat().st_size / 1e6:.2f} MB" if engine == "eager" else ""
            lines.append(f"| {source.stem} | checkpoint | {engine} | | {size} | {' | '.join(cells)} | |")
        for one in (each for each in made if each.source == source):
            cells = [_format_time(of, str(one.path), first) for of in times.values()]
            lines.append(
                f"| {source.stem} | {one.format} | {one.precision} | {_format_parity(one)} | {measure_bytes(one.path) / 1e6:.2f} MB | "
                f"{' | '.join(cells)} | {_format_score(one)} |"
            )
    return lines


def _format_time(times: dict[str, float], name: str, first: str) -> str:
    if name not in times:
        return "not run"
    return f"{times[name]:.2f} ms, {times[name] / times[first]:.3f} ×"


def _format_parity(one: Export) -> str:
    parity = one.result.parity.get(one.format)
    if parity is None:
        return "not run"
    if one.precision == "int8":
        return f"{parity.mean_score:.1e}, {parity.mean_box:.1e} on average"
    return f"{parity.score:.1e}, {parity.box:.1e}"


def _format_score(one: Export) -> str:
    score = one.result.scores.get(one.format)
    if score is None:
        return "not run"
    value, low, high = score.difference
    return f"{value:+.4f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """Export, score and time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="the original first")
    parser.add_argument("--data", type=Path, required=True, help="a data.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"), help="folder for the files")
    parser.add_argument("--formats", default="onnx,openvino,ncnn,litert,executorch,pt2,coreml")
    parser.add_argument("--threads", default="1", help="numbers of threads to time with: 1,2")
    parser.add_argument("--runs", type=int, default=60, help="timed calls of each row")
    given = parser.parse_args()
    formats = given.formats.split(",")
    made = export_all(given.checkpoints, formats, given.data, given.out)
    times = time_all(given.checkpoints, made, [int(number) for number in given.threads.split(",")], given.runs)
    print("\n".join(format_table(given.checkpoints, made, times)))
    used = {one.format for one in made}
    versions = [
        f"{name} {version(name)}" for format in formats if format in used for name in PACKAGES[format] if _has(name)
    ]
    print("\n" + ", ".join(dict.fromkeys(versions)))


def _has(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
