"""The data set that a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_prune.commands.results import PathResult, Summary
from yolo_prune.console import Bar, report, warn
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.spec import DataSpec, find_shared_labels, load_spec
from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.text_tables import pluralize

SYNTHETIC_HANDS = Path("data/synthetic-hands")
CHOSEN_BY = "the split that training chooses its epoch by"
"""A warning to print with scores on val."""


def load_data(path: Path | None) -> DataSpec:
    """Load a data set; without a path, load the synthetic hands, and draw them first if they do not exist."""
    if path is not None:
        return load_noted(path)
    return load_spec(draw_hands(SYNTHETIC_HANDS, SyntheticConfig()))


def draw_hands(out: Path, config: SyntheticConfig) -> Path:
    """Draw synthetic hands into a folder, unless it holds them, and return the path of their data.yaml.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    from yolo_prune.datasets.synthetic.dataset import make_dataset

    if not (out / "data.yaml").is_file():
        report(f"drawing {pluralize(config.train + config.val + config.test, 'image')} of synthetic hands into {out}")
    with Bar("drawing synthetic hands") as bar:
        return make_dataset(out, config, progress=bar.show)


def draw_hands_at(out: Path, config: SyntheticConfig) -> PathResult:
    """Carry out `data synthetic`: draw hands, and return the path of their data.yaml.

    Raises:
        OutputError: as for `draw_hands`.
    """
    path = draw_hands(out, config)
    counts = f"{pluralize(config.train, 'image')} to train on, {config.val:,} to validate, {config.test:,} to test"
    return PathResult(path, Summary(counts, ("train", "--data", str(path))))


def load_noted(path: Path) -> DataSpec:
    """Load a data set, and report what in it was read otherwise than it is written.

    Raises:
        DatasetError: as for `load_spec`.
    """
    spec = load_spec(path, needs_val=False)
    for note in spec.notes:
        warn(note)
    if shared := find_shared_labels(spec):
        warn(f"{path}: {pluralize(len(shared), 'label file')} for two images of one name, such as {shared[0]}")
    return spec


def load_data_of(path: Path | None, provenance: dict[str, Any], otherwise: str = "") -> DataSpec:
    """Load the given data set, or else the one that a checkpoint was trained on.

    `otherwise` is an option with which the command needs no data set.

    Raises:
        ConfigError: no data set was given, and the checkpoint's does not exist.
    """
    if path is not None:
        return load_noted(path)
    trained_on = (provenance.get("data") or {}).get("path")
    if trained_on is None or not Path(trained_on).is_file():
        found = "names no data set" if trained_on is None else f"was trained on {trained_on}, which is not there"
        right = f"name a data.yaml, or use {otherwise}" if otherwise else "name a data.yaml"
        raise ConfigError(f"the checkpoint {found}", where="--data", right=right)
    return load_spec(Path(trained_on), needs_val=False)


def choose_split(spec: DataSpec, split: str | None) -> str:
    """Return the split to score on: the given one, else test if there is one, else val, which is reported.

    Raises:
        DatasetError: the given split does not exist.
    """
    if split is None and (reason := explain_no_test(spec)) is not None:
        warn(f"{reason}: scoring on val, {CHOSEN_BY}")
        return "val"
    split = split or "test"
    spec.samples(split)
    return split


def explain_no_test(spec: DataSpec) -> str | None:
    """Return why a data set has no test split, or None if it has one."""
    try:
        spec.samples("test")
    except DatasetError as error:
        return f"{error.where}: {error.what}" if "test" in spec.absent else f"{spec.source}: there is no test split"
    return None


def find_data_of(path: Path | None, provenance: dict[str, Any]) -> DataSpec | None:
    """Load the data set as `load_data_of` does, but None if none was given and the checkpoint's does not exist."""
    try:
        return load_data_of(path, provenance)
    except ConfigError:
        return None
