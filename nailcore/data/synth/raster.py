"""A z-buffered triangle rasteriser in numpy: which triangle owns each pixel, and interpolation over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from nailcore.data.synth.subdivision import F32, I32

_CHUNK = 1 << 20  # candidate pixels handled at once: bounds memory


@dataclass(frozen=True)
class Fragments:
    """The covered pixels of a picture, one row each."""

    pixels: npt.NDArray[np.int64]  # (P,) row-major pixel index
    triangles: npt.NDArray[np.int64]  # (P,) row of the triangle list
    weights: F32  # (P, 3) perspective-correct barycentric weights
    depth_mm: F32  # (P,)


def split_quads(quads: I32) -> I32:
    """(2 F, 3) triangles; quad q becomes rows 2 q and 2 q + 1."""
    return np.asarray(np.stack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], axis=1).reshape(-1, 3))


def rasterise(
    points_px: F32,
    depth: F32,
    triangles: I32,
    size_px: tuple[int, int],
    *,
    perspective: bool = True,
) -> Fragments:
    """Find the nearest triangle at every pixel centre.

    Args:
        points_px: (V, 2) x, y of projected vertices; pixel (0, 0) has its centre at (0.5, 0.5).
        depth: (V,) distance along the viewing axis; triangles that reach behind the viewer are left out.
        triangles: (T, 3); back faces must be culled by the caller.
        size_px: height and width of the picture.
        perspective: whether ``depth`` comes from a pinhole camera (else from parallel rays).
    """
    height, width = size_px
    corners = points_px.astype(np.float32)[triangles]  # (T, 3, 2)
    behind = (depth <= 0)[triangles] @ np.ones(3, dtype=np.int32) > 0
    key = 1 / np.maximum(depth, 1e-6) if perspective else -depth  # linear on the screen; larger is nearer
    nearest = np.full(height * width, -np.inf, dtype=np.float32)
    owner = np.full(height * width, -1, dtype=np.int64)
    share = np.zeros((height * width, 2), dtype=np.float32)
    for tri, pixel, b in _walk_pixels(corners, behind, height, width):
        k = key[triangles[tri]]
        value = (k[:, 0] + b[:, 0] * (k[:, 1] - k[:, 0]) + b[:, 1] * (k[:, 2] - k[:, 0])).astype(np.float32)
        np.maximum.at(nearest, pixel, value)
        won = np.flatnonzero(value >= nearest[pixel])
        owner[pixel[won]] = tri[won]
        share[pixel[won]] = b[won]
    pixels = np.flatnonzero(owner >= 0)
    won_tri = owner[pixels]
    weights = np.column_stack([1 - share[pixels].sum(axis=1), share[pixels]])
    if not perspective:
        return Fragments(pixels, won_tri, weights.astype(np.float32), -nearest[pixels])
    weights = weights * key[triangles[won_tri]]
    weights /= weights.sum(axis=1, keepdims=True)
    return Fragments(pixels, won_tri, weights.astype(np.float32), 1 / nearest[pixels])


def _walk_pixels(
    corners: F32, left_out: npt.NDArray[np.bool_], height: int, width: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], F32]]:
    """Chunks of (triangle, pixel, screen weights of corners 1 and 2), one row per covered pixel centre."""
    # Element-wise extremes: numpy's reductions over an axis of three are many times slower.
    first, second, third = corners[:, 0], corners[:, 1], corners[:, 2]
    low = np.clip(np.ceil(np.minimum(np.minimum(first, second), third) - 0.5), 0, [width, height]).astype(
        np.int64
    )
    high = np.clip(
        np.floor(np.maximum(np.maximum(first, second), third) - 0.5) + 1, 0, [width, height]
    ).astype(np.int64)
    size = np.maximum(high - low, 0)
    edge1, edge2 = second - first, third - first
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    count = size[:, 0] * size[:, 1]
    count[(np.abs(area) < 1e-9) | left_out] = 0
    live = np.flatnonzero(count)
    stops = np.cumsum(count[live])
    start = 0
    while start < len(live):
        done = stops[start - 1] if start else 0
        stop = max(int(np.searchsorted(stops, done + _CHUNK, side="right")), start + 1)
        rows = live[start:stop]
        tri = np.repeat(rows, count[rows])
        order = np.arange(len(tri)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
        x = low[tri, 0] + order % size[tri, 0]
        y = low[tri, 1] + order // size[tri, 0]
        dx, dy = x + 0.5 - corners[tri, 0, 0], y + 0.5 - corners[tri, 0, 1]
        b1 = (dx * edge2[tri, 1] - dy * edge2[tri, 0]) / area[tri]
        b2 = (dy * edge1[tri, 0] - dx * edge1[tri, 1]) / area[tri]
        inside = np.flatnonzero((b1 >= 0) & (b2 >= 0) & (b1 + b2 <= 1))
        weights = np.column_stack([b1[inside], b2[inside]]).astype(np.float32)
        yield tri[inside], (y * width + x)[inside], weights
        start = stop


def interpolate(values: F32, triangles: I32, fragments: Fragments) -> F32:
    """Carry per-vertex values (V,) or (V, C) over to the fragments: (P,) or (P, C)."""
    count = len(fragments.pixels)
    share = sp.csr_matrix(
        (
            fragments.weights.ravel(),
            triangles[fragments.triangles].ravel(),
            np.arange(0, 3 * count + 1, 3, dtype=np.int32),
        ),
        (count, len(values)),
    )
    return np.asarray(share @ values, dtype=np.float32)
