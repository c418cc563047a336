"""Pose a hand: joint angles within natural limits, and the resulting positions of all joints.

The hand's own frame, in centimetres, for a right hand: the origin is the wrist, x points to the thumb, y along the
middle finger, z out of the back of the hand. Each finger has three bones in sequence; a thumb's first bone is its
metacarpal. Flexing rotates a bone towards the palm about its lateral axis, together with all later bones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolo_prune.arrays import Float64Array

THUMB, INDEX, MIDDLE, RING, LITTLE = range(5)

_ROOTS_CM = np.array([[1.9, 1.8, -0.7], [2.6, 8.8, 0.1], [0.6, 9.1, 0.25], [-1.35, 8.6, 0.1], [-3.1, 7.7, -0.25]])
_BONES_CM = np.array([[4.3, 3.2, 2.4], [4.1, 2.5, 2.0], [4.6, 2.9, 2.1], [4.2, 2.7, 2.1], [3.3, 2.0, 1.8]])
_FULL_FLEXION_DEG = np.array([85.0, 105.0, 68.0])
_FULL_SPLAY_DEG = np.array([0.0, 17.0, 3.0, -12.0, -26.0])

# curl of index, middle, ring, little (0 straight, 1 closed); spread; thumb: abduction, opposition, curl
_GESTURES: dict[str, tuple[float, ...]] = {
    "open": (0.02, 0.0, 0.02, 0.05, 1.0, 1.0, 0.15, 0.0),
    "flat": (0.03, 0.03, 0.03, 0.05, 0.1, 0.3, 0.15, 0.1),
    "relaxed": (0.2, 0.27, 0.33, 0.38, 0.35, 0.55, 0.4, 0.25),
    "claw": (0.42, 0.42, 0.45, 0.48, 0.8, 0.8, 0.5, 0.35),
    "grip": (0.62, 0.64, 0.66, 0.7, 0.2, 0.6, 0.75, 0.4),
    "fist": (0.97, 0.98, 0.98, 1.0, 0.0, 0.25, 0.95, 0.75),
    "point": (0.03, 0.93, 0.96, 0.98, 0.1, 0.25, 0.95, 0.7),
    "two": (0.03, 0.03, 0.95, 0.97, 0.9, 0.25, 0.95, 0.8),
    "three": (0.03, 0.02, 0.04, 0.95, 0.9, 0.2, 0.9, 0.8),
    "four": (0.03, 0.02, 0.03, 0.06, 0.7, 0.15, 0.95, 0.85),
    "thumb": (0.97, 0.97, 0.98, 1.0, 0.0, 1.0, 0.0, 0.0),
    "phone": (0.95, 0.96, 0.95, 0.05, 0.6, 1.0, 0.1, 0.0),
    "horns": (0.03, 0.95, 0.95, 0.05, 0.7, 0.3, 0.95, 0.7),
    "pinch": (0.55, 0.25, 0.18, 0.14, 0.6, 0.55, 0.95, 0.3),
}


@dataclass(frozen=True)
class Skeleton:
    """A posed hand, in centimetres, in the hand's own frame or rotated towards the viewer."""

    joints: Float64Array
    """(5, 4, 3): thumb to little finger, each from root to tip."""
    dorsal: Float64Array
    """(5, 3, 3): for each bone, the unit vector out of the finger's back."""
    turn: Float64Array
    """(3, 3): maps points of the hand's own frame to this one; its determinant is -1 for a left hand."""

    def turned(self, turn: Float64Array) -> Skeleton:
        """Return this hand with the rotation `turn` (3, 3) applied."""
        return Skeleton(self.joints @ turn.T, self.dorsal @ turn.T, turn @ self.turn)


def make_skeleton(rng: np.random.Generator) -> Skeleton:
    """Draw a gesture and a build at random and return the posed right hand in its own frame."""
    gesture = np.array(list(_GESTURES.values())[rng.integers(len(_GESTURES))])
    if rng.random() < 0.25:  # any other mixture; neighbours move together, because of tendons
        gesture[:4] = np.convolve(rng.beta(0.7, 0.9, 6), (0.25, 0.5, 0.25), mode="valid")
        gesture[4:] = rng.random(4)
    gesture = np.clip(gesture + rng.normal(0, 0.05, gesture.shape), 0, 1)
    curls, (spread, abduction, opposition, thumb_curl) = gesture[:4], gesture[4:]

    roots = _ROOTS_CM * (rng.uniform(0.9, 1.1), 1, 1)
    lengths = _BONES_CM * rng.uniform(0.88, 1.08) * rng.normal(1, 0.02, (5, 1))
    flexion = np.radians(curls[:, None] * _FULL_FLEXION_DEG * rng.normal(1, 0.06, (4, 3)).clip(0.88, 1.08))
    splay = np.radians(_FULL_SPLAY_DEG * spread + rng.normal(0, 1.5, 5))
    chains = [_thumb(roots[THUMB], lengths[THUMB], abduction, opposition, thumb_curl)]
    for finger in range(INDEX, LITTLE + 1):
        angles = flexion[finger - 1]
        sideways = splay[finger] * max(0.0, 1 - 1.1 * angles[0])  # a flexed knuckle locks the finger's splay
        forward = np.array([np.sin(sideways), np.cos(sideways), 0.0])
        chains.append(_chain(roots[finger], lengths[finger], forward, np.array([0.0, 0.0, 1.0]), angles))
    joints, dorsal = zip(*chains, strict=True)
    return Skeleton(np.stack(joints), np.stack(dorsal), np.eye(3))


def make_view(rng: np.random.Generator) -> Float64Array:
    """Draw a random viewpoint (3, 3): any angle in the image's plane, either side, either hand, some foreshortening."""
    side = rng.choice((0.0, 180.0, 75.0, -75.0), p=(0.42, 0.42, 0.08, 0.08))
    roll, pitch = np.radians((side + rng.normal(0, 20), np.clip(rng.normal(0, 20), -50, 50)))
    in_plane = rng.uniform(0, 2 * np.pi)
    mirror = np.diag([rng.choice((-1.0, 1.0)), 1.0, 1.0])
    turn: Float64Array = _rotation(2, in_plane) @ _rotation(0, pitch) @ _rotation(1, roll) @ mirror
    return turn


def _chain(
    root: Float64Array, lengths: Float64Array, forward: Float64Array, dorsal: Float64Array, angles: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return joints (4, 3) and dorsal vectors (3, 3) of a finger flexed by `angles` (radians) at its three joints."""
    joints, backs = [root], []
    for length, angle in zip(lengths, angles, strict=True):
        forward, dorsal = (
            np.cos(angle) * forward - np.sin(angle) * dorsal,
            np.cos(angle) * dorsal + np.sin(angle) * forward,
        )
        joints.append(joints[-1] + length * forward)
        backs.append(dorsal)
    return np.stack(joints), np.stack(backs)


def _thumb(
    root: Float64Array, lengths: Float64Array, abduction: float, opposition: float, curl: float
) -> tuple[Float64Array, Float64Array]:
    """Pose the thumb: abducted in the palm's plane, opposed out of it, then flexed across the palm."""
    outward, palmward = np.radians((12 + 45 * abduction, 5 + 45 * opposition))
    forward = np.array([np.sin(outward) * np.cos(palmward), np.cos(outward) * np.cos(palmward), -np.sin(palmward)])
    across = np.array([-1.0, 0.15, -0.5 + 0.6 * opposition])  # the direction in which the flexing thumb tip moves
    dorsal = -(across - forward * (across @ forward))
    angles = np.radians((0.0, 8 + 48 * curl, 4 + 62 * curl))
    return _chain(root, lengths, forward, dorsal / np.linalg.norm(dorsal), angles)


def _rotation(axis: int, angle: float) -> Float64Array:
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[[first, second, first, second], [first, second, second, first]] = cosine, cosine, -sine, sine
    return matrix
