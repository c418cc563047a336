"""Darknet cfg text to `Network` and back: parse(format(network)) == network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import TypeVar

from yolo_prune.darknet.layers import ACTIVATIONS, Conv, Layer, MaxPool, Network, Route, Shortcut, Upsample, Yolo
from yolo_prune.errors import CfgError
from yolo_prune.files import save_text

T = TypeVar("T")


@dataclass
class _Section:
    """One [section] while it is parsed: `take` removes keys; keys that are left over are unknown."""

    name: str
    source: str
    line: int
    values: dict[str, tuple[str, int]]

    def where(self, key: str | None = None) -> str:
        line = self.values[key][1] if key in self.values else self.line
        return f"{self.source}:{line}"

    def take(self, key: str, convert: Callable[[str], T], default: T | None = None) -> T:
        if key not in self.values:
            if default is None:
                raise CfgError(f"[{self.name}] lacks the key {key}", where=self.where(), right=f"add {key}=…")
            return default
        text = self.values[key][0]
        try:
            value = convert(text)
        except ValueError as error:
            detail = str(error) if str(error).startswith("not ") else "not understood"
            raise CfgError(
                f"{key}={text} is {detail}", where=self.where(key), right=f"correct the value of {key}"
            ) from None
        del self.values[key]
        return value

    def take_rest(self) -> tuple[tuple[str, str], ...]:
        rest = tuple((key, text) for key, (text, _) in self.values.items())
        self.values.clear()
        return rest

    def check_complete(self, known: tuple[str, ...]) -> None:
        for key in self.values:
            near = get_close_matches(key, known, 1)
            right = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
            raise CfgError(f"[{self.name}] does not know the key {key}", where=self.where(key), right=right)


def load_cfg(path: Path) -> Network:
    """Read a Darknet cfg file.

    Raises:
        CfgError: the file is missing, not text, or not a network; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not text" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        raise CfgError(reason, where=path, right="name a Darknet cfg file") from error
    return parse_cfg(text, str(path))


def save_cfg(network: Network, path: Path) -> Path:
    """Write the network as a Darknet cfg file and return `path`."""
    return save_text(path, format_cfg(network))


def parse_cfg(text: str, source: str = "<cfg>") -> Network:
    """Parse a network from Darknet cfg text; `source` is its name in errors.

    Raises:
        CfgError: an unknown section or key, an invalid value, a route to a missing layer, or layers that do not fit.
    """
    sections = list(_split(text, source))
    if not sections or sections[0].name not in ("net", "network"):
        line = sections[0].line if sections else 1
        raise CfgError("does not begin with [net]", where=f"{source}:{line}", right="put a [net] section first")
    net, *rest = sections
    width, height, channels = (
        net.take(key, _positive, default) for key, default in (("width", 416), ("height", 416), ("channels", 3))
    )
    layers = tuple(_parse_layer(section, index) for index, section in enumerate(rest))
    try:
        return Network(width, height, channels, layers, net.take_rest())
    except CfgError as error:
        number = int(error.where.split()[1]) if error.where else None
        place = source if number is None else f"{source}:{rest[number].line}"
        what = error.what if number is None else f"layer {number} [{rest[number].name}] {error.what}"
        raise CfgError(what, where=place, right=error.right) from None


def _split(text: str, source: str) -> Iterator[_Section]:
    section: _Section | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].split(";", 1)[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]"):
                raise CfgError(f"{line!r} is not closed", where=f"{source}:{number}", right="write [section]")
            if section is not None:
                yield section
            section = _Section(line[1:-1].strip().lower(), source, number, {})
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if section is None or not equals or not key:
            raise CfgError(
                f"{line!r} is neither [section] nor key=value",
                where=f"{source}:{number}",
                right="write key=value below a [section]",
            )
        if key in section.values:
            raise CfgError(
                f"{key} is set twice in one section", where=f"{source}:{number}", right="keep one of the two"
            )
        section.values[key] = (value, number)
    if section is not None:
        yield section


def _parse_layer(section: _Section, index: int) -> Layer:
    known = tuple(section.values)
    match section.name:
        case "convolutional" | "conv":
            layer, known = _parse_conv(section), _CONV_KEYS
        case "maxpool" | "max":
            layer, known = _parse_maxpool(section), ("size", "stride", "padding")
        case "upsample":
            layer, known = Upsample(section.take("stride", _positive, 2)), ("stride",)
        case "route":
            layer, known = _parse_route(section, index), ("layers", "groups", "group_id")
        case "shortcut":
            source = _absolute(section.take("from", _integer), index)
            layer, known = Shortcut(source, section.take("activation", _activation, "linear")), ("from", "activation")
        case "yolo":
            layer = _parse_yolo(section)
        case _:
            near = get_close_matches(section.name, _SECTIONS, 1)
            right = f"did you mean [{near[0]}]?" if near else f"known sections are {', '.join(_SECTIONS)}"
            raise CfgError(f"unknown section [{section.name}]", where=section.where(), right=right)
    section.check_complete(known)
    return layer


_SECTIONS = ("convolutional", "maxpool", "upsample", "route", "shortcut", "yolo")
_CONV_KEYS = ("batch_normalize", "filters", "size", "stride", "pad", "padding", "groups", "activation")


def _parse_conv(section: _Section) -> Layer:
    size = section.take("size", _positive, 1)
    padding = section.take("padding", _natural, 0)
    if section.take("pad", _flag, False):
        padding = size // 2
    return Conv(
        filters=section.take("filters", _positive),
        size=size,
        stride=section.take("stride", _positive, 1),
        padding=padding,
        groups=section.take("groups", _positive, 1),
        batch_normalize=section.take("batch_normalize", _flag, False),
        activation=section.take("activation", _activation, "logistic"),
    )


def _parse_maxpool(section: _Section) -> Layer:
    stride = section.take("stride", _positive, 1)
    size = section.take("size", _positive, stride)
    return MaxPool(size, stride, section.take("padding", _natural, size - 1))


def _parse_route(section: _Section, index: int) -> Layer:
    sources = tuple(_absolute(source, index) for source in section.take("layers", _integers))
    return Route(sources, section.take("groups", _positive, 1), section.take("group_id", _natural, 0))


def _parse_yolo(section: _Section) -> Layer:
    where = section.where("anchors")
    anchors = pair_anchors(section.take("anchors", _numbers), where)
    num = section.take("num", _positive, len(anchors))
    if num != len(anchors):
        raise CfgError(
            f"num={num} but anchors holds {len(anchors)} pairs", where=where, right=f"set num={len(anchors)}"
        )
    where = section.where("mask")
    mask = section.take("mask", _integers, tuple(range(len(anchors))))
    if not all(0 <= index < len(anchors) for index in mask):
        raise CfgError(
            f"mask {mask} points past the {len(anchors)} anchors", where=where, right=f"use 0 … {len(anchors) - 1}"
        )
    classes = section.take("classes", _positive, 20)
    scale = section.take("scale_x_y", _number, 1.0)
    if section.take("new_coords", _flag, False):
        raise CfgError(
            "new_coords=1 decodes boxes as Scaled-YOLOv4 does", where=section.where(), right="use new_coords=0"
        )
    return Yolo(mask, anchors, classes, scale, section.take_rest())


def pair_anchors(numbers: Sequence[float], where: str) -> tuple[tuple[float, float], ...]:
    """Return anchors from width, height, width, height, …

    Raises:
        CfgError: a value is not positive, or their number is not even; `where` is their place.
    """
    if len(numbers) % 2 or not numbers or min(numbers) <= 0:
        right = "give pairs of positive width, height"
        raise CfgError(f"anchors holds {len(numbers)} numbers", where=where, right=right)
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _absolute(source: int, index: int) -> int:
    return index + source if source < 0 else source


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not isfinite(value):
        raise ValueError("not finite")
    return value


def _positive(text: str) -> int:
    if (value := _integer(text)) < 1:
        raise ValueError("not at least 1")
    return value


def _natural(text: str) -> int:
    if (value := _integer(text)) < 0:
        raise ValueError("not at least 0")
    return value


def _flag(text: str) -> bool:
    return bool(_integer(text))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(_integer(part) for part in text.strip(", ").split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.strip(", ").split(","))


def _activation(text: str) -> str:
    if text not in ACTIVATIONS:
        raise ValueError(f"not one of {', '.join(ACTIVATIONS)}")
    return text


def format_cfg(network: Network) -> str:
    """Format a network as Darknet cfg text, with every value written out."""
    net = {"width": network.width, "height": network.height, "channels": network.channels, **dict(network.options)}
    sections = [_format_section("net", net)]
    sections += [_format_layer(layer, index) for index, layer in enumerate(network.layers)]
    return "\n".join(sections)


def _format_section(name: str, values: dict[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())


def _format_layer(layer: Layer, index: int) -> str:
    match layer:
        case Conv():
            return _format_section("convolutional", _format_conv(layer))
        case MaxPool():
            return _format_section("maxpool", {"size": layer.size, "stride": layer.stride, "padding": layer.padding})
        case Upsample():
            return _format_section("upsample", {"stride": layer.stride})
        case Route():
            first, *others = layer.sources
            sources = ",".join(map(str, (first - index, *others)))
            slices = {"groups": layer.groups, "group_id": layer.group_id} if layer.groups > 1 else {}
            return _format_section("route", {"layers": sources, **slices})
        case Shortcut():
            return _format_section("shortcut", {"from": layer.source - index, "activation": layer.activation})
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
    return values | dict(layer.options)


def _format_number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
