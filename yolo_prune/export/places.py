"""Which files an export writes, and which of those that are there already it may replace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolo_prune.bounded import read_text
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.engines.exported.model import ELSEWHERE, find_runtime
from yolo_prune.errors import YoloPruneError
from yolo_prune.export.card import EXPORTED_BY
from yolo_prune.export.example import has_example, make_example_program
from yolo_prune.export.formats import FORMATS
from yolo_prune.files import is_text
from yolo_prune.limits import MOST_JSON_BYTES


@dataclass(frozen=True)
class Places:
    """The files of an export."""

    stem: Path
    """Their path without what ends their names."""
    formats: tuple[str, ...]
    has_card: bool
    checkpoint_sha256: str

    def name(self, end: str) -> Path:
        """Return the path of the file whose name ends so."""
        return self.stem.with_name(f"{self.stem.name}{end}")

    def list(self) -> list[Path]:
        """Return all files that are written."""
        networks = [name for name in self.formats if FORMATS[name].holds_network]
        ends = [end for name in self.formats for end in (FORMATS[name].suffix, *FORMATS[name].beside)]
        if len(networks) < len(self.formats):
            ends.append(".cfg")
        if self.has_card:
            ends += [".md", *(f"_{name}.py" for name in networks if has_example(name))]
        return [self.name(end) for end in ends]

    def is_own(self, path: Path) -> bool:
        """Return whether a file was exported from the same checkpoint; an example must not have been changed since.

        Files of weights alone do not say what they were made from.
        """
        if path == self.name(".md"):
            return self._has_own_card()
        for name in self.formats:
            form, main = FORMATS[name], self.name(FORMATS[name].suffix)
            if not form.holds_network:
                continue
            if path in (main, *map(self.name, form.beside)):
                if form.suffix in ELSEWHERE:
                    return self._has_own_card()
                facts = _read_facts(main)
                return facts is not None and facts.checkpoint_sha256 == self.checkpoint_sha256
            if path == self.name(f"_{name}.py"):
                facts = _read_facts(main)
                return facts is not None and is_text(path, make_example_program(name, main.name, path.name, facts))
        return False

    def _has_own_card(self) -> bool:
        try:
            lines = read_text(self.name(".md"), MOST_JSON_BYTES).splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return any(line.startswith(EXPORTED_BY) and self.checkpoint_sha256 in line for line in lines)


def _read_facts(path: Path) -> Metadata | None:
    try:
        return find_runtime(path).read_metadata(path) if path.exists() else None
    except YoloPruneError:
        return None
