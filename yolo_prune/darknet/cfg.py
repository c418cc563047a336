"""Darknet cfg text to `Network` and back: parse(format(network)) == network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from yolo_prune.bounded import read_bytes
from yolo_prune.console import warn
from yolo_prune.darknet.layers import (
    ACTIVATIONS,
    AvgPool,
    Conv,
    Dropout,
    Gate,
    Layer,
    MaxPool,
    Options,
    Reorg,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
    infer_layers,
)
from yolo_prune.darknet.limits import check_count
from yolo_prune.darknet.network import Network
from yolo_prune.darknet.oddities import find_oddities
from yolo_prune.darknet.sections import Section, flag, integers, natural, number, numbers, positive, split_sections
from yolo_prune.darknet.squeeze import expand_squeeze, renumber
from yolo_prune.errors import CfgError
from yolo_prune.files import save_text
from yolo_prune.limits import MOST_CFG_BYTES

SECTIONS = (
    *("convolutional", "depthwise_convolutional", "maxpool", "avgpool", "upsample", "reorg3d", "reorg", "dropout"),
    *("route", "shortcut", "scale_channels", "sam", "se", "yolo"),
)
DEPTHWISE = ("depthwise_convolutional", "depthwise")
"""Sections of MobileNet forks of Darknet: convolutions whose filters and groups are as many as the channels they read."""
SAME_ACTIVATIONS = {
    "silu": "swish",
    **dict.fromkeys(("h_swish", "hswish"), "hard_swish"),
    **dict.fromkeys(("h_sigmoid", "hsigmoid"), "hard_sigmoid"),
}
"""Other names of activations."""
TRAINING_KEYS = (
    *("stopbackward", "dontload", "dontloadscales", "freeze", "onlyforward", "dont_update", "burnin_update"),
    *("train_only_bn", "learning_rate", "clip", "assisted_excitation", "coordconv", "share_index", "sway", "rotate"),
)  # fmt: skip
"""Keys that any section may have and that say nothing about the outputs. Source: parse_network_cfg_custom in AlexeyAB's parser.c."""
NEUTRAL = {
    **dict.fromkeys(("dilation", "scale"), "1"),
    **dict.fromkeys(("antialiasing", "xnor", "bin_output", "binary", "flipped", "flip", "dot"), "0"),
    **dict.fromkeys(("maxpool_depth", "spatial", "reverse", "flatten", "extra"), "0"),
    "weights_type": "none",
}
"""Keys of which this value changes nothing; with another one they are unknown."""


def load_cfg(path: Path) -> Network:
    """Read a Darknet cfg file, and report what in it may not be what was meant.

    Raises:
        CfgError: the file is missing, not text, or not a network; names file and line.
    """
    try:
        data = read_bytes(path, MOST_CFG_BYTES, takes_pipes=True)
    except OSError as error:
        raise CfgError(f"cannot be read ({error.strerror})", where=path, right="name a Darknet cfg file") from error
    if b"\0" in data:
        raise CfgError("is not text", where=path, right="name a Darknet cfg file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:  # comments in another encoding: Darknet reads bytes, too
        text = data.decode("latin-1")
    for line in find_oddities(text, str(path)):
        warn(line)
    return parse_cfg(text, str(path))


def save_cfg(network: Network, path: Path) -> Path:
    """Write the network as a Darknet cfg file and return `path`."""
    return save_text(path, format_cfg(network))


def parse_cfg(text: str, source: str = "<cfg>") -> Network:
    """Parse a network from Darknet cfg text; `source` is its name in errors.

    Raises:
        CfgError: an unknown section or key, an invalid value, a route to a missing layer, or layers that do not fit.
    """
    sections = list(split_sections(text, source))
    if not sections or sections[0].name not in ("net", "network"):
        line = sections[0].line if sections else 1
        raise CfgError("does not begin with [net]", where=f"{source}:{line}", right="put a [net] section first")
    net, *rest = sections
    width, height, channels = (
        net.take(key, positive, default) for key, default in (("width", 416), ("height", 416), ("channels", 3))
    )
    layers: list[Layer] = []
    sections = []
    try:
        check_count(rest)
        for section, layer in _parse_layers(rest, Shape(channels, height, width)):
            sections.append(section)
            layers.append(layer)
        return Network(width, height, channels, tuple(layers), net.take_rest())
    except CfgError as error:
        if error.where and not error.where.startswith("layer "):  # a section's own error, which names its line
            raise
        place = int(error.where.split()[1]) if error.where else None
        where = source if place is None else f"{source}:{sections[place].line}"
        what = error.what if place is None else f"layer {place} [{sections[place].name}] {error.what}"
        what = re.sub(r"(and layer (\d+))", lambda found: f"{found[1]} (line {sections[int(found[2])].line})", what)
        raise CfgError(what, where=where, right=error.right) from None


def _parse_layers(sections: Sequence[Section], image: Shape) -> Iterator[tuple[Section, Layer]]:
    """Yield the layers of sections with the section of each; one section may stand for several."""
    layers: list[Layer] = []
    shapes: tuple[Shape, ...] = ()
    numbers: list[int] = []
    for position, section in enumerate(sections):
        parts = [section]
        if section.name in (*DEPTHWISE, "se"):
            shapes = infer_layers(layers, image, shapes)
            channels = shapes[-1].channels if shapes else image.channels
            parts = _make_parts(section, len(layers) - 1, channels)
        if len(layers) > position:
            renumber(section, position, numbers)
        for part in parts:
            layers.append(_parse_layer(part, len(layers)))
            yield part, layers[-1]
        numbers.append(len(layers) - 1)


def _make_parts(section: Section, before: int, channels: int) -> list[Section]:
    """Return the sections that Darknet knows for one that reads layer `before`, with so many `channels`."""
    if section.name == "se":
        kept = {key: section.values.pop(key) for key in TRAINING_KEYS if key in section.values}
        return expand_squeeze(section, kept, before, channels)
    section.name = "convolutional"  # with a filter for each channel
    section.values |= dict.fromkeys(("filters", "groups"), (str(channels), section.line))
    return [section]


def _parse_layer(section: Section, index: int) -> Layer:
    for key, value in NEUTRAL.items():
        if section.values.get(key, ("", 0))[0] == value:
            del section.values[key]
    options: Options = () if section.name == "yolo" else section.take_known(TRAINING_KEYS)
    known = tuple(section.values)
    match section.name:
        case "convolutional" | "conv":
            layer, known = _parse_conv(section, options), _CONV_KEYS
        case "maxpool" | "max":
            layer, known = _parse_maxpool(section, options), ("size", "stride", "padding")
        case "avgpool" | "avg":
            layer, known = AvgPool(options), TRAINING_KEYS
        case "upsample":
            layer, known = Upsample(section.take("stride", positive, 2), options), ("stride",)
        case "reorg3d" | "reorg":
            layer = Reorg(section.take("stride", positive, 1), section.name == "reorg", options)
            known = ("stride",)
        case "dropout":
            layer = Dropout((*options, *section.take_rest()))
        case "route":
            layer, known = _parse_route(section, index, options), ("layers", "groups", "group_id")
        case "shortcut":
            layer, known = _parse_shortcut(section, index, options), ("from", "activation")
        case "scale_channels" | "sam":
            layer, known = _parse_gate(section, index, options), ("from", "activation", "scale_wh")
        case "yolo":
            layer = _parse_yolo(section)
        case _:
            near = get_close_matches(section.name, SECTIONS, 1)
            right = f"did you mean [{near[0]}]?" if near else f"known sections are {', '.join(SECTIONS)}"
            raise CfgError(f"unknown section [{section.name}]", where=section.where(), right=right)
    section.check_complete(known)
    return layer


_CONV_KEYS = ("batch_normalize", "filters", "size", "stride", "pad", "padding", "groups", "activation")


def _parse_conv(section: Section, options: Options) -> Layer:
    size = section.take("size", positive, 1)
    padding = section.take("padding", natural, 0)
    if section.take("pad", flag, False):
        padding = size // 2
    return Conv(
        filters=section.take("filters", positive),
        size=size,
        stride=section.take("stride", positive, 1),
        padding=padding,
        groups=section.take("groups", positive, 1),
        batch_normalize=section.take("batch_normalize", flag, False),
        activation=section.take("activation", _activation, "logistic"),
        options=options,
    )


def _parse_maxpool(section: Section, options: Options) -> Layer:
    stride = section.take("stride", positive, 1)
    size = section.take("size", positive, stride)
    return MaxPool(size, stride, section.take("padding", natural, size - 1), options)


def _parse_route(section: Section, index: int, options: Options) -> Layer:
    sources = tuple(_absolute(source, index) for source in section.take("layers", integers))
    return Route(sources, section.take("groups", positive, 1), section.take("group_id", natural, 0), options)


def _parse_shortcut(section: Section, index: int, options: Options) -> Layer:
    return Shortcut(_take_source(section, index), section.take("activation", _activation, "linear"), options)


def _parse_gate(section: Section, index: int, options: Options) -> Layer:
    source, activation = _take_source(section, index), section.take("activation", _activation, "linear")
    if section.name == "sam":
        return Gate(source, "values", activation, options)
    return Gate(source, "pixels" if section.take("scale_wh", flag, False) else "channels", activation, options)


def _take_source(section: Section, index: int) -> int:
    where = section.where("from")
    sources = section.take("from", integers)
    if len(sources) > 1:
        raise CfgError(f"[{section.name}] reads {len(sources)} layers", where=where, right="name one layer in from=")
    return _absolute(sources[0], index)


def _parse_yolo(section: Section) -> Layer:
    where = section.where("anchors")
    anchors = pair_anchors(section.take("anchors", numbers), where)
    section.take("num", positive, len(anchors))  # Darknet's buffer size; masks say which anchors count
    where = section.where("mask")
    mask = section.take("mask", integers, tuple(range(len(anchors))))
    if not all(0 <= index < len(anchors) for index in mask):
        raise CfgError(
            f"mask {mask} points past the {len(anchors)} anchors", where=where, right=f"use 0 … {len(anchors) - 1}"
        )
    classes = section.take("classes", positive, 20)
    scale = section.take("scale_x_y", number, 1.0)
    new_coords = section.take("new_coords", flag, False)
    return Yolo(mask, anchors, classes, scale, section.take_rest(), new_coords)


def pair_anchors(numbers: Sequence[float], where: str) -> tuple[tuple[float, float], ...]:
    """Return anchors from width, height, width, height, …

    Raises:
        CfgError: a value is not positive, or their number is not even; `where` is their place.
    """
    right = "give pairs of positive width, height"
    if len(numbers) % 2 or not numbers:
        raise CfgError(f"anchors holds {len(numbers)} numbers", where=where, right=right)
    if min(numbers) <= 0:
        raise CfgError(f"anchors holds {min(numbers):g}, which is not positive", where=where, right=right)
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _absolute(source: int, index: int) -> int:
    return index + source if source < 0 else source


def _activation(text: str) -> str:
    name = SAME_ACTIVATIONS.get(text, text)
    if name not in ACTIVATIONS:
        raise ValueError(f"not one of {', '.join(ACTIVATIONS)}")
    return name


def format_cfg(network: Network) -> str:
    """Format a network as Darknet cfg text, with every value written out."""
    net = {"width": network.width, "height": network.height, "channels": network.channels, **dict(network.options)}
    sections = [_format_section("net", net)]
    sections += [_format_layer(layer, index) for index, layer in enumerate(network.layers)]
    return "\n".join(sections)


def _format_section(name: str, values: dict[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def _format_layer(layer: Layer, index: int) -> str:
    options: dict[str, object] = dict(layer.options)
    match layer:
        case Conv():
            return _format_section("convolutional", _format_conv(layer) | options)
        case MaxPool():
            values = {"size": layer.size, "stride": layer.stride, "padding": layer.padding}
            return _format_section("maxpool", values | options)
        case AvgPool():
            return _format_section("avgpool", options)
        case Upsample():
            return _format_section("upsample", {"stride": layer.stride} | options)
        case Reorg():
            return _format_section("reorg" if layer.is_mixed else "reorg3d", {"stride": layer.stride} | options)
        case Dropout():
            return _format_section("dropout", options)
        case Route():
            first, *others = layer.sources
            sources = ",".join(map(str, (first - index, *others)))
            slices = {"groups": layer.groups, "group_id": layer.group_id} if layer.groups > 1 else {}
            return _format_section("route", {"layers": sources, **slices, **options})
        case Shortcut():
            return _format_section(
                "shortcut", {"from": layer.source - index, "activation": layer.activation, **options}
            )
        case Gate():
            name = "sam" if layer.factors == "values" else "scale_channels"
            flags = {"scale_wh": 1} if layer.factors == "pixels" else {}
            return _format_section(
                name, {"from": layer.source - index, **flags, "activation": layer.activation, **options}
            )
        case Yolo():
            return _format_section("yolo", _format_yolo(layer))


def _format_conv(layer: Conv) -> dict[str, object]:
    values: dict[str, object] = {"batch_normalize": 1} if layer.batch_normalize else {}
    values |= {"filters": layer.filters, "size": layer.size, "stride": layer.stride}
    values |= {"pad": 1} if layer.padding == layer.size // 2 else {"padding": layer.padding}
    values |= {"groups": layer.groups} if layer.groups > 1 else {}
    return values | {"activation": layer.activation}


def _format_yolo(layer: Yolo) -> dict[str, object]:
    values: dict[str, object] = {
        "mask": ",".join(map(str, layer.mask)),
        "anchors": ",  ".join(f"{_format_number(w)},{_format_number(h)}" for w, h in layer.anchors),
        "classes": layer.classes,
        "num": len(layer.anchors),
    }
    values |= {"scale_x_y": _format_number(layer.scale_x_y)} if layer.scale_x_y != 1.0 else {}
    values |= {"new_coords": 1} if layer.new_coords else {}
    return values | dict(layer.options)


def _format_number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
