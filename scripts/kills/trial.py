"""One run of a command: started, stopped by a signal, and what is left of it."""

from __future__ import annotations

import random
import shlex
import signal
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from kills.cases import Case
from kills.contents import compare, find_broken, find_scraps, read_contents, unnumber
from kills.place import begin, make_environment
from kills.processes import MARK, Run, start, wait_for_none

PATIENCE_S = 300.0
"""No run takes so long."""
MOST_IN_A_ROW = 3
SHARED = ("torchinductor_", ".ses")
"""PyTorch keeps a cache of this name among the temporary files of each user, ONNX Runtime a file."""
SOONEST_S = 0.1
"""Before that the interpreter itself is starting."""
LATE = 0.6
"""Share of the kills in the part of a run in which it writes."""
SIGNALS = (signal.SIGKILL,) * 3 + (signal.SIGTERM, signal.SIGINT)
REFUSED = 2
SAID = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""Exit codes of a clean stop."""


@dataclass
class Outcome:
    """What was seen of one command."""

    kills: dict[str, int] = field(default_factory=dict)
    """By signal."""
    runs: int = 0
    """Runs that were let end, and compared."""
    left: list[str] = field(default_factory=list)
    """Processes that outlived a killed run."""
    scraps: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    """Signals that did not end the run as they should."""
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        """Whether nothing was found."""
        return not (self.left or self.scraps or self.broken or self.differences or self.stops)


@dataclass(frozen=True)
class Reference:
    """A run that was never killed."""

    folder: Path
    """What it left."""
    seconds: float
    writes_after_s: float
    """When its first file was written."""
    stdout: str


class Trial:
    """Kills one command again and again, below a folder of its own."""

    def __init__(self, case: Case, folder: Path, prepared: Path, chance: random.Random, is_new: bool) -> None:
        self.case, self.prepared, self.chance, self.is_new = case, prepared, chance, is_new
        self.home = folder / "round"
        self.outcome = Outcome()
        self.reference = self._make_reference(folder / "whole")
        self.longest_s = self.reference.seconds

    def run(self, kills: int) -> Outcome:
        """Kill the command so often, and let it end after every few kills."""
        began = time.monotonic()
        while (left := kills - sum(self.outcome.kills.values())) > 0 and self.outcome.is_well:
            place = begin(self.home, self.prepared)
            before = read_contents(place)
            for _ in range(self.chance.randint(1, min(MOST_IN_A_ROW, left))):
                if not self._kill_one(place, before):
                    break
            self._end_one(place)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _make_reference(self, folder: Path) -> Reference:
        place = begin(self.home, self.prepared)
        began, began_at = time.monotonic(), time.time()
        run = self._start(place)
        if not run.wait(PATIENCE_S) or run.code:
            raise SystemExit(f"{self.case.words}: ends with {run.code}: {run.read('stderr')}")
        seconds = time.monotonic() - began
        written = [path.stat().st_ctime - began_at for path in place.rglob("*")]
        self.home.rename(folder)
        first = min(filter(lambda one: one > 0, written), default=seconds)
        return Reference(folder / "place", seconds, first, (folder / "output/stdout").read_text())

    def _start(self, place: Path, mark: str = "") -> Run:
        is_resumed = self.case.resume and (place / self.case.resumable).exists()
        words = shlex.split(self.case.resume if is_resumed else self.case.words)
        return start(words, place, make_environment(place, **{MARK: mark}), place.parent / "output", self.is_new)

    def _choose_moment(self) -> float:
        first = max(0.0, min(self.reference.writes_after_s, self.longest_s) - 0.5)
        soonest = min(SOONEST_S, self.longest_s / 2)  # some runs are over before that
        return max(soonest, self.chance.uniform(first if self.chance.random() < LATE else 0.0, self.longest_s))

    def _kill_one(self, place: Path, before: dict[str, bytes]) -> bool:
        """Start the command and kill it; return False if it ended by itself."""
        mark, signum, moment = uuid.uuid4().hex, self.chance.choice(SIGNALS), self._choose_moment()
        run, outcome, about = self._start(place, mark), self.outcome, f"{signum.name} after {moment:.2f} s"
        if not run.wait(moment):
            run.send(signum)
        if not run.wait(PATIENCE_S):
            run.send(signal.SIGKILL)
            run.wait(PATIENCE_S)
            outcome.stops.append(f"{about}: it did not end")
        outcome.left += [f"{about}: {one}" for one in wait_for_none(run, mark)]
        if run.code in (0, REFUSED):  # it had ended before, or the kill before came when all was done
            self.longest_s *= 0.95 if run.code == 0 else 1
            return False
        about += f", exit code {run.code}"
        outcome.kills[signum.name] = outcome.kills.get(signum.name, 0) + 1
        broken = find_broken(place, before, read_contents(self.reference.folder))
        outcome.broken += [f"{about}: {one}" for one in broken]
        said = run.read("stderr")
        if signum != signal.SIGKILL:
            if run.code not in (SAID[signum], -signum) or "Traceback" in said:
                outcome.stops.append(f"{about}: {said[-2000:]}")
            own = f"-{run.pid}."  # a run that was killed before may have left others, and this one has not begun yet
            outcome.scraps += [f"{about}: {one}" for one in self._find_scraps(place) if own in one]
        return True

    def _end_one(self, place: Path) -> None:
        """Let the command end, and compare."""
        run, outcome = self._start(place), self.outcome
        outcome.runs += 1
        if not run.wait(PATIENCE_S):
            run.send(signal.SIGKILL)
        difference = compare(place, self.reference.folder, self.case.timed)
        if run.code == REFUSED and difference is None:
            return  # the last kill came when all was done, and nothing is done twice
        if run.code:
            outcome.differences.append(f"the next run: exit code {run.code}: {run.read('stderr')[-2000:]} {difference}")
            return
        outcome.scraps += [f"after the next run: {one}" for one in self._find_scraps(place)]
        if (
            difference is None
            and "stdout" not in self.case.timed
            and unnumber(run.read("stdout")) != self.reference.stdout
        ):
            difference = f"stdout differs: {run.read('stdout')!r}"
        if difference is not None:
            outcome.differences.append(difference)

    def _find_scraps(self, place: Path) -> list[str]:
        """Return what is left in the folder, and among temporary files and caches."""
        paths = (path.name for path in (place.parent / "tmp").iterdir())
        temporary = [f"TMPDIR/{name}" for name in paths if not name.startswith(SHARED)]
        return [*find_scraps(place), *(f"cache/{one}" for one in find_scraps(place.parent / "cache")), *temporary]
