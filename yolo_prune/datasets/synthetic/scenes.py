"""Compose an image of hands: background, hands, objects that resemble or hide them, and the camera's imperfections.

At least `MIN_VISIBLE` of a hand's pixels is visible: a layer that would hide more of it is not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from yolo_prune.arrays import Float32Array
from yolo_prune.datasets.synthetic.backgrounds import make_background
from yolo_prune.datasets.synthetic.distractors import draw_distractor, draw_obstacle
from yolo_prune.datasets.synthetic.hands import draw_hand
from yolo_prune.datasets.synthetic.solids import Layer, Light, blur, make_skin

MIN_VISIBLE = 0.6
MIN_EXTENT, MAX_EXTENT = 0.2, 0.5
"""A hand's longer side as a share of the image's."""

_MAX_OVERLAP = 0.15
_MIN_CONTRAST = 0.1
_ATTEMPTS = 8
_NOBODY = -1


@dataclass(frozen=True)
class Scene:
    """A finished image and the pixels of each hand in it."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""
    masks: npt.NDArray[np.bool_]
    """(N, H, W) the visible pixels of each hand, before blurring."""

    @property
    def boxes_xyxy(self) -> npt.NDArray[np.float32]:
        """(N, 4) pixels: the tightest boxes around the masks."""
        return np.array([_measure_box(mask) for mask in self.masks], np.float32).reshape(-1, 4)


def make_scene(rng: np.random.Generator, size_px: int, max_hands: int) -> Scene:
    """Draw one scene: its longer side is `size_px`, and it shows 0 to `max_hands` hands."""
    short = size_px if rng.random() < 0.5 else round(size_px * rng.uniform(0.7, 1.0))
    shape = (short, size_px) if rng.random() < 0.5 else (size_px, short)
    light = _make_light(rng)
    stage = _Stage(make_background(rng, shape), light, shadow=rng.uniform(0, 0.5))
    image_px = (shape[1], shape[0])

    hands = _draw_count(rng, max_hands)
    for _ in range(rng.choice((0, 1, 2, 3), p=(0.4, 0.35, 0.2, 0.05)) + (hands == 0)):
        stage.lay(draw_distractor(rng, light, image_px))
    skin = make_skin(rng)
    for _ in range(hands):
        skin = skin if rng.random() < 0.6 else make_skin(rng)
        for _ in range(_ATTEMPTS):
            extent = size_px * MIN_EXTENT * (MAX_EXTENT / MIN_EXTENT) ** rng.random()
            centre = rng.uniform(0.08, 0.92, 2) * image_px
            if stage.lay(draw_hand(rng, skin, light, centre, extent, image_px)):
                break
            skin = make_skin(rng)
        if rng.random() < 0.2:
            stage.lay(draw_obstacle(rng, light, image_px, centre, extent))
    if rng.random() < 0.15:
        stage.lay(draw_distractor(rng, light, image_px))
    masks = [stage.owner == hand for hand in range(len(stage.areas))]
    image = _photograph(rng, stage.planes)
    return Scene(image, np.array(masks, np.bool_).reshape(-1, *shape))


class _Stage:
    """The image drawn so far, and the hand that each pixel belongs to."""

    def __init__(self, planes: Float32Array, light: Light, shadow: float) -> None:
        self.planes = planes
        self.owner: npt.NDArray[np.int16] = np.full(planes.shape[1:], _NOBODY, np.int16)
        self.areas: list[int] = []
        self._shadow = np.float32(shadow)
        self._shadow_shift = light.direction[:2] / light.direction[2]

    def lay(self, layer: Layer) -> bool:
        """Draw the layer on top, unless that would hide too much of a hand; return whether it was drawn."""
        height, width = self.owner.shape
        top, left = max(layer.y_px, 0), max(layer.x_px, 0)
        bottom = min(layer.y_px + layer.alpha.shape[0], height)
        right = min(layer.x_px + layer.alpha.shape[1], width)
        if top >= bottom or left >= right:
            return False
        there = np.s_[top:bottom, left:right]
        part = np.s_[top - layer.y_px : bottom - layer.y_px, left - layer.x_px : right - layer.x_px]
        owner = self.owner.copy()
        owner[there][layer.alpha[part] >= 0.5] = _NOBODY
        owner[there][layer.hand[part]] = len(self.areas)
        areas = [*self.areas, int(layer.hand.sum())] if layer.hand.any() else self.areas
        if not self._shows_all(owner, areas):
            return False
        if layer.hand.any() and self._contrast(layer, there, part) < _MIN_CONTRAST:
            return False
        self.owner, self.areas = owner, areas
        self._cast_shadow_(layer)
        view = self.planes[:, there[0], there[1]]
        view *= 1 - layer.alpha[part]
        view += layer.colour[:, part[0], part[1]]
        return True

    def _shows_all(self, owner: npt.NDArray[np.int16], areas: list[int]) -> bool:
        visible = np.bincount(owner[owner != _NOBODY], minlength=len(areas))
        if np.any(visible < MIN_VISIBLE * np.array(areas)):
            return False
        boxes = [_measure_box(owner == hand) for hand in range(len(areas))]
        return all(_measure_iou(boxes[-1], other) <= _MAX_OVERLAP for other in boxes[:-1])

    def _contrast(self, layer: Layer, there: tuple[slice, slice], part: tuple[slice, slice]) -> float:
        shown = layer.hand[part]
        before = self.planes[:, there[0], there[1]][:, shown].mean(axis=1)
        after = layer.colour[:, part[0], part[1]][:, shown].mean(axis=1)
        return float(np.abs(after - before).max())

    def _cast_shadow_(self, layer: Layer) -> None:
        """Draw the layer's shadow on what is behind it, away from the lamp."""
        spread = 0.02 * max(self.owner.shape)
        shift_x, shift_y = (-1.6 * spread * self._shadow_shift).tolist()
        height, width = self.owner.shape
        place = np.array([[1, 0, layer.x_px + shift_x], [0, 1, layer.y_px + shift_y]])
        cover = np.asarray(cv2.warpAffine(layer.alpha, place, (width, height)), np.float32)
        self.planes *= 1 - self._shadow * blur(cover, spread)


def _draw_count(rng: np.random.Generator, max_hands: int) -> int:
    """Draw a random number of hands: none in a seventh of the images; higher numbers are less likely."""
    weights = np.array([0.3, *(0.55**hand for hand in range(max_hands))])
    return int(rng.choice(max_hands + 1, p=weights / weights.sum()))


def _make_light(rng: np.random.Generator) -> Light:
    direction = np.array([rng.normal(0, 0.6), rng.normal(-0.4, 0.6), rng.uniform(0.8, 1.8)])
    warmth = np.array([1.0, 0.0, -1.0]) * rng.normal(0, 0.05)
    lamp = rng.uniform(0.45, 0.85)
    return Light(direction / np.linalg.norm(direction), lamp * (1 + warmth), (1.12 - lamp) * (1 - warmth))


def _photograph(rng: np.random.Generator, planes: Float32Array) -> npt.NDArray[np.uint8]:
    """Return the scene as a camera would show it: exposure, colour cast, defocus, shake, noise, compression."""
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)
    exposed = np.clip(planes, 0, 1) ** np.float32(rng.uniform(0.8, 1.25)) * gain[:, None, None].astype(np.float32)
    image = np.asarray(cv2.merge(list(exposed * 255)), np.float32)
    issue = rng.random()
    if issue < 0.4:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4)), np.float32)
    elif issue < 0.55:
        image = np.asarray(cv2.filter2D(image, -1, _make_shake(rng)), np.float32)
    if rng.random() < 0.7:
        grain = rng.integers(0, 256, (2, *image.shape), np.uint8).sum(axis=0, dtype=np.int16) - 255
        image += grain * np.float32(rng.uniform(0.005, 0.09))
    finished = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(30, 85))
        bgr = cv2.cvtColor(finished, cv2.COLOR_RGB2BGR)
        _, packed = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        finished = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    return np.ascontiguousarray(finished)


def _make_shake(rng: np.random.Generator) -> Float32Array:
    """Return the blur kernel of a short straight movement of the camera."""
    length, size = rng.uniform(2, 6), 9
    angle = rng.uniform(0, np.pi)
    half = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    kernel = np.zeros((size, size), np.float32)
    start, end = (np.round((size // 2 + sign * half) * 16).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, 4)
    kernel /= kernel.sum()
    return kernel


def _measure_box(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return float(x), float(y), float(x + width), float(y + height)


def _measure_iou(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    both = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / max(both - width * height, 1e-9)
