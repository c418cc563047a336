"""Paint backgrounds: gradients, textures, cloth, lights out of focus, wood, leaves and rooms."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from yolo_prune.arrays import Float32Array
from yolo_prune.datasets.synthetic.solids import blur, make_mottle

ByteImage = npt.NDArray[np.uint8]


def make_background(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Return a random background (3, H, W), RGB 0..1."""
    paint = _PAINTERS[rng.integers(len(_PAINTERS))]
    planes = paint(rng, shape)
    fall = _ramp(rng, shape) * np.float32(rng.uniform(0, 0.35))
    grain = make_mottle(rng, shape, 1.0) * np.float32(rng.uniform(0, 0.02))
    finished: Float32Array = np.clip(planes * (1 - fall) + grain, 0, 1)
    return finished


def make_palette(rng: np.random.Generator, count: int) -> Float32Array:
    """Return `count` colours (count, 3) of similar or of opposite hues."""
    hue = (rng.uniform(0, 360) + rng.normal(0, 25, count) + 180 * (rng.random(count) < 0.2)) % 360
    saturation, value = rng.beta(1.3, 2.2, count), rng.uniform(0.12, 0.97, count)
    hsv = np.stack([hue, saturation, value], axis=-1).astype(np.float32)[None]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0], np.float32)


def _gradient(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    return _blend(make_palette(rng, 3), _ramp(rng, shape))


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    cell = rng.uniform(12, 80)
    field = sum(make_mottle(rng, shape, cell / 2**octave) / np.float32(1.7**octave) for octave in range(4))
    return _blend(make_palette(rng, 4), np.asarray(0.5 + 0.22 * field, np.float32))


def _cloth(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Paint stripes, checks or tiles, rippled."""
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(7, 60)
    rows, columns = (np.arange(length, dtype=np.float32) for length in shape)
    along = rows[:, None] * np.float32(np.cos(angle)) + columns * np.float32(np.sin(angle))
    ripple = make_mottle(rng, shape, 60) * np.float32(rng.choice((0.0, 4.0)))
    wave = np.sin((along + ripple) * np.float32(2 * np.pi / pitch))
    if rng.random() < 0.5:
        across = rows[:, None] * np.float32(np.sin(angle)) - columns * np.float32(np.cos(angle))
        wave = (wave + np.sin((across - ripple) * np.float32(2 * np.pi / pitch))) / 2
    edge = np.float32(rng.uniform(1, 6))
    return _blend(make_palette(rng, 3), np.clip(0.5 + edge * wave, 0, 1))


def _lights(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Paint discs and boxes out of focus over a gradient."""
    canvas = _to_bytes(_gradient(rng, shape))
    for colour in make_palette(rng, int(rng.integers(5, 30))):
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        radius = int(rng.uniform(0.02, 0.16) * max(shape))
        disc = canvas.copy()
        if rng.random() < 0.7:
            cv2.circle(disc, centre, radius, _rgb(colour), -1, cv2.LINE_AA)
        else:
            cv2.fillPoly(disc, [_box(rng, centre, radius)], _rgb(colour), cv2.LINE_AA)
        canvas = np.asarray(cv2.addWeighted(disc, 0.6, canvas, 0.4, 0), np.uint8)
    sigma = rng.uniform(0.5, 6)
    return np.stack([blur(plane, sigma) for plane in _to_planes(canvas)])


def _wood(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Paint planks with grain."""
    swap = bool(rng.integers(2))
    rows, columns = shape[::-1] if swap else shape
    plank = np.arange(rows) // max(12, int(rng.uniform(0.12, 0.5) * rows))
    waves = make_mottle(rng, (rows, max(2, columns // 10)), rng.uniform(2, 7))
    grain = np.asarray(cv2.resize(waves, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)
    shift = rng.uniform(-0.12, 0.12, int(plank[-1]) + 1).astype(np.float32)[plank][:, None]
    seam = np.float32(0.35) * (np.diff(plank, prepend=0) != 0).astype(np.float32)[:, None]
    field = np.asarray(0.5 + 0.1 * grain + shift - seam, np.float32)
    base = np.array([rng.uniform(0.35, 0.8), rng.uniform(0.55, 0.75), rng.uniform(0.35, 0.6)])
    dark = np.array([base[0], base[0] * base[1], base[0] * base[1] * base[2]])
    return _blend(np.stack([0.3 * dark, dark, (1.35 * dark).clip(0, 1)]).astype(np.float32), field.T if swap else field)


def _leaves(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Paint foliage, or a heap of other pointed shapes."""
    palette = make_palette(rng, 12)
    if rng.random() < 0.6:
        palette = palette * np.array([0.55, 0.9, 0.4], np.float32)
    canvas = np.empty((*shape, 3), np.uint8)
    canvas[:] = _rgb(palette.min(axis=0) * 0.6)
    for _ in range(int(rng.integers(60, 220))):
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        length = rng.uniform(0.02, 0.09) * max(shape)
        axes = (max(1, int(length)), max(1, int(length * rng.uniform(0.15, 0.5))))
        colour = palette[rng.integers(len(palette))] * np.float32(rng.uniform(0.6, 1.1))
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, _rgb(colour), -1, cv2.LINE_AA)
    sigma = rng.uniform(0.3, 2.5)
    return np.stack([blur(plane, sigma) for plane in _to_planes(canvas)])


def _room(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Paint a wall with images, windows or shelves, furniture in front of it, and a floor with boards."""
    height, width = shape
    canvas = np.empty((height, width, 3), np.uint8)
    wall, floor, trim, *things = make_palette(rng, 14)
    canvas[:] = _rgb(wall * 0.6 + 0.35)
    horizon = int(height * rng.uniform(0.5, 0.95))
    canvas[horizon:] = _rgb(floor * 0.8)
    vanishing = (int(width * rng.uniform(0.2, 0.8)), int(horizon - 0.4 * height))
    for x in np.arange(-2 * width, 3 * width, max(10, int(rng.uniform(0.06, 0.25) * width))):
        part_way = (int(x + (vanishing[0] - x) * 0.5), horizon)
        cv2.line(canvas, part_way, (int(x), height + (height - horizon)), _rgb(floor * 0.6), 1, cv2.LINE_AA)
    for colour in things[: int(rng.integers(2, 7))]:
        corner = np.array([rng.integers(width), rng.integers(max(1, horizon - height // 5))])
        size = (rng.uniform(0.08, 0.4, 2) * shape[::-1]).astype(int)
        _frame_(canvas, corner, corner + size, colour, trim)
    for colour in things[7 : 7 + int(rng.integers(0, 4))]:
        left, wide = int(rng.integers(-width // 5, width)), int(rng.uniform(0.15, 0.6) * width)
        top = horizon - int(rng.uniform(0.05, 0.35) * height)
        bottom = horizon + int(rng.uniform(0.02, 0.2) * height)
        _frame_(canvas, np.array([left, top]), np.array([left + wide, bottom]), colour, colour * 0.6)
    cv2.rectangle(canvas, (0, horizon - 3), (width, horizon), _rgb(trim * 0.5 + 0.2), -1)
    sigma = rng.uniform(0.3, 2.5)
    return np.stack([blur(plane, sigma) for plane in _to_planes(canvas)])


def _frame_(
    canvas: ByteImage,
    corner: npt.NDArray[np.int64],
    opposite: npt.NDArray[np.int64],
    fill: Float32Array,
    rim: Float32Array,
) -> None:
    """Paint a framed box with one bar across: a window, a door, a shelf or a chest."""
    (left, top), (right, bottom) = corner.tolist(), opposite.tolist()
    cv2.rectangle(canvas, (left + 3, top + 3), (right + 3, bottom + 3), _rgb(rim * 0.3), -1)
    cv2.rectangle(canvas, (left, top), (right, bottom), _rgb(fill), -1)
    cv2.rectangle(canvas, (left, top), (right, bottom), _rgb(rim), 2, cv2.LINE_AA)
    if right - left > bottom - top:
        cv2.line(canvas, ((left + right) // 2, top), ((left + right) // 2, bottom), _rgb(rim), 2, cv2.LINE_AA)
    else:
        cv2.line(canvas, (left, (top + bottom) // 2), (right, (top + bottom) // 2), _rgb(rim), 2, cv2.LINE_AA)


def _ramp(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Return a linear or radial gradient 0..1 across the image."""
    rows, columns = (np.linspace(-1, 1, length, dtype=np.float32) for length in shape)
    if rng.random() < 0.4:
        x, y = rng.uniform(-0.7, 0.7, 2).astype(np.float32)
        return np.asarray(np.sqrt((rows[:, None] - y) ** 2 + (columns - x) ** 2).clip(0, 1.8) / 1.8, np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = rows[:, None] * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle))
    return np.asarray(0.5 + slope / 2.9, np.float32)


def _blend(palette: Float32Array, field: Float32Array) -> Float32Array:
    """Return (3, H, W) colours: interpolate the palette (K, 3) at the field's values, 0 the first, 1 the last."""
    steps = np.linspace(0, 1, 256)
    table = np.stack([np.interp(steps, np.linspace(0, 1, len(palette)), column) for column in palette.T])
    index = (field * 255).clip(0, 255).astype(np.uint8)
    return np.stack([row.astype(np.float32)[index] for row in table])


def _box(rng: np.random.Generator, centre: tuple[int, int], radius: int) -> npt.NDArray[np.int32]:
    corners = cv2.boxPoints((centre, (2 * radius, radius * rng.uniform(0.3, 2)), rng.uniform(0, 90)))
    return np.round(corners).astype(np.int32)


def _rgb(colour: Float32Array) -> tuple[float, float, float]:
    red, green, blue = (colour.clip(0, 1) * 255).tolist()
    return red, green, blue


def _to_bytes(planes: Float32Array) -> ByteImage:
    return np.ascontiguousarray((planes * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _to_planes(image: ByteImage) -> Float32Array:
    planes: Float32Array = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return planes


_PAINTERS: tuple[Callable[[np.random.Generator, tuple[int, int]], Float32Array], ...] = (
    _gradient,
    _texture,
    _cloth,
    _lights,
    _wood,
    _leaves,
    _room,
    _room,
)
