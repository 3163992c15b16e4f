"""Mask metrics against slow references that follow their definitions word by word."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nailcore.mask_metrics import (
    ANGLE_STEP_DEG,
    AngleHistogram,
    Mask,
    count_boundary_overlap,
    find_boundary_band,
    measure_angles_deg,
    measure_contour_shift,
)

SIDES = st.integers(1, 12)
PAIRS = st.tuples(SIDES, SIDES).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)
Pixel = tuple[int, int]


def is_set(mask: Mask, y: int, x: int) -> bool:
    """Beyond the image nothing is set."""
    return 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and bool(mask[y, x])


def pixels(mask: Mask) -> Iterator[Pixel]:
    yield from ((int(y), int(x)) for y, x in np.argwhere(mask))


def slow_band(mask: Mask, width: int) -> set[Pixel]:
    reach = range(-width, width + 1)
    return {
        (y, x) for y, x in pixels(mask) if not all(is_set(mask, y + i, x + j) for i in reach for j in reach)
    }


def slow_blobs(mask: Mask, *, diagonal: bool) -> list[set[Pixel]]:
    left, blobs = set(pixels(mask)), []
    while left:
        blob, waiting = set(), [left.pop()]
        while waiting:
            y, x = waiting.pop()
            blob.add((y, x))
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    near = (y + i, x + j)
                    if near in left and (diagonal or 0 in (i, j)):
                        left.remove(near)
                        waiting.append(near)
        blobs.append(blob)
    return blobs


def slow_shift(found: Mask, reference: Mask) -> tuple[float, int, int, int]:
    """Shift, appeared, vanished, largest lone area, by the definition."""
    masks, lone = [found.copy(), reference.copy()], [0, 0]
    areas = [0]
    for turn, (mask, other) in enumerate(((found, reference), (reference, found))):
        for blob in slow_blobs(mask, diagonal=True):
            if not any(other[p] for p in blob):
                lone[turn] += 1
                areas.append(len(blob))
                for p in blob:
                    masks[turn][p] = False
        for blob in slow_blobs(~mask, diagonal=False):
            at_edge = any(y in (0, mask.shape[0] - 1) or x in (0, mask.shape[1] - 1) for y, x in blob)
            if not at_edge and all(other[p] for p in blob):
                lone[turn] += 1
                areas.append(len(blob))
                for p in blob:
                    masks[turn][p] = True
    contours = [
        [
            (y, x)
            for y, x in pixels(m)
            if not all(is_set(m, y + i, x + j) for i, j in ((0, 1), (0, -1), (1, 0), (-1, 0)))
        ]
        for m in masks
    ]
    shift = 0.0
    for a, b in (contours, contours[::-1]):
        assert bool(a) == bool(b)
        for p in a:
            shift = max(shift, min(math.dist(p, q) for q in b))
    return shift, lone[0], lone[1], max(areas)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 3))
def test_boundary_iou_follows_its_definition(masks: tuple[Mask, Mask], width: int) -> None:
    a, b = (slow_band(mask, width) for mask in masks)
    assert set(pixels(find_boundary_band(masks[0], width))) == a
    assert count_boundary_overlap(*masks, width) == (len(a & b), len(a | b))


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_contour_shift_follows_its_definition(masks: tuple[Mask, Mask]) -> None:
    found = measure_contour_shift(*masks)
    shift, appeared, vanished, largest = slow_shift(*masks)
    assert found.shift_px == pytest.approx(shift)
    assert (found.appeared, found.vanished, found.largest_lone_px) == (appeared, vanished, largest)
    back = measure_contour_shift(*masks[::-1])
    assert (back.shift_px, back.appeared, back.vanished) == (found.shift_px, vanished, appeared)


def test_a_moved_square_moved_by_as_much() -> None:
    reference = np.zeros((40, 40), np.bool_)
    reference[10:20, 10:20] = True
    assert measure_contour_shift(reference, reference).shift_px == 0
    assert measure_contour_shift(np.roll(reference, 3, axis=1), reference).shift_px == 3
    assert measure_contour_shift(np.roll(reference, (3, 4), axis=(0, 1)), reference).shift_px == 5


def test_a_far_blob_and_a_hole_are_counted_and_not_measured() -> None:
    reference = np.zeros((60, 60), np.bool_)
    reference[5:25, 5:25] = True
    found = reference.copy()
    found[50:53, 50:52] = True
    found[12, 12] = False
    shift = measure_contour_shift(found, reference)
    assert (shift.shift_px, shift.appeared, shift.vanished, shift.largest_lone_px) == (0, 2, 0, 6)
    empty = np.zeros_like(reference)
    gone = measure_contour_shift(empty, reference)
    assert (gone.shift_px, gone.appeared, gone.vanished, gone.largest_lone_px) == (0, 0, 1, 400)


VECTORS = hnp.arrays(np.float32, (2, 7), elements=st.floats(-9, 9, width=32))


@settings(deadline=None)
@given(VECTORS, VECTORS)
def test_angles_are_those_between_the_vectors(
    found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> None:
    angles = measure_angles_deg(found, reference)
    for angle, a, b in zip(angles, found.T.astype(float), reference.T.astype(float), strict=True):
        if not a.any() or not b.any():
            assert angle == (0 if not a.any() and not b.any() else 180)
            continue
        cosine = float(np.clip(a / np.linalg.norm(a) @ (b / np.linalg.norm(b)), -1, 1))
        # Near 0 and 180 degrees the cosine itself is good to 1e-6 degrees only.
        assert angle == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-5)
    assert np.array_equal(angles, measure_angles_deg(reference, found))


@settings(deadline=None)
@given(
    st.lists(hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(0, 180)), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_percentiles_of_a_histogram_are_at_most_a_step_too_high(
    parts: list[npt.NDArray[np.float64]], share: float
) -> None:
    histogram = AngleHistogram()
    for part in parts:
        histogram.add(part)
    every = np.concatenate(parts)
    found = histogram.find_percentile(share)
    if not len(every):
        assert found is None
        return
    exact = float(np.percentile(every, 100 * share, method="inverted_cdf"))
    assert found is not None
    assert -1e-7 <= found - exact <= ANGLE_STEP_DEG + 1e-7
