"""The shell contract: what each command prints where, what it leaves, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import PRUNABLE, Cli, read_json

from yolo_prune.cli.main import main
from yolo_prune.errors import Interrupted
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.run import load_last

COMMANDS = ("train", "sensitivity", "plan", "prune", "finetune", "bench", "evaluate", "detect", "run", "cfg", "data")
PYTHON = [sys.executable, "-m", "yolo_prune"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
COSTS = {"params", "macs", "flops", "size_bytes"}


def test_four_commands_find_what_the_one_before_left(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    small = ("--epochs", 1, "--batch-size", 6)
    trained = cli("train", "--data", hands, "--cfg", tiny_cfg, *small)
    assert (trained.code, trained.out) == (0, "runs/train/best.pt\n")
    assert "epoch 1/1: loss" in trained.err
    pruned = cli("prune", "--one-shot", "--ratio", 0.5)
    assert (pruned.code, pruned.out) == (0, "runs/prune/pruned.pt\n")
    assert "rebuilt equals masked: largest difference" in pruned.err
    finetuned = cli("finetune", *small)
    assert (finetuned.code, finetuned.out) == (0, "runs/finetune/best.pt\n")
    table = cli("bench", "--runs", 2)
    assert table.code == 0
    head, _, *rows = table.out.splitlines()[:5]
    assert head.split()[:2] == ["model", "params"]
    assert [row.split()[0] for row in rows] == ["Original", "Pruned", "Finetuned"]
    assert "scoring Original on the test split: 6 images" in table.err
    assert json.loads(Path("runs/latest.json").read_text()) == {
        "train": "runs/train/best.pt",
        "prune": "runs/prune/pruned.pt",
        "finetune": "runs/finetune/best.pt",
    }
    assert cli("evaluate").out.startswith("val: 6 images, ")
    again = cli("finetune", *small)
    assert again.out == "runs/finetune-2/best.pt\n"
    newest = read_json(cli("bench", "--no-score", "--runs", 1, "--json"))
    assert newest["rows"][-1]["checkpoint"] == "runs/finetune-2/best.pt"


def test_four_commands_are_one_pipeline(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    """The real thing: four processes, a real shell, results.png and all."""
    yoloprune, small = shlex.join(PYTHON), "--epochs 1 --batch-size 6 --device cpu"
    line = (
        f"{yoloprune} train --data {hands} --cfg {tiny_cfg} {small} | {yoloprune} prune --ratio 0.5 - "
        f"| {yoloprune} finetune {small} - | {yoloprune} bench --runs 1 --json -"
    )
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == ["Original", "Pruned", "Finetuned"]
    assert rows[-1]["checkpoint"] == "runs/finetune/best.pt"
    assert Path("runs/train/results.png").stat().st_size > 0
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert "\r" not in done.stderr  # bars are for terminals


def test_a_broken_pipeline_says_why(cli: Cli) -> None:
    outcome = cli("prune", "-", stdin="")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == ("error: -: stdin names no checkpoint; pipe a command in that prints a checkpoint's path\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_defect(unbuffered: str) -> None:
    """A pipe that nobody reads fails at the last flush, or at the first write."""
    reader, writer = os.pipe()
    os.close(reader)
    command, environment = [*PYTHON, "cfg", "make"], {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_names_count_up_or_must_be_free(cli: Cli, trained: Path) -> None:
    prune = ("prune", "--one-shot", "--ratio", 0.5, "--recalibrate", 0, trained)
    assert [cli(*prune).out for _ in range(2)] == ["runs/prune/pruned.pt\n", "runs/prune-2/pruned.pt\n"]
    assert cli(*prune, "--name", "mine").out == "runs/mine/pruned.pt\n"
    taken = cli(*prune, "--name", "mine")
    assert (taken.code, taken.out) == (2, "")
    assert taken.err.startswith("error: --name: runs/mine already holds a run; use another name")


def test_a_path_may_come_through_stdin(cli: Cli, trained: Path) -> None:
    line = f"{trained}\n"
    assert (
        cli("prune", "--one-shot", "--ratio", 0.5, "--recalibrate", 0, "-", stdin=line).out == "runs/prune/pruned.pt\n"
    )
    rows = read_json(cli("bench", "runs/prune/pruned.pt", "-", "--no-score", "--runs", 1, "--json", stdin=line))["rows"]
    assert [row["checkpoint"] for row in rows] == ["runs/prune/pruned.pt", str(trained)]
    assert read_json(cli("evaluate", "-", "--json", stdin=line))["checkpoint"] == str(trained)


def test_cfg_show_counts(cli: Cli, tiny_cfg: Path) -> None:
    shown = read_json(cli("cfg", "show", tiny_cfg, "--json"))
    assert shown.keys() >= {*COSTS, "layers"}
    assert len(shown["layers"]) == 8
    # kernels, then γ and β; the head has a bias
    params = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 4 + 4 * 8 * 9 + 8 * 16 * 9 + 16 * 12 + 2 * (8 + 8 + 4 + 8 + 16) + 12
    assert shown["params"] == params == sum(layer["params"] for layer in shown["layers"])
    assert shown["flops"] == 2 * shown["macs"]
    assert shown["size_bytes"] == 4 * (params + 2 * (8 + 8 + 4 + 8 + 16))
    text = cli("cfg", "show", tiny_cfg)
    assert (text.code, text.err) == (0, "")
    assert f"{params:,}" in text.out


def test_cfg_show_takes_a_checkpoint(cli: Cli, trained: Path, tiny_cfg: Path) -> None:
    assert cli("cfg", "show", trained, "--json").out == cli("cfg", "show", tiny_cfg, "--json").out


def test_cfg_make_prints_or_writes(cli: Cli) -> None:
    words = ("cfg", "make", "--arch", "yolov3-tiny", "--width", 0.25, "--img-size", 192)
    printed, written = cli(*words), cli(*words, "--out", "small.cfg")
    assert printed.out.startswith("[net]\n")
    assert written.out == "small.cfg\n"
    assert Path("small.cfg").read_text().strip() == printed.out.strip()


def test_prune_json(cli: Cli, trained: Path) -> None:
    result = read_json(cli("prune", "--one-shot", trained, "--ratio", 0.5, "--json"))
    keys = {"checkpoint", "cfg", "params", "macs", "size_bytes", "prune_ratio", "max_abs_difference", "before", "after"}
    assert result.keys() >= keys
    assert result["prune_ratio"] == 0.5
    assert result["max_abs_difference"] < 1e-9
    assert result["recalibrated_on"] == 12
    assert result["before"].keys() == result["after"].keys() == COSTS
    assert result["params"] == result["after"]["params"] < result["before"]["params"]
    shown = read_json(cli("cfg", "show", result["cfg"], "--json"))
    assert {key: shown[key] for key in COSTS} == result["after"]
    assert load_checkpoint(Path(result["checkpoint"])).provenance["parent"]["path"] == str(trained)


def test_prune_drops_what_it_was_told(cli: Cli, trained: Path) -> None:
    kept = []
    for number, words in enumerate([(), ("--no-shortcuts",), ("--round-to", 4), ("--min-channels", 3)]):
        outcome = cli(
            "prune", "--one-shot", trained, "--ratio", 0.5, "--recalibrate", 0, "--name", f"p{number}", *words
        )
        network = load_checkpoint(Path(outcome.out.strip())).network
        kept.append([layer.filters for _, layer in network.convs])
    assert PRUNABLE - sum(kept[0][i] for i in (0, 1, 2, 4)) == PRUNABLE / 2
    assert kept[0][1] == kept[0][3]  # tied by the shortcut
    assert kept[1][1] == kept[1][3] == 8
    assert all(filters % 4 == 0 for filters in kept[2][:-1])
    assert min(kept[3]) >= 3


def test_bench_json(cli: Cli, trained: Path) -> None:
    result = read_json(cli("bench", trained, trained, "--runs", 3, "--warmup", 0, "--json"))
    assert result["environment"].keys() >= {"device", "threads", "precision", "engine", "batch_size", "runs"}
    first, second = result["rows"]
    keys = {"name", "checkpoint", *COSTS, "latency_ms", "map50", "map50_interval", "coco_ap"}
    assert first.keys() == second.keys() >= keys
    assert first["name"] != second["name"]
    assert 0 < first["latency_ms"]["p5"] <= first["latency_ms"]["p50"] <= first["latency_ms"]["p95"]
    assert len(first["map50_interval"]) == 2
    assert first["map50_difference"] is None
    assert second["map50_difference"] == [0, 0, 0]
    assert second["map50"] == first["map50"]


def test_bench_as_csv_has_every_number(cli: Cli, trained: Path) -> None:
    words = ("bench", trained, "--no-score", "--runs", 15, "--batch-size", 2, "--engine", "eager,folded")
    rows = list(csv.DictReader(cli(*words, "--csv").out.splitlines()))
    assert [row["engine"] for row in rows] == ["eager", "folded"]
    for row in rows:
        assert 0 < float(row["latency_ms_p5"]) <= float(row["latency_ms_p50"]) <= float(row["latency_ms_p95"])
        assert 0 < float(row["decode_ms_p50"]) < float(row["latency_ms_p50"])
        assert int(row["memory_bytes"]) > int(row["size_bytes"]) / 2
        assert row["bound"].split()[0] in ("compute", "memory", "launch")
        assert row["map50"] == ""
    json_rows = read_json(cli(*words, "--json"))
    assert json_rows["environment"]["nms_on"] == "noise"
    (ceilings,) = json_rows["environment"]["ceilings"]
    assert ceilings.keys() == {"macs_per_s", "bytes_per_s", "launch_s"}


def test_bench_tells_how_times_spread(cli: Cli, trained: Path) -> None:
    table, conditions, details = cli("bench", trained, "--runs", 1, "--device", "cpu").out.strip().split("\n\n")
    assert details.split("\n")[0].split()[:6] == ["model", "engine", "p5", "p50", "p95", "images/s"]
    assert "ms per image on images of the test split" in conditions
    assert table.startswith("model")


def test_bench_brings_the_lineage_of_each_checkpoint(cli: Cli, trained: Path) -> None:
    words = ("--one-shot", "--ratio", 0.5, "--recalibrate", 0, "--device", "cpu")
    pruned: list[str] = [cli("prune", trained, *words, "--criterion", name).out.strip() for name in ("l1", "l2")]
    rows = read_json(cli("bench", *pruned, "--lineage", "--no-score", "--runs", 1, "--json"))["rows"]
    assert [Path(row["checkpoint"]).resolve() for row in rows] == [
        path.resolve() for path in (trained, *map(Path, pruned))
    ]


def test_the_clock_of_the_cpu_is_for_one_thread(cli: Cli, trained: Path) -> None:
    words = ("bench", trained, "--no-score", "--runs", 1, "--device", "cpu", "--clock", "cpu")
    assert ", CPU time)" in cli(*words, "--threads", 1).out
    outcome = cli(*words, "--threads", 2)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(
        "error: --clock: the CPU's clock measures nothing where several threads"
    )


def test_bench_prints_the_same_table_in_markdown(cli: Cli, trained: Path) -> None:
    outcome = cli("bench", trained, "--no-score", "--runs", 1, "--markdown", "--img-size", 96, "--engine", "eager")
    lines = outcome.out.splitlines()
    assert lines[0] == "| model | params | size | FLOPs (MACs) | inference | mAP |"
    assert lines[2].startswith("| train/best | 2.6K | 0.0MB | ")
    assert "eager engine, 96 px" in outcome.out


def test_evaluate_json(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("evaluate", trained, "--data", hands, "--split", "test")
    result = read_json(cli(*words, "--json"))
    assert result.keys() >= {"map50", "map50_interval", "coco_ap50", "coco_ap", "images", "instances"}
    assert len(result["map50_interval"]) == 2
    assert result["images"] == 6
    text = cli(*words)
    assert (text.code, text.err) == (0, "scoring train/best: 6 images\n")
    assert text.out.startswith(f"test: 6 images, {result['instances']} objects\ntrain/best\n  mAP ")
    assert f"mAP {result['map50']:.4f} [" in text.out


def test_a_score_that_is_none_is_null(cli: Cli, trained: Path, hands: Path) -> None:
    empty = shutil.copytree(hands.parent, Path("hands"))
    shutil.rmtree(empty / "labels/val")
    result = read_json(cli("evaluate", trained, "--data", empty / "data.yaml", "--json"))
    assert result["map50"] is None
    assert result["map50_interval"] == [None, None]
    assert result["instances"] == 0


def test_detect_prints_the_results_file(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("detect", trained, hands.parent / "images/test", "--confidence", 0.01)
    outcome = cli(*words)
    assert (outcome.code, outcome.out) == (0, "runs/detect/detections.json\n")
    assert len(list(Path("runs/detect").glob("*.png"))) == 6
    result = read_json(cli(*words, "--json", "--out", "elsewhere"))
    assert result["results"] == "elsewhere/detections.json"
    assert len(result["images"]) == 6
    assert json.loads(Path("elsewhere/detections.json").read_text()) == result["detections"]


def test_data_synthetic_prints_its_data_yaml(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_prune.datasets.synthetic.dataset.count_cores", lambda: 1)
    words = ("data", "synthetic", "--out", "few", "--train", 1, "--val", 1, "--test", 1, "--size", 64)
    for _ in range(2):  # the second time it is there
        outcome = cli(*words)
        assert (outcome.code, outcome.out) == (0, "few/data.yaml\n")


def test_train_json_and_flags_over_a_file(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    Path("settings.yaml").write_text(f"data: {hands}\ncfg: {tiny_cfg}\nepochs: 9\nbatch_size: 12\nname: filed\n")
    result = read_json(cli("train", "--config", "settings.yaml", "--epochs", 1, "--sparsity", 0.1, "--json"))
    assert result["checkpoint"] == "runs/filed/best.pt"
    assert result["epoch"] == 1
    recipe = load_checkpoint(Path(result["checkpoint"])).provenance["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["sparsity"]) == (1, 12, 0.1)


def test_run_prints_the_table(cli: Cli, hands: Path, tiny_cfg: Path) -> None:
    small = "{epochs: 1, batch_size: 12}"
    text = f"train: {{epochs: 1, batch_size: 12, cfg: {tiny_cfg}}}\nprune: {{ratio: 0.5}}\nfinetune: {small}\n"
    Path("stages.yaml").write_text(f"{text}bench: {{runs: 1}}\n")
    words = ("run", "stages.yaml", "--data", hands, "--name", "mine", "--device", "cpu", "--seed", 3)
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[2].split()[0] == "Original"
    assert cli(*words, "--markdown").out.startswith("| model | params |")
    rows = read_json(cli(*words, "--json"))["rows"]
    assert [row["name"] for row in rows] == ["Original", "Pruned", "Finetuned"]
    for product in ("train/best.pt", "prune/pruned.pt", "finetune/best.pt"):
        assert load_checkpoint(Path("runs/mine", product)).provenance["recipe"]["seed"] == 3


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_can_be_resumed(
    cli: Cli, hands: Path, tiny_cfg: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    from yolo_prune.training import epoch_end
    from yolo_prune.training import run as module

    finish = epoch_end.finish_epoch

    def finish_and_signal(*arguments: Any) -> None:
        finish(*arguments)
        signal.raise_signal(signum)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "finish_epoch", finish_and_signal)
        words = ("--data", hands, "--cfg", tiny_cfg, "--epochs", 2, "--batch-size", 12)
        stopped = cli("train", *words)
    assert (stopped.code, stopped.out) == (128 + signum, "")
    assert stopped.err.splitlines()[-1].startswith(f"stopped by signal {signum:d}; ")
    resumed = cli("train", "--resume", "--device", "cpu")
    assert (resumed.code, resumed.out) == (0, "runs/train/best.pt\n")
    assert "resuming runs/train after epoch 1 of 2\nepoch 2/2" in resumed.err


def test_a_real_signal_ends_a_real_process(workplace: Path, hands: Path, tiny_cfg: Path) -> None:
    words: list[str | Path] = ["train", "--data", hands, "--cfg", tiny_cfg, "--epochs", "500", "--device", "cpu"]
    with subprocess.Popen(
        [*PYTHON, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        deadline = time.monotonic() + 60
        while not Path("runs/train/results.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, ""), err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped by signal 15; ")
    _, checkpoint = load_last(Path("runs/train"), {})
    assert 1 <= checkpoint.training["epoch"] < 500


@pytest.mark.parametrize("debug", [False, True])
def test_a_defect_is_named_and_its_traceback_kept_for_debug(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("of\nsomething")

    monkeypatch.setattr("yolo_prune.commands.cfg.measure_cost", fail)
    outcome = cli(*["--debug"] * debug, "cfg", "show", trained)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == (
        "defect: ZeroDivisionError: of something; run yoloprune --debug … for the traceback, and report it"
    )
    assert ("Traceback" in outcome.err) is debug
    assert debug or outcome.err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Interrupted(15), 143), (Interrupted(2), 130)])
def test_a_signal_outside_training_ends_quietly(
    cli: Cli, tiny_cfg: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def stop(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("yolo_prune.commands.cfg.measure_cost", stop)
    outcome = cli("cfg", "show", tiny_cfg)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err == ("" if isinstance(error, KeyboardInterrupt) else f"{error}\n")


@pytest.mark.parametrize(
    "words", [(), *((command,) for command in COMMANDS), ("cfg", "show"), ("cfg", "make"), ("data", "synthetic")]
)
def test_every_command_has_help(cli: Cli, words: tuple[str, ...]) -> None:
    outcome = cli(*words, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.lstrip().startswith(" ".join(("Usage: yoloprune", *words)))
    assert "--help" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    if not words:
        assert all(f"\n│ {command} " in outcome.out for command in COMMANDS)


@pytest.mark.parametrize("words", [(), ("cfg",), ("data",)])
def test_a_group_without_a_command_shows_its_help(cli: Cli, words: tuple[str, ...]) -> None:
    outcome = cli(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.lstrip().startswith(" ".join(("Usage: yoloprune", *words)))
    assert outcome.err.count("\n") > 5


def test_help_is_quick_because_it_needs_no_torch() -> None:
    code = "import sys; from yolo_prune.cli.main import main; sys.argv = ['yoloprune', 'train', '--help']\n"
    code += "try:\n    main()\nexcept SystemExit:\n    sys.exit(' '.join({'torch', 'cv2', 'matplotlib'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.lstrip().startswith("Usage: yoloprune train")


def test_a_wrong_option_is_named_without_torch() -> None:
    code = "import sys; from yolo_prune.cli.main import main; sys.argv = ['yoloprune', 'train', '--epochs', '0']\n"
    code += "try:\n    main()\nexcept SystemExit as stop:\n    sys.exit(9 if 'torch' in sys.modules else stop.code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "error: --epochs: 0 is out of range; use a whole number from 1\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_the_version_is_the_package_s(cli: Cli) -> None:
    from yolo_prune import __version__

    assert cli("--version").out == f"{__version__}\n"
    assert main.__module__ == "yolo_prune.cli.main"
