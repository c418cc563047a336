"""Inputs drawn by Hypothesis from the grammars of files and of the command line."""

from __future__ import annotations

import json
import zlib
from typing import Any

import hypothesis
import yaml
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzzing.case import Case
from fuzzing.mutators import NASTY

KEYS = (
    *("batch_normalize", "filters", "size", "stride", "pad", "padding", "groups", "activation", "layers", "group_id"),
    *(
        "from",
        "mask",
        "anchors",
        "classes",
        "num",
        "scale_x_y",
        "new_coords",
        "scale_wh",
        "width",
        "height",
        "channels",
    ),
    *(
        "probability",
        "dilation",
        "antialiasing",
        "flipped",
        "weights_type",
        "batch",
        "subdivisions",
        "jitter",
        "nms_kind",
    ),
)
SECTIONS = (
    *("convolutional", "conv", "maxpool", "avgpool", "upsample", "reorg", "reorg3d", "dropout", "route", "shortcut"),
    *("scale_channels", "sam", "se", "yolo", "region", "net", "network", "", "local_avgpool"),
)
SMALL = st.one_of(st.integers(-3, 9), st.sampled_from((12, 18, 32, 64)))


def draw_cases(strategy: SearchStrategy[Case], seed: str, count: int) -> list[Case]:
    """Return cases of a strategy, the same for the same seed."""
    found: list[Case] = []

    @hypothesis.seed(zlib.crc32(seed.encode()))
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found[:count]


def nasty() -> SearchStrategy[str]:
    """Draw a word that readers stumble over, or any text."""
    return st.one_of(st.sampled_from(NASTY), st.text(max_size=20))


@st.composite
def cfg_texts(draw: st.DrawFn) -> str:
    """Draw a cfg: mostly sound sections in any order, with any keys and values."""
    number = st.one_of(*[SMALL.map(str)] * 6, nasty())
    value = st.one_of(
        number,
        st.lists(number, min_size=1, max_size=6).map(",".join),
        st.sampled_from(("leaky", "linear", "mish", "swish", "logistic", "relu", "none")),
    )
    lines = ["[net]", f"width={draw(st.sampled_from((32, 64, 96)))}", "height=64", "channels=3"] * draw(
        st.sampled_from((1, 1, 1, 1, 0, 2))
    )
    for _ in range(draw(st.integers(0, 8))):
        lines.append(f"[{draw(st.sampled_from(SECTIONS))}]")
        match lines[-1]:
            case "[convolutional]":
                lines += [
                    f"filters={draw(SMALL)}",
                    f"size={draw(st.sampled_from((1, 3)))}",
                    "pad=1",
                    "activation=leaky",
                ]
            case "[route]":
                lines += [f"layers={draw(st.integers(-6, 3))}"]
            case "[shortcut]" | "[sam]" | "[scale_channels]":
                lines += [f"from={draw(st.integers(-6, 3))}", "activation=linear"]
            case "[se]":
                lines += [draw(st.sampled_from(("filters=8", "reduction=2", "reduction=4\nactivation=hard_sigmoid")))]
            case "[yolo]":
                lines += ["mask=0,1", "anchors=10,14, 23,27", "classes=1"]
        for key in draw(st.lists(st.sampled_from(KEYS), max_size=3)):
            lines.append(f"{key}={draw(value)}")
    if draw(st.booleans()):
        lines += ["[convolutional]", "filters=12", "size=1", "activation=linear"]
        lines += ["[yolo]", "mask=0,1", "anchors=10,14, 23,27", "classes=1"]
    return "\n".join(lines) + "\n"


def plain_values(keys: SearchStrategy[Any] | None = None) -> SearchStrategy[Any]:
    """Draw nested mappings and lists of plain values."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        nasty(),
        st.dates(),
        st.binary(max_size=5),
        st.just(10**400),
    )
    names = keys or nasty()
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))


@st.composite
def yaml_texts(draw: st.DrawFn, sound: dict[str, Any]) -> str:
    """Draw a YAML document with some of the keys of a sound one, its values or any."""
    document: dict[Any, Any] = dict(sound)
    keys = st.one_of(st.sampled_from(list(sound)), nasty(), st.integers(), st.none(), st.floats())
    for _ in range(draw(st.integers(1, 3))):
        document[draw(keys)] = draw(plain_values(keys))
    style = draw(st.sampled_from((None, True, False)))
    return yaml.safe_dump(document, default_flow_style=style, allow_unicode=True, sort_keys=False)


def json_texts(sound: Any) -> SearchStrategy[str]:
    """Draw a JSON document: a sound mapping with other values, or anything."""
    keys = st.one_of(st.sampled_from(list(sound)) if isinstance(sound, dict) else nasty(), nasty())
    values = st.dictionaries(keys, plain_values(keys), max_size=3)
    whole = values.map(lambda more: {**sound, **more}) if isinstance(sound, dict) else plain_values()
    return whole.map(lambda value: json.dumps(value, default=str))
