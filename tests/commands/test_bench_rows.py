"""The rows of bench: every engine, precision, batch size and number of threads, each run as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Cli, read_json

from yolo_prune.model.decode import DecodedDetector


def test_bench_times_several_batch_sizes_threads_and_precisions_in_one_table(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    forward = DecodedDetector.forward

    def watch(self: DecodedDetector, images: torch.Tensor) -> Any:
        seen.add((len(images), torch.get_num_threads(), next(self.parameters()).dtype))
        return forward(self, images)

    monkeypatch.setattr(DecodedDetector, "forward", watch)
    before = torch.get_num_threads()
    words = ("--batch-size", "1,2", "--threads", "1,2", "--precision", "fp32,bf16", "--engine", "folded,sparse")
    outcome = cli("bench", trained, "--no-score", "--runs", 2, "--warmup", 1, "--device", "cpu", *words)
    table, conditions, details = (part.splitlines() for part in outcome.out.strip().split("\n\n"))
    headings = ["model", "engine", "precision", "batch", "threads"]
    assert (table[0].split()[:5], table[0].split()[-2]) == (headings, "inference/image")
    assert details[0].split()[:5] == headings
    assert "batch 1, 2, fp32, bf16, folded, sparse engine" in conditions[0]
    rows = [tuple(line.split()[1:5]) for line in table[2:]]
    engines = [("folded", "fp32"), ("folded", "bf16"), ("sparse", "fp32")]
    assert rows == [(*pair, batch, threads) for pair in engines for batch in "12" for threads in "12"]
    assert {(batch, threads) for batch, threads, _ in seen} >= {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert {dtype for _, _, dtype in seen} == {torch.float32, torch.bfloat16}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--threads", "0"), "--threads: 0 is out of range"),
        (("--batch-size", "1,-2"), "--batch-size: -2 is out of range"),
        (("--batch-size", "2,2"), "--batch-size: names one twice"),
        (("--precision", "fp8"), "--precision: unknown precision fp8; use one of fp32"),
        (("--engine", "executorch", "--threads", "1,2"), "--threads: ExecuTorch keeps the threads that it began with"),
        (("--engine", "onnxruntime", "--precision", "bf16"), "--precision: onnxruntime computes in fp32 alone"),
    ],
)
def test_bench_rejects_rows_that_cannot_be(cli: Cli, trained: Path, words: tuple[str, ...], said: str) -> None:
    outcome = cli("bench", trained, "--no-score", "--device", "cpu", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(f"error: {said}")


def test_a_list_of_one_needs_no_brackets(cli: Cli, trained: Path) -> None:
    Path("bench.yaml").write_text("engine: eager\nbatch_size: 2\nthreads: 1\nruns: 1\n")
    (row,) = read_json(cli("bench", trained, "--no-score", "--config", "bench.yaml", "--json"))["rows"]
    assert (row["engine"], row["batch_size"], row["threads"], row["precision"]) == ("eager", 2, 1, "fp32")
