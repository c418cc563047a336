"""`prune --granularity weight`, `finetune` and `bench` on the command line: zeros made, kept, stored sparse and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Cli, is_same, read_json

from yolo_prune.benchmarking.latency import Latency
from yolo_prune.benchmarking.table import Row, format_conditions, format_markdown, format_rows, format_text
from yolo_prune.commands.bench import load_bench
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.plans.weight_plan import make_weight_plan

PRUNABLE = (1, 2, 3, 5)
WEIGHTS = 8 * 8 * 9 + 8 * 4 + 4 * 8 * 9 + 8 * 16 * 9
COSTS = {"params", "macs", "flops", "size_bytes", "nonzero_params", "nonzero_macs", "file_bytes"}


def prune(cli: Cli, checkpoint: Path, *words: object) -> Any:
    """Prune weights without a look at images and return the JSON."""
    return read_json(cli("prune", checkpoint, "--granularity", "weight", "--recalibrate", 0, "--json", *words))


def find_zeros(path: Path | str) -> dict[int, torch.Tensor]:
    state = load_checkpoint(Path(path)).state
    return {layer: state[f"layers.{layer}.conv.weight"] == 0 for layer in (0, *PRUNABLE, 6)}


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (("--ratio", 0.9), WeightConfig(ratio=0.9)),
        (("--ratio", 0.9, "--criterion", "l1"), WeightConfig("l1", 0.9)),
        (("--criterion", "l2", "--scope", "layer"), WeightConfig("l1", 0.8, "layer")),
        (("--pattern", "2:4"), WeightConfig(pattern="2:4")),
        (("--ratio", 0.5, "--spare", "3,5"), WeightConfig(ratio=0.5, spare=(3, 5))),
        (("--pattern", "1:3", "--no-spare-ends"), WeightConfig(pattern="1:3", spare_ends=False)),
    ],
    ids=str,
)
def test_flags_say_which_weights_are_zeroed(
    cli: Cli, trained: Path, words: tuple[object, ...], config: WeightConfig
) -> None:
    result = prune(cli, trained, *words)
    plan = make_weight_plan(load_checkpoint(trained).make_model(), config)
    zeros = find_zeros(result["checkpoint"])
    for layer, zero in zeros.items():
        assert torch.equal(zero, ~plan.keep[layer]) if layer in plan.keep else not zero.any(), layer
    before, after = load_checkpoint(trained).state, load_checkpoint(Path(result["checkpoint"])).state
    assert is_same(
        {name: tensor for name, tensor in after.items() if not name.endswith("conv.weight")},
        {name: tensor for name, tensor in before.items() if not name.endswith("conv.weight")},
    )
    assert result["prune_ratio"] == plan.ratio


def test_the_json_says_what_was_saved(cli: Cli, trained: Path) -> None:
    result = prune(cli, trained, "--ratio", 0.9)
    assert result.keys() == {
        *("checkpoint", "cfg", "prune_ratio", "before", "after", "max_abs_difference", "recalibrated_on", *COSTS)
    }
    assert result["before"].keys() == result["after"].keys() == COSTS
    assert {key: result[key] for key in COSTS} == result["after"]
    assert result["max_abs_difference"] == 0
    assert result["prune_ratio"] == pytest.approx(0.9, abs=1 / WEIGHTS)
    for key in ("params", "macs", "flops", "size_bytes"):
        assert result["after"][key] == result["before"][key]
    assert result["before"]["nonzero_params"] - result["nonzero_params"] == round(0.9 * WEIGHTS)
    assert result["file_bytes"] == Path(result["checkpoint"]).stat().st_size
    assert result["before"]["file_bytes"] == trained.stat().st_size
    assert load_cfg(Path(result["cfg"])) == load_checkpoint(trained).network
    provenance = load_checkpoint(Path(result["checkpoint"])).provenance
    assert provenance["metrics"]["after"]["nonzero_macs"] == result["nonzero_macs"]
    assert provenance["keeps_zeros"] is True
    assert not list(Path("runs/prune").glob("plan*"))


def test_a_prune_reports_layer_by_layer_what_is_left(cli: Cli, trained: Path) -> None:
    outcome = cli("prune", trained, "--granularity", "weight", "--ratio", 0.5, "--scope", "layer", "--recalibrate", 0)
    assert outcome.out == "runs/prune/pruned.pt\n"
    lines = outcome.err.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["layer", "weights", "not", "zero", "share"],
        ["0", "216", "216", "100.0%"],
        ["1", "576", "288", "50.0%"],
        ["2", "32", "16", "50.0%"],
    ]
    assert lines[7].split()[0] == "all"
    assert lines[8].startswith("zeroed 50.0% of the prunable weights; MACs ")
    assert lines[9].startswith("on disk ")
    assert lines[10] == "zeroed equals masked: largest difference 0.00e+00 (float64)"


def test_batch_norm_is_measured_anew_as_of_channels(cli: Cli, trained: Path) -> None:
    result = read_json(cli("prune", trained, "--granularity", "weight", "--ratio", 0.9, "--json"))
    assert result["recalibrated_on"] == 12
    plain = prune(cli, trained, "--ratio", 0.9)
    one, other = (load_checkpoint(Path(r["checkpoint"])).state for r in (result, plain))
    measured = {name for name in one if not torch.equal(one[name], other[name])}
    assert measured >= {f"layers.{layer}.bn.{part}" for layer in PRUNABLE for part in ("running_mean", "running_var")}
    assert all(".bn.running_" in name or name.endswith(".bn.num_batches_tracked") for name in measured)


def test_the_same_prune_twice_is_the_same(cli: Cli, trained: Path) -> None:
    one, same = (prune(cli, trained, "--ratio", 0.7) for _ in range(2))
    assert is_same(load_checkpoint(Path(one["checkpoint"])).state, load_checkpoint(Path(same["checkpoint"])).state)


def test_a_second_prune_continues_from_the_first_s_zeros(cli: Cli, trained: Path) -> None:
    first = prune(cli, trained, "--ratio", 0.5)
    second = prune(cli, Path(first["checkpoint"]), "--ratio", 0.8)
    zeros = [find_zeros(result["checkpoint"]) for result in (first, second)]
    assert all((zeros[0][layer] <= zeros[1][layer]).all() for layer in zeros[0])
    assert second["nonzero_params"] < first["nonzero_params"] < first["before"]["nonzero_params"]


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("--target-params", 0.5), "target_params"),
        (("--target-macs", 0.5), "target_macs"),
        (("--target-latency-ms", 5), "target_latency_ms"),
        (("--target-speedup", 2), "target_speedup"),
        (("--drop-blocks", 1), "drop_blocks"),
        (("--plan", "plan.json"), "plan"),
        (("--from-sensitivity", "s.json"), "from_sensitivity"),
        (("--fold", "none"), "fold"),
        (("--no-shortcuts",), "shortcuts"),
        (("--min-channels", 1), "min_channels"),
        (("--round-to", 8), "round_to"),
        (("--normalize", "mean"), "normalize"),
        (("--group-reduce", "max"), "group_reduce"),
    ],
)
def test_flags_of_channels_are_rejected_by_name(
    cli: Cli, trained: Path, words: tuple[object, ...], setting: str
) -> None:
    outcome = cli("prune", trained, "--granularity", "weight", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: --{setting.replace('_', '-')}: means nothing to granularity weight; leave it out\n"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--granularity", "kernel"), "--granularity: unknown granularity kernel; use channel or weight"),
        (("--pattern", "2:4"), "--pattern: means nothing to granularity channel; leave it out"),
        (("--no-spare-ends",), "--spare-ends: means nothing to granularity channel; leave it out"),
        (("--granularity", "weight", "--pattern", "4:2"), "--pattern: '4:2' is no pattern; use N:M with N from 1"),
        (
            ("--granularity", "weight", "--pattern", "2:4", "--ratio", 0.5),
            "--ratio: does not go with a pattern, which says what stays everywhere; leave it out",
        ),
        (("--granularity", "weight", "--pattern", "2:4", "--scope", "layer"), "--scope: does not go with a pattern"),
        (
            ("--granularity", "weight", "--criterion", "fpgm"),
            "--criterion: unknown criterion fpgm for granularity weight; use bn-gamma, l1 or l2",
        ),
        (("--granularity", "weight", "--spare", "4"), "--spare: layer 4 is no convolution"),
        (("--granularity", "weight", "--dry-run"), "--granularity: a plan of weights cannot be written as a file"),
        (("--granularity", "weight", "--ratio", 1), "--ratio: 1 is out of range"),
    ],
)
def test_invalid_settings_are_rejected(cli: Cli, trained: Path, words: tuple[object, ...], message: str) -> None:
    outcome = cli("prune", trained, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")
    assert not Path("runs").exists()


def test_a_pattern_in_a_file_stands_in_quotes(cli: Cli, trained: Path) -> None:
    Path("prune.yaml").write_text("granularity: weight\npattern: 2:4\nrecalibrate: 0\n")
    outcome = cli("prune", trained, "--config", "prune.yaml")  # YAML 1.1 reads 2:4 as 124
    assert outcome.err == ("error: prune.yaml:2: pattern: 124 is of the wrong type; use text, in quotes\n")
    Path("prune.yaml").write_text('granularity: weight\npattern: "2:4"\nrecalibrate: 0\n')
    result = read_json(cli("prune", trained, "--config", "prune.yaml", "--json"))
    assert result["prune_ratio"] == 0.5


def test_weights_without_data_say_how_to_do_without(cli: Cli, trained: Path) -> None:
    lone = save_checkpoint(Path("lone.pt"), replace(load_checkpoint(trained), provenance={"stage": "train"}))
    outcome = cli("prune", lone, "--granularity", "weight")
    assert outcome.err == "error: --data: the checkpoint names no data set; name a data.yaml, or use --recalibrate 0\n"
    assert prune(cli, lone, "--ratio", 0.5)["recalibrated_on"] == 0


def test_what_was_pruned_is_finetuned_and_benched(cli: Cli, trained: Path) -> None:
    assert cli("prune", trained, "--granularity", "weight", "--ratio", 0.9).out == "runs/prune/pruned.pt\n"
    outcome = cli("finetune", "--epochs", 1, "--batch-size", 12)
    assert outcome.out == "runs/finetune/best.pt\n"
    assert f"{round(0.9 * WEIGHTS):,} weights at zero, to stay there" in outcome.err
    pruned, tuned = (find_zeros(f"runs/{name}.pt") for name in ("prune/pruned", "finetune/best"))
    assert all(torch.equal(pruned[layer], tuned[layer]) for layer in pruned)
    free = cli("finetune", "--epochs", 1, "--batch-size", 12, "--no-keep-zeros").out.strip()
    assert not any(zero.any() for zero in find_zeros(free).values())
    words = ("bench", "runs/finetune/best.pt", free, "--no-score", "--runs", 1, "--warmup", 0)
    rows = read_json(cli(*words, "--json"))["rows"]
    assert [row["is_stored_sparse"] for row in rows] == [True, False]
    assert [row["file_bytes"] for row in rows] == [Path(row["checkpoint"]).stat().st_size for row in rows]
    head = cli(*words).out.splitlines()[0].split()
    assert head == ["model", "params", "size", "file", "FLOPs", "(MACs)", "inference", "mAP"]
    assert cli("bench", free, *words[3:]).out.splitlines()[0].split()[3] == "FLOPs"


def test_channels_cut_from_a_weight_pruned_network_keep_its_zeros_in_training(cli: Cli, trained: Path) -> None:
    pruned = Path(prune(cli, trained, "--ratio", 0.5)["checkpoint"])
    slim = read_json(cli("prune", "--one-shot", pruned, "--ratio", 0.3, "--recalibrate", 0, "--json"))["checkpoint"]
    assert load_checkpoint(Path(slim)).keeps_zeros
    assert not load_checkpoint(trained).keeps_zeros


ROW = Row(
    name="Original",
    checkpoint="runs/train/best.pt",
    img_size=416,
    params=61_523_734,
    macs=32_644_775_424,
    flops=65_289_550_848,
    size_bytes=246_305_388,
    latency_ms=Latency(14.1, 15.0, 16.2),
    nms_ms=Latency(0.4, 0.5, 0.6),
    scores=None,
    file_bytes=246_400_000,
)
SPARSE = replace(ROW, name="Pruned", file_bytes=33_000_000, is_stored_sparse=True)
ENVIRONMENT = {"batch_size": 1, "precision": "fp32", "engine": "folded", "runs": 30, "device": "a CPU", "threads": 2}


def test_a_sparse_file_gets_a_column_beside_the_size() -> None:
    assert format_rows([ROW, SPARSE]) == [
        ("model", "params", "size", "file", "FLOPs (MACs)", "inference", "mAP"),
        ("Original", "61.5M", "246.3MB", "246.4MB", "32.6B", "15.0ms", "–"),
        ("Pruned", "61.5M (+0%)", "246.3MB (+0%)", "33.0MB (-87%)", "32.6B (+0%)", "15.0ms (+0%)", "–"),
    ]
    assert "file" not in format_text([ROW, ROW])
    assert format_markdown([ROW, SPARSE]).splitlines()[1] == "| --- | --- | --- | --- | --- | --- | --- |"
    assert "File is the checkpoint on disk" in format_conditions(ENVIRONMENT, [ROW, SPARSE], None)
    assert "File" not in format_conditions(ENVIRONMENT, [ROW], None)


def test_a_bench_of_a_version_that_did_not_look_at_files_is_read(tmp_path: Path) -> None:
    rows = [row.as_dict() for row in (ROW, SPARSE)]
    for key in ("file_bytes", "is_stored_sparse"):
        del rows[0][key]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"rows": rows, "environment": ENVIRONMENT, "split": None}))
    old, new = load_bench(path).rows
    assert (old.file_bytes, old.is_stored_sparse) == (None, False)
    assert new == SPARSE
    assert [line[3] for line in format_rows([old, new])] == ["file", "–", "33.0MB"]
