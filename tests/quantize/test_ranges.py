"""Ranges, scales and zero points: 0 stays exact, nothing inside is off by more than half a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nailcore.errors import DataError
from quantize.ranges import Affine, Observer, Range, choose_affine, round_kernel
from quantize.recipe import Activations, CalibrationMethod

ENDS = st.floats(-1e4, 1e4, width=32)
KINDS = st.sampled_from(
    [
        Activations(),
        Activations(dtype="int8"),
        Activations(symmetric=True),
        Activations(dtype="int8", symmetric=True),
    ]
)
F32 = npt.NDArray[Any]
METHODS: list[CalibrationMethod] = ["min-max", "percentile", "entropy", "mse"]


@given(ENDS, ENDS, KINDS)
def test_zero_is_a_level_of_its_own(a: float, b: float, kind: Activations) -> None:
    affine = choose_affine(Range(min(a, b), max(a, b)), kind)
    assert affine.scale > 0 and affine.low_level <= affine.zero_point <= affine.high_level
    assert affine.dequantize(affine.quantize([0.0]))[0] == 0


@given(ENDS, ENDS, KINDS, st.floats(0, 1))
def test_values_inside_are_off_by_half_a_step_at_most(
    a: float, b: float, kind: Activations, t: float
) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    affine = choose_affine(Range(low, high), kind)
    value = np.float32(low + t * (high - low))
    # The zero point is rounded as well: the ends may lie half a step outside.
    error = abs(affine.round(np.array([value]))[0] - value)
    assert error <= float(affine.scale) * 1.001 + 1e-6


@given(hnp.arrays(np.float32, 40, elements=ENDS), KINDS, ENDS, ENDS)
def test_rounding_in_float_is_quantizing_and_back(values: F32, kind: Activations, a: float, b: float) -> None:
    affine = choose_affine(Range(min(a, b), max(a, b)), kind)
    np.testing.assert_array_equal(affine.round(values), affine.dequantize(affine.quantize(values)))


@given(hnp.arrays(np.float32, (4, 3, 2, 2), elements=st.floats(-10, 10, width=32)))
def test_kernels_keep_their_largest_weight_and_round_to_half_a_step(weight: F32) -> None:
    for per_channel in (True, False):
        rounded = round_kernel(weight, per_channel=per_channel)
        axes = (1, 2, 3) if per_channel else None
        reach = np.abs(weight).max(axis=axes, keepdims=True)
        assert (np.abs(rounded - weight) <= reach / 254 * 1.001 + 1e-12).all()
        np.testing.assert_array_equal(rounded, round_kernel(rounded, per_channel=per_channel))


def observe(values: F32, method: CalibrationMethod) -> Range:
    observer = Observer()
    for part in np.array_split(values.astype(np.float32), 3):
        observer.see(part)
    for part in np.array_split(values.astype(np.float32), 3):
        observer.count(part)
    return observer.choose(method, 99.9)


@pytest.mark.parametrize("method", METHODS)
def test_a_range_lies_between_the_extremes_and_holds_zero(method: CalibrationMethod) -> None:
    values = np.random.default_rng(0).normal(1, 1, 30_000)
    found = observe(values, method)
    assert values.min() * 1.001 <= found.low <= 0 <= found.high <= values.max() * 1.001
    only_positive = observe(np.abs(values), method)
    assert only_positive.low == 0 < only_positive.high


def test_a_lone_outlier_is_clipped_by_all_but_min_max() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 100_000), 60.0)
    ends = {method: observe(values, method).high for method in METHODS}
    assert ends["min-max"] == 60
    assert ends["percentile"] < 10 and ends["mse"] < 58 and ends["entropy"] < 45


def test_mse_beats_min_max_in_what_it_minimises() -> None:
    values = np.random.default_rng(1).laplace(0, 1, 50_000).astype(np.float32)
    errors = [
        float(((choose_affine(observe(values, method), Activations()).round(values) - values) ** 2).mean())
        for method in ("mse", "min-max")
    ]
    assert errors[0] < errors[1]


def test_silent_tensors_and_broken_ones() -> None:
    assert choose_affine(Range(0, 0), Activations()) == Affine(np.float32(1), 0, 0, 255)
    with pytest.raises(DataError, match="NaN or infinite"):
        Observer().see(np.array([np.nan], np.float32))
