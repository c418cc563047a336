"""Stage `check`: does the device compute what the CPU computes?"""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

from gpu.checks import CHECKS, Bench
from gpu.job import Job, parse_job


def run(job: Job) -> bool:
    """Run every check, and return whether all hold; one that fails does not keep the others from running."""
    bench = Bench(job.place, job.folder / "check")
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            said, state = check(bench), "holds"
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the summary
            traceback.print_exc()
            said, state = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300], "fails"
        job.results[name] = {"state": state, "said": said, "seconds": time.perf_counter() - started}
        job.save()
    return all(result["state"] == "holds" for result in job.results.values())


def format_results(results: dict[str, Any]) -> str:
    """Return a table in Markdown."""
    lines = ["| check | | |", "| --- | --- | --- |"]
    lines += [f"| {name} | {one['state']} | {one['said'].replace('|', '/')} |" for name, one in results.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    if not run(parse_job()):
        sys.exit("a check fails")
