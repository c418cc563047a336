from __future__ import annotations

import math
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from yolo_prune.commands.config import PruneConfig
from yolo_prune.config import Setting, format_config, parse_config, settings
from yolo_prune.errors import ConfigError
from yolo_prune.files import load_yaml
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.shared_settings import PathSetting, WholeNumbers
from yolo_prune.training.config import TrainConfig


@settings
class Inner:
    scale: float = 1.0
    sizes: WholeNumbers = (1, 2)


@settings
class Outer:
    epochs: int = 3
    rate: Annotated[float, Setting("A rate.", lt=1e6)] = 0.1
    name: str = "a"
    fold: bool = True
    data: PathSetting | None = None
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    spare: Inner | None = None


def test_values_take_their_places() -> None:
    values = {"epochs": 5, "rate": 1, "name": "b", "fold": False, "data": "x/y.yaml", "limit": 4}
    nested = {"inner": {"scale": 1e-3, "sizes": [3]}, "spare": {"scale": 2}}
    expected = Outer(5, 1.0, "b", False, Path("x/y.yaml"), 4, Inner(0.001, (3,)), Inner(2.0))
    parsed = parse_config(Outer(), values | nested, "a.yaml")
    assert parsed == expected
    assert parsed.rate == 1


def test_what_is_not_named_stays() -> None:
    base = Outer(epochs=9, inner=Inner(scale=7.0))
    assert parse_config(base, {}, "a.yaml") == base
    assert parse_config(base, {"inner": {"sizes": []}}, "a.yaml").inner == Inner(7.0, ())
    assert parse_config(Outer(limit=3), {"limit": None}, "a.yaml").limit is None


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_config(Outer(), {"data": "~/hands"}, "a.yaml").data == Path("/home/me/hands")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": 2e6}, "a.yaml: rate: 2e+06 is out of range; use a number to below 1e+06"),
        ({"rate": math.nan}, "a.yaml: rate: nan is out of range"),
        ({"scal": 3}, "a.yaml: unknown key scal; did you mean inner.scale?"),
        ({"epoch": 3}, "a.yaml: unknown key epoch; did you mean epochs?"),
        ({"zzz": 3}, "a.yaml: unknown key zzz; known keys are epochs, rate, name, fold, data, limit, inner, spare"),
        ({7: 3}, "a.yaml: unknown key 7; known keys are"),
        ({"inner": {"scal": 3}}, "a.yaml: unknown key inner.scal; did you mean inner.scale?"),
        ({"inner": 3}, "a.yaml: inner: 3 is no mapping; write key: value lines below it"),
        ({"epochs": "many"}, "a.yaml: epochs: 'many' is of the wrong type; use a whole number"),
        ({"epochs": 2.5}, "a.yaml: epochs: 2.5 is of the wrong type"),
        ({"epochs": True}, "a.yaml: epochs: True is of the wrong type"),
        ({"epochs": None}, "a.yaml: epochs: None is of the wrong type"),
        ({"rate": True}, "a.yaml: rate: True is of the wrong type; use a number to below 1e+06"),
        ({"rate": "fast"}, "a.yaml: rate: 'fast' is of the wrong type"),
        ({"name": 3}, "a.yaml: name: 3 is of the wrong type; use text, in quotes"),
        ({"fold": 1}, "a.yaml: fold: 1 is of the wrong type; use true or false"),
        ({"data": 3}, "a.yaml: data: 3 is of the wrong type; use a path"),
        ({"inner": {"sizes": 3}}, "a.yaml: inner.sizes: 3 is of the wrong type; use a list of whole numbers"),
        ({"inner": {"sizes": [1, "2"]}}, "a.yaml: inner.sizes[1]: '2' is of the wrong type"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[Any, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Outer(), values, "a.yaml")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("value", ["x" * 70_000, 10**3000, ["x" * 70_000] * 9, {"x" * 70_000: 1}])
@pytest.mark.parametrize("key", ["criterion", "seed", "data", "training", "x" * 9])
def test_an_error_shows_a_part_of_a_long_value(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(PruneConfig(), {key: value}, "a.yaml")
    assert len(str(error.value)) < 1000


def test_a_value_out_of_range_is_named_by_the_config_itself() -> None:
    with pytest.raises(ConfigError, match=r"^a.yaml: ratio: 1 is out of range; use a number from 0 to below 1$"):
        parse_config(PlanConfig(), {"ratio": 1}, "a.yaml")


CONFIGS = st.builds(
    Outer,
    st.integers(),
    st.floats(max_value=1e5, allow_infinity=False),
    st.text(st.characters(codec="ascii", categories=("L", "N")), max_size=5),
    st.booleans(),
    st.none() | st.just(Path("a/b")),
    st.none() | st.integers(),
    st.builds(Inner, st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers()).map(tuple)),
    st.none() | st.builds(Inner),
)


@given(CONFIGS)
@hypothesis_settings(max_examples=60, deadline=None)
def test_formatting_then_parsing_is_the_identity_through_yaml(config: Outer) -> None:
    text = yaml.safe_dump(format_config(config))
    assert parse_config(Outer(), yaml.safe_load(text), "a.yaml") == config


@pytest.mark.parametrize(
    "config", [TrainConfig(), TrainConfig(data=Path("a.yaml"), img_size=96), PruneConfig(ratio=0.5)]
)
def test_the_package_s_own_settings_come_back(config: TrainConfig | PruneConfig) -> None:
    assert parse_config(type(config)(), format_config(config), "a.yaml") == config


def test_a_mapping_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\ninner:\n  scale: 1e-3\n")
    read = load_yaml(path)
    assert read == {"epochs": 3, "inner": {"scale": 1e-3}}
    assert (read.lines, read["inner"].lines) == ({"epochs": 1, "inner": 2}, {"scale": 3})
    path.write_text("# nothing yet\n")
    assert load_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "where", "said"),
    [
        (b"epochs: 3\nname: [1,\n", ":3", "is not YAML"),
        (b"epochs: 3\n\tname: b\n", ":2", "is not YAML"),
        (b"epochs: 3\nname: b\nepochs: 4\n", ":3", "is not YAML (found duplicate key epochs); correct that line"),
        (b"a: !!python/object/apply:os.getcwd []\n", ":1", "is not YAML"),
        (b"a: 2001-99-99\n", "", "is not YAML (month must be in 1..12)"),
        (b"a: \x00\n", "", "is not YAML"),
        (b"\xff\xfe\xfa", "", "cannot be read"),
        (b"- 1\n- 2\n", "", "is not a mapping; write key: value lines"),
        (b"word\n", "", "is not a mapping"),
    ],
)
def test_text_that_is_no_mapping_is_named_with_its_line(tmp_path: Path, content: bytes, where: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}{where}: {said}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none\.yaml: cannot be read \(No such file or directory\); name a YAML file"
    ):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\ninner:\n  sizes: [1]\n  scale: x\n", "a.yaml:4: inner.scale: 'x' is of the wrong type"),
        ("epochs: 3\ninner:\n  scales: 1\n", "a.yaml:3: unknown key inner.scales; did you mean inner.scale?"),
        ("epochs: 3\ninner:\n  sizes: [1, x]\n", "a.yaml:3: inner.sizes[1]: 'x' is of the wrong type"),
        ("epochs: 3\nrate: 1e7\n", "a.yaml:2: rate: 1e+07 is out of range"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(workplace: Path, text: str, said: str) -> None:
    Path("a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_config(Outer(), load_yaml(Path("a.yaml")), "a.yaml")
    assert str(caught.value).startswith(said)


def test_a_setting_and_its_older_name_are_not_both_read(workplace: Path) -> None:
    Path("a.yaml").write_text("pictures: 3\n\nimages: 4\n")
    with pytest.raises(ConfigError, match=r"^a\.yaml:3: images is given twice; keep one of images and pictures"):
        parse_config(PruneConfig(), load_yaml(Path("a.yaml")), "a.yaml")
    Path("a.yaml").write_text("pictures: 0\n")
    with pytest.raises(ConfigError, match=r"^a\.yaml:1: images: 0 is out of range"):
        parse_config(PruneConfig(), load_yaml(Path("a.yaml")), "a.yaml")
