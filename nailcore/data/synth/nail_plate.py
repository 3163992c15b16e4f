"""A parametric nail plate per finger, fitted to the mesh's nail vertices at rest, base and tip known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.data.synth.mesh import FINGER_BONES, RestHand, load_hand
from nailcore.data.synth.scene import NailShape
from nailcore.data.synth.subdivision import F32, I32, smooth_normals

ABOVE_SKIN_MM = 0.6
ROWS, COLUMNS = 29, 15
BED_LENGTH = 1.02  # of the ragged nail faces' own extent
BED_WIDTH = 1.32  # the faces under the mask stop short of the nail folds
FREE_EDGE = (1.15, 0.95, 1.0, 0.95, 0.75)  # a nail's free edge relative to the middle finger's


@dataclass(frozen=True)
class NailPlate:
    """One finger's nail at rest, as a sheet of ROWS × COLUMNS vertices, in the rest hand's axes and mm."""

    finger: int  # 0 thumb .. 4 little finger
    vertices: F32  # (ROWS * COLUMNS, 3), row by row from base to tip
    across: F32  # (ROWS * COLUMNS,) -1 .. 1
    along_mm: F32  # (ROWS * COLUMNS,) distance from the base
    bed_mm: float  # where the free edge begins
    length_mm: float
    half_width_mm: float
    origin: F32  # (3,) middle of the base line on the skin
    frame: F32  # rows: across, along, outwards
    bone: int  # carries the plate

    @property
    def base(self) -> F32:
        """(3,) the plate's point nearest to the knuckle."""
        return np.asarray(self.vertices[COLUMNS // 2])

    @property
    def tip(self) -> F32:
        """(3,) the plate's farthest point."""
        return np.asarray(self.vertices[(ROWS - 1) * COLUMNS + COLUMNS // 2])


def plate_quads() -> I32:
    """((ROWS - 1) * (COLUMNS - 1), 4) quads of every plate, facing outwards."""
    at = np.arange(ROWS * COLUMNS, dtype=np.int32).reshape(ROWS, COLUMNS)
    corners = [at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]]
    return np.asarray(np.stack(corners, axis=-1).reshape(-1, 4))


def fit_plates(rest: RestHand, shape: NailShape, free_edge_mm: float) -> tuple[NailPlate, ...]:
    """Fit all five plates of a right hand at rest."""
    return tuple(_fit_plate(rest, finger, shape, free_edge_mm * FREE_EDGE[finger]) for finger in range(5))


@dataclass(frozen=True)
class _Bed:
    """Where the mesh has a nail."""

    finger: int
    origin: npt.NDArray[np.float64]  # (3,)
    frame: npt.NDArray[np.float64]  # (3, 3) rows: across, along, outwards
    length_mm: float
    half_width_mm: float


def _fit_plate(rest: RestHand, finger: int, shape: NailShape, free_mm: float) -> NailPlate:
    bed = _find_bed(rest, finger)
    surface = _fit_surface(rest, bed)
    length = bed.length_mm + free_mm
    # Rows crowd where the outline bends most: at the base and at the tip.
    t = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0, 1, ROWS))
    along = length * t
    u = np.linspace(-1, 1, COLUMNS)
    x = u[None, :] * outline_half_width(shape, along, length, bed.length_mm, bed.half_width_mm)[:, None]
    y = np.broadcast_to(along[:, None], x.shape)
    z = _lift(surface, bed, x, y) + ABOVE_SKIN_MM * _edge_profile(u, along, bed.length_mm)
    local = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    return NailPlate(
        finger=finger,
        vertices=(local @ bed.frame + bed.origin).astype(np.float32),
        across=np.tile(u, ROWS).astype(np.float32),
        along_mm=np.repeat(along, COLUMNS).astype(np.float32),
        bed_mm=bed.length_mm,
        length_mm=length,
        half_width_mm=bed.half_width_mm,
        origin=bed.origin.astype(np.float32),
        frame=bed.frame.astype(np.float32),
        bone=FINGER_BONES[finger][2],
    )


def _find_bed(rest: RestHand, finger: int) -> _Bed:
    asset = load_hand()
    rows = asset.fine_quads[asset.nail_quads[finger]]
    corners = np.unique(rows)
    points = rest.fine[corners].astype(np.float64)
    outwards = rest.fine_normals[rows].mean(axis=(0, 1)).astype(np.float64)
    outwards /= np.linalg.norm(outwards)
    bone = FINGER_BONES[finger][2]
    along = (rest.joints[bone, 1] - rest.joints[bone, 0]).astype(np.float64)
    along -= (along @ outwards) * outwards
    along /= np.linalg.norm(along)
    frame = np.stack([np.cross(along, outwards), along, outwards])  # det +1
    centre = points.mean(axis=0)
    local = (points - centre) @ frame.T
    low, high = np.percentile(local[:, :2], [2, 98], axis=0)
    half_width = float(high[0] - low[0]) / 2 * BED_WIDTH
    bed_mm = float(high[1] - low[1]) * BED_LENGTH
    middle = (high + low) / 2
    start = np.array([middle[0], middle[1] - bed_mm / 2, 0.0])
    return _Bed(finger, centre + start @ frame, frame, bed_mm, half_width)


def _fit_surface(rest: RestHand, bed: _Bed) -> npt.NDArray[np.float64]:
    """Coefficients of height over (1, x, y, x², x y, y²), least squares over the skin under the nail."""
    asset = load_hand()
    away = rest.fine - bed.origin
    local = away @ bed.frame.T
    near = np.abs(local[:, 0]) < bed.half_width_mm * 1.05
    near &= (local[:, 1] > -1) & (local[:, 1] < bed.length_mm)
    near &= (rest.fine_normals @ bed.frame[2] > 0.3) & (np.linalg.norm(away, axis=1) < 2 * bed.length_mm)
    near &= (asset.to_fine @ asset.weights[:, FINGER_BONES[bed.finger][2]]) > 0.5
    x, y, z = local[near].T
    design = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    return np.asarray(np.linalg.lstsq(design, z, rcond=None)[0])


def _lift(
    c: npt.NDArray[np.float64], bed: _Bed, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Skin height under the plate; past the bed it runs on nearly straight instead of down the fingertip."""
    on_bed = np.minimum(y, bed.length_mm * 0.8)
    past = y - on_bed
    height = c[0] + c[1] * x + c[2] * on_bed + c[3] * x * x + c[4] * x * on_bed + c[5] * on_bed**2
    slope = c[2] + c[4] * x + 2 * c[5] * on_bed
    return np.asarray(height + slope * past - 0.006 * past**2 * (8 / max(bed.half_width_mm, 3)))


def _edge_profile(
    u: npt.NDArray[np.float64], along: npt.NDArray[np.float64], bed_mm: float
) -> npt.NDArray[np.float64]:
    """1 in the middle, a little below zero at the sides and the base: there the plate dives into its fold."""
    side = np.clip((np.abs(u) - 0.7) / 0.3, 0, 1) ** 2
    base = np.clip(1 - along / (0.14 * bed_mm), 0, 1) ** 2
    free = np.clip((along - 0.8 * bed_mm) / (0.2 * bed_mm), 0, 1)
    return 1 - 1.25 * np.maximum(side[None, :] * (1 - free[:, None]), base[:, None])


def outline_half_width(
    shape: NailShape, along: npt.NDArray[np.float64], length: float, bed_mm: float, half_width: float
) -> npt.NDArray[np.float64]:
    """Half width in mm at each distance from the base; zero at the base, and at pointed or round tips."""
    curve = 0.62 * half_width  # length of the rounded cuticle
    s = np.clip(along / curve, 0, 1)
    base = np.sqrt(1 - (1 - s) ** 2) ** 0.9 * (0.93 + 0.07 * np.clip(along / bed_mm, 0, 1))
    free = length - along  # distance to the tip
    taper_from = {"round": 0.9, "square": 1.0, "almond": 0.62, "coffin": 0.6, "stiletto": 0.55}[shape]
    reach = max(length - taper_from * bed_mm, 1e-6)
    q = np.clip(1 - free / reach, 0, 1)  # 0 where the taper begins, 1 at the tip
    if shape == "square":
        corner = np.clip(1 - free / (0.16 * half_width), 0, 1)
        end = 1 - 0.14 * (1 - np.sqrt(1 - corner**2))
    elif shape == "coffin":
        corner = np.clip(1 - free / (0.1 * half_width), 0, 1)
        end = (1 - 0.5 * q**1.2) * (1 - 0.14 * (1 - np.sqrt(1 - corner**2)))
    elif shape == "round":
        radius = max(0.75 * half_width, length - bed_mm)
        end = np.sqrt(1 - np.clip(1 - free / radius, 0, 1) ** 2)
    elif shape == "almond":
        end = (1 - q**2.2) ** 0.62
    else:
        end = (1 - q**1.35) ** 0.95
    return np.asarray(half_width * base * end)


def plate_normals(vertices: F32) -> F32:
    """Smooth outward normals of one plate's (ROWS * COLUMNS, 3) vertices."""
    return smooth_normals(vertices, plate_quads())
