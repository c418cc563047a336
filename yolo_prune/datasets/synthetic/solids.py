"""Draw round solids: render tapered cones to a height map, colour it as skin or cloth, light it, draw it on an image.

    RoundCone... ──raise_cones──► Relief (height, part) ──shade──► colour ──cut_layer──► Layer ──lay_──► image

x points right, y down, z to the viewer; lengths are image pixels. A canvas is the part of the plane that is drawn,
with `oversampling` raster points per pixel, so that all edges, also inner ones, are antialiased. Colours are planes,
(3, H, W), RGB 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from yolo_prune.arrays import Float32Array

PointArray = npt.NDArray[np.float64]

NOTHING = -1
"""The part number of a raster point that no solid covers."""


@dataclass(frozen=True)
class Light:
    """One distant lamp, and ambient light."""

    direction: PointArray
    """(3,), unit, from the scene to the lamp."""
    colour: PointArray
    """(3,), RGB gain of the lamp."""
    ambient: PointArray
    """(3,), RGB gain of the ambient light."""


@dataclass(frozen=True)
class RoundCone:
    """The convex hull of two balls."""

    start: PointArray
    end: PointArray
    start_radius: float
    end_radius: float
    part: int = 0
    flat: bool = False
    """Whether it is cut off square at its start."""
    waist: float = 0.0
    """The share of its radius that is missing at half its length."""


@dataclass(frozen=True)
class Canvas:
    """A rectangle of the image's plane, which may extend beyond the image."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    oversampling: int = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the raster."""
        return self.height_px * self.oversampling, self.width_px * self.oversampling

    def rasterize(self, points: PointArray) -> PointArray:
        """Convert image positions (..., 2 or 3) to raster positions; a third coordinate is only scaled."""
        origin = np.zeros(points.shape[-1])
        origin[:2] = self.x_px, self.y_px
        raster: PointArray = (points - origin) * self.oversampling
        return raster

    def cut_window(self, points: PointArray, reach_px: float) -> tuple[slice, slice, Canvas]:
        """Return rows and columns of the raster within `reach_px` of the points (N, 2 or 3), and a canvas of these."""
        low = np.floor(points[:, :2].min(axis=0) - reach_px).astype(int)
        high = np.ceil(points[:, :2].max(axis=0) + reach_px).astype(int)
        corner = np.array([self.x_px, self.y_px])
        left, top = (low - corner).clip(0, (self.width_px, self.height_px)).tolist()
        right, bottom = (high - corner).clip((left, top), (self.width_px, self.height_px)).tolist()
        times = self.oversampling
        inner = Canvas(self.x_px + left, self.y_px + top, right - left, bottom - top, times)
        return slice(top * times, bottom * times), slice(left * times, right * times), inner


@dataclass(frozen=True)
class Relief:
    """The visible side of solids."""

    height: Float32Array
    """(H, W) raster units towards the viewer; -inf without a solid."""
    part: npt.NDArray[np.int16]
    """(H, W) the visible part number, or NOTHING."""

    @property
    def solid(self) -> npt.NDArray[np.bool_]:
        """(H, W) whether there is a solid."""
        solid: npt.NDArray[np.bool_] = self.part != NOTHING
        return solid


@dataclass(frozen=True)
class Layer:
    """Something drawn, ready to be drawn on an image of another size."""

    x_px: int
    y_px: int
    colour: Float32Array
    """(3, H, W) RGB 0..1, premultiplied by alpha."""
    alpha: Float32Array
    """(H, W) 0..1."""
    hand: npt.NDArray[np.bool_]
    """(H, W) the pixels that belong to a hand."""


def fit_canvas(whole: list[RoundCone], clipped: list[RoundCone], image_px: tuple[int, int]) -> Canvas:
    """Return a canvas of all `whole` cones, and of what is inside an image (width, height) of the `clipped` ones."""
    low, high = _measure_extent(clipped)
    low, high = np.maximum(low, 0), np.minimum(high, image_px)
    if whole:
        hand_low, hand_high = _measure_extent(whole)
        low, high = np.minimum(low, hand_low), np.maximum(high, hand_high)
    (x, y), (right, bottom) = np.floor(low - 1).astype(int).tolist(), np.ceil(high + 1).astype(int).tolist()
    return Canvas(x, y, right - x, bottom - y)


def _measure_extent(cones: list[RoundCone]) -> tuple[PointArray, PointArray]:
    centres = np.stack([point[:2] for cone in cones for point in (cone.start, cone.end)])
    radii = np.array([radius for cone in cones for radius in (cone.start_radius, cone.end_radius)])[:, None]
    return (centres - radii).min(axis=0), (centres + radii).max(axis=0)


def raise_cones(cones: Iterable[RoundCone], canvas: Canvas) -> Relief:
    """Return the visible side of all `cones` on the canvas: the nearest to the viewer at each point."""
    relief = Relief(np.full(canvas.shape, -np.inf, np.float32), np.full(canvas.shape, NOTHING, np.int16))
    for cone in cones:
        _raise_(relief, canvas, cone)
    return relief


def _raise_(relief: Relief, canvas: Canvas, cone: RoundCone) -> None:
    """Raise the relief to the highest ball of the cone at each point."""
    times = canvas.oversampling
    (ax, ay, az), (bx, by, bz) = canvas.rasterize(np.stack([cone.start, cone.end])).tolist()
    start, growth = cone.start_radius * times, (cone.end_radius - cone.start_radius) * times
    reach = max(start, start + growth)
    height, width = relief.height.shape
    left, right = max(0, int(min(ax, bx) - reach)), min(width, int(max(ax, bx) + reach) + 1)
    top, bottom = max(0, int(min(ay, by) - reach)), min(height, int(max(ay, by) + reach) + 1)
    if left >= right or top >= bottom:
        return
    along_x, along_y, along_z = bx - ax, by - ay, bz - az
    length2 = max(along_x**2 + along_y**2, 1e-4)
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - ax)
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - ay))[:, None]
    free = x * np.float32(along_x / length2) + y * np.float32(along_y / length2)
    t = np.minimum(np.maximum(free, 0), 1)
    if abs(along_z) > 0.1 * length2**0.5:  # on a tilted cone the highest ball is further towards the viewer
        depth2 = (t * np.float32(growth) + np.float32(start)) ** 2 - (x * x + y * y - free * free * np.float32(length2))
        ahead = along_z / (length2 * (length2 + along_z**2)) ** 0.5
        t = np.minimum(np.maximum(free + np.float32(ahead) * np.sqrt(np.maximum(depth2, 0)), 0), 1)
    radius = t * np.float32(growth) + np.float32(start)
    if cone.waist:
        radius *= 1 - t * (1 - t) * np.float32(4 * cone.waist)
    across_x, across_y = x - t * np.float32(along_x), y - t * np.float32(along_y)
    depth2 = radius * radius - across_x * across_x - across_y * across_y
    surface = np.sqrt(np.maximum(depth2, 0)) + (t * np.float32(along_z) + np.float32(az))
    window = np.s_[top:bottom, left:right]
    seen = (depth2 > 0) & (surface > relief.height[window])
    if cone.flat:
        seen &= free >= 0
    np.copyto(relief.height[window], surface, where=seen)
    np.copyto(relief.part[window], np.int16(cone.part), where=seen)


def soften(relief: Relief, sigma: float) -> Relief:
    """Blend neighbouring solids into one surface, over about `sigma` raster units, and keep the outline."""
    solid = relief.solid.astype(np.float32)
    weight = blur(solid, sigma)
    smooth = blur(np.where(relief.solid, relief.height, np.float32(0)), sigma) / np.maximum(weight, 1e-3)
    return Relief(np.where(relief.solid, smooth, -np.inf).astype(np.float32), relief.part)


def merge(first: Relief, second: Relief) -> Relief:
    """Return the visible side of both."""
    nearer = second.height > first.height
    return Relief(
        np.where(nearer, second.height, first.height), np.where(nearer, second.part, first.part).astype(np.int16)
    )


def shade(relief: Relief, albedo: Float32Array, light: Light, scale: float, gloss: float = 0.1) -> Float32Array:
    """Light a relief whose surface reflects `albedo` (3, H, W); return RGB 0..1 of the same shape.

    `scale` is about the thickness of its details in raster units: hollows of that width are darkened.
    """
    solid = relief.solid
    lit = np.zeros_like(albedo)
    if not solid.any():
        return lit
    floor = relief.height.min(where=solid, initial=np.inf) - np.float32(0.2 * scale)
    height = np.where(solid, relief.height, floor)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)[solid]
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)[solid]
    hollow = np.clip((blur(height, 0.6 * scale) - height)[solid] / np.float32(scale), 0, 1)
    facing = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    x, y, z = (np.float32(value) for value in light.direction)
    cosine = (z - x * slope_x - y * slope_y) * facing
    diffuse = np.clip((cosine + np.float32(0.25)) / np.float32(1.25), 0, 1)
    open_sky = (1 - np.float32(0.75) * hollow) * (np.float32(0.55) + np.float32(0.45) * facing)
    mirrored = np.clip(2 * facing * cosine - z, 0, 1) ** 2
    shine = np.float32(gloss) * mirrored * mirrored * mirrored * mirrored
    for plane, own, lamp, sky in zip(lit, albedo, light.colour, light.ambient, strict=True):
        plane[solid] = np.minimum((diffuse * np.float32(lamp) + np.float32(sky)) * open_sky * own[solid] + shine, 1)
    return lit


def cut_layer(
    canvas: Canvas, colour: Float32Array, solid: npt.NDArray[np.bool_], hand: npt.NDArray[np.bool_] | None = None
) -> Layer:
    """Downsample a drawn raster to image pixels; `hand` marks the raster points that belong to a hand.

    `colour` (3, H, W) must be black where there is no solid, as `shade` makes it.
    """
    size = (canvas.width_px, canvas.height_px)
    alpha = _shrink(solid.astype(np.float32), size)
    small = np.stack([_shrink(plane, size) for plane in colour])
    shown = np.zeros(alpha.shape, np.bool_)
    if hand is not None:
        shown = (alpha >= 0.5) & (_shrink(hand.astype(np.float32), size) >= 0.5 * alpha)
    return Layer(canvas.x_px, canvas.y_px, small, alpha, shown)


def _shrink(values: Float32Array, size: tuple[int, int]) -> Float32Array:
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def make_mottle(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Float32Array:
    """Return (H, W) smooth random values of about unit spread, with spots of about `cell` raster units."""
    rows, columns = (max(2, int(length / cell) + 2) for length in shape)
    grain = rng.standard_normal((rows, columns), np.float32)
    return np.asarray(cv2.resize(grain, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def blur(values: Float32Array, sigma: float) -> Float32Array:
    """Return (H, W) values after a Gaussian blur of `sigma`; a wide blur uses a smaller raster."""
    if sigma <= 4:
        return np.asarray(cv2.GaussianBlur(values, (0, 0), max(sigma, 0.1)), np.float32)
    step = int(sigma / 2)
    rows, columns = values.shape
    small = _shrink(values, (max(1, columns // step), max(1, rows // step)))
    small = np.asarray(cv2.GaussianBlur(small, (0, 0), sigma / step), np.float32)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float32)


def unit(vector: PointArray) -> PointArray:
    """Return the vector scaled to length 1."""
    scaled: PointArray = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return scaled


_SKIN_RGB = np.array(
    [[245, 212, 190], [232, 186, 155], [212, 160, 124], [183, 129, 93], [145, 97, 67], [106, 68, 47], [74, 48, 36]]
)


@dataclass(frozen=True)
class Skin:
    """One person's skin, RGB 0..1."""

    back: PointArray
    palm: PointArray


def make_skin(rng: np.random.Generator) -> Skin:
    """Draw a random skin tone between very light and very dark; palms of dark hands are lighter."""
    melanin = rng.uniform(0, len(_SKIN_RGB) - 1)
    back = np.array([np.interp(melanin, range(len(_SKIN_RGB)), channel) for channel in _SKIN_RGB.T]) / 255
    back *= rng.uniform(0.94, 1.06) * rng.uniform(0.97, 1.03, 3)
    lighter = 0.08 + 0.09 * melanin
    return Skin(back.clip(0, 1), (back * (1 - lighter) + np.array([0.87, 0.64, 0.53]) * lighter).clip(0, 1))


def paint_cloth_(rng: np.random.Generator, albedo: Float32Array, where: npt.NDArray[np.bool_], scale: float) -> None:
    """Paint the pixels of the mask (H, W) as cloth: plain, striped or chequered."""
    cloth = rng.uniform(0.06, 0.9, 3) * rng.uniform(0.5, 1.0)
    pattern = np.zeros((1, 1), np.float32)
    if rng.random() < 0.4:
        angle, pitch = rng.uniform(0, np.pi), scale * rng.uniform(0.7, 3.0) / (2 * np.pi)
        rows, columns = (np.arange(length, dtype=np.float32) / np.float32(pitch) for length in where.shape)
        across, along = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        wave = np.sin(rows[:, None] * across + columns * along)
        if rng.random() < 0.5:
            wave += np.sin(rows[:, None] * along - columns * across)
        pattern = np.clip(3 * wave, -1, 1) * np.float32(rng.uniform(0.05, 0.3))
    for plane, tint in zip(albedo, cloth, strict=True):
        np.copyto(plane, np.clip(pattern + np.float32(tint), 0.02, 0.98), where=where)
