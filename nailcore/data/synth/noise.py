"""Smooth random fields: cheap fractal noise on pictures and in space."""

from __future__ import annotations

import functools

import numpy as np

from nailcore.data.synth.subdivision import F32

_LATTICE = 32


def paint_noise(
    rng: np.random.Generator,
    height_px: int,
    width_px: int,
    cell_px: float,
    *,
    octaves: int = 4,
    stretch: float = 1.0,
    gain: float = 0.5,
) -> F32:
    """(H, W) fractal noise, mean 0, about unit deviation; ``stretch`` > 1 draws it out along x."""
    import cv2

    total = np.zeros((height_px, width_px), dtype=np.float32)
    weight = 1.0
    for octave in range(octaves):
        cell = max(cell_px / 2**octave, 1.0)
        rows = int(height_px / cell) + 3
        columns = int(width_px / (cell * stretch)) + 3
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        total += weight * cv2.resize(grid, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
        weight *= gain
    return total / max(float(total.std()), 1e-6)


@functools.lru_cache(maxsize=4)
def _make_lattice(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal((_LATTICE,) * 3).astype(np.float32)


def sample_solid_noise(points: F32, cell: float, seed: int) -> F32:
    """(N,) smooth noise at (N, 3) points, features about ``cell`` wide, in the points' unit."""
    from scipy.ndimage import map_coordinates

    where = points.T / cell + 0.37 * (seed % 97)
    field = map_coordinates(_make_lattice(seed % 4), where, order=1, mode="grid-wrap", prefilter=False)
    return np.asarray(field, dtype=np.float32)
