"""Training in a container with little shared memory, and a stop while a batch is waited for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "yolo_prune"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STUCK = """
import sys, time
from yolo_prune.datasets.loader import DetectionDataset
make = DetectionDataset.make_item
DetectionDataset.make_item = lambda data, index, **named: make(data, index, **named) if named.get("epoch", 0) == 0 else time.sleep(600)
from yolo_prune.cli.main import main
main()
"""
"""The command with processes that make no batch after the first epoch."""


def can_mount() -> bool:
    """Return whether this user may give a process a /dev/shm of its own."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0  # fmt: skip


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_a_small_shared_memory_is_an_error_with_its_cure(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    words = ["train", "--data", str(hands), "--cfg", str(tiny_cfg), "--img-size", "320", "--batch-size", "6"]
    words += ["--epochs", "1", "--workers", "2", "--device", "cpu"]
    script = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *COMMAND, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: --workers: a batch of 1.8 MB cannot be handed over: shared memory (/dev/shm) is full; "
    )
    assert "--shm-size" in last
    assert "Traceback" not in done.stderr


def test_a_signal_is_heard_while_a_batch_is_waited_for(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    words = [
        "train",
        "--data",
        str(hands),
        "--cfg",
        str(tiny_cfg),
        "--epochs",
        "3",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        deadline = time.monotonic() + 120
        while not Path("runs/train/results.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)  # until it waits
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.rstrip().endswith("the run can be resumed: yoloprune train --resume --name train")
    assert Path("runs/train/last.pt").exists()
