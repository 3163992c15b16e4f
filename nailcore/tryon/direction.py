"""Directions of nails: angles in image axes, errors between them, and means that may not exist."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

MIN_COHERENCE = 1e-6  # below it the vectors cancel out, and what is left is rounding


@dataclass(frozen=True)
class MeanDirection:
    """A weighted mean of directions.

    ``x``, ``y``: the unit vector of base -> tip in image axes (y down). ``coherence``: length of the
    mean of the unit vectors, 0..1; 1 when all agree.
    """

    x: float
    y: float
    coherence: float

    @property
    def angle_deg(self) -> float:
        """See :func:`angle_of`."""
        return float(angle_of(np.float64(self.x), np.float64(self.y)))


def angle_of(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Degrees in (-180, 180] of vectors in image axes: 0 points right, 90 down, -90 up."""
    degrees = np.degrees(np.arctan2(np.asarray(y, np.float64), np.asarray(x, np.float64)))
    # atan2 tells -0.0 from 0.0: one direction, two angles.
    return np.asarray(np.where(degrees <= -180.0, 180.0, degrees))


def angular_error_deg(a_deg: npt.ArrayLike, b_deg: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Absolute difference of angles on the circle, 0..180 degrees."""
    difference = np.asarray(a_deg, np.float64) - np.asarray(b_deg, np.float64)
    return np.asarray(np.abs((difference + 180.0) % 360.0 - 180.0))


def mean_direction(x: Floats, y: Floats, weights: Floats) -> MeanDirection | None:
    """Weighted circular mean of direction vectors, or None when there is none.

    Settled reading of PAPER.md, "Post-processing": the loss compares *unit* vectors, so the length of
    a prediction means nothing; each is scaled to length 1 and a vector of no length is left out of
    the mean (it still counts in the coherence). The mean is taken of vectors, never of angles, which
    wrap around. None: no weight, or vectors that cancel out (coherence below ``MIN_COHERENCE``).

    Args:
        x, y: components, any shape, finite.
        weights: same shape, >= 0 (the foreground softmax score).
    """
    x, y, w = (np.asarray(v, np.float64).ravel() for v in (x, y, weights))
    length = np.hypot(x, y)
    total = float(w.sum())
    if total <= 0:
        return None
    scale = np.divide(w, length, out=np.zeros_like(w), where=length > 0)
    mean_x, mean_y = float((scale * x).sum()) / total, float((scale * y).sum()) / total
    coherence = float(np.hypot(mean_x, mean_y))
    if coherence < MIN_COHERENCE:
        return None
    return MeanDirection(mean_x / coherence, mean_y / coherence, min(coherence, 1.0))
