"""What hands wear: rings, bracelets and sleeves as tubes around a bone, fitted to the flesh beneath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.data.synth.mesh import FINGER_BONES, RestHand, load_hand
from nailcore.data.synth.scene import Worn
from nailcore.data.synth.subdivision import F32, I32, smooth_normals

SEGMENTS = 48
FOREARM_BONES = (0, 1)
WRIST_BONE = 1
SLEEVE_STEP_MM = 6.0
SLEEVE_END_MM = 480.0  # past the lengthened forearm's end
_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WornGeometry:
    """One worn thing in camera space, millimetres."""

    item: Worn
    vertices: F32  # (N, 3)
    normals: F32
    quads: I32


@dataclass(frozen=True)
class _Limb:
    """The bone a tube is laid around, in the rest hand's axes."""

    bone: int
    start: _F64  # (3,)
    axis: _F64  # (3,) unit, away from the elbow
    across: _F64  # (3,) unit, towards the back of the hand
    members: npt.NDArray[np.bool_]  # (V2,) skin that belongs to it


def build_worn(rest: RestHand, item: Worn) -> tuple[F32, I32, int]:
    """One worn thing of a right hand at rest.

    Returns:
        (N, 3) vertices in mm, (F, 4) quads facing outwards, and the bone that carries it.
    """
    limb = _find_limb(rest, item)
    profile = _fall_sleeve(rest, limb, item) if item.kind == "sleeve" else _bend_band(rest, limb, item)
    stations, segments = profile.shape[:2]
    at = np.arange(stations * segments, dtype=np.int32).reshape(stations, segments)
    after = np.roll(at, -1, axis=1)
    corners = [at[:-1], after[:-1], after[1:], at[1:]]
    quads = np.stack(corners, axis=-1).reshape(-1, 4)
    vertices = profile.reshape(-1, 3).astype(np.float32)
    # Outwards means away from the bone; a ring's inner side never shows.
    middle = vertices - limb.start - ((vertices - limb.start) @ limb.axis)[:, None] * limb.axis
    if np.einsum("vi,vi->v", smooth_normals(vertices, quads), middle).mean() < 0:
        quads = np.ascontiguousarray(quads[:, ::-1])
    return vertices, quads, limb.bone


def _find_limb(rest: RestHand, item: Worn) -> _Limb:
    asset = load_hand()
    weights = asset.to_fine @ asset.weights
    if item.kind == "ring":
        bone = FINGER_BONES[item.finger][0]
        head, tail = rest.joints[bone].astype(np.float64)
        members = weights[:, bone] > 0.5
    else:
        bone = WRIST_BONE
        elbow, head = rest.joints[1].astype(np.float64)
        tail = 2 * head - elbow  # runs from the wrist outwards; stations are negative
        members = weights[:, list(FOREARM_BONES)].sum(axis=1) > 0.5
    axis = (tail - head) / np.linalg.norm(tail - head)
    across = np.array([0.0, 0.0, 1.0]) - axis[2] * axis
    return _Limb(bone, head, axis, across / np.linalg.norm(across), members)


def _measure_girth(rest: RestHand, limb: _Limb, along_mm: float, reach_mm: float) -> tuple[_F64, _F64]:
    """(3,) middle of the limb's cross-section and (SEGMENTS,) its radii."""
    local = rest.fine[limb.members] - limb.start
    along = local @ limb.axis
    near = np.abs(along - along_mm)
    rows = near < max(reach_mm, np.sort(near)[min(24, len(near) - 1)])
    flat = local[rows] - along[rows, None] * limb.axis
    side = np.cross(limb.axis, limb.across)
    points = np.stack([flat @ limb.across, flat @ side], axis=-1)
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    away = points - middle
    angle, radius = np.arctan2(away[:, 1], away[:, 0]), np.hypot(*away.T)
    wanted = np.linspace(-np.pi, np.pi, SEGMENTS, endpoint=False)
    gap = np.abs((wanted[:, None] - angle + np.pi) % (2 * np.pi) - np.pi)
    weight = np.exp(-((gap / 0.3) ** 2)) + 1e-9
    girth = (weight @ radius) / weight.sum(axis=1)
    centre = limb.start + along_mm * limb.axis + middle[0] * limb.across + middle[1] * side
    return centre, girth


def _lay_loop(limb: _Limb, centre: _F64, radius: _F64) -> _F64:
    """(SEGMENTS, 3) one loop of a tube."""
    angle = np.linspace(-np.pi, np.pi, SEGMENTS, endpoint=False)
    side = np.cross(limb.axis, limb.across)
    return np.asarray(
        centre + (radius * np.cos(angle))[:, None] * limb.across + (radius * np.sin(angle))[:, None] * side
    )


def _bend_band(rest: RestHand, limb: _Limb, item: Worn) -> _F64:
    """(9, SEGMENTS, 3) a band with a rounded profile, half sunk into the skin."""
    centre, girth = _measure_girth(rest, limb, item.along_mm, 2.0 if item.kind == "ring" else 5.0)
    turn = np.linspace(-np.pi, np.pi, 9)
    loops = []
    for a in turn:
        lift = item.thickness_mm * (0.35 + 0.65 * np.cos(a)) + item.loose_mm
        loops.append(_lay_loop(limb, centre + 0.5 * item.width_mm * np.sin(a) * limb.axis, girth + lift))
    return np.stack(loops)


def _fall_sleeve(rest: RestHand, limb: _Limb, item: Worn) -> _F64:
    """(S, SEGMENTS, 3) a tube from the cuff to behind the elbow, with a hem and creases."""
    rng = np.random.default_rng([item.seed, 41])
    stations = np.arange(item.along_mm, -SLEEVE_END_MM, -SLEEVE_STEP_MM)
    waves = [
        (rng.uniform(0.02, 0.12), rng.integers(-3, 4), rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.0))
        for _ in range(6)
    ]
    angle = np.linspace(-np.pi, np.pi, SEGMENTS, endpoint=False)
    loops = []
    for number, along in enumerate(stations):
        centre, girth = _measure_girth(rest, limb, float(along), 6.0)
        crease = sum(h * np.sin(f * along + n * angle + p) for f, n, p, h in waves)
        settle = min(1.0, number / 5)  # a cuff is smoother than the arm
        girth = girth.mean() * 0.25 + girth * 0.75
        loops.append(_lay_loop(limb, centre, girth + item.loose_mm + settle * 0.22 * item.loose_mm * crease))
    # The hem turns inwards, so that the opening shows cloth and no hole.
    first, girth = _measure_girth(rest, limb, item.along_mm, 6.0)
    inner = _lay_loop(limb, first - 8.0 * limb.axis, girth * 0.93)
    rim = _lay_loop(limb, first - 1.0 * limb.axis, girth + item.loose_mm - item.thickness_mm)
    lip = _lay_loop(limb, first + 0.6 * limb.axis, girth + item.loose_mm - 0.4 * item.thickness_mm)
    return np.stack([inner, rim, lip, *loops])
