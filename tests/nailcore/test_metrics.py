"""Metrics: identities, bounds and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.metrics import bootstrap, count_boundary, count_confusion


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), share=st.floats(0, 1))
def test_confusion_adds_up_and_matches_the_definition(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((13, 17)) < share, rng.random((13, 17)) < 0.3
    c = count_confusion(a, b)
    assert c.tp + c.fp + c.fn + c.tn == a.size
    union = np.logical_or(a, b).sum()
    assert c.nail_iou == (pytest.approx(np.logical_and(a, b).sum() / union) if union else None)
    swapped = count_confusion(b, a)
    assert (swapped.fp, swapped.fn) == (c.fn, c.fp)


def test_pooled_figures_of_a_known_case() -> None:
    counts = np.array([[30.0, 10, 10, 50], [0, 0, 0, 100]])
    miou = bootstrap("miou", counts)
    assert bootstrap("nail_iou", counts).value == pytest.approx(0.6)
    assert miou.value == pytest.approx((0.6 + 150 / 170) / 2)
    assert miou.low <= miou.value <= miou.high


def test_interval_narrows_with_more_images_and_is_a_point_for_equal_ones() -> None:
    rng = np.random.default_rng(0)
    few = rng.integers(1, 100, (8, 4)).astype(np.float64)
    many = np.tile(few, (16, 1))
    a, b = bootstrap("nail_iou", few), bootstrap("nail_iou", many)
    assert a.value == pytest.approx(b.value)
    assert b.high - b.low < a.high - a.low
    same = bootstrap("miou", np.tile([[5.0, 1, 1, 9]], (6, 1)))
    assert same.low == pytest.approx(same.high) == pytest.approx(same.value)


def test_bootstrap_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="expected"):
        bootstrap("miou", np.zeros((0, 4)))


def boundary_f(shift_px: int) -> float:
    truth = np.zeros((480, 480), bool)
    truth[100:200, 100:200] = True
    c = count_boundary(np.roll(truth, shift_px, axis=1), truth)
    assert c.predicted == c.truth == 4 * 100 - 4
    return bootstrap(
        "boundary_f", np.array([[c.matched_predicted, c.predicted, c.matched_truth, c.truth]], float)
    ).value


def test_boundary_forgives_two_pixels_and_no_more() -> None:
    assert boundary_f(0) == boundary_f(2) == 1.0
    assert boundary_f(3) < 0.6  # the two sides that moved no longer match
    assert boundary_f(60) < 0.5


@pytest.mark.parametrize(
    ("precision", "recall", "expected"), [(0.3, 0.3, 0.3), (0.9, 0.9, 0.9), (0.2, 0.6, 0.3), (0.0, 0.0, 0.0)]
)
def test_boundary_f_is_the_harmonic_mean(precision: float, recall: float, expected: float) -> None:
    row = np.array([[100 * precision, 100, 100 * recall, 100]])
    assert bootstrap("boundary_f", row).value == pytest.approx(expected)


def test_boundary_of_an_empty_prediction_is_zero() -> None:
    truth = np.zeros((480, 480), bool)
    truth[100:200, 100:200] = True
    c = count_boundary(np.zeros_like(truth), truth)
    row = np.array([[c.matched_predicted, c.predicted, c.matched_truth, c.truth]], float)
    assert bootstrap("boundary_f", row).value == 0.0
