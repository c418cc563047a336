"""One page of all stages."""

from __future__ import annotations

import importlib
from typing import Any

from gpu.stages import STAGES

NOTE_OF_CPU = "**This is a rehearsal on a CPU: no figure below was measured on a GPU.**"


def format_summary(summary: dict[str, Any]) -> str:
    """Return the summary in Markdown: the device, how the stages ended, and what each found."""
    found, settings = summary["environment"], summary["settings"]
    lines = ["# Measured on a GPU", ""]
    if settings["device"] == "cpu":
        lines += [NOTE_OF_CPU, ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {format_value(value)} |" for name, value in found.items()]
    lines += ["", "| stage | how it ended | seconds | of at most |", "| --- | --- | ---: | ---: |"]
    for stage in summary["stages"]:
        said = f"{stage['state']}: {stage['reason']}" if stage["reason"] else stage["state"]
        lines.append(
            f"| {stage['stage']} | {said.replace('|', '/')} | {stage['seconds']:.0f} | {stage['limit_s']:.0f} |"
        )
    for stage in summary["stages"]:
        lines += ["", f"## {stage['stage']}", "", format_stage(stage)]
    return "\n".join(lines) + "\n"


def format_stage(stage: dict[str, Any]) -> str:
    """Return a stage's figures, those of a stage that did not end well too."""
    if not stage["results"]:
        return "No figure."
    try:
        return str(importlib.import_module(STAGES[stage["stage"]].module).format_results(stage["results"]))
    except (KeyError, ImportError, IndexError) as error:
        return f"summary.json holds what there is ({type(error).__name__}: {error})."


def format_value(value: Any) -> str:
    """Return a value for a table's cell."""
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
