"""What runs leave in their folders and read again: journals, plans, tables, settings."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzzing.case import Case, Outcome, Target
from fuzzing.command import run_function
from fuzzing.grammars import json_texts, yaml_texts
from fuzzing.mutators import damage_nested, damage_text, encode
from fuzzing.seeds import RUN
from fuzzing.targets.making import as_json, as_text, make_target
from yolo_prune.benchmarking import latency_table
from yolo_prune.commands.bench import load_bench
from yolo_prune.commands.config_files import OF_FILES
from yolo_prune.commands.run import load_run, read_note
from yolo_prune.config import format_config
from yolo_prune.datasets.vgg_hand.partial_file import Part
from yolo_prune.overlay import overlay
from yolo_prune.pruning.scores.sensitivity import load_sensitivity

PLAIN = ("runs",)


def _read_settings(case: Case) -> Outcome:
    command, path = case.words[0], Path("a.yaml")
    if command == "run":
        return run_function(lambda: load_run(path))
    return run_function(lambda: overlay(OF_FILES[command], path, {}))


def _settings_of(command: str) -> dict[str, Any]:
    return (
        {**RUN}
        if command == "run"
        else {key: value for key, value in format_config(OF_FILES[command]).items() if value is not None}
    )


def _make_settings(chance: Random, base: Path) -> Case:
    command = chance.choice(list(OF_FILES))
    values = _settings_of(command)
    if chance.random() < 0.5:
        return Case((command,), {"a.yaml": damage_text(yaml.safe_dump(values), chance)})
    text = yaml.safe_dump(damage_nested(values, chance), allow_unicode=True)
    return Case((command,), {"a.yaml": encode(text, chance)})


def _draw_settings(base: Path) -> SearchStrategy[Case]:
    commands = st.sampled_from(list(OF_FILES))
    return commands.flatmap(
        lambda command: yaml_texts(_settings_of(command)).map(
            lambda text: Case((command,), {"a.yaml": text.encode("utf-8", "replace")})
        )
    )


def _list_settings(base: Path) -> list[Case]:
    return [Case((command,), {"a.yaml": yaml.safe_dump(_settings_of(command)).encode()}) for command in OF_FILES]


def _read_note(case: Case) -> Outcome:
    return run_function(lambda: read_note(Path("stage.json")))


def _read_bench(case: Case) -> Outcome:
    return run_function(lambda: load_bench(Path("bench.json")))


def _read_table(case: Case) -> Outcome:
    return run_function(lambda: load_sensitivity(Path("sensitivity.json")))


def _read_part(case: Case) -> Outcome:
    def read() -> None:
        Path("a.part").write_bytes(b"0123456789")
        have, version = Part(Path("a"), "http://a/b").load()
        assert (have > 0) == (version is not None)

    return run_function(read)


GRIDS = [
    {
        "family": ["conv", 8, 16, 8, 8, 3],
        "grid": {"inputs": [8, 16], "outputs": [8, 16], "times_ms": [[0.1, 0.2], [0.2, 0.3]]},
    }
]


def _make_latencies(chance: Random, base: Path) -> Case:
    return Case((), {"a.json": encode(json.dumps(damage_nested(GRIDS, chance)), chance)})


def _read_latencies(case: Case) -> Outcome:
    def read() -> None:
        for grid in latency_table._load(Path("a.json")).values():
            grid.look_up(12, 12)

    return run_function(read)


def _at(name: str, path: str, *words: str, copies: tuple[str, ...] = PLAIN, **more: Any) -> Target:
    return make_target(name, {path: path}, *words, damage=as_json, copies=copies, parts=("runs",), **more)


PART: dict[str, Any] = {
    "url": "http://a/b",
    "etag": '"one"',
    "last_modified": "Mon, 01 Aug 2011 00:00:00 GMT",
    "total_bytes": 20,
}
RUNS: tuple[Target, ...] = (
    _at("steps.json", "runs/iterate/steps.json", "iterate --resume --name iterate --device cpu"),
    _at("prune.json", "runs/prune/prune.json", "prune --resume --name prune --device cpu", copies=("runs", "hands")),
    _at(
        "sensitivity.json",
        "runs/sensitivity/sensitivity.json",
        "sensitivity --resume --name sensitivity",
        "prune base/runs/train/best.pt --one-shot --from-sensitivity FILE --ratio 0.5 --recalibrate 0 --fold leaky",
    ),
    _at("latest.json", "runs/latest.json", "export --out out --format darknet", "plan --criterion l2 --ratio 0.5"),
    _at(
        "plan.json",
        "runs/plan/plan.json",
        "prune base/runs/train/best.pt --one-shot --plan FILE --recalibrate 0 --fold leaky",
        texts=lambda sound: json_texts(json.loads(sound)),
    ),
    make_target(
        "stage.json", {"stage.json": "runs/whole/train/stage.json"}, damage=as_json, run=_read_note, parts=PLAIN
    ),
    make_target(
        "bench.json", {"bench.json": "runs/whole/bench/bench.json"}, damage=as_json, run=_read_bench, parts=PLAIN
    ),
    make_target(
        "sensitivity table",
        {"sensitivity.json": "runs/sensitivity/sensitivity.json"},
        damage=as_json,
        run=_read_table,
        parts=PLAIN,
        texts=lambda sound: json_texts(json.loads(sound)),
    ),
    make_target(
        "results.csv",
        {"runs/train/results.csv": "runs/train/results.csv"},
        "report runs/train/best.pt --no-score --runs 1 --warmup 0 --images 0 --out out.html --threads 1 --device cpu",
        damage=as_text,
        copies=PLAIN,
        parts=("runs",),
    ),
    _at("report.json", "checked/report.json", "data check base/hands/data.yaml --out checked", copies=("checked",)),
    make_target("card", {"tiny.md": "foreign.md"}, "export base/plain.pt --format darknet --out tiny", damage=as_text),
    Target("settings", _make_settings, _list_settings, _read_settings, _draw_settings),
    Target(
        "latencies", _make_latencies, lambda base: [Case((), {"a.json": json.dumps(GRIDS).encode()})], _read_latencies
    ),
    Target(
        "part",
        lambda chance, base: Case((), {"a.part.json": encode(json.dumps(damage_nested(PART, chance)), chance)}),
        lambda base: [Case((), {"a.part.json": json.dumps(PART).encode()})],
        _read_part,
    ),
)
