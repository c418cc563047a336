"""`data check`: the contents of a data set, the issues in it, and plots of its boxes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from yolo_prune.commands.run_folders import take_run_folder
from yolo_prune.console import Bar, report
from yolo_prune.datasets.check.check import check_dataset
from yolo_prune.datasets.check.issues import KINDS, Issue
from yolo_prune.datasets.check.plots import save_box_plots, save_contact_sheet
from yolo_prune.datasets.check.statistics import COCO_BOUNDS_PX, Statistics
from yolo_prune.datasets.config import CheckConfig
from yolo_prune.datasets.spec import DataSpec, load_spec
from yolo_prune.errors import ConfigError, DatasetError, OutputError
from yolo_prune.files import check_replaceable, make_scratch_folder, naming_place, save_json
from yolo_prune.image_size import make_size
from yolo_prune.json_parts import iterate_json
from yolo_prune.text_tables import format_table, pluralize, wrap

_Row: TypeAlias = tuple[str, Callable[[Statistics], str]]
"""A title, and what is told of a split."""
FILES = ("report.json", "contact_sheet.png", "boxes.png")
"""What a check writes."""
SHOWN = 20
"""The most issues of a kind that the text lists; report.json has all."""


@dataclass(frozen=True)
class CheckResult:
    """The result of `data check`, and where its report and plots are."""

    data: Path
    """The path of the data.yaml."""
    names: tuple[str, ...]
    """The class names."""
    config: CheckConfig
    statistics: Mapping[str, Statistics]
    """Statistics of each split, and of `all` together."""
    issues: tuple[Issue, ...]
    folder: Path
    """The folder of report.json, contact_sheet.png and boxes.png."""

    @property
    def errors(self) -> int:
        """The number of issues that are errors."""
        return sum(issue.is_error for issue in self.issues)

    @property
    def warnings(self) -> int:
        """The number of issues that are warnings."""
        return len(self.issues) - self.errors

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        statistics = {split: part.as_dict(self.names) for split, part in self.statistics.items()}
        return {
            "data": str(self.data),
            "img_size": make_size(self.config.img_size).plain,
            "near": self.config.near,
            "report": str(self.folder / "report.json"),
            "contact_sheet": str(self.folder / "contact_sheet.png"),
            "boxes": str(self.folder / "boxes.png"),
            "errors": self.errors,
            "warnings": self.warnings,
            "all": statistics.pop("all"),
            "splits": statistics,
            "found": dict(Counter(issue.kind for issue in self.issues)),
            "issues": [issue.as_dict() for issue in self.issues],
        }

    @property
    def stdout(self) -> str:
        """A table of figures and the issues, at most `SHOWN` of each kind, as text."""
        splits = [split for split in self.statistics if split != "all"]
        counts = (
            pluralize(self.statistics["all"].images, "image"),
            pluralize(len(self.names), "class", "classes"),
            pluralize(len(splits), "split"),
        )
        head = f"{self.data}: {', '.join(counts)}"
        return "\n".join((wrap(head), "", *self._format_table(), "", *self._format_issues()))

    def raise_on_issues(self) -> None:
        """Raise if the data set has errors; with the setting `strict` warnings count as errors.

        Raises:
            DatasetError: there are errors; the message says how many.
        """
        counts = [_count(self.errors, "error")] if self.errors else []
        counts += [_count(self.warnings, "warning")] if self.warnings and self.config.strict else []
        if counts:
            raise DatasetError(f"{' and '.join(counts)} in {self.data}", right="correct what the report lists")

    def _format_table(self) -> Iterator[str]:
        columns = list(self.statistics.values())
        rows: list[tuple[str, list[str]]] = [("", list(self.statistics))]
        rows += [(title, [tell(part) for part in columns]) for title, tell in _ROWS]
        if len(self.names) > 1:
            rows[_CLASSES_AT:_CLASSES_AT] = [
                (f"  {name}", [str(part.objects_per_class[number]) for part in columns])
                for number, name in enumerate(self.names)
            ]
        cells = [(title.format(self.config.img_size), *cells) for title, cells in rows]
        yield format_table(cells, numbers=range(1, len(columns) + 1))

    def _format_issues(self) -> Iterator[str]:
        yield f"{_count(self.errors, 'error')}, {_count(self.warnings, 'warning')}"
        for key, kind in KINDS.items():
            found = [issue for issue in self.issues if issue.kind == key]
            if not found:
                continue
            yield ""
            yield f"{'error' if kind.is_error else 'warning'}: {kind.title}: {len(found)}"
            yield from (f"  {issue.format()}" for issue in found[:SHOWN])
            if len(found) > SHOWN:
                yield f"  … and {len(found) - SHOWN} more"


def check_data(data: Path | None, config: CheckConfig) -> CheckResult:
    """Check a data set, and write report.json, contact_sheet.png and boxes.png to a folder.

    Raises:
        ConfigError: no data set is given.
        DatasetError: the data.yaml, a list, or a split's folder is invalid.
        OutputError: the folder cannot be written, or has files of these names that no check wrote.
    """
    if data is None:
        raise ConfigError("no data set is named", where="DATA", right="name a data.yaml")
    out = config.out
    if out is not None and out.exists() and not out.is_dir():
        raise OutputError("is no folder", where=out, right="name a folder")
    if out is not None:
        is_own = _holds_report(out)
        check_replaceable([out / name for name in FILES], force=config.force, is_own=lambda path: is_own)
    spec = load_spec(data)
    spec.require_all()
    with take_run_folder("check", "check") if out is None else nullcontext(out) as folder:
        return _write_check(data, spec, config, folder)


def _holds_report(folder: Path) -> bool:
    """Return whether a folder holds the report of an earlier check."""
    try:
        found = {part.key for part in iterate_json(folder / "report.json", OutputError, "")}
    except OutputError:
        return False
    return {"data", "contact_sheet", "boxes", "issues"} <= found


def _write_check(data: Path, spec: DataSpec, config: CheckConfig, folder: Path) -> CheckResult:
    with Bar("checking images") as bar:
        check = check_dataset(spec, config, bar.show)
    result = CheckResult(data, spec.names, config, check.statistics, check.issues, folder)
    with make_scratch_folder(folder / "report") as scratch, naming_place(scratch, folder):
        save_contact_sheet(scratch / "contact_sheet.png", check.images, list(spec.splits), spec.names)
        save_box_plots(scratch / "boxes.png", check.figures, config.img_size)
        save_json(scratch / "report.json", result.as_dict())
        for path in sorted(scratch.iterdir(), key=lambda path: path.suffix != ".json"):
            path.replace(folder / path.name)  # the report first: by it the next check knows the others as its own
    report(f"report.json, contact_sheet.png and boxes.png are in {folder}")
    return result


def _count(number: int, noun: str) -> str:
    return pluralize(number, noun) if number else f"no {noun}s"


def _spread(title: str, name: str, digits: int, ends: tuple[str, str, str] = ("p5", "median", "p95")) -> list[_Row]:
    """Return three rows: the ends and the middle of a spread, the statistics' field `name`."""

    def tell(place: str, part: Statistics) -> str:
        value = getattr(getattr(part, name), place)
        return "–" if math.isnan(value) else f"{value:.{digits}f}"

    titles = (f"{title}: {ends[0]}", f"  {ends[1]}", f"  {ends[2]}")
    return [(one, partial(tell, place)) for one, place in zip(titles, ("low", "middle", "high"), strict=True)]


def _share(share: float) -> str:
    return "–" if share != share else f"{share:.1%}"


_SMALL, _LARGE = COCO_BOUNDS_PX
_ROWS: Sequence[_Row] = (
    ("images", lambda part: str(part.images)),
    ("  without objects", lambda part: str(part.without_objects)),
    ("  without a label file", lambda part: str(part.without_labels)),
    ("objects", lambda part: str(part.objects)),
    ("ignored boxes", lambda part: str(part.ignored)),
    ("objects per image, mean", lambda part: f"{part.objects_per_image_mean:.2f}"),
    ("objects per image, most", lambda part: str(part.objects_per_image_max)),
    *_spread("box side √(w·h), px", "box_side_px", 0),
    *_spread("box side at {} px", "box_side_at_img_size_px", 0),
    (f"  small: below {_SMALL}² px", lambda part: _share(part.small)),
    ("  medium", lambda part: _share(part.medium)),
    (f"  large: {_LARGE}² px and more", lambda part: _share(part.large)),
    *_spread("box width / height", "aspect_ratio", 2),
    *_spread("image width, px", "width_px", 0, ("least", "median", "most")),
    *_spread("image height, px", "height_px", 0, ("least", "median", "most")),
)
_CLASSES_AT = 5
"""Index in the table's rows, header included, where the rows of the classes are inserted: below all objects."""
