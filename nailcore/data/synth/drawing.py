"""Which surface each pixel shows, and the exact labels that follow from it; no colour yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nailcore.data.labels import NailRecord
from nailcore.data.shapes import Mask, distance_to
from nailcore.data.synth.geometry import HandGeometry, PlateGeometry, build_hand
from nailcore.data.synth.raster import Fragments, rasterise, split_quads
from nailcore.data.synth.scene import Camera, Scene
from nailcore.data.synth.subdivision import F32, I32
from nailcore.data.synth.worn import WornGeometry

SUPERSAMPLING = 2
MIN_NAIL_PX = 12
_HIDDEN_PX = 3.0  # farther from the nail's visible pixels, base or tip is covered or off the picture


@dataclass(frozen=True)
class Part:
    """One sheet of the drawing: a nail, a worn thing, or (both None) the skin of a hand."""

    hand: int
    plate: int | None
    first_vertex: int
    vertex_count: int
    worn: int | None = None


@dataclass(frozen=True)
class Drawing:
    """The visible surface at SUPERSAMPLING times the picture's size, and labels at the picture's own."""

    hands: tuple[HandGeometry, ...]
    parts: tuple[Part, ...]
    vertices: F32  # (V, 3) all parts, camera space, mm
    normals: F32  # (V, 3)
    triangles: I32  # (T, 3)
    fragments: Fragments
    fragment_part: npt.NDArray[np.int64]  # (P,) row of ``parts``
    front_triangles: npt.NDArray[np.int64]  # rows of ``triangles`` seen from outside; others: undersides
    nail_index: npt.NDArray[np.uint8]  # (H, W) 0 background, k: nails[k - 1]
    nails: tuple[NailRecord, ...]


def draw(scene: Scene) -> Drawing:
    """Rasterise a scene's hands and read the labels off."""
    hands = tuple(build_hand(hand) for hand in scene.hands)
    parts, vertices, normals, quads, quad_part = _merge(hands)
    triangles = split_quads(quads)
    triangle_part = np.repeat(quad_part, 2)
    corners = vertices[triangles]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    front = np.einsum("ti,ti->t", facing, corners[:, 0]) < 0
    is_nail = np.array([part.plate is not None for part in parts])
    kept = np.flatnonzero(front | is_nail[triangle_part])  # a nail's underside is visible too
    camera, scale = scene.camera, SUPERSAMPLING
    pixels = project(vertices, camera) * scale
    size_px = (camera.height_px * scale, camera.width_px * scale)
    fragments = rasterise(pixels, vertices[:, 2], triangles[kept], size_px)
    fragment_part = triangle_part[kept][fragments.triangles]
    fragment_front = front[kept][fragments.triangles]
    # A nail's underside hides what lies behind it, but is not the nail anyone paints.
    labelled = np.where(fragment_front, fragment_part, -1)
    nail_index, nails = _label(camera, hands, parts, fragments, labelled)
    return Drawing(
        hands=hands,
        parts=tuple(parts),
        vertices=vertices,
        normals=normals,
        triangles=triangles[kept],
        fragments=fragments,
        fragment_part=fragment_part,
        front_triangles=np.flatnonzero(front[kept]),
        nail_index=nail_index,
        nails=nails,
    )


def project(points: F32, camera: Camera) -> F32:
    """(N, 3) mm in camera space to (N, 2) pixels, the picture's centre at (W/2, H/2)."""
    depth = np.maximum(points[:, 2:], 1e-3)
    centre = np.array([camera.width_px / 2, camera.height_px / 2])
    return np.asarray(points[:, :2] / depth * camera.focal_px + centre, dtype=np.float32)


def _merge(
    hands: tuple[HandGeometry, ...],
) -> tuple[list[Part], F32, F32, I32, npt.NDArray[np.int64]]:
    parts: list[Part] = []
    vertices, normals, quads, quad_part, start = [], [], [], [], 0
    for number, hand in enumerate(hands):
        sheets: list[tuple[int | None, int | None, HandGeometry | PlateGeometry | WornGeometry]]
        sheets = [(None, None, hand)]
        sheets += [(i, None, plate) for i, plate in enumerate(hand.plates)]
        sheets += [(None, i, worn) for i, worn in enumerate(hand.worn)]
        for plate_row, worn_row, sheet in sheets:
            vertices.append(sheet.vertices)
            normals.append(sheet.normals)
            quads.append(sheet.quads + start)
            quad_part.append(np.full(len(sheet.quads), len(parts)))
            parts.append(Part(number, plate_row, start, len(sheet.vertices), worn_row))
            start += len(sheet.vertices)
    return (
        parts,
        np.concatenate(vertices),
        np.concatenate(normals),
        np.concatenate(quads),
        np.concatenate(quad_part),
    )


def _label(
    camera: Camera,
    hands: tuple[HandGeometry, ...],
    parts: list[Part],
    fragments: Fragments,
    fragment_part: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.uint8], tuple[NailRecord, ...]]:
    """A pixel belongs to a nail that covers at least half of it with its outer face."""
    height, width, scale = camera.height_px, camera.width_px, SUPERSAMPLING
    index = np.zeros((height, width), dtype=np.uint8)
    nails: list[NailRecord] = []
    x, y = fragments.pixels % (width * scale) // scale, fragments.pixels // (width * scale) // scale
    for number, part in enumerate(parts):
        if part.plate is None:
            continue
        mine = fragment_part == number
        cover = np.bincount(y[mine] * width + x[mine], minlength=height * width).reshape(height, width)
        mask = (2 * cover >= scale * scale) & (index == 0)
        area = int(mask.sum())
        if area < MIN_NAIL_PX:
            continue
        plate = hands[part.hand].plates[part.plate]
        base, tip = project(np.stack([plate.base, plate.tip]), camera).astype(float)
        nails.append(
            NailRecord(
                finger=plate.label,
                base=(round(base[0], 2), round(base[1], 2)),
                tip=(round(tip[0], 2), round(tip[1], 2)),
                area_px=area,
                hidden=_find_hidden(mask, base, tip),
            )
        )
        index[mask] = len(nails)
    return index, tuple(nails)


def _find_hidden(
    mask: Mask, base: npt.NDArray[np.float64], tip: npt.NDArray[np.float64]
) -> tuple[Literal["base", "tip"], ...]:
    """Which of the two cannot be seen: they are known from the geometry all the same."""
    named: tuple[tuple[Literal["base", "tip"], npt.NDArray[np.float64]], ...] = (("base", base), ("tip", tip))
    return tuple(n for n, point in named if distance_to(mask, (point[0], point[1])) > _HIDDEN_PX)
