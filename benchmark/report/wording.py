"""How figures are written: units said once, as many digits as the figure can bear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime

from nailcore.facts import Interval, Limits

NEGLIGIBLE = 1e-6  # of a figure that tells a difference: rounding of float64


def write_ms(value: float) -> str:
    """Milliseconds with three significant digits, without unit."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def write_bytes(value: int) -> str:
    """Decimal gigabytes, megabytes or kilobytes with their unit."""
    if value >= 1_000_000_000:
        return f"{value / 1e9:.2f} GB"
    if value >= 100_000:
        return f"{value / 1e6:.2f} MB" if value < 100e6 else f"{value / 1e6:.0f} MB"
    return f"{value / 1e3:.1f} kB" if value >= 1000 else f"{value} B"


def write_share(value: float) -> str:
    """A figure of 0..1 with three decimals."""
    return f"{value:.3f}"


def write_interval(value: Interval) -> str:
    """The bounds of an interval, to stand after its value."""
    return f"{value.low:.3f}–{value.high:.3f}"


def write_small(value: float) -> str:
    """A figure that spans magnitudes: ``3.1e-7``, ``0.042``, ``1.3``; two significant digits."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if 1e-3 <= abs(value) < 1e4:
        digits = max(0, 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def write_limit(value: float) -> str:
    """A limit as a person would type it: ``1``, ``0.5``, ``1e-4``."""
    return f"{value:g}" if value == 0 or abs(value) >= 1e-3 else write_small(value).replace(".0e", "e")


def write_iou(value: float) -> str:
    """A mask IoU with four decimals; a difference is never rounded away."""
    return "1" if value == 1 else f"{min(value, 0.9999):.4f}"


def write_count(value: int) -> str:
    """Thousands apart by a thin space."""
    return f"{value:,}".replace(",", "\u202f")


def write_millions(value: int) -> str:
    """Millions with two decimals, for parameter counts."""
    return f"{value / 1e6:.2f} M" if value >= 10_000 else write_count(value)


def write_when(value: str) -> str:
    """``2025-11-23 04:38 UTC`` from ISO 8601; anything else as it stands."""
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return value
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def write_count_of(number: int, singular: str, plural: str = "") -> str:
    """``1 file``, ``3 files``."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def join_words(words: list[str], most: int = 4) -> str:
    """``a, b and c``; beyond ``most`` the rest is counted."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def write_limits(limits: Limits) -> str:
    """All limits that are judged, in words."""
    entries = (
        ("max-abs ≤ {}", limits.max_abs),
        ("flipped ≤ {} ‰", limits.flipped_permille),
        ("mask IoU ≥ {}", limits.mask_iou),
        ("boundary IoU ≥ {}", limits.boundary_iou),
        ("contour ≤ {} px", limits.contour_shift_px),
        ("lone blobs ≤ {} px", limits.lone_blob_px),
        ("same finger ≥ {}", limits.finger_agreement),
        ("direction ≤ {}°", limits.direction_error_deg),
    )
    return ", ".join(words.format(write_limit(value)) for words, value in entries if value is not None)


def write_figure(value: float) -> str:
    """A figure of any kind: whole numbers as they are, others with two or three significant digits."""
    if math.isfinite(value) and value == int(value):
        return write_count(int(value))
    return f"{value:.4g}" if 1 <= abs(value) < 1e4 else write_small(value)


def write_figures(figures: Mapping[str, float]) -> str:
    """Those of many figures that are not nought, by their names; ``equal`` when all are."""
    told = {name: value for name, value in figures.items() if abs(value) > NEGLIGIBLE}
    words = (
        f"{name.replace('_permille', ' ‰').replace('_', ' ')} {write_figure(v)}" for name, v in told.items()
    )
    return ", ".join(words) or ("equal" if figures else "")


def write_points(value: float) -> str:
    """Points with two decimals; a gain has a true minus, and nothing is never minus nothing."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


FILTERS: dict[str, Callable[..., str]] = {
    "ms": write_ms,
    "bytes": write_bytes,
    "share": write_share,
    "interval": write_interval,
    "small": write_small,
    "limit": write_limit,
    "limits": write_limits,
    "figure": write_figure,
    "figures": write_figures,
    "iou": write_iou,
    "count": write_count,
    "millions": write_millions,
    "points": write_points,
    "when": write_when,
    "count_of": write_count_of,
}
