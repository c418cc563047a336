"""Faults in a source that is converted: all are found before any is an error, or they are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from yolo_prune.console import warn
from yolo_prune.errors import DatasetError
from yolo_prune.text_tables import pluralize

SHOWN = 20
"""How many faults are reported."""


@dataclass
class Faults:
    """The faults found so far."""

    skips: bool = False
    """Whether what is faulty is left out."""
    first: list[DatasetError] = field(default_factory=list)
    """The first `SHOWN`."""
    count: int = 0

    def __enter__(self) -> None:
        """Begin a block: a DatasetError that is raised in it is kept, and what follows the block goes on."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the block."""
        if not isinstance(error, DatasetError):
            return False
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(error.with_traceback(None))
        return True

    def check(self, is_end: bool = True) -> None:
        """Report the faults, the first ones line by line.

        Args:
            is_end: whether all was read; before, faults that are left out are not reported yet.

        Raises:
            DatasetError: there are some, and they are not to be left out.
        """
        if not self.count or (self.skips and not is_end):
            return
        if self.count == 1 and not self.skips:
            raise self.first[0]
        for error in self.first:
            warn(str(error))
        more = f"; {self.count - SHOWN} are not shown" if self.count > SHOWN else ""
        if not self.skips:
            right = "correct what is listed, or leave it out with --skip-bad"
            verb = "is" if self.count == 1 else "are"
            raise DatasetError(f"there {verb} {pluralize(self.count, 'fault')}{more}", right=right)
        warn(f"left out for {pluralize(self.count, 'fault')}{more}")
