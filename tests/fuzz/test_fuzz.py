"""Hostile and broken inputs for every reader: each is read, or refused in one line, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing.targets import GROUPS, choose
from fuzzing.targets.options import STARTS, list_commands
from paths import ROOT

BUDGET_S = float(os.environ.get("YOLO_PRUNE_FUZZ_SECONDS", "40"))
"""For the cases alone; more find more. The same seed begins with the same cases."""


@pytest.mark.checkout
def test_every_reader_reads_or_refuses(tmp_path: Path) -> None:
    """Run all targets in a process of its own, as cases must be forked from one that has no threads."""
    words = ("--budget", BUDGET_S, "--kept", tmp_path / "failed", "--seconds", 60)  # other tests run beside it
    paths = (ROOT, ROOT / "tests/helpers")
    environment = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(
        [sys.executable, "-m", "fuzzing.program", *map(str, words)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUDGET_S + 600,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{_show(tmp_path / 'failed')}"


def _show(folder: Path) -> str:
    """Return the cases that failed, from which `scripts/fuzz --again` runs them."""
    return "\n".join(path.read_text()[:5000] for path in sorted(folder.glob("*")))


def test_every_command_is_started_with_its_options() -> None:
    assert set(STARTS) == set(list_commands())


def test_targets_are_chosen_by_name_or_group() -> None:
    names = [target.name for group in GROUPS.values() for target in group]
    assert len(set(names)) == len(names)
    assert [target.name for target in choose([])] == names
    assert [target.name for target in choose(["coco", "networks", "coco"])] == [
        "coco",
        *(t.name for t in GROUPS["networks"]),
    ]
    with pytest.raises(LookupError, match="nothing"):
        choose(["nothing"])
