"""What lies beside exported files: a model card, and an example for each that runs in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolo_prune.engines.exported.metadata import INPUT, Metadata
from yolo_prune.export.example import has_example, make_example_program
from yolo_prune.export.formats import FORMATS, measure_bytes
from yolo_prune.files import save_text


def write_card(stem: Path, files: Mapping[str, Path], facts: Mapping[str, Metadata]) -> Path | None:
    """Write a model card, STEM.md, and an example for each file that runs in Python; return the card's path.

    Args:
        stem: path of the files without what ends their names.
        files: the files by format.
        facts: what each file says of itself, by format. Without any nothing is written, and None is returned.

    Raises:
        OutputError: a file cannot be written.
    """
    if not facts:
        return None
    programs = {name: f"{stem.name}_{name}.py" for name in facts if has_example(name)}
    for name, program in programs.items():
        save_text(stem.with_name(program), make_example_program(name, files[name].name, program, facts[name]))
    return save_text(stem.with_name(f"{stem.name}.md"), _format_card(stem, files, facts, programs))


def _format_card(
    stem: Path, files: Mapping[str, Path], facts: Mapping[str, Metadata], programs: Mapping[str, str]
) -> str:
    first = next(iter(facts.values()))
    rows = [
        f"| {files[name].name} | {FORMATS[name].runs_in} | {fact.precision} | {measure_bytes(files[name]) / 1e6:.2f} MB | "
        f"{programs.get(name, '–')} |"
        for name, fact in facts.items()
    ]
    changes = {
        "none": "fixed",
        "batch": "of any number of images",
        "size": "of any number of images, and of any sides that are multiples of 32 px",
    }
    data = f"; data set {first.data_fingerprint}" if first.data_fingerprint else ""
    return "\n".join(
        [
            f"# {stem.name}",
            "",
            f"An object detector for {', '.join(first.names)}: {first.params:,} params, {first.macs / 1e9:.3f} G MACs at {first.img_size} px.",
            "",
            "| file | runs in | precision | size | example |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"- Input: {INPUT} Its size is {first.img_size} px, {changes[first.dynamic]}.",
            f"- Output: {first.outputs}",
            f"- Classes: {', '.join(f'{number} {name}' for number, name in enumerate(first.names))}.",
            f"- Made from the checkpoint with SHA-256 {first.checkpoint_sha256}{f', by {first.stage}' if first.stage else ''}{data}, by yolo_prune {first.version}.",
            "",
        ]
    )
