"""Geometry of the runtime-against-mIoU plot: one panel per device, drawn as inline SVG by the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from benchmark.report.tables import DeviceGroup, Timed
from benchmark.report.wording import join_words, write_interval, write_ms, write_share

WIDTH, HEIGHT = 520.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 16.0, 16.0, 50.0
MARKER = 6.0  # half size of the largest marker
_CHARACTER, _LINE = 7.6, 14.0  # size of label text (the larger one of phones), to keep labels apart


@dataclass(frozen=True)
class Box:
    """An axis-aligned rectangle in SVG units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


@dataclass(frozen=True)
class Scale:
    """A linear axis from data to SVG units, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...] = ()  # (SVG position, text)

    def place(self, value: float) -> float:
        """SVG position of a value, kept inside the axis."""
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 2)


@dataclass(frozen=True)
class Point:
    """One file: median wall time against the mIoU of its weights, with both spreads."""

    x: float
    y: float
    p90_x: float
    p90_clipped: bool
    cpu_x: float
    low_y: float
    high_y: float
    series: str
    shape: str
    verified: bool
    tooltip: str
    text: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    label_anchor: str = "start"


@dataclass(frozen=True)
class Line:
    """The points of one series and one recipe, joined from small to large."""

    series: str
    shape: str
    corners: tuple[tuple[float, float], ...]

    def list_boxes(self) -> list[Box]:
        """Small boxes along the line, for what should not cover it."""
        boxes = []
        for (x0, y0), (x1, y1) in pairwise(self.corners):
            steps = max(1, round(math.hypot(x1 - x0, y1 - y0) / 6))
            for n in range(steps):
                x, y = x0 + (x1 - x0) * n / steps, y0 + (y1 - y0) * n / steps
                boxes.append(Box(x - 1.5, y - 1.5, x + 1.5, y + 1.5))
        return boxes


@dataclass(frozen=True)
class Panel:
    """One device's plot."""

    device: str
    runtimes: str
    machine: str
    x_axis: Scale
    y_axis: Scale
    points: tuple[Point, ...]
    lines: tuple[Line, ...]
    left_out: tuple[tuple[str, str], ...]  # (labels, reason)
    hints: tuple[str, ...]
    shapes: tuple[tuple[str, str], ...] = field(default=())  # (shape, recipe) for the legend
    series: tuple[str, ...] = field(default=())


def find_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low..high, at most ``most`` steps."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= most - 1 or m == 20)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def make_scale(low: float, high: float, start: float, end: float, most: int) -> Scale:
    """An axis whose ends are round numbers."""
    ticks = find_ticks(low, high, most)
    if len(ticks) < 2:
        ticks = find_ticks(low - 0.01, high + 0.01, most)
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    bare = Scale(ticks[0], ticks[-1], start, end)
    return replace(bare, ticks=tuple((bare.place(t), f"{t:.{digits}f}") for t in ticks))


def draw_panels(groups: Sequence[DeviceGroup]) -> list[Panel]:
    """One panel per device and machine; all share the mIoU axis."""
    sorted_out = [(group, *_sort_out(group)) for group in groups]
    drawn = [timed for _, kept, _ in sorted_out for timed in kept]
    lows = [_miou(timed)[1] for timed in drawn] or [0.0]
    highs = [_miou(timed)[2] for timed in drawn] or [1.0]
    low, high = max(0.0, min(lows) - 0.005), min(1.0, max(highs) + 0.005)
    y_axis = make_scale(low, high, HEIGHT - BOTTOM, TOP, 8)
    return [_draw_panel(group, kept, left_out, y_axis) for group, kept, left_out in sorted_out]


def _miou(timed: Timed) -> tuple[float, float, float]:
    accuracy = timed.file.accuracy
    if accuracy is None:
        raise ValueError("only files with an accuracy are drawn")
    return accuracy.miou.value, accuracy.miou.low, accuracy.miou.high


def _sort_out(group: DeviceGroup) -> tuple[list[Timed], list[tuple[str, str]]]:
    """The rows that may be drawn, and the others with the reason."""
    kept, left_out = [], []
    for timed in group.timed:
        reasons = timed.file.explain_unranked(timed.measurement)
        if timed.file.accuracy is None:
            reasons.append("no accuracy is known for the weights it was made from")
        if reasons:
            left_out.append((timed.file.artifact.label, "; ".join(reasons)))
        else:
            kept.append(timed)
    return kept, left_out


def _draw_panel(
    group: DeviceGroup, kept: Sequence[Timed], left_out: list[tuple[str, str]], y_axis: Scale
) -> Panel:
    shapes = _assign_shapes(kept)
    x_axis = _make_x_axis(kept)
    points = [_draw_point(timed, x_axis, y_axis, shapes[_recipe(timed)]) for timed in kept]
    lines = []
    for series, shape in sorted({(p.series, p.shape) for p in points}):
        members = sorted((p for p in points if (p.series, p.shape) == (series, shape)), key=lambda p: p.x)
        if len(members) > 1:
            lines.append(Line(series, shape, tuple((p.x, p.y) for p in members)))
    return Panel(
        device=group.device,
        runtimes=", ".join(group.runtimes),
        machine=f"{group.machine.cpu}, {group.machine.cores} cores, {group.machine.system}",
        x_axis=x_axis,
        y_axis=y_axis,
        points=tuple(place_labels(points, lines)),
        lines=tuple(lines),
        left_out=tuple(_group_reasons(left_out)),
        hints=tuple(find_hints(kept)),
        shapes=tuple((shape, recipe) for recipe, shape in shapes.items()),
        series=tuple(sorted({p.series for p in points}, reverse=True)),
    )


def _group_reasons(left_out: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """One line per reason, with all files it holds for."""
    labels: dict[str, list[str]] = {}
    for label, reason in left_out:
        labels.setdefault(reason, []).append(label)
    return [(join_words(names, most=12), reason) for reason, names in labels.items()]


def _recipe(timed: Timed) -> str:
    return f"{timed.file.artifact.kind} {timed.file.artifact.recipe}"


def _assign_shapes(kept: Sequence[Timed]) -> dict[str, str]:
    """A marker per kind and recipe; beyond four, the last shape is shared."""
    names = sorted({_recipe(t) for t in kept}, key=lambda n: (not n.endswith("fp32"), n))
    shapes = ("circle", "square", "diamond", "triangle")
    return {name: shapes[min(i, len(shapes) - 1)] for i, name in enumerate(names)}


def _make_x_axis(kept: Sequence[Timed]) -> Scale:
    """From zero; one wild p90 may not squeeze all points into a corner."""
    medians = [max(t.measurement.median_wall_ms, t.measurement.median_cpu_ms) for t in kept] or [1.0]
    p90s = [t.measurement.p90_wall_ms for t in kept] or [1.0]
    high = max(max(medians) * 1.06, min(max(p90s) * 1.03, max(medians) * 1.5))
    return make_scale(0.0, high, LEFT, WIDTH - RIGHT, 7)


def _draw_point(timed: Timed, x_axis: Scale, y_axis: Scale, shape: str) -> Point:
    measured = timed.measurement
    miou, low, high = _miou(timed)
    accuracy = timed.file.accuracy
    interval = write_interval(accuracy.miou) if accuracy else ""
    declaration = timed.variant.declaration
    verified = timed.file.parity_state == "passed"
    tooltip = (
        f"{timed.file.artifact.label}: wall median {write_ms(measured.median_wall_ms)} ms, "
        f"p90 {write_ms(measured.p90_wall_ms)} ms; CPU median {write_ms(measured.median_cpu_ms)} ms; "
        f"{_say_miou(timed)} (95 % {interval}); parity {timed.file.parity_state}"
    )
    return Point(
        x=x_axis.place(measured.median_wall_ms),
        y=y_axis.place(miou),
        p90_x=x_axis.place(measured.p90_wall_ms),
        p90_clipped=measured.p90_wall_ms > x_axis.high,
        cpu_x=x_axis.place(measured.median_cpu_ms),
        low_y=y_axis.place(low),
        high_y=y_axis.place(high),
        series=timed.variant.series,
        shape=shape,
        verified=verified,
        tooltip=tooltip,
        text=f"{declaration.height_px} px" if declaration else timed.variant.name,
    )


def place_labels(points: Sequence[Point], lines: Sequence[Line]) -> list[Point]:
    """Give each point its label at the free spot nearest to it; twins side by side share one label.

    Twins are files of one variant (same series, text and height) within 45 units of each other.
    """
    taken = [box for p in points for box in _occupy(p)] + [box for line in lines for box in line.list_boxes()]
    placed: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        twin = any(
            p.label and (p.series, p.text, p.y) == (point.series, point.text, point.y) and point.x - p.x < 45
            for p in placed
        )
        if twin:
            placed.append(point)
            continue
        width = len(point.text) * _CHARACTER
        box = min(_list_spots(point, width), key=lambda spot: _cost(spot, point, taken))
        taken.append(box)
        # Anchored at the side that faces the point: the true width of the text depends on the font.
        anchor, x = ("end", box.right) if box.right <= point.x else ("start", box.left)
        if box.left < point.x < box.right:
            anchor, x = "middle", point.x
        y = round(box.bottom - 3, 2)
        placed.append(replace(point, label=point.text, label_x=round(x, 2), label_y=y, label_anchor=anchor))
    return placed


def _occupy(point: Point) -> list[Box]:
    """What a label must not cover: the marker, the two whiskers and the bar of the CPU time."""
    reach = MARKER + 2
    return [
        Box(point.x - reach, point.y - reach, point.x + reach, point.y + reach),
        Box(point.x - 2, min(point.low_y, point.high_y), point.x + 2, max(point.low_y, point.high_y)),
        Box(min(point.x, point.cpu_x), point.y - 3, max(point.p90_x, point.cpu_x), point.y + 3),
        Box(point.cpu_x - 4, point.y - 8, point.cpu_x + 4, point.y + 8),
    ]


def _list_spots(point: Point, width: float) -> list[Box]:
    """Candidate boxes around a point, rings outward, diagonals first."""
    spots = []
    for ring in (0, 1, 2, 3):
        gap = 9 + 11 * ring
        for across in (gap, -gap - width):
            for down in (-gap - _LINE, gap, -_LINE / 2):
                left, top = point.x + across, point.y + down
                spots.append(Box(left, top, left + width, top + _LINE))
        for down in (-gap - _LINE, gap):
            left, top = point.x - width / 2, point.y + down
            spots.append(Box(left, top, left + width, top + _LINE))
    return spots


def _cost(spot: Box, point: Point, taken: Sequence[Box]) -> float:
    """Covered area, dearer than any distance; leaving the plot is dearest."""
    outside = spot.left < LEFT + 2 or spot.right > WIDTH or spot.top < 0 or spot.bottom > HEIGHT - BOTTOM
    across = (spot.left + spot.right) / 2 - point.x
    down = (spot.top + spot.bottom) / 2 - point.y
    covered = sum(spot.overlap(box) for box in taken)
    return 1e6 * outside + 1e3 * min(covered, 900.0) + math.hypot(across, down)


def find_hints(kept: Sequence[Timed]) -> list[str]:
    """Sentences that follow from the drawn rows alone: the fastest, the most accurate, the dominated.

    A variant is dominated when each of its files meets a file of another variant that is faster on both
    clocks and at least as accurate.
    """
    ranked = [timed for timed in kept if timed.file.parity_state == "passed"]
    if len(ranked) < 2:
        return []
    fastest = min(ranked, key=_wall_ms)
    best = max(ranked, key=lambda timed: (_miou(timed)[0], -_wall_ms(timed)))
    hints = [
        f"Fastest: {fastest.file.artifact.label}, {write_ms(_wall_ms(fastest))} ms at {_say_miou(fastest)}.",
        f"Most accurate: {best.file.artifact.label}, {_say_miou(best)} at {write_ms(_wall_ms(best))} ms.",
    ]
    for name in dict.fromkeys(timed.variant.name for timed in ranked):
        rivals = [[o for o in ranked if _dominates(o, t)] for t in ranked if t.variant.name == name]
        if all(rivals):
            winner = min((rival for row in rivals for rival in row), key=_wall_ms)
            hints.append(
                f"{name} is slower here, on both clocks, than {winner.variant.name}, "
                "which is at least as accurate."
            )
    return hints


def _wall_ms(timed: Timed) -> float:
    return timed.measurement.median_wall_ms


def _say_miou(timed: Timed) -> str:
    """The figure with its name; a synthetic one never goes without the word."""
    accuracy = timed.file.accuracy
    name = "synthetic mIoU" if accuracy and accuracy.images.synthetic else "mIoU"
    return f"{name} {write_share(_miou(timed)[0])}"


def _dominates(one: Timed, other: Timed) -> bool:
    """Faster on both clocks, at least as accurate, and another variant: recipes of one are no rivals."""
    a, b = one.measurement, other.measurement
    faster = a.median_wall_ms < b.median_wall_ms and a.median_cpu_ms < b.median_cpu_ms
    return one.variant is not other.variant and faster and _miou(one)[0] >= _miou(other)[0]
