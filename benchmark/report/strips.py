"""Geometry of the strip plots: every raw latency sample of a row, relative to the row's own median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.report.plot import Scale, make_scale
from benchmark.report.tables import DeviceGroup, Timed

WIDTH, HEIGHT = 220.0, 26.0
_MARGIN = 6.0
_HIGHEST_RATIO = 2.0  # samples beyond are drawn at the edge and counted


@dataclass(frozen=True)
class Strip:
    """One row: samples from the first (top) to the last (bottom), so that drift shows as a slope."""

    timed: Timed
    dots: tuple[tuple[float, float], ...]
    median_x: float
    p90_x: float
    beyond: int
    own_settings: dict[str, str]


@dataclass(frozen=True)
class StripTable:
    """The strips of one device on one common axis of sample / median."""

    group: DeviceGroup
    axis: Scale
    strips: tuple[Strip, ...]


def draw_strips(group: DeviceGroup) -> StripTable:
    """Strips on one axis wide enough for nearly all samples."""
    ratios = [s / median for t in group.timed for s, median in _pair(t)]
    low, high = min([*ratios, 0.95]), min(max([*ratios, 1.2]), _HIGHEST_RATIO)
    axis = make_scale(low, high, _MARGIN, WIDTH - _MARGIN, 4)
    common = group.common_settings
    strips = tuple(_draw_strip(timed, axis, common) for timed in group.timed)
    return StripTable(group, axis, strips)


def _pair(timed: Timed) -> Sequence[tuple[float, float]]:
    median = timed.measurement.median_wall_ms
    return [(sample, median) for sample in timed.measurement.wall_ms] if median > 0 else []


def _draw_strip(timed: Timed, axis: Scale, common: dict[str, str]) -> Strip:
    pairs = _pair(timed)
    step = (HEIGHT - 8) / max(1, len(pairs) - 1)
    measured = timed.measurement
    ratio = measured.p90_wall_ms / measured.median_wall_ms if measured.median_wall_ms > 0 else 1.0
    return Strip(
        timed=timed,
        dots=tuple((axis.place(s / m), round(4 + i * step, 2)) for i, (s, m) in enumerate(pairs)),
        median_x=axis.place(1.0),
        p90_x=axis.place(ratio),
        beyond=sum(s / m > axis.high for s, m in pairs),
        own_settings={k: v for k, v in sorted(measured.settings.items()) if k not in common},
    )
