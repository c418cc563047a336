#!/usr/bin/env python3
"""Kill every command that writes at random moments, run it again, and compare its end with that of an unbroken run.

.venv/bin/python scripts/kill_runs.py [--kills 20] [--commands train,export] [--seed 0] [--jobs 2] [--folder FOLDER]

After a kill, by SIGKILL, SIGTERM or SIGINT, no process may be left, and no file half-written; after the next run of the same
command nothing that was begun may be left, and all files must be the same, bit for bit, but for clocks. Exits 0 if all
that holds, else 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}  # a process of several threads cannot be forked
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/helpers"))

from kills.cases import CASES, find_forgotten
from kills.place import prepare
from kills.processes import import_all
from kills.trial import Outcome, Trial

from yolo_prune.text_tables import format_table
from yolo_prune.threads import count_cores


def main() -> int:
    """Kill, compare, print the table; return the exit code."""
    parser = argparse.ArgumentParser(description="Kill every command at random moments, and run it again.")
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--commands", help="names of commands, with commas between (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--jobs", type=int, default=count_cores(), help="commands at a time")
    parser.add_argument(
        "--new", action="store_true", help="start a new interpreter each time, which is killed while it imports, too"
    )
    parser.add_argument("--folder", type=Path, help="a new folder to work in, which is kept (default: a temporary one)")
    arguments = parser.parse_args()
    if forgotten := find_forgotten():
        parser.error(f"neither tried nor known to write nothing: {', '.join(forgotten)}")
    names = choose(arguments.commands)
    if not names:
        parser.error(f"--commands: there is no {arguments.commands}; use some of {', '.join(CASES)}")
    began = time.monotonic()
    import_all()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).resolve()
        outcomes = dict(kill_all(names, folder, arguments))
    print(format_outcomes(outcomes))
    print(f"{sum(sum(one.kills.values()) for one in outcomes.values())} kills in {time.monotonic() - began:.0f} s")
    return 0 if all(one.is_well for one in outcomes.values()) else 1


def choose(words: str | None) -> list[str]:
    """Return the names of the cases of some commands: a command's name stands for all that is tried of it."""
    wanted = [word.strip() for word in words.split(";" if ";" in words else ",")] if words else None
    return [name for name in CASES if wanted is None or name in wanted or name.partition(",")[0] in wanted]


def kill_all(names: Sequence[str], folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Outcome]]:
    """Kill commands so often each, some at a time; yield what was seen."""
    prepared = prepare(folder / "prepared")
    kill = partial(kill_one, folder=folder, prepared=prepared, options=options)
    if options.jobs == 1:
        yield from zip(names, map(kill, names), strict=True)
        return
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        yield from zip(names, pool.map(kill, names), strict=True)


def kill_one(name: str, folder: Path, prepared: Path, options: argparse.Namespace) -> Outcome:
    """Kill a command so often, and return what was seen."""
    place = folder / name.replace(" ", "-").replace(",", "")
    place.mkdir()
    outcome = Trial(CASES[name], place, prepared, Random(f"{options.seed} {name}"), options.new).run(options.kills)
    print(describe(name, outcome), file=sys.stderr, flush=True)
    return outcome


def describe(name: str, outcome: Outcome) -> str:
    """Return what was seen of a command, with what was wrong."""
    wrong = [*outcome.left, *outcome.scraps, *outcome.broken, *outcome.stops, *outcome.differences]
    return "\n    ".join([f"{name}: {sum(outcome.kills.values())} kills in {outcome.seconds:.0f} s", *wrong])


def format_outcomes(outcomes: dict[str, Outcome]) -> str:
    """Return a table of what was seen, a row for each command."""
    heads = (
        "command",
        "SIGKILL",
        "SIGTERM",
        "SIGINT",
        "processes left",
        "scraps",
        "half-written",
        "bad stops",
        "same bits",
    )
    rows: list[tuple[str, ...]] = [heads]
    for name, one in outcomes.items():
        kills = [str(one.kills.get(signum, 0)) for signum in heads[1:4]]
        found = [str(len(list_)) for list_ in (one.left, one.scraps, one.broken, one.stops)]
        rows.append((name, *kills, *found, f"{one.runs - len(one.differences)} of {one.runs}"))
    return format_table(rows, range(1, len(heads)))


if __name__ == "__main__":
    sys.exit(main())
