"""Ranges of activations and what follows from them: observers, four ways to choose, scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nailcore.errors import DataError
from quantize.recipe import Activations, CalibrationMethod

BINS = 2048
LEVELS = 256
ENOUGH_VALUES = 200_000  # of a tensor and image, for its histogram
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """The real values a tensor's 256 levels span; always holds 0, which padding and ReLU need exactly."""

    low: float
    high: float


@dataclass(frozen=True)
class Affine:
    """real = scale · (level - zero_point), level in 0..255 (uint8) or -128..127 (int8)."""

    scale: np.float32
    zero_point: int
    low_level: int
    high_level: int

    def quantize(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Nearest levels, ties to even, clipped: what QuantizeLinear computes."""
        levels = np.rint(np.asarray(values, np.float32) / self.scale)
        # Clipped as floats: whatever is far outside would not fit an integer.
        levels = np.clip(levels, self.low_level - self.zero_point, self.high_level - self.zero_point)
        return np.asarray(levels.astype(np.int64) + self.zero_point, np.int64)

    def round(self, values: F32) -> F32:
        """Real values as quantizing and dequantizing leaves them."""
        levels = np.rint(values / self.scale)
        np.clip(levels, self.low_level - self.zero_point, self.high_level - self.zero_point, out=levels)
        return np.asarray(levels * self.scale, np.float32)

    def dequantize(self, levels: npt.NDArray[np.int64]) -> F32:
        """Real values of levels."""
        return np.asarray((levels - self.zero_point).astype(np.float32) * self.scale, np.float32)


def choose_affine(range_: Range, activations: Activations) -> Affine:
    """Scale and zero point of a range; 0 is a level of its own, a range of one value gets scale 1."""
    low_level, high_level = (0, 255) if activations.dtype == "uint8" else (-128, 127)
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    reach = max(-low, high)
    scale = np.float32(reach / 127 if activations.symmetric else (high - low) / (LEVELS - 1))
    centre = low_level + 128 if activations.symmetric else low_level
    # Denormal scales turn into 0 on processors that flush them.
    if not scale > np.finfo(np.float32).tiny:
        return Affine(np.float32(1.0), centre, low_level, high_level)
    if activations.symmetric:
        return Affine(scale, centre, low_level, high_level)
    zero_point = low_level + round(-low / float(scale))
    return Affine(scale, min(max(zero_point, low_level), high_level), low_level, high_level)


@dataclass
class Observer:
    """What one tensor's values were: extremes in a first pass, a histogram between them in a second.

    Memory is fixed whatever the number of images.
    """

    low: float = 0.0
    high: float = 0.0
    counts: F64 = field(default_factory=lambda: np.zeros(BINS))

    def see(self, values: F32) -> None:
        """First pass. Raises DataError for values that are not finite."""
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError("The network gives NaN or infinite values on the calibration images.")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def count(self, values: F32) -> None:
        """Second pass, over the same images; of large tensors every so many values, evenly."""
        flat = values.reshape(-1)
        step = max(1, flat.size // ENOUGH_VALUES) | 1  # odd: rows have even lengths
        self.counts += np.histogram(flat[::step], BINS, (self.low, max(self.high, self.low + 1e-12)))[0]

    def choose(self, method: CalibrationMethod, percentile: float) -> Range:
        """The range a method gives."""
        if method == "min-max" or self.high <= self.low:
            return Range(self.low, self.high)
        if method == "percentile":
            return self._choose_percentile(percentile)
        candidates = list(_list_candidates(self.low, self.high))
        cost = _measure_mse if method == "mse" else _measure_divergence
        centres = self.low + (np.arange(BINS) + 0.5) * (self.high - self.low) / BINS
        return min(candidates, key=lambda r: (cost(centres, self.counts, r), -(r.high - r.low)))

    def _choose_percentile(self, percentile: float) -> Range:
        """Leaves (100 - percentile) % of the values outside, half of them at each end that is not 0."""
        share = self.counts / self.counts.sum()
        ends = (self.low < 0) + (self.high > 0)
        outside = (1 - percentile / 100) / max(ends, 1)
        edges = np.linspace(self.low, self.high, BINS + 1)
        below, above = np.cumsum(share), np.cumsum(share[::-1])
        low = edges[int(np.searchsorted(below, outside, side="right"))] if self.low < 0 else 0.0
        high = edges[BINS - int(np.searchsorted(above, outside, side="right"))] if self.high > 0 else 0.0
        return Range(min(float(low), 0.0), max(float(high), 0.0))


def _list_candidates(low: float, high: float) -> list[Range]:
    shrink = np.linspace(1.0, 0.3, 71)
    if low >= 0 or high <= 0:
        return [Range(low * s, high * s) for s in shrink]
    return [Range(low * a, high * b) for a in shrink[::2] for b in shrink[::2]]


def _measure_mse(centres: F64, counts: F64, range_: Range) -> float:
    """Mean squared error of rounding and clipping."""
    scale = (range_.high - range_.low) / (LEVELS - 1)
    zero_point = np.rint(-range_.low / scale)
    levels = np.clip(np.rint(centres / scale) + zero_point, 0, LEVELS - 1)
    return float((counts * (centres - (levels - zero_point) * scale) ** 2).sum() / counts.sum())


def _measure_divergence(centres: F64, counts: F64, range_: Range) -> float:
    """Kullback-Leibler divergence of the values from what 256 levels leave of them.

    As in TensorRT's calibration: what is clipped is counted at the ends, and each level spreads its mass
    evenly over the bins it stands for that were not empty. Zeros do not count: they are most of what a ReLU
    leaves, and exact in any range.
    """
    counts = np.where(np.abs(centres) <= (centres[1] - centres[0]) / 2 * (1 + 1e-9), 0.0, counts)
    inside = (centres >= range_.low) & (centres <= range_.high)
    if not inside.any():
        return np.inf
    p = np.where(inside, counts, 0.0)
    where = np.flatnonzero(inside)
    p[where[0]] += counts[centres < range_.low].sum()
    p[where[-1]] += counts[centres > range_.high].sum()
    scale = (range_.high - range_.low) / (LEVELS - 1)
    level = np.clip(np.rint((centres - range_.low) / scale), 0, LEVELS - 1).astype(np.int64)[where]
    kept = counts[where]
    mass = np.bincount(level, kept, LEVELS)
    filled = np.bincount(level, kept > 0, LEVELS)
    q = np.where(kept > 0, mass[level] / np.maximum(filled[level], 1), 0.0)
    p = p[where] / p[where].sum()
    q = np.maximum(q / q.sum(), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def round_kernel(weight: F32, *, per_channel: bool) -> F32:
    """A kernel (O, ...) as int8 with symmetric scales leaves it, in real values.

    One scale per output channel or one for all, as onnxruntime's quantizer chooses it: the largest
    magnitude is 127.
    """
    axes = tuple(range(1, weight.ndim)) if per_channel else None
    reach = np.abs(weight).max(axis=axes, keepdims=True)
    scale = (reach / 127).astype(np.float32)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1))  # a kernel of zeros
    return np.asarray(np.clip(np.rint(weight / scale), -127, 127) * scale, np.float32)
