"""Values of every option of every command, and the environment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import typer
from hypothesis import strategies as st

from fuzzing.case import Case, Outcome, Target
from fuzzing.command import make_command, run_command
from fuzzing.grammars import nasty, plain_values
from fuzzing.mutators import NASTY
from yolo_prune.commands.config_files import OF_FILES, OF_OPTIONS
from yolo_prune.config import list_settings
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.errors import EngineError

CPU = ("--device", "cpu")
TRAINING = ("--epochs", "1", "--batch-size", "4", "--workers", "0", *CPU)
QUICK = ("--runs", "1", "--warmup", "0", "--threads", "1", *CPU)
STARTS: dict[str, tuple[str, ...]] = {
    "run": ("run", "run.yaml"),
    "train": ("train", "--data", "hands/data.yaml", "--cfg", "tiny.cfg", *TRAINING),
    "finetune": ("finetune", "plain.pt", "--data", "hands/data.yaml", "--no-teacher", *TRAINING),
    "prune": ("prune", "plain.pt", "--data", "hands/data.yaml", "--one-shot", "--ratio", "0.5", "--images", "4", *CPU),
    "iterate": ("iterate", "plain.pt", "--data", "hands/data.yaml", "--target-params", "0.8", *CPU),
    "plan": ("plan", "plain.pt", "--data", "hands/data.yaml", "--ratio", "0.5", "--images", "4", *CPU),
    "sensitivity": ("sensitivity", "plain.pt", "--data", "hands/data.yaml", "--images", "2", "--ratios", "0.5", *CPU),
    "bench": ("bench", "plain.pt", "--data", "hands/data.yaml", *QUICK),
    "report": ("report", "plain.pt", "--data", "hands/data.yaml", "--images", "0", *QUICK),
    "evaluate": ("evaluate", "plain.pt", "--data", "hands/data.yaml", *CPU),
    "detect": ("detect", "plain.pt", "pictures/plain.png", *CPU),
    "profile": ("profile", "plain.pt", "--threads", "1", *CPU),
    "export": ("export", "plain.pt", "--no-verify"),
    "import": ("import", "tiny.cfg"),
    "cfg make": ("cfg", "make", "--arch", "yolov3-tiny", "--width", "0.1", "--img-size", "64"),
    "cfg show": ("cfg", "show", "tiny.cfg"),
    "data synthetic": (
        "data",
        "synthetic",
        "--train",
        "1",
        "--val",
        "1",
        "--test",
        "1",
        "--size",
        "64",
        "--out",
        "drawn",
    ),
    "data check": ("data", "check", "hands/data.yaml"),
    "data anchors": ("data", "anchors", "hands/data.yaml", "--count", "2"),
    "data convert": ("data", "convert", "hands/data.yaml", "--to", "coco", "--out", "out"),
    "data vgg-hand": ("data", "vgg-hand", "--archive", "none.tar.gz"),
    "config schema": ("config", "schema"),
    "config reference": ("config", "reference"),
    "config copy": ("config", "copy", "demo"),
}
"""A command line of each command that takes a second or so; every command has one."""
COPIES = (
    "hands",
    "tiny.cfg",
    "plain.pt",
    "pictures/plain.png",
    "train.txt",
    "val.txt",
    "a.names",
    "tiny.weights",
    "run.yaml",
)
BODIES = (
    *(
        "runs.run_train",
        "runs.resume_train",
        "runs.run_prune",
        "runs.resume_prune",
        "runs.run_plan",
        "runs.run_sensitivity",
    ),
    *("runs.resume_sensitivity_run", "runs.run_iterate", "runs.resume_iterate_run", "run.run_stages", "bench.bench"),
    *("report.make_report", "evaluate.evaluate_models", "detect.detect", "profile.profile", "export.export"),
    *(
        "import_darknet.import_darknet",
        "cfg.make_cfg",
        "cfg.show_cfg",
        "data.draw_hands_at",
        "datasets.check.check_data",
    ),
    *("datasets.anchors.find_data_anchors", "datasets.convert.convert", "datasets.vgg_hand.make_vgg_hand"),
)
"""What carries a command out, after its settings are made."""
FILES = (
    "hands/data.yaml",
    "hands",
    "tiny.cfg",
    "plain.pt",
    "tiny.weights",
    "train.txt",
    "a.names",
    "pictures/plain.png",
    "none",
    ".",
    "..",
    "",
)
SMALL = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "0.0",
    "0.1",
    "0.25",
    "0.5",
    "0.9",
    "1.0",
    "2.5",
    "32",
    "64",
    "96",
    "64x32",
    "32x96",
    "1e-9",
    "1e9",
)
LISTS = (
    "0.5,0.75",
    "1,2",
    "10,14,23,27",
    "hand",
    "hand,foot",
    "hand=hand",
    "a=b",
    ",",
    "0",
    "1:2",
    "2:4",
    "auto",
    "fp32",
    "fp16,fp32",
    "folded,eager",
    "l2",
)
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "NO_COLOR",
    "COLUMNS",
    "TERM",
    "XDG_CACHE_HOME",
    "HOME",
    "TMPDIR",
    "CXX",
    "YOLO_PRUNE_CACHE",
    "OPENCV_IO_MAX_IMAGE_PIXELS",
    "LC_ALL",
)


@cache
def list_commands() -> dict[str, Any]:
    """Return all commands of the command line by their names."""

    def walk(command: Any, name: str) -> dict[str, Any]:
        parts = getattr(command, "commands", None)
        if not parts:
            return {name: command}
        found: dict[str, Any] = {}
        for key, part in parts.items():
            found |= walk(part, f"{name} {key}".strip())
        return found

    return walk(make_command(), "")


def _list_options(name: str) -> list[Any]:
    return [one for one in list_commands()[name].params if one.param_type_name == "option" and one.name != "help"]


def _list_keys(name: str) -> list[str]:
    """Return the keys that --set takes."""
    base = {**OF_FILES, **OF_OPTIONS}.get(name)
    return [] if base is None else list(_walk(base if isinstance(base, type) else type(base), ""))


def _walk(config: Any, prefix: str) -> Any:
    for entry in list_settings(config):
        yield f"{prefix}{entry.name}"
        if entry.is_nested:
            yield from _walk(entry.kind, f"{prefix}{entry.name}.")


def _give(name: str, option: Any, draw: Callable[[tuple[str, ...]], str], value: str) -> tuple[str, ...]:
    """Return the words of an option with a value."""
    flag = draw((*option.opts, *option.secondary_opts))
    if option.is_flag:
        return (flag,)
    if flag == "--set" and (keys := _list_keys(name)):
        value = f"{draw(tuple(keys))}={value}"
    return (f"{flag}={value}",) if flag.startswith("--") else (flag, value)


def _choices(option: Any) -> tuple[str, ...]:
    """Return the words that an option's help names."""
    words = tuple((option.metavar or "").split("|")) + tuple(
        (option.help or "").replace(",", " ").replace(":", " ").split()
    )
    return tuple(word.strip(".()") for word in words if word.strip(".()").replace("-", "").isalnum()) or ("auto",)


def _make_any(chance: Random, base: Path) -> Case:
    """Give one to three options of a command any value; what carries it out does not run."""
    name = chance.choice(list(STARTS))
    words = list(STARTS[name])
    for option in chance.sample(_list_options(name), min(len(_list_options(name)), chance.choice((1, 1, 2, 3)))):
        pool = chance.choice((NASTY, SMALL, FILES, LISTS, _choices(option)))
        words += _give(name, option, chance.choice, chance.choice(pool))
    if chance.random() < 0.1:
        words.insert(chance.randrange(len(words) + 1), chance.choice(NASTY))
    return Case(tuple(word.replace("\0", "") for word in words), copies=("tiny.cfg", "plain.pt", "hands", "run.yaml"))


def _make_real(chance: Random, base: Path) -> Case:
    """Give one to three options of a command values that may be meant, and run it."""
    name = chance.choice([one for one in STARTS if one not in ("run", "config copy", "config reference")])
    words = list(STARTS[name])
    options = [one for one in _list_options(name) if one.name not in ("show", "url", "resumed", "workers", "epochs")]
    for option in chance.sample(options, min(len(options), chance.choice((1, 2, 3)))):
        pool = chance.choice((SMALL, FILES, LISTS, _choices(option), _choices(option)))
        words += _give(name, option, chance.choice, chance.choice(pool))
    return Case(tuple(words), copies=COPIES)


@st.composite
def _draw_words(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from([one for one in STARTS if _list_options(one)]))
    words = list(STARTS[name])
    for option in draw(st.lists(st.sampled_from(_list_options(name)), min_size=1, max_size=3)):
        value = draw(st.one_of(nasty(), st.integers().map(str), st.floats().map(str), plain_values().map(repr)))
        words += _give(name, option, lambda values: draw(st.sampled_from(values)), value.replace("\0", ""))
    return Case(tuple(words), copies=("tiny.cfg", "plain.pt", "hands"))


def _make_environment(chance: Random, base: Path) -> Case:
    names = chance.sample(ENVIRONMENT, chance.choice((1, 2)))
    values = [one for one in (*NASTY, *SMALL, *FILES) if "\0" not in one and "\ud800" not in one]
    words = chance.choice(
        (
            "bench plain.pt --no-score --runs 1 --warmup 0 --device cpu",
            "cfg show tiny.cfg",
            "data check hands --out out",
            "detect plain.pt hands/images/val --out out",
            "plan plain.pt --criterion l2 --target-latency-ms 0.01 --device cpu",
            "bench plain.pt --no-score --runs 1 --warmup 0 --engine sparse --device cpu",
        )
    )
    return Case(
        tuple(words.split()),
        copies=("tiny.cfg", "plain.pt", "hands"),
        environment={name: chance.choice(values) for name in names},
    )


def _stop(*_: object, **__: object) -> None:
    raise typer.Exit


def _compile(command: list[str]) -> bytes:
    raise EngineError("cannot compile the sparse kernel", where=command[0])


def run_here(case: Case) -> Outcome:
    """Run a command that starts no other process, and compiles nothing."""
    drawing = patch("yolo_prune.datasets.synthetic.dataset.make_dataset", partial(make_dataset, workers=1))
    with drawing, patch("yolo_prune.engines.sparse.build._compile", _compile):
        return run_command(case)


def parse_alone(case: Case) -> Outcome:
    """Run a command up to the point where its settings are made."""
    with ExitStack() as stack:
        for body in BODIES:
            stack.enter_context(patch(f"yolo_prune.commands.{body}", _stop))
        return run_command(case)


def _list_starts(base: Path) -> list[Case]:
    return [Case(words, copies=COPIES) for name, words in STARTS.items() if name not in ("run", "data vgg-hand")]


OPTIONS: tuple[Target, ...] = (
    Target(
        "options",
        _make_any,
        lambda base: [Case(words, copies=COPIES) for words in STARTS.values()],
        parse_alone,
        lambda base: _draw_words(),
    ),
    Target("commands", _make_real, _list_starts, run_here),
    Target("environment", _make_environment, lambda base: [Case(("cfg", "show", "base/tiny.cfg"))], run_here),
)
