"""Draw a hand: flesh on a posed skeleton, skin with creases and nails, and the arm or sleeve next to it."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from yolo_prune.arrays import Float32Array
from yolo_prune.datasets.synthetic.hand_pose import INDEX, LITTLE, THUMB, Skeleton, make_skeleton, make_view
from yolo_prune.datasets.synthetic.solids import (
    Canvas,
    Layer,
    Light,
    PointArray,
    Relief,
    RoundCone,
    Skin,
    blur,
    cut_layer,
    fit_canvas,
    make_mottle,
    merge,
    paint_cloth_,
    raise_cones,
    shade,
    soften,
    unit,
)

PALM, FOREARM, SLEEVE = 15, 16, 17
"""Parts after the fifteen finger bones, which are 3 · finger + bone."""

_RADII_CM = np.array(
    [
        [1.45, 1.12, 1.0, 0.78],
        [1.02, 0.9, 0.79, 0.62],
        [1.05, 0.93, 0.82, 0.64],
        [1.0, 0.87, 0.76, 0.6],
        [0.88, 0.75, 0.66, 0.52],
    ]
)
_WRIST_CM = np.array([[1.5, 0.3, 0.0], [1.6, 0.3, 0.0], [0.6, 0.2, 0.0], [-0.6, 0.2, 0.0], [-1.5, 0.4, 0.0]])
_PALM_LINES_CM = (
    np.array([[3.3, 6.4, -1.3], [1.9, 6.0, -1.5], [0.6, 4.4, -1.6], [0.4, 2.4, -1.6], [0.7, 0.9, -1.5]]),
    np.array([[3.2, 6.5, -1.3], [1.0, 5.6, -1.5], [-1.0, 4.5, -1.5], [-2.6, 3.4, -1.4]]),
    np.array([[-3.8, 5.7, -1.0], [-2.0, 5.9, -1.4], [0.0, 6.7, -1.4], [1.4, 7.9, -1.3]]),
)


def draw_hand(
    rng: np.random.Generator,
    skin: Skin,
    light: Light,
    centre_px: PointArray,
    extent_px: float,
    image_px: tuple[int, int],
) -> Layer:
    """Draw a random hand whose longer side is about `extent_px`, around `centre_px` (x, y), and its arm.

    The layer extends beyond the image (`image_px` is its width and height) if the hand does, so that its hidden share
    is known.
    """
    skeleton, wrist, cm = _place(make_skeleton(rng).turned(make_view(rng)), centre_px, extent_px)
    radii = _RADII_CM * cm * rng.uniform(0.96, 1.18)
    arm, sleeve = make_arm(rng, skeleton.turn, wrist, cm, max(image_px))
    palm, fingers = _make_palm(skeleton, radii, wrist, cm), _make_fingers(skeleton, radii)
    canvas = fit_canvas(palm + fingers, arm + sleeve, image_px)
    scale = cm * canvas.oversampling

    flesh = soften(raise_cones(palm + arm, canvas), 0.3 * scale)
    relief = merge(flesh, raise_cones(fingers + sleeve, canvas))
    albedo = _paint_skin(rng, skeleton, relief, skin, scale)
    _draw_lines_(rng, albedo, skeleton, radii, wrist, cm, relief, canvas)
    if sleeve:
        paint_cloth_(rng, albedo, relief.part == SLEEVE, scale)
    colour = shade(relief, albedo, light, 1.3 * scale, gloss=rng.uniform(0.03, 0.16))
    return cut_layer(canvas, colour, relief.solid, relief.solid & (relief.part <= PALM))


def _place(skeleton: Skeleton, centre_px: PointArray, extent_px: float) -> tuple[Skeleton, PointArray, float]:
    """Scale to pixels and centre; return the hand, its wrist and its pixels per centimetre."""
    points = np.concatenate([skeleton.joints.reshape(-1, 3), np.zeros((1, 3))])
    low, high = points[:, :2].min(axis=0) - 1.0, points[:, :2].max(axis=0) + 1.0
    cm = extent_px / float((high - low).max())
    wrist = np.append(centre_px - (low + high) / 2 * cm, 0.0)
    return Skeleton(skeleton.joints * cm + wrist, skeleton.dorsal, skeleton.turn), wrist, cm


def _make_palm(skeleton: Skeleton, radii: PointArray, wrist: PointArray, cm: float) -> list[RoundCone]:
    """Return the flesh around the metacarpals, the balls of thumb and little finger, and the webs between fingers."""
    roots, tip_ward = skeleton.joints[:, 0], skeleton.joints[:, 1]
    bases = wrist + _WRIST_CM @ skeleton.turn.T * cm
    heel = wrist + np.array([[-1.9, 1.4, -0.5], [-2.7, 5.2, -0.4]]) @ skeleton.turn.T * cm
    cones = [RoundCone(heel[0], heel[1], 1.35 * cm, 1.2 * cm, PALM)]
    for finger in range(INDEX, LITTLE + 1):
        knuckle = radii[finger, 0] * 1.17
        cones.append(RoundCone(bases[finger], roots[finger], 1.3 * cm, knuckle, PALM))
        sleeve_end = roots[finger] + 0.3 * (tip_ward[finger] - roots[finger])
        cones.append(RoundCone(roots[finger], sleeve_end, knuckle, radii[finger, 0] * 0.98, PALM))
    for finger in range(INDEX, LITTLE):
        web = 0.5 * (roots + 0.28 * (tip_ward - roots))[finger : finger + 2].sum(axis=0)
        cones.append(RoundCone(0.5 * (roots[finger] + roots[finger + 1]), web, 0.95 * cm, 0.5 * cm, PALM))
    thumb = skeleton.joints[THUMB]
    cones.append(RoundCone(bases[0], thumb[0], 1.3 * cm, radii[THUMB, 0] * 1.1, PALM))
    cones.append(RoundCone(thumb[0], thumb[1], radii[THUMB, 0] * 1.1, radii[THUMB, 1] * 1.05, PALM))
    for along_thumb, along_index, thickness in ((0.45, 0.45, 1.15), (0.75, 0.62, 0.85), (0.95, 0.75, 0.5)):
        start = thumb[0] + along_thumb * (thumb[1] - thumb[0])
        end = bases[INDEX] + along_index * (roots[INDEX] - bases[INDEX])
        cones.append(RoundCone(start, end, thickness * cm, thickness * cm, PALM))
    return cones


def _make_fingers(skeleton: Skeleton, radii: PointArray) -> list[RoundCone]:
    """Return the bones of the fingers, with slightly protruding balls at the joints."""
    cones = []
    for finger in range(THUMB, LITTLE + 1):
        joints = skeleton.joints[finger]
        for bone in range(1 if finger == THUMB else 0, 3):
            part = 3 * finger + bone
            end_radius = radii[finger, bone + 1]
            tip = joints[bone + 1] - (bone == 2) * 0.7 * end_radius * unit(joints[3] - joints[2])
            waist = 0.05 if bone < 2 else -0.05
            cones.append(RoundCone(joints[bone], tip, radii[finger, bone], end_radius, part, waist=waist))
    return cones


def make_arm(
    rng: np.random.Generator, turn: PointArray, wrist: PointArray, cm: float, beyond_px: float
) -> tuple[list[RoundCone], list[RoundCone]]:
    """Return the bare arm and its sleeve, if any, that end at `wrist`, bent at an elbow or straight for `beyond_px`."""
    bend, sideways = np.radians((rng.normal(0, 22), rng.normal(0, 11)))
    away = turn @ np.array([np.sin(sideways), -np.cos(sideways) * np.cos(bend), np.sin(bend)])
    away[2] = np.clip(away[2], -0.5, 0.3)
    if np.hypot(away[0], away[1]) < 0.5:  # an arm straight behind the hand is hidden; make some of it visible
        away[:2] -= 0.6 * unit(turn[:2, 1])
    away = unit(away)
    start, elbow = wrist - 0.9 * cm * turn[:, 1], wrist + 25 * cm * away
    arm = [
        RoundCone(start + side * turn[:, 0], elbow + 1.4 * side * turn[:, 0], 1.75 * cm, 2.9 * cm, FOREARM)
        for side in (-cm, cm)
    ]
    if rng.random() < 0.5:
        bent = rng.choice((-1, 1)) * rng.uniform(0.5, 1.9)
        onward = np.array([[np.cos(bent), -np.sin(bent), 0], [np.sin(bent), np.cos(bent), 0], [0, 0, 1]]) @ away
        shoulder = elbow + 30 * cm * onward
    else:
        shoulder = elbow + max(30 * cm, beyond_px) * away
    arm.append(RoundCone(elbow, shoulder, 4.2 * cm, 5.4 * cm, FOREARM))
    if rng.random() < 0.3:
        return arm, []
    cuff = rng.uniform(0.02, 0.2) if rng.random() < 0.55 else rng.uniform(0.2, 0.95)
    opening, loose = wrist + cuff * (elbow - wrist), rng.uniform(1.08, 1.45)
    sleeve = [
        RoundCone(opening, elbow, (3.1 + 1.6 * cuff) * cm * loose, 4.9 * cm * loose, SLEEVE, flat=True),
        RoundCone(elbow, shoulder, 4.9 * cm * loose, 6.0 * cm * loose, SLEEVE),
    ]
    return arm, sleeve


def _paint_skin(rng: np.random.Generator, skeleton: Skeleton, relief: Relief, skin: Skin, scale: float) -> Float32Array:
    """Return the skin's colour (3, H, W): back or palm, redder at the tips, mottled."""
    palmar = np.full(18, 0.5 - 0.5 * skeleton.turn[2, 2], np.float32)
    palmar[:15] = 0.5 - 0.5 * skeleton.dorsal[:, :, 2].ravel()
    flush = np.zeros(18, np.float32)
    flush[2:15:3], flush[PALM] = 1.0, 0.3 * palmar[PALM]
    part = relief.part.clip(0, 17)
    palmar_map, flush_map = blur(palmar[part], 0.5 * scale), blur(flush[part], 0.5 * scale)
    flush_map *= np.float32(rng.uniform(0.3, 1.6))
    mottle = 1 + np.float32(0.03) * make_mottle(rng, relief.part.shape, max(2.0, 0.9 * scale))
    tints = zip(skin.back, skin.palm, (0.02, -0.035, -0.03), strict=True)
    return np.stack(
        [
            (palmar_map * np.float32(palm - back) + flush_map * np.float32(red) + np.float32(back)) * mottle
            for back, palm, red in tints
        ]
    )


def _draw_lines_(
    rng: np.random.Generator,
    albedo: Float32Array,
    skeleton: Skeleton,
    radii: PointArray,
    wrist: PointArray,
    cm: float,
    relief: Relief,
    canvas: Canvas,
) -> None:
    """Draw creases, knuckle wrinkles, palm lines and nails on the skin's colour."""
    scale, depth = cm * canvas.oversampling, rng.uniform(0.25, 0.5)
    for finger in range(THUMB, LITTLE + 1):
        rows, columns, inner = canvas.cut_window(skeleton.joints[finger], 1.3 * cm)
        part = relief.part[rows, columns]
        curves = [crease for bone in (1, 2) for crease in _crease(skeleton, radii, finger, bone)]
        _ink_(albedo[:, rows, columns], part // 3 == finger, inner, curves, 0.11 * scale, depth)
        _paint_nail_(albedo[:, rows, columns], skeleton, radii, finger, part, inner)
    if skeleton.turn[2, 2] < -0.2:
        lines = [
            (wrist + (line + rng.normal(0, 0.12, line.shape)) @ skeleton.turn.T * cm, 190) for line in _PALM_LINES_CM
        ]
        rows, columns, inner = canvas.cut_window(np.concatenate([line for line, _ in lines]), 0.5 * cm)
        _ink_(albedo[:, rows, columns], relief.part[rows, columns] == PALM, inner, lines, 0.14 * scale, depth)


def _ink_(
    albedo: Float32Array,
    where: npt.NDArray[np.bool_],
    canvas: Canvas,
    curves: list[tuple[PointArray, int]],
    width: float,
    depth: float,
) -> None:
    """Darken the skin along the curves within the mask; each curve has a strength 0..255."""
    if not curves or not where.any():
        return
    ink = np.zeros(where.shape, np.uint8)
    for curve, strength in curves:
        points = np.round(canvas.rasterize(curve)[:, :2] * 8).astype(np.int32)
        cv2.polylines(ink, [points], False, strength, max(1, round(width)), cv2.LINE_AA, 3)
    shadow = blur((ink * where).astype(np.float32), max(0.4 * width, 0.4)) * np.float32(depth / 255)
    for plane, share in zip(albedo, (0.75, 1.0, 1.0), strict=True):
        plane *= 1 - shadow * np.float32(share)


def _crease(skeleton: Skeleton, radii: PointArray, finger: int, bone: int) -> list[tuple[PointArray, int]]:
    """Return the visible lines around the joint at the start of `bone`, each with its strength 0..255."""
    joints, back = skeleton.joints[finger], skeleton.dorsal[finger, bone]
    forward = unit(joints[bone + 1] - joints[bone])
    sideways, radius = np.cross(forward, back), radii[finger, bone] * 1.01
    palm_facing = back[2] < 0
    turn = np.linspace(-1.1, 1.1, 9)[:, None] if palm_facing else np.linspace(-0.8, 0.8, 7)[:, None]
    out = -back if palm_facing else back
    arc = sideways * np.sin(turn) + out * np.cos(turn)
    arc = arc[arc[:, 2] > 0.05]
    if len(arc) < 2:
        return []
    if palm_facing:
        return [(joints[bone] + radius * arc, 230)]
    bow = forward * 0.25 * radius * np.cos(2 * turn[: len(arc)])
    return [
        (joints[bone] + radius * arc + (shift * forward * radius + sign * bow), 100)
        for shift, sign in ((-0.3, -1), (0.0, 0), (0.3, 1))
    ]


def _paint_nail_(
    albedo: Float32Array,
    skeleton: Skeleton,
    radii: PointArray,
    finger: int,
    part: npt.NDArray[np.int16],
    canvas: Canvas,
) -> None:
    """Paint the nail on the finger's back, if it faces the viewer."""
    joints, back = skeleton.joints[finger], skeleton.dorsal[finger, 2]
    if back[2] < 0.12 or not part.size:
        return
    bone, radius = joints[3] - joints[2], radii[finger, 3] * 1.15
    angle = np.linspace(0, 2 * np.pi, 24)[:, None]
    across = 0.86 * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.7
    curved = np.cross(unit(bone), back) * across + back * np.sqrt(1 - across**2)
    rim = joints[2] + bone * (0.62 + 0.3 * np.cos(angle)) + radius * curved
    plate = np.zeros(part.shape, np.uint8)
    cv2.fillPoly(plate, [np.round(canvas.rasterize(rim)[:, :2] * 8).astype(np.int32)], 255, cv2.LINE_AA, 3)
    cover = (plate * (part == 3 * finger + 2)).astype(np.float32) * np.float32(0.45 / 255)
    for plane, pale in zip(albedo, (0.9, 0.76, 0.74), strict=True):
        plane += cover * np.float32(pale) * (np.float32(0.35) + plane - plane / np.float32(pale))
