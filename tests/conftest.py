"""A tiny data set, a tiny network and a checkpoint of it, made once for all tests that ask for them."""

from __future__ import annotations

import io
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import typer
import yaml
from tiny import DRAW_RESULTS, HOSTILE, SIDE, TINY_CFG, Cli, Outcome, make_config

from yolo_prune.cli import main as command_line
from yolo_prune.commands.run import load_run, run_stages
from yolo_prune.commands.train import start_training
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 12, 6 and 6 images of hands and return their data.yaml; not to be changed."""
    config = SyntheticConfig(train=12, val=6, test=6, size_px=SIDE)
    return make_dataset(tmp_path_factory.mktemp("data") / "hands", config, workers=1)


@pytest.fixture(scope="session")
def tiny_cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the cfg of a tiny network with a shortcut."""
    path = tmp_path_factory.mktemp("cfg") / "tiny.cfg"
    path.write_text(TINY_CFG)
    return path


@pytest.fixture(scope="session")
def trained(hands: Path, tiny_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return best.pt of a run of three epochs, its folder around it; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAW_RESULTS, lambda path, rows: None)
        return start_training(make_config(hands, tiny_cfg), tmp_path_factory.mktemp("trained") / "train")


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script started pytest in the background; tests send SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Hear signals after each test as before it: one of several processes ends deaf to them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out results.png, which takes longer to draw than a tiny network to train."""
    monkeypatch.setattr(DRAW_RESULTS, lambda path, rows: None)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder and return it."""
    place = tmp_path / "workplace"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def lone(workplace: Path, trained: Path) -> Path:
    """Return a checkpoint that names no data set."""
    return save_checkpoint(Path("lone.pt"), replace(load_checkpoint(trained), provenance={"stage": "train"}))


@cache
def make_command() -> object:
    """Return the tree of commands, which takes longer to build than many of them to run."""
    return typer.main.get_command(command_line.app)


@pytest.fixture
def cli(workplace: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs `yoloprune` in an empty folder."""
    monkeypatch.setattr(command_line, "app", make_command())

    def run(*words: object, stdin: str | bytes = "") -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["yoloprune", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            command_line.main()
        out, err = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return Outcome(leaving.value.code, out, err)

    return run


@pytest.fixture(scope="session")
def hostile_run(hands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which such a run has finished, as runs/hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    data = shutil.copytree(hands.parent, folder / "hands") / "data.yaml"
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), "names": list(HOSTILE)}))
    for number, label in enumerate(sorted(data.parent.rglob("labels/*/*.txt"))):
        rows = [line.split() for line in label.read_text().splitlines()]
        label.write_text("".join(f"{number % 2} {' '.join(row[1:])}\n" for row in rows))
    (folder / "tiny.cfg").write_text(TINY_CFG.replace("classes=1", "classes=2").replace("filters=12", "filters=14"))
    stages = {
        "name": "hostile",
        "data": "hands/data.yaml",
        "device": "cpu",
        "train": {"cfg": "tiny.cfg", "epochs": 2, "batch_size": 6, "learning_rate": 0.004},
        "sparse": {"epochs": 2, "batch_size": 6, "sparsity": 0.5},
        "prune": {"ratio": 0.5, "effort": 1},
        "finetune": {"epochs": 1, "batch_size": 6},
        "bench": {"runs": 2, "warmup": 0, "threads": [1]},
    }
    (folder / "stages.yaml").write_text(yaml.safe_dump(stages))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(DRAW_RESULTS, lambda path, rows: None)
        run_stages(load_run(Path("stages.yaml")))
    return folder


@pytest.fixture(scope="session")
def page_file(hostile_run: Path) -> Path:
    """Return the run's page."""
    return hostile_run / "runs/hostile/report.html"


@pytest.fixture(scope="session")
def page_text(page_file: Path) -> str:
    """Return the page's text."""
    return page_file.read_text(encoding="utf-8")
