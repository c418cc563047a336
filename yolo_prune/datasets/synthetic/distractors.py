"""Draw things that resemble hands: faces, bare arms, feet, sticks, stars, skin-coloured lumps, and plain objects."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from yolo_prune.arrays import Float32Array
from yolo_prune.datasets.synthetic.backgrounds import make_palette
from yolo_prune.datasets.synthetic.solids import (
    Canvas,
    Layer,
    Light,
    PointArray,
    RoundCone,
    cut_layer,
    fit_canvas,
    make_mottle,
    make_skin,
    paint_cloth_,
    raise_cones,
    shade,
    soften,
    unit,
)

_CLOTH = 15
"""The part covered by cloth; lower part numbers take the given colours."""


def draw_distractor(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw something that is not a hand, anywhere in an image of this width and height."""
    kinds = list(_KINDS)
    kind = kinds[rng.choice(len(kinds), p=np.array(list(_KINDS.values())) / sum(_KINDS.values()))]
    return kind(rng, light, image_px)


def draw_obstacle(
    rng: np.random.Generator, light: Light, image_px: tuple[int, int], centre_px: PointArray, extent_px: float
) -> Layer:
    """Draw a plain object (bar, box, ball) near a position, to hide a part of what is there."""
    size = extent_px * rng.uniform(0.12, 0.3)
    along = _direction(rng) * extent_px * rng.choice((0.0, 0.4, 3.0), p=(0.3, 0.4, 0.3))
    middle = np.append((centre_px + rng.uniform(-0.6, 0.6, 2) * extent_px).clip(0, image_px), 0.0)
    cone = RoundCone(middle - along, middle + along, size, size * rng.uniform(0.7, 1.0), 0, flat=bool(rng.integers(2)))
    return _render(rng, [cone], make_palette(rng, 1), light, image_px, size)


def _arm(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw an arm or a leg across the image, bent at one joint, with both ends outside."""
    span = float(max(image_px))
    joint = np.append(rng.uniform(0.15, 0.85, 2) * image_px, 0.0)
    first = _direction(rng)
    turn = rng.choice((-1, 1)) * rng.uniform(0.9, np.pi)
    second = np.array(
        [first[0] * np.cos(turn) - first[1] * np.sin(turn), first[0] * np.sin(turn) + first[1] * np.cos(turn), 0]
    )
    thick = span * rng.uniform(0.03, 0.11)
    cones = [
        RoundCone(joint, joint + 1.5 * span * first, thick, thick * rng.uniform(0.8, 1.8)),
        RoundCone(joint, joint + 1.5 * span * second, thick, thick * rng.uniform(0.8, 1.8)),
    ]
    if rng.random() < 0.5:
        opening = joint + rng.uniform(0.05, 0.5) * span * first
        cones.append(RoundCone(opening, joint + 1.5 * span * first, 1.35 * thick, 2.2 * thick, _CLOTH, flat=True))
    return _render(rng, cones, _skin_colours(rng), light, image_px, thick, sigma=0.15)


def _face(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw a head on its shoulders."""
    size = max(image_px) * rng.uniform(0.12, 0.38)
    tilt, look = rng.normal(0, 0.25), rng.uniform(-0.16, 0.16)
    axes = np.array([[np.cos(tilt), np.sin(tilt), 0], [-np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    centre = np.append(rng.uniform(0.05, 0.95, 2) * image_px, 0.0)

    def at(x: float, y: float, z: float = 0.0) -> PointArray:
        point: PointArray = centre + size * (np.array([x, y, z]) @ axes)
        return point

    def cone(start: PointArray, end: PointArray, start_radius: float, end_radius: float, part: int = 0) -> RoundCone:
        return RoundCone(start, end, start_radius * size, end_radius * size, part)

    cones = [
        cone(at(0, -0.18), at(0, 0.24), 0.5, 0.37),
        cone(at(look, 0.02, 0.45), at(1.3 * look, 0.2, 0.47), 0.05, 0.085),
        cone(at(-0.48 + look / 2, 0.05), at(-0.47 + look / 2, 0.15), 0.1, 0.07),
        cone(at(0.48 + look / 2, 0.05), at(0.47 + look / 2, 0.15), 0.1, 0.07),
        cone(at(0, 0.3, -0.3), at(0, 1.0, -0.3), 0.26, 0.3),
        cone(at(-0.75, 1.25, -0.3), at(0.75, 1.25, -0.3), 0.38, 0.38, _CLOTH),
        cone(at(0, 1.4, -0.3), at(0, 4.0, -0.3), 0.9, 1.0, _CLOTH),
    ]
    if rng.random() < 0.85:
        cones.append(cone(at(-0.5 * look, -0.3, -0.1), at(0, -0.24, -0.1), 0.54, 0.54, 1))
        if rng.random() < 0.4:
            cones += [cone(at(x, -0.2, -0.2), at(1.1 * x, 0.7, -0.3), 0.2, 0.17, 1) for x in (-0.42, 0.42)]
    hair = make_palette(rng, 1)[0] * 0.3 + rng.uniform(0, 0.25)
    colours = np.stack([_skin_colours(rng)[0], hair])

    def features(canvas: Canvas, albedo: Float32Array) -> None:
        unit_px = size * canvas.oversampling
        for side in (-0.19, 0.19):
            eye = at(side + look, -0.02)
            _oval_(albedo, canvas, eye, (0.09 * unit_px, 0.045 * unit_px), tilt, (0.9, 0.88, 0.85))
            _oval_(albedo, canvas, eye, (0.04 * unit_px, 0.042 * unit_px), tilt, (0.12, 0.08, 0.06))
            _oval_(albedo, canvas, at(side + look, -0.13), (0.11 * unit_px, 0.022 * unit_px), tilt, hair * 0.8)
        smile = 0.03 + 0.04 * rng.random()
        _oval_(albedo, canvas, at(1.1 * look, 0.38), (0.14 * unit_px, smile * unit_px), tilt, (0.6, 0.25, 0.22))

    return _render(rng, cones, colours, light, image_px, 0.5 * size, sigma=0.06, paint_=features)


def _foot(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw a bare foot from above, with its toes in a row, and the leg above it."""
    length = max(image_px) * rng.uniform(0.12, 0.35)
    forward, mirror = _direction(rng), rng.choice((-1.0, 1.0))
    aside = mirror * np.array([-forward[1], forward[0], 0.0])
    heel = np.append(rng.uniform(0.1, 0.9, 2) * image_px, 0.0)

    def at(along: float, across: float, up: float = 0.0) -> PointArray:
        point: PointArray = heel + length * (along * forward + across * aside) + np.array([0, 0, up * length])
        return point

    cones = [
        RoundCone(at(0, 0), at(0.62, 0.07), 0.15 * length, 0.12 * length),
        RoundCone(at(0, 0.02), at(0.6, -0.1), 0.14 * length, 0.11 * length),
        RoundCone(at(0.02, 0, 0.12), at(0.5, 0.02, 0.02), 0.14 * length, 0.1 * length),
        RoundCone(at(0.05, 0, 0.1), at(-4, rng.uniform(-2, 2), 0.6), 0.14 * length, 0.4 * length),
    ]
    for toe, (across, thick) in enumerate(
        zip((0.13, 0.045, -0.03, -0.1, -0.165), (0.068, 0.042, 0.04, 0.037, 0.033), strict=True)
    ):
        root = 0.7 - 0.035 * toe
        cones.append(
            RoundCone(
                at(root - 0.05, across),
                at(root + 0.1 - 0.01 * toe, across * 1.1),
                thick * length,
                0.95 * thick * length,
            )
        )
    return _render(rng, cones, _skin_colours(rng), light, image_px, 0.15 * length, sigma=0.06)


def _sticks(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw a bundle or a fan of pencils, twigs or candles, some of them skin-coloured."""
    length = max(image_px) * rng.uniform(0.12, 0.4)
    heading, count = rng.uniform(0, 2 * np.pi), int(rng.integers(2, 8))
    fan, thick = rng.uniform(0, 0.25), length * rng.uniform(0.025, 0.06)
    middle = np.append(rng.uniform(0.1, 0.9, 2) * image_px, 0.0)
    colours = np.clip(make_palette(rng, 6), 0, 1)
    if rng.random() < 0.5:
        colours[:] = _skin_colours(rng)[0] * rng.uniform(0.8, 1.1, (6, 1))
    cones = []
    for stick in range(count):
        angle = heading + fan * (stick - count / 2) + rng.normal(0, 0.04)
        along = np.array([np.cos(angle), np.sin(angle), 0.0])
        aside = np.array([-np.sin(heading), np.cos(heading), 0.0])
        start = middle + 2.1 * thick * (stick - count / 2) * aside + np.array([0, 0, rng.uniform(0, thick)])
        end = start + along * length * rng.uniform(0.8, 1.0)
        cones.append(RoundCone(start, end, thick, thick * rng.uniform(0.85, 1), stick % 6, flat=bool(rng.integers(2))))
        if rng.random() < 0.5:
            cones.append(RoundCone(end, end + 2.5 * thick * along, thick, 0.15 * thick, (stick + 1) % 6, flat=True))
    return _render(rng, cones, colours, light, image_px, thick)


def _star(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw a starfish, a leaf or a branching twig: arms that taper from one centre."""
    radius = max(image_px) * rng.uniform(0.06, 0.2)
    count, first = int(rng.integers(4, 9)), rng.uniform(0, 2 * np.pi)
    middle = np.append(rng.uniform(0.1, 0.9, 2) * image_px, 0.0)
    thick = radius * rng.uniform(0.12, 0.35)
    cones = []
    for arm in range(count):
        angle = first + 2 * np.pi * arm / count + rng.normal(0, 0.08)
        end = middle + radius * rng.uniform(0.85, 1.1) * np.array([np.cos(angle), np.sin(angle), 0.0])
        cones.append(RoundCone(middle, end, thick, thick * rng.uniform(0.05, 0.4)))
    colours = make_palette(rng, 1) if rng.random() < 0.5 else _skin_colours(rng)
    return _render(rng, cones, colours, light, image_px, thick, sigma=0.3)


def _lump(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw a smooth skin-coloured lump: bread, stone, a bald head."""
    size = max(image_px) * rng.uniform(0.04, 0.14)
    middle = np.append(rng.uniform(0.1, 0.9, 2) * image_px, 0.0)
    cones = []
    for _ in range(int(rng.integers(1, 5))):
        ends = middle + rng.normal(0, 0.8, (2, 3)) * size
        cones.append(RoundCone(ends[0], ends[1], size * rng.uniform(0.6, 1.1), size * rng.uniform(0.5, 1.1)))
    return _render(rng, cones, _skin_colours(rng), light, image_px, size, sigma=0.4)


def _thing(rng: np.random.Generator, light: Light, image_px: tuple[int, int]) -> Layer:
    """Draw a bottle, a ball, a box or a bar."""
    middle = rng.uniform(0.1, 0.9, 2) * image_px
    return draw_obstacle(rng, light, image_px, middle, max(image_px) * rng.uniform(0.15, 0.5))


def _render(
    rng: np.random.Generator,
    cones: list[RoundCone],
    colours: Float32Array,
    light: Light,
    image_px: tuple[int, int],
    thick_px: float,
    sigma: float = 0.0,
    paint_: Callable[[Canvas, Float32Array], None] | None = None,
) -> Layer:
    """Draw cones whose part numbers index `colours` (K, 3); `sigma`, in thicknesses, blends them together."""
    canvas = fit_canvas([], cones, image_px)
    scale = thick_px * canvas.oversampling
    relief = raise_cones(cones, canvas)
    if sigma:
        relief = soften(relief, sigma * scale)
    table = np.zeros((3, _CLOTH + 2), np.float32)
    table[:, : len(colours)] = colours.T
    mottle = 1 + np.float32(0.04) * make_mottle(rng, canvas.shape, max(2.0, 0.5 * scale))
    albedo = np.take(table, relief.part, axis=1) * mottle
    if paint_:
        paint_(canvas, albedo)
    paint_cloth_(rng, albedo, relief.part == _CLOTH, scale)
    return cut_layer(canvas, shade(relief, albedo, light, scale, gloss=rng.uniform(0, 0.25)), relief.solid)


def _oval_(
    albedo: Float32Array,
    canvas: Canvas,
    centre: PointArray,
    axes: tuple[float, float],
    tilt: float,
    rgb: Float32Array | tuple[float, ...],
) -> None:
    x, y = (canvas.rasterize(centre)[:2] * 8).round().astype(int).tolist()
    size = (round(axes[0] * 8), round(axes[1] * 8))
    for plane, value in zip(albedo, rgb, strict=True):
        cv2.ellipse(plane, (x, y), size, np.degrees(tilt), 0, 360, float(value), -1, cv2.LINE_8, 3)


def _skin_colours(rng: np.random.Generator) -> Float32Array:
    return make_skin(rng).back[None].astype(np.float32)


def _direction(rng: np.random.Generator) -> PointArray:
    return unit(np.append(rng.normal(size=2), 0.0))


_KINDS: dict[Callable[[np.random.Generator, Light, tuple[int, int]], Layer], float] = {
    _face: 0.26,
    _arm: 0.16,
    _foot: 0.12,
    _sticks: 0.14,
    _star: 0.1,
    _lump: 0.1,
    _thing: 0.12,
}
