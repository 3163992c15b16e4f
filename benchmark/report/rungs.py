"""The ladder as the report draws it: each drop as a dot with its interval against the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.ladder import LadderGroup, LadderRow, group_rungs
from nailcore.facts import Interval
from nailcore.gate_facts import GateVerdict

WIDTH, HEIGHT = 150.0, 22.0
MARGIN = 6.0
BEYOND = 2.5  # of the limit: intervals that reach further end in an arrow


@dataclass(frozen=True)
class DropMark:
    """A drop and its interval in SVG units; what lies outside the lane is cut, with an arrow."""

    low_x: float
    value_x: float
    high_x: float
    cut_left: bool
    cut_right: bool
    value_inside: bool
    beyond: bool  # the whole interval lies right of the lane


@dataclass(frozen=True)
class Rung:
    """One row of the table."""

    row: LadderRow
    mark: DropMark | None
    size_share: float  # of its fp32 file's bytes, at most 1

    @property
    def verdict(self) -> GateVerdict:
        """The facts behind the row."""
        return self.row.verdict


@dataclass(frozen=True)
class RungGroup:
    """The rows of one variant and target."""

    group: LadderGroup
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class RungTable:
    """All groups on one axis of drops."""

    groups: tuple[RungGroup, ...]
    zero_x: float
    limit_x: float
    limit_points: float
    same_limit: bool


def draw_rungs(verdicts: Sequence[GateVerdict]) -> RungTable | None:
    """The table of a report's verdicts; None when there is none."""
    if not verdicts:
        return None
    limits = sorted({verdict.rules.max_drop_points for verdict in verdicts})
    limit = limits[0]
    high = BEYOND * max(limit, 0.1)
    lows = [v.accuracy.drop_points.low for v in verdicts if v.accuracy]
    low = max(min([*lows, 0.0]), -high)

    def place(points: float) -> float:
        inside = min(max(points, low), high)
        return round(MARGIN + (inside - low) / (high - low) * (WIDTH - 2 * MARGIN), 2)

    groups = []
    for group in group_rungs(verdicts):
        rungs = []
        for row in group.rows:
            accuracy = row.verdict.accuracy
            mark = None if accuracy is None else _make_mark(accuracy.drop_points, low, high, place)
            rungs.append(Rung(row, mark, min(row.verdict.size_ratio or 1.0, 1.0)))
        groups.append(RungGroup(group, tuple(rungs)))
    return RungTable(tuple(groups), place(0.0), place(limit), limit, len(limits) == 1)


def _make_mark(drop: Interval, low: float, high: float, place: Callable[[float], float]) -> DropMark:
    return DropMark(
        place(drop.low),
        place(drop.value),
        place(drop.high),
        cut_left=drop.low < low,
        cut_right=drop.high > high,
        value_inside=low <= drop.value <= high,
        beyond=drop.low > high,
    )
