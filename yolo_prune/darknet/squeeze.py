"""[se]: squeeze and excite in one section, read as the four sections that it stands for.

    [se]  ──►  [avgpool]  [convolutional] 1x1, relu  [convolutional] 1x1, sigmoid  [scale_channels]

PyTorch implementations write it so, with linear layers that have no bias; here the convolutions have one, 0 at first.
With `filters` (the channels that it reads) the last activation is MobileNetV3's hard sigmoid, with `reduction` alone
the sigmoid of the first squeeze and excite; `activation` says another one.

Source: Hu et al., "Squeeze-and-Excitation Networks" (2018); Howard et al., "Searching for MobileNetV3" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from yolo_prune.darknet.layers import AvgPool, Conv, Gate, Layer
from yolo_prune.darknet.sections import Section, integers, positive
from yolo_prune.errors import CfgError

REDUCTION = 4
"""The channels that are read for each of the squeezed ones, if the section does not say."""
KEYS = ("filters", "reduction", "activation")
ADDED = 3
"""How many more sections it stands for than itself."""
REFERENCES = ("layers", "from")
"""Keys that name layers by their numbers."""


def expand_squeeze(section: Section, kept: dict[str, tuple[str, int]], before: int, channels: int) -> list[Section]:
    """Return the sections that a section [se] stands for; it reads layer `before`, with so many channels.

    Args:
        kept: keys that say nothing about the outputs, which the last of them gets.

    Raises:
        CfgError: it reads the image, `filters` is another number, nothing is left to squeeze into, or a key is missing or unknown.
    """
    if before < 0:
        raise CfgError("[se] reads the image", where=section.where(), right="put a convolution before it")
    if section.values.keys().isdisjoint(("filters", "reduction")):
        raise CfgError("[se] lacks the key reduction", where=section.where(), right="add reduction=…")
    usual = "hard_sigmoid" if "filters" in section.values else "logistic"
    activation = section.values.get("activation", (usual, section.line))
    where = section.where("filters")
    if (filters := section.take("filters", positive, channels)) != channels:
        raise CfgError(
            f"[se] has filters={filters}, and reads {channels} channels", where=where, right=f"write {channels}"
        )
    where = section.where("reduction")
    if (squeezed := channels // (reduction := section.take("reduction", positive, REDUCTION))) < 1:
        right = f"use at most {channels}"
        raise CfgError(f"reduction={reduction} leaves nothing of {channels} channels", where=where, right=right)
    section.values.pop("activation", None)
    section.check_complete(KEYS)
    one = {"size": "1", "stride": "1"}
    return [
        _make_section(section, "avgpool", {}),
        _make_section(section, "convolutional", {"filters": str(squeezed), **one, "activation": "relu"}),
        _make_section(section, "convolutional", {"filters": str(channels), **one}, {"activation": activation}),
        _make_section(section, "scale_channels", {"from": str(before)}, kept),
    ]


def is_ambiguous(section: Section) -> bool:
    """Return whether a section is a [se] that does not say which sigmoid it ends with; logistic is taken."""
    return section.name == "se" and section.values.keys().isdisjoint(("filters", "activation"))


def renumber(section: Section, position: int, numbers: Sequence[int]) -> None:
    """Let a section name layers by their own numbers, not by those of their sections.

    Args:
        position: the number of this section.
        numbers: of each section before, the number of its layer, the last one if it stands for several.
    """
    for key in REFERENCES:
        if key in section.values:
            text, line = section.values[key]
            with suppress(ValueError):  # told where the value is read
                places = [place + position if place < 0 else place for place in integers(text)]
                named = [numbers[place] if 0 <= place < len(numbers) else place for place in places]
                section.values[key] = ",".join(map(str, named)), line


def find_squeezes(layers: Sequence[Layer]) -> frozenset[int]:
    """Return the numbers of the convolutions of squeeze and excite that have no batch norm."""
    found: set[int] = set()
    for index, layer in enumerate(layers):
        match [layer, *layers[index + 1 : index + 4]]:
            case [AvgPool(), Conv(size=1, batch_normalize=False), Conv(size=1, batch_normalize=False), Gate()]:
                found |= {index + 1, index + 2}
    return frozenset(found)


def _make_section(
    section: Section, name: str, values: dict[str, str], more: dict[str, tuple[str, int]] | None = None
) -> Section:
    placed = {key: (text, section.line) for key, text in values.items()}
    return Section(name, section.source, section.line, placed | (more or {}))
