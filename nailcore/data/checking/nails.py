"""Checks of the nails of one photo: shapes that cannot be, and base and tip in places where they are not."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nailcore.data.checking.findings import Finding
from nailcore.data.labels import NailRecord, unit_vector
from nailcore.data.shapes import Mask, Polygon, Shape, distance_to, fill_shape

TINY_PX = 12  # as the renderer and the importer have it
OUTSIDE_PX = 1.0  # how far a polygon may stand out of the photo: tools round to whole pixels
OVERLAP_SHARE = 0.02  # of the smaller nail
OVERLAP_PX = 8
INVERTED_SHARE = 0.5  # a nail that fills more of the photo than this and touches all its borders
HOLE_SHARE = 0.3  # holes of a nail, as a share of what its outer border encloses
# Of a piece's convex hull. Of the 284 nails of the CC0 set that are large enough 5 lie below it, of 400 pairs
# of them pushed together 97 %.
SOLID_SHARE = 0.88
SOLID_PX = 200  # rough borders of smaller pieces say nothing
CROSSING_SHARE = 0.02  # of the area, that crossing outlines may lose
STRAY_SHARE = 0.25  # of the nail's length (√area at least), that base and tip may lie outside
SWAPPED_DEG = 150.0  # from the mean of the hand's other fingers
AGREEING_DEG = 60.0  # the other fingers must agree among themselves, or nothing can be said


def check_shapes(
    file: str, named: Sequence[tuple[str, Shape]], height: int, width: int
) -> tuple[list[Finding], list[Mask | None]]:
    """Findings on the shapes of one photo's nails and their (H, W) masks, None where there is none.

    ``named``: what a nail is called in messages ("annotation 7"), and its shape.
    """
    findings, masks = [], []
    for name, shape in named:
        mask, problems = _check_shape(shape, height, width)
        findings += [Finding(kind=kind, file=file, what=f"{name}: {what}") for kind, what in problems]
        masks.append(mask)
    findings += _find_overlaps(file, [name for name, _ in named], masks)
    return findings, masks


def _check_shape(shape: Shape, height: int, width: int) -> tuple[Mask | None, list[tuple[str, str]]]:
    problems = []
    try:
        mask = fill_shape(shape, height, width)
    except ValueError as error:
        return None, [("entry not valid", str(error))]
    if isinstance(shape, list):
        problems += [p for polygon in shape if (p := _check_polygon(polygon, height, width))]
        if len(shape) > 1:
            problems += _find_holes(shape)
    area = int(np.count_nonzero(mask))
    if not area:
        return None, [*problems, ("nail empty", "covers no pixel of the photo")]
    if area < TINY_PX:
        problems.append(("nail tiny", f"{area} px, expected {TINY_PX} or more"))
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    if area > INVERTED_SHARE * mask.size and all(edge.any() for edge in edges):
        share = area / mask.size
        problems.append(("nail inside out", f"covers {share:.0%} of the photo and touches all its borders"))
    elif (hole := _hole_share(mask)) > HOLE_SHARE:
        problems.append(("nail inside out", f"{hole:.0%} of it is a hole"))
    return mask, problems


def _check_polygon(polygon: Polygon, height: int, width: int) -> tuple[str, str] | None:
    """A polygon that crosses itself, or lies outside the photo."""
    import shapely

    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    out = max(-points.min(), *(points.max(0) - (width, height)))
    if out > OUTSIDE_PX:
        return "nail outside the photo", f"{out:.0f} px beyond the border of {width}×{height} px"
    shape = shapely.Polygon(points)
    if shape.is_valid:
        return None
    x, y = points.T
    signed = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    enclosed = float(shapely.make_valid(shape).area)
    if enclosed and abs(enclosed - signed) > CROSSING_SHARE * enclosed:
        return "nail inside out", f"its outline crosses itself ({shapely.is_valid_reason(shape)})"
    return None


def _find_holes(polygons: Sequence[Polygon]) -> list[tuple[str, str]]:
    """Pieces inside another piece: meant as holes, but COCO fills them."""
    import shapely

    pieces = [shapely.make_valid(shapely.Polygon(np.asarray(p).reshape(-1, 2))) for p in polygons]
    return [
        ("nail inside out", "one of its polygons lies inside another; COCO has no holes, use run lengths")
        for a, b in itertools.permutations(pieces, 2)
        if a.area < b.area and b.contains(a)
    ][:1]


def _hole_share(mask: Mask) -> float:
    """Share of holes in what the outer borders enclose."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    whole = int(np.count_nonzero(filled))
    return 1 - np.count_nonzero(mask) / whole if whole else 0.0


def _find_overlaps(file: str, names: Sequence[str], masks: Sequence[Mask | None]) -> list[Finding]:
    found = []
    present = [
        (name, mask, _bounds(mask)) for name, mask in zip(names, masks, strict=True) if mask is not None
    ]
    for (name_a, a, (ta, la, ba, ra)), (name_b, b, (tb, lb, bb, rb)) in itertools.combinations(present, 2):
        box = np.s_[max(ta, tb) : min(ba, bb), max(la, lb) : min(ra, rb)]
        both = int(np.count_nonzero(a[box] & b[box]))
        smaller = min(np.count_nonzero(a[ta:ba, la:ra]), np.count_nonzero(b[tb:bb, lb:rb]))
        if both > max(OVERLAP_PX, OVERLAP_SHARE * smaller):
            what = f"{name_a} and {name_b} share {both} px, {both / smaller:.0%} of the smaller one"
            found.append(Finding(kind="nails overlap", file=file, what=what))
    return found


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


# -- base and tip ------------------------------------------------------------------------------------
def check_keypoints(
    file: str, named: Sequence[tuple[str, NailRecord]], masks: Sequence[Mask | None]
) -> list[Finding]:
    """Findings on base, tip and finger of the nails of one photo."""
    findings = []
    for (name, nail), mask in zip(named, masks, strict=True):
        if (nail.base is None) != (nail.tip is None):
            known = "base" if nail.tip is None else "tip"
            findings.append(Finding(kind="one keypoint alone", file=file, what=f"{name}: only its {known}"))
        if nail.base is None or nail.tip is None:
            continue
        if float(np.hypot(*np.subtract(nail.tip, nail.base))) < 1:
            findings.append(Finding(kind="base equals tip", file=file, what=f"{name}: both at {nail.base}"))
        elif mask is not None:
            findings += _find_strays(file, name, nail, mask)
    findings += _find_swapped(file, named)
    fingers = Counter(nail.finger for _, nail in named if nail.finger)
    findings += [
        Finding(kind="finger named twice", file=file, what=f"{count} nails are called {finger}")
        for finger, count in fingers.items()
        if count > 1
    ]
    return findings


def _find_strays(file: str, name: str, nail: NailRecord, mask: Mask) -> list[Finding]:
    # The longer of √area and the span of the keypoints: of a nail half hidden, the tip may lie elsewhere.
    allowed = 2.0 + STRAY_SHARE * max(float(np.sqrt(np.count_nonzero(mask))), _span(nail))
    found = []
    for which, point in (("base", nail.base), ("tip", nail.tip)):
        if point is None or which in nail.hidden:
            continue
        away = distance_to(mask, point)
        if away > allowed:
            what = f"{name}: its {which} is {away:.0f} px away from it"
            found.append(Finding(kind="base or tip outside", file=file, what=what))
    return found


def _span(nail: NailRecord) -> float:
    return float(np.hypot(*np.subtract(nail.tip, nail.base))) if nail.base and nail.tip else 0.0


def _find_swapped(file: str, named: Sequence[tuple[str, NailRecord]]) -> list[Finding]:
    """Nails that point against the hand's other fingers, where those agree; thumbs go their own way."""
    found = []
    for hand in ("left", "right"):
        fingers = [
            (name, unit_vector(nail.base, nail.tip))
            for name, nail in named
            if nail.base and nail.tip and nail.finger and nail.finger.startswith(hand)
            if not nail.finger.endswith("thumb")
        ]
        for at, (name, own) in enumerate(fingers):
            others = [vector for place, (_, vector) in enumerate(fingers) if place != at]
            if len(others) < 2:
                continue
            mean = np.mean(others, axis=0)
            if max(_angle(mean, other) for other in others) > AGREEING_DEG:
                continue
            away = _angle(mean, own)
            if away > SWAPPED_DEG:
                what = f"{name}: points {away:.0f}° away from the other fingers of the {hand} hand"
                found.append(Finding(kind="base and tip swapped", file=file, what=what))
    return found


def _angle(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Degrees between two vectors; 0 where one of them has no length."""
    lengths = float(np.hypot(*a) * np.hypot(*b))
    return float(np.degrees(np.arccos(np.clip(a @ b / lengths, -1, 1)))) if lengths > 1e-9 else 0.0


def check_touching(
    file: str, named: Sequence[tuple[str, NailRecord]], masks: Sequence[Mask | None]
) -> list[Finding]:
    """Nails that look like two; not those whose finger is known: somebody, no machine, told these apart."""
    return [
        Finding(kind="two nails in one?", file=file, what=f"{name}: fills {solid:.0%} of its convex outline")
        for (name, record), mask in zip(named, masks, strict=True)
        if mask is not None
        and record.without_guesses().finger is None
        and (solid := _solidity(mask)) < SOLID_SHARE
    ]


def _solidity(mask: Mask) -> float:
    """Share of its convex hull that the largest piece fills; 1 for small ones."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    piece = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    left, top, width, height, area = (int(value) for value in stats[piece])
    if area < SOLID_PX:
        return 1.0
    points = cv2.findNonZero((labels == piece)[top : top + height, left : left + width].astype(np.uint8))
    hull = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), cv2.convexHull(points), 1)
    return area / int(np.count_nonzero(hull))
