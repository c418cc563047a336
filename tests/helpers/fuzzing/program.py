"""The program behind `scripts/fuzz`: run targets for a time or a number of cases, and print what came of them."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch

import yolo_prune
from fuzzing.case import Target, parse_case
from fuzzing.command import make_command
from fuzzing.readers import OUTSIDE, find_readers
from fuzzing.runner import BATCH, LONGEST_S, Limits, Runner, Tally
from fuzzing.seeds import make_base
from fuzzing.targets import GROUPS, choose
from yolo_prune.text_tables import format_table

HEADINGS = ("target", "cases", "ok", "refused", "failed", "slowest s", "most MB")
KEPT = Path("fuzz-failures")
LONGEST_TURN_S = 30.0
"""After so long another target has its turn."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the targets and return the exit code: 0 if no case failed."""
    arguments = _parse(words)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _import_all()
    targets = _choose(arguments.targets, arguments.again)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        base = make_base(Path(scratch) / "base", {part for target in targets for part in target.parts})
        runner = Runner(base, arguments.kept, arguments.seed, Limits(arguments.seconds))
        if arguments.again:
            tallies = [runner.run_case(targets[0], parse_case(arguments.again.read_text())[1])]
        else:
            wrong = check_sound(runner, targets, is_whole=not arguments.targets)
            tallies = run_targets(runner, targets, arguments.budget, arguments.cases)
    print(format_tallies(tallies), flush=True)
    for tally in tallies:
        wrong += [f"{tally.target}: {count} × {failure}" for failure, count in tally.failures.most_common()]
    if runner.found:
        wrong.append(f"cases that failed are in {arguments.kept}; --again FILE runs one once more")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def check_sound(runner: Runner, targets: Sequence[Target], is_whole: bool) -> list[str]:
    """Return what is wrong with the sound inputs: one that is refused or, of all targets, a reader that reads none."""
    readers = find_readers()
    tallies = [runner.run_sound(target, readers) for target in targets]
    wrong = [f"{tally.target}, a sound input: {failure}" for tally in tallies for failure in tally.failures]
    if is_whole:
        missed = readers - runner.reached
        wrong += [f"no sound input reaches {name}" for name in sorted(missed - OUTSIDE.keys())]
        wrong += [f"{name} is gone, or reads nothing" for name in sorted(OUTSIDE.keys() - readers)]
    return wrong


def run_targets(runner: Runner, targets: Sequence[Target], budget_s: float, cases: int | None) -> list[Tally]:
    """Run all targets in turns until the time is up, or each has had its share of the cases."""
    tallies, numbers = {target.name: Tally(target.name) for target in targets}, dict.fromkeys(targets, 0)
    end = time.monotonic() + budget_s
    most = sys.maxsize if cases is None else -(-cases // len(targets))
    left = list(targets)
    while left and time.monotonic() < end:
        for place, target in enumerate(left):
            now, tally = time.monotonic(), tallies[target.name]
            until = now + min(LONGEST_TURN_S, (end - now) / (len(left) - place))
            while time.monotonic() < until and tally.cases < most:
                tally.add(runner.run_batch(target, numbers[target], until, min(BATCH, most - tally.cases)))
                numbers[target] += 1
        left = [target for target in left if tallies[target.name].cases < most]
    return list(tallies.values())


def format_tallies(tallies: Sequence[Tally]) -> str:
    """Return the table, with the sum at its end."""
    total = Tally("all")
    for tally in tallies:
        total.add(tally)
    return format_table([HEADINGS, *(tally.row for tally in (*tallies, total))])


def _choose(names: str, again: Path | None) -> list[Target]:
    try:
        return choose([parse_case(again.read_text())[0]] if again else [name for name in names.split(",") if name])
    except LookupError as error:
        print(f"there is no target {error.args[0]}; groups are {', '.join(GROUPS)}", file=sys.stderr)
        sys.exit(2)


def _import_all() -> None:
    """Import what commands import when they run, so that no child does: its time and memory are no case's."""
    make_command()
    for path in (Path(yolo_prune.__file__).parent / "commands").rglob("[!_]*.py"):
        import_module(".".join(path.relative_to(Path(yolo_prune.__file__).parent.parent).with_suffix("").parts))
    for name in ("onnxruntime", "openvino", "ncnn", "scipy.io", "matplotlib.pyplot"):
        if find_spec(name) is not None:
            import_module(name)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Run hostile and broken inputs through every reader."
    )
    parser.add_argument(
        "--budget", type=float, default=120.0, metavar="SECONDS", help="time for all targets (default: 120)"
    )
    parser.add_argument("--cases", type=int, help="most cases, in equal shares (default: as many as there is time for)")
    parser.add_argument(
        "--targets", default="", metavar="A,B", help=f"names of targets, or of groups: {', '.join(GROUPS)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: 0)")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="the most that a case may take (default: 20)")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help="folder for the cases that failed (default: fuzz-failures)"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", help="run one of these once more, and nothing else")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
