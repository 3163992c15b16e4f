"""How far a stored weight may lie from the float32 it stands for, form by form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.coreml_weights import Palette, Stored

F64 = npt.NDArray[np.float64]
FLOAT16_MAX = 65504.0
# Lowest exponent of a normal number, and bits of precision.
_SMALLEST = {"fp16": (-14, 11), "fp32": (-126, 24), "fp64": (-1022, 53)}


@dataclass(frozen=True)
class Breach:
    """The value furthest beyond its bound."""

    place: tuple[int, ...]
    found: float
    expected: float
    share: float  # loss over what is allowed
    rule: str

    def __str__(self) -> str:
        at = f" at {list(self.place)}" if self.place else ""
        return f"is {self.found:.9g}{at}, the sibling's is {self.expected:.9g}: {self.rule}"


def half_ulp(values: F64, value_type: str) -> F64:
    """Half the distance of neighbouring floats at each value, subnormals included."""
    lowest, bits = _SMALLEST[value_type]
    _, exponent = np.frexp(values)  # value = m * 2**exponent, 0.5 <= m < 1
    exponent = np.where(values == 0, lowest, exponent - 1)  # frexp gives zero the exponent of one half
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, lowest) - bits), np.float64)


def measure_loss(stored: Stored, reference: F64, *, exact: bool = False) -> tuple[float, Breach | None]:
    """(largest loss as a share of what the storage form allows, the first rule that is broken).

    ``exact``: the reference was rounded to the levels of codes and palettes before, so that storing it so
    may cost no more than the rounding of scales and entries.

    Rules: a float is the nearest one; a linear code lies within half a step of its own scale, whose step
    is no coarser than the weight's range needs; a palette index points to the nearest entry of its own
    table, which serves the weight no worse than evenly spaced entries would; a sparse weight drops only
    what is no larger than what it keeps.
    """
    kept = stored.kept
    values = np.asarray(stored.values, np.float64)
    if kept is not None:
        breach = _check_dropped(values, reference, kept)
        if breach is not None:
            return float("inf"), breach
    allowed, rule = _allow(stored, values, reference, exact=exact)
    if kept is not None:
        allowed = np.where(kept, allowed, np.abs(reference))
    share, breach = _find_worst(values, reference, allowed, rule)
    if breach is None:
        breach = _check_resolution(stored, reference)
    return share, breach


def _allow(stored: Stored, values: F64, reference: F64, *, exact: bool) -> tuple[F64, str]:
    """The bound at each value, and the rule in words."""
    kind = stored.value_type
    rounding = half_ulp(reference, kind)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.where(np.isfinite(values), values, 0.0)
        if stored.palette is not None:
            # Tables are computed before their entries are rounded, so a weight midway may go either way.
            slack: F64 = np.asarray(4 * np.maximum(rounding, half_ulp(finite, kind)), np.float64)
            if exact:
                return slack, "its palette holds another value"
            nearest = find_nearest(stored.palette, reference)
            return nearest + slack, "another entry of its palette is nearer"
        if stored.step is not None:
            # Its scale and the quotient are rounded to the program's precision too.
            slack = rounding + half_ulp(finite, kind) + np.abs(finite) * 2.0 ** (1 - _SMALLEST[kind][1])
            if exact:
                return slack, f"its code stands for another value ({stored.form})"
            # A zero point is rounded too: where the code is the range's last, up to another half step.
            half = stored.step / 2
            if stored.saturated is not None:
                half = np.where(stored.saturated, stored.step, half)
            return half + slack, f"more than half a step of its scale ({stored.form})"
    if kind != "fp16":
        return np.zeros_like(reference), f"{kind} loses nothing"
    # Half a unit in the last place, or less: just below a power of two floats lie closer.
    with np.errstate(over="ignore"):
        nearest = reference.astype(np.float16).astype(np.float64)
    return np.abs(nearest - reference), f"another {kind} is nearer"


def _find_worst(values: F64, reference: F64, allowed: F64, rule: str) -> tuple[float, Breach | None]:
    if not values.size:
        return 0.0, None
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = np.abs(values - reference)
        share = np.where(loss == 0, 0.0, loss / allowed)
    share = np.where(np.isnan(share), np.inf, share)
    place = np.unravel_index(int(np.argmax(share)), share.shape)
    worst = float(share[place])
    if worst <= 1 + 1e-12:
        return worst, None
    where = tuple(int(i) for i in place)
    return worst, Breach(where, float(values[place]), float(reference[place]), worst, rule)


def _check_dropped(values: F64, reference: F64, kept: npt.NDArray[np.bool_]) -> Breach | None:
    """Pruning by magnitude keeps the largest; n:m patterns would need a rule of their own."""
    dropped = np.where(kept, 0.0, np.abs(reference))
    limit = float(np.abs(reference[kept]).min()) if kept.any() else 0.0
    slack = float(half_ulp(np.array([limit]), "fp16")[0])  # pruned after rounding
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(dropped)), dropped.shape))
    if dropped[place] <= limit + 2 * slack:
        return None
    return Breach(
        place, float(values[place]), float(reference[place]), np.inf, f"dropped, though {limit:.3g} is kept"
    )


def find_nearest(palette: Palette, reference: F64) -> F64:
    """Distance from each weight (or the vector it is part of) to the nearest entry of its own table.

    For vectors, each element's distance within the entry nearest to the whole vector.
    """
    scale = palette.scale if palette.scale is not None else np.ones(reference.shape)
    shift = palette.offset if palette.offset is not None else np.zeros(reference.shape)
    safe = np.where(scale == 0, 1.0, scale)
    raw = reference / safe + shift
    nearest = np.zeros(reference.shape)
    for place, table in palette.blocks(reference.shape):
        length = table.shape[-1]
        moved = np.moveaxis(raw[place], palette.vector_axis, -1)
        vectors = moved.reshape(-1, length)
        if length == 1:
            gap = _nearest_scalar(np.sort(table[:, 0]), vectors[:, 0])[:, None]
        else:
            gap = _nearest_vector(table, vectors)
        nearest[place] = np.moveaxis(gap.reshape(moved.shape), -1, palette.vector_axis)
    return np.asarray(nearest * np.abs(scale), np.float64)


def _nearest_scalar(table: F64, values: F64) -> F64:
    right = np.clip(np.searchsorted(table, values), 1, max(1, table.size - 1))
    if table.size == 1:
        return np.asarray(np.abs(values - table[0]), np.float64)
    below, above = np.abs(values - table[right - 1]), np.abs(values - table[right])
    return np.asarray(np.minimum(below, above), np.float64)


def _nearest_vector(table: F64, vectors: F64) -> F64:
    gaps = np.empty_like(vectors)
    for start in range(0, len(vectors), 4096):  # distances to all entries of all vectors may not fit
        part = vectors[start : start + 4096]
        best = ((part[:, None, :] - table[None]) ** 2).sum(-1).argmin(1)
        gaps[start : start + 4096] = np.abs(part - table[best])
    return gaps


def _check_resolution(stored: Stored, reference: F64) -> Breach | None:
    """A table or scale of another weight can keep every rule above and still be far too coarse."""
    if stored.palette is not None:
        return _check_palette(stored, reference)
    if stored.step is None or stored.levels <= 2:
        return None
    steps, inverse = np.unique(stored.step, return_inverse=True)
    largest = np.zeros(steps.shape)
    np.maximum.at(largest, inverse.ravel(), np.abs(reference).ravel())
    # A symmetric code leaves one level unused on either side, scales are rounded, and codes are fitted
    # together: what one weight loses the next makes up for, and the largest may end inside (3 of 127 seen).
    needed = 2 * largest / (stored.levels - 2) * 1.05
    coarse = np.flatnonzero((steps > needed) & (largest > 0))
    if not coarse.size:
        return None
    place = np.unravel_index(int(np.argmax(inverse.ravel() == coarse[0])), reference.shape)
    where = tuple(int(i) for i in place)
    step = float(steps[coarse[0]])
    rule = f"its scale's step of {step:.3g} is coarser than the {float(needed[coarse[0]]):.3g} that suffice"
    return Breach(where, float(stored.values[place]), float(reference[place]), np.inf, rule)


def _check_palette(stored: Stored, reference: F64) -> Breach | None:
    palette = stored.palette
    if palette is None:
        return None
    loss = np.abs(np.asarray(stored.values, np.float64) - reference)
    kept = stored.kept if stored.kept is not None else np.ones(reference.shape, np.bool_)
    for place, table in palette.blocks(reference.shape):
        part, mask = reference[place], kept[place]
        if not mask.any() or table.shape[-1] > 1:
            continue
        span = float(np.ptp(part[mask]))
        rms = float(np.sqrt(np.mean(loss[place][mask] ** 2)))
        even = span / max(1, len(table) - 1) / 2
        slack = float(half_ulp(np.array([np.abs(part).max()]), stored.value_type)[0])
        if rms > even + slack:
            worst = np.unravel_index(int(np.argmax(np.where(mask, loss[place], -1))), part.shape)
            at = tuple(int(w) + s.start for w, s in zip(worst, place, strict=True))
            rule = f"its palette loses {rms:.3g} on average, evenly spaced entries at most {even:.3g}"
            return Breach(at, float(stored.values[at]), float(reference[at]), rms / even, rule)
    return None
