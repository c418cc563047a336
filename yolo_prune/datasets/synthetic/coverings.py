"""What covers a body: skin tones and cloth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from yolo_prune.datasets.synthetic.solids import FloatArray, PointArray

_SKIN_RGB = np.array(
    [[245, 212, 190], [232, 186, 155], [212, 160, 124], [183, 129, 93], [145, 97, 67], [106, 68, 47], [74, 48, 36]]
)


@dataclass(frozen=True)
class Skin:
    """One person's skin, RGB 0..1."""

    back: PointArray
    palm: PointArray


def make_skin(rng: np.random.Generator) -> Skin:
    """Draw a skin tone between very light and very dark; palms of dark hands are lighter."""
    melanin = rng.uniform(0, len(_SKIN_RGB) - 1)
    back = np.array([np.interp(melanin, range(len(_SKIN_RGB)), channel) for channel in _SKIN_RGB.T]) / 255
    back *= rng.uniform(0.94, 1.06) * rng.uniform(0.97, 1.03, 3)
    lighter = 0.08 + 0.09 * melanin
    return Skin(back.clip(0, 1), (back * (1 - lighter) + np.array([0.87, 0.64, 0.53]) * lighter).clip(0, 1))


def paint_cloth_(rng: np.random.Generator, albedo: FloatArray, where: npt.NDArray[np.bool_], scale: float) -> None:
    """Give what the mask (H, W) shows a cloth: plain, striped or chequered."""
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
