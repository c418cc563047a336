"""The page: everything of a report as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from yolo_prune.benchmarking.table import explain_ruined, format_conditions
from yolo_prune.report.data import Report
from yolo_prune.report.layer_plots import make_groups_table, make_times, make_widths
from yolo_prune.report.plots import make_frontier, make_precision_recall
from yolo_prune.report.summary import describe_models, judge, list_figures
from yolo_prune.report.tables import make_class_table, make_details_table, make_errors_table, make_results_table
from yolo_prune.report.training_plots import make_gamma_plots, make_training_plots
from yolo_prune.report.vega import CONFIG, Plot, load_bundle, pick_colours

TEMPLATES = "templates"


def render(report: Report) -> str:
    """Return the page as HTML text.

    Text of users is escaped, and the browser is told to run no scripts but the page's own, by their SHA-256, and to load
    nothing.
    """
    parts = _make_parts(report)
    plots = [plot for part in parts.values() for plot in part]
    scripts = {"bundle": Markup(_escape_script(load_bundle())), "script": Markup(_read("page.js"))}
    return (
        _make_environment()
        .get_template("page.html")
        .render(
            report=report,
            parts=parts,
            figures=list_figures(report),
            verdict=judge(report),
            subject=describe_models(report),
            results=make_results_table(report.rows),
            details=make_details_table(report.rows),
            ruined=explain_ruined(report.rows),
            conditions=format_conditions(dict(report.environment), report.rows, report.split).splitlines(),
            groups=make_groups_table(report.widths, report.groups) if report.groups else None,
            errors=make_errors_table(report.errors) if report.errors else None,
            classes=make_class_table(report.rows),
            legend=list(zip(report.models, pick_colours(len(report.models)), strict=True)),
            environment=_list_environment(report),
            plots={"config": CONFIG, "specs": {plot.key: plot.spec for plot in plots}},
            hashes=[_measure_hash(text) for text in scripts.values()],
            style=Markup(_read("page.css")),
            **scripts,
        )
    )


def _make_parts(report: Report) -> dict[str, Sequence[Plot]]:
    return {
        "frontier": make_frontier(report),
        "widths": [make_widths(report.widths, report.groups)] if report.widths else [],
        "times": [make_times(report.times)] if report.times else [],
        "gammas": make_gamma_plots(report.stages),
        "epochs": make_training_plots(report.stages, report.models),
        "curves": [make_precision_recall(report.curves)] if report.curves else [],
    }


def _list_environment(report: Report) -> list[tuple[str, str]]:
    """Return what the measurements were made with, as pairs of name and value."""
    known = {key: value for key, value in report.environment.items() if key != "ceilings"}
    return [("yolo_prune", report.version), *((key.replace("_", " "), _format(value)) for key, value in known.items())]


def _format(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@cache
def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("yolo_prune.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "sort_keys": False}
    environment.filters["data_url"] = _make_data_url
    return environment


def _make_data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


@cache
def _read(name: str) -> str:
    return (files("yolo_prune.report") / TEMPLATES / name).read_text(encoding="utf-8")


def _escape_script(text: str) -> str:
    """Return JavaScript in which nothing ends the script element early."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _measure_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
