"""`report`: one HTML page that shows models beside their original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolo_prune.commands.bench import measure
from yolo_prune.commands.measure_config import ReportConfig
from yolo_prune.commands.reporting.gather import save_report
from yolo_prune.commands.results import PathResult
from yolo_prune.commands.run_folders import RUNS
from yolo_prune.model.device import make_device
from yolo_prune.own_files import check_own

DEFAULT = RUNS / "report" / "report.html"


def make_report(checkpoints: Mapping[str, Path], config: ReportConfig) -> PathResult:
    """Measure checkpoints and exported files, keyed by row name, as bench does, and write a page.

    Raises:
        ConfigError, CheckpointError, DatasetError, OutputError: an input is invalid, or the page cannot be written.
    """
    page = config.out or DEFAULT
    check_own([page], force=config.force, inputs=checkpoints.values())
    measured = measure(checkpoints, config).as_measured()
    return PathResult(save_report(page, measured, make_device(config.device), config.images))
