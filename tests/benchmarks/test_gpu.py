"""scripts/gpu: its stages are independent, its summary says how each ended, and all of it can be rehearsed on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu import __main__ as gpu_main
from gpu import bench, case_study, throughput
from gpu.ceilings import judge, summarise
from gpu.checks import CHECKS, Bench
from gpu.job import Job
from gpu.networks import make_models
from gpu.stages import Outcome, Stage, run_stages
from gpu.summary import NOTE_OF_CPU, format_summary
from paths import ROOT

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost

CPU = torch.device("cpu")
PLANTED = {
    "works": "import json, sys, pathlib; job = json.loads(sys.argv[1]); pathlib.Path(job['out'], job['stage'] + '.json').write_text('{}')",
    "crashes": "raise ValueError('of\\nsomething')",
    "hangs": "import os, time\nos.fork()\nwhile True:\n    time.sleep(1)",
    "ignores_its_end": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    time.sleep(1)",
    "fills_memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 31)",
    "is_killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in PLANTED.items():
        (tmp_path / f"planted_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def run_planted(place: Path, *names: str, seconds: float = 60.0, budget_s: float = 60.0) -> list[Outcome]:
    stages = [Stage(name, f"planted_{name}", seconds) for name in names]
    return run_stages(stages, Job("", 0.0, str(place), "cpu", True), budget_s)


def test_a_stage_that_fails_does_not_keep_the_others_from_running(planted: Path) -> None:
    names = ("crashes", "fills_memory", "is_killed", "works")
    outcomes = run_planted(planted, *names)
    assert [one.state for one in outcomes] == ["failed", "failed", "failed", "done"]
    assert outcomes[0].reason == "something"
    assert outcomes[1].reason == "MemoryError"
    assert outcomes[2].reason == "ended by SIGKILL (killed, perhaps for want of memory)"
    assert (planted / "works.json").is_file()


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.stages.PATIENCE_S", 0.5)
    outcomes = run_planted(planted, "hangs", "ignores_its_end", "works", seconds=1.0, budget_s=8.0)
    assert [one.state for one in outcomes] == ["out of time", "out of time", "done"]
    assert all(one.seconds < one.limit_s + 5 for one in outcomes)
    left = subprocess.run(["pgrep", "-f", "planted_hangs|planted_ignores"], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_time_that_a_stage_leaves_goes_to_the_next(planted: Path) -> None:
    first, second = run_planted(planted, "works", "works", budget_s=100.0)
    assert first.limit_s == pytest.approx(50, abs=1)
    assert second.limit_s > 90


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stages", "check,bensh"], "unknown stage bensh; use some of check, bench"),
        (["--data", "none.yaml", "--device", "cpu"], "--data: there is no file none.yaml"),
        ([], "--device: no CUDA device was found; use cpu, and --tiny"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", *words])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        gpu_main.parse()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def run_script(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/gpu in a tree where packages that it must not need cannot be imported."""
    missing = place / "missing"
    missing.mkdir(exist_ok=True)
    for name in ("pycocotools", "imagehash", "tensorboard", "torch_pruning", "pytest"):
        (missing / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}')")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(missing), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(ROOT / "scripts/gpu"), *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_the_rehearsal(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tiny", "--out", "out", "--budget-s", "600", "--stages")
    result = run_script(tmp_path, *words, "check,bench,throughput,case-study,controls")
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [stage["state"] for stage in summary["stages"]] == ["done"] * 5
    found = {stage["stage"]: stage["results"] for stage in summary["stages"]}
    assert {one["state"] for one in found["check"].values()} == {"holds"}
    assert not [row for row in found["bench"]["rows"] if "failed" in row]
    assert [row["batch"] for row in found["throughput"]["rows"]] == list(throughput.TINY_BATCHES)
    assert [row["name"] for row in found["case-study"]["rows"]] == ["Original", "−70 % pruned", "−70 % finetuned"]
    assert [row["name"] for row in found["controls"]["rows"]] == ["Original", "ours", "published", "random"]
    page = (tmp_path / "out/summary.md").read_text()
    assert page == result.stdout.removesuffix("\n")
    assert NOTE_OF_CPU in page
    for stage in found:
        assert f"## {stage}" in page
    assert (tmp_path / "out/finetuned-70.pt").is_file()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_a_gpu_computes_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    CHECKS[name](Bench(torch.device("cuda"), tmp_path))


def test_the_networks_are_those_of_the_table() -> None:
    with torch.device("meta"):
        original = make_network("yolov3")
    assert measure_cost(original).params == 61_523_734
    small = make_models(1 / 16, 64, is_tiny=True)
    before, ours = (measure_cost(small[name].network, 64) for name in ("original", "ours"))
    assert ours.params <= 0.3 * before.params
    assert ours.macs <= 0.3 * before.macs


def test_time_is_shared_out_in_whole_epochs() -> None:
    assert case_study.share_out(290, 3191, 500, 4) == case_study.Epochs(13, 3, 2)
    assert case_study.share_out(10, 3191, 500, 4) == case_study.Epochs(1, 1, 1)


def test_a_verdict_is_the_largest_floor() -> None:
    network = make_network("yolov3-tiny", width=1 / 8, img_size=64)
    macs = measure_cost(network, 64).macs
    slow = {"flops_per_s": {"fp32": 2.0 * macs}, "bytes_per_s": 1e15, "launch_s": 1e-6}
    found = judge(network, 64, 1, "fp32", 10, 3.0, slow)
    assert (found["verdict"], round(found["times_the_floor"], 6)) == ("compute-bound", 3.0)
    assert found["macs_per_s"] == macs / 3
    assert judge(network, 64, 1, "fp32", 10, 3.0, {**slow, "bytes_per_s": 1.0})["verdict"] == "memory-bound"
    quick = {"flops_per_s": {"fp32": 1e30}, "bytes_per_s": 1e30, "launch_s": 1e-6}
    assert judge(network, 64, 1, "fp32", 10, 3.0, quick)["verdict"] == "launch-bound"


def test_percentiles_are_of_all_values() -> None:
    assert summarise(range(101)) == {"p50": 50.0, "p5": 5.0, "p95": 95.0}


def test_a_page_is_made_of_what_there_is() -> None:
    stages = [
        {"stage": "bench", "state": "out of time", "reason": "ended after 9 s", "seconds": 9.0, "limit_s": 9.0, "results": {}},
        {"stage": "throughput", "state": "failed", "reason": "a | b", "seconds": 1.0, "limit_s": 9.0, "results": {"rows": []}},
    ]  # fmt: skip
    page = format_summary({"settings": {"device": "cuda"}, "environment": {"device": "X"}, "stages": stages})
    assert NOTE_OF_CPU not in page
    assert "| bench | out of time: ended after 9 s | 9 | 9 |" in page
    assert "| throughput | failed: a / b | 1 | 9 |" in page
    assert "No figure." in page
    assert "summary.json holds what there is" in page


def test_rows_that_failed_stand_in_the_table() -> None:
    ceilings = {"flops_per_s": {"fp32": 1e12}, "bytes_per_s": 1e9, "launch_s": 1e-6}
    row = {"network": "ours", "engine": "half-2:4", "precision": "fp16", "batch": 1, "failed": "EngineError: none"}
    page = bench.format_results({"ceilings": ceilings, "rows": [row], "left_out": [["ours", "compile", "bf16", 8]]})
    assert "| ours | half-2:4 | fp16 | 1 | EngineError: none |" in page
    assert "Not measured for want of time: ours compile bf16 8." in page
