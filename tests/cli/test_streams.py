"""Standard streams as shells give them: closed, full, of another encoding, or read by nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "PROGRAM": f"{sys.executable} -m yolo_prune", "PYTHONWARNINGS": "ignore"}


def run(script: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell, in which $PROGRAM is the command."""
    return subprocess.run(["bash", "-c", script], capture_output=True, env={**ENVIRONMENT, **variables}, check=False)


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("$PROGRAM cfg show demo-hand >/dev/full", 2, "error: stdout: cannot be written (No space left on device); "),
        ("$PROGRAM config reference >/dev/full", 2, "error: stdout: cannot be written (No space left on device); "),
        (
            "$PROGRAM detect $MODEL $IMAGES --jsonl >/dev/full",
            2,
            "error: stdout: cannot be written (No space left on device); ",
        ),
        ("$PROGRAM cfg show demo-hand >&-", 0, ""),
        ("$PROGRAM cfg show demo-hand 2>&-", 0, ""),
        ("$PROGRAM cfg show demo-hand <&-", 0, ""),
        ("$PROGRAM cfg show demo-hand <&- >&- 2>&-", 0, ""),
        ("$PROGRAM cfg show nothing 2>&-", 2, ""),
        ("$PROGRAM prune - <&-", 2, "error: -: stdin names no checkpoint; "),
    ],
)
def test_every_state_of_the_streams_has_its_exit_code(
    workplace: Path, trained: Path, hands: Path, script: str, code: int, said: str
) -> None:
    done = run(script, MODEL=str(trained), IMAGES=str(hands.parent / "images/test"))
    assert done.returncode == code, done.stderr
    assert done.stderr.decode().startswith(said) if said else done.stderr == b""


def test_output_that_nobody_reads_ends_the_command_as_it_ends_others(workplace: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "yolo_prune", "config", "reference"],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_table_is_printed_in_any_encoding(workplace: Path, hands: Path, encoding: str) -> None:
    done = run(f"$PROGRAM data check {hands}", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "images" in text
    assert r"\u221a" in text or "√" in text


def test_a_path_keeps_its_bytes(workplace: Path, trained: Path) -> None:
    folder = os.fsdecode(b"caf\xe9")
    Path(folder).mkdir()
    done = run(
        "cd caf* && $PROGRAM export " + str(trained) + ' --format darknet --out "$PWD/x"', PYTHONIOENCODING="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9/x" in done.stdout
