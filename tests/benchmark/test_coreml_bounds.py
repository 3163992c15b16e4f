"""Bounds of stored weights, as properties: what a form may lose passes, one code further does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmark.coreml_bounds import find_nearest, half_ulp, measure_loss
from deploy.coreml_weights import Palette, Stored

F64 = npt.NDArray[np.float64]
SHAPE = (4, 6, 3, 3)


def weights(seed: int, shape: tuple[int, ...] = SHAPE) -> F64:
    values = np.random.default_rng(seed).standard_normal(shape) * 0.1
    return np.asarray(values.astype(np.float32), np.float64)


def stored(values: npt.NDArray[Any], form: str = "fp16", kind: str = "fp16", **more: Any) -> Stored:
    return Stored("w", form, kind, np.asarray(values, np.float64), is_weight=True, **more)


finite16 = st.floats(-6.0e4, 6.0e4, width=32)


@given(hnp.arrays(np.float64, 20, elements=finite16))
def test_the_nearest_float16_is_always_within_and_its_neighbour_never(reference: F64) -> None:
    nearest = reference.astype(np.float16)
    share, breach = measure_loss(stored(nearest), reference)
    assert breach is None and share <= 1
    further = np.nextafter(nearest, np.where(nearest > reference, np.inf, -np.inf).astype(np.float16))
    ties = np.abs(further.astype(np.float64) - reference) == np.abs(nearest - reference)
    if not ties.all():
        place = int(np.flatnonzero(~ties)[0])
        wrong = nearest.copy()
        wrong[place] = further[place]
        _, breach = measure_loss(stored(wrong), reference)
        assert breach is not None and breach.place == (place,)


@given(hnp.arrays(np.float16, 30, elements=st.floats(-64992, 64992, width=16)))
def test_half_a_unit_in_the_last_place_is_numpys(values: npt.NDArray[np.float16]) -> None:
    assert np.array_equal(
        half_ulp(values.astype(np.float64), "fp16"), np.spacing(np.abs(values)).astype(float) / 2
    )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_breaks_every_bound(bad: float) -> None:
    reference = weights(0)
    values = reference.copy()
    values[1, 2, 0, 1] = bad
    share, breach = measure_loss(stored(values), reference)
    assert not np.isfinite(share)
    assert breach is not None and breach.place == (1, 2, 0, 1)


def test_float32_loses_nothing() -> None:
    reference = weights(1)
    assert measure_loss(stored(reference, "fp32", "fp32"), reference) == (0.0, None)
    values = reference.astype(np.float32)
    values.view(np.uint32)[0, 0, 0, 0] ^= 1
    assert measure_loss(stored(values, "fp32", "fp32"), reference)[1] is not None


def quantize(reference: F64, *, symmetric: bool, bits: int = 8) -> tuple[F64, F64, F64, F64]:
    """Codes, steps, zero points and values, per output channel, scales in float16 as they are stored."""
    axes = (1, 2, 3)
    high, low = reference.max(axes, keepdims=True), reference.min(axes, keepdims=True)
    if symmetric:
        step, zero = np.maximum(high, -low) / (2 ** (bits - 1) - 1), np.zeros_like(high)
    else:
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        step = (high - low) / (2**bits - 1)
        zero = np.round(-(2 ** (bits - 1)) - low / step)
    step = step.astype(np.float16).astype(np.float64)
    codes = np.clip(np.round(reference / step) + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes, np.broadcast_to(step, reference.shape), np.broadcast_to(zero, reference.shape), zero


def linear(codes: npt.NDArray[Any], step: F64, shift: F64, bits: int = 8) -> Stored:
    values = (step * (codes - shift)).astype(np.float16)
    ends = np.isin(codes, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)) & (shift != 0)
    form = f"int{bits} linear"
    return stored(values, form, step=np.asarray(step), levels=2**bits, saturated=ends)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([4, 8]))
def test_linear_codes_keep_half_a_step_and_no_defect_does(seed: int, symmetric: bool, bits: int) -> None:
    reference = weights(seed)
    codes, step, shift, _ = quantize(reference, symmetric=symmetric, bits=bits)
    share, breach = measure_loss(linear(codes, step, shift, bits), reference)
    assert breach is None and share <= 1
    inner = np.argwhere(np.abs(codes) < 2 ** (bits - 1) - 2)
    place = tuple(inner[seed % len(inner)])
    # Half a step and the rounding of value and scale to float16 are allowed: plant more than that.
    off: F64 = codes.copy()
    off[place] += 2 if bits == 4 else 1 + (abs(reference[place] / step[place] % 1 - 0.5) < 0.25)
    assert measure_loss(linear(off, step, shift, bits), reference)[1] is not None
    assert measure_loss(linear(codes, step, shift + 1, bits), reference)[1] is not None
    assert (
        measure_loss(linear(codes, np.asarray(step * 1.1, np.float64), shift, bits), reference)[1] is not None
    )


def test_codes_fitted_together_may_leave_the_outermost_levels_unused() -> None:
    """Error compensation moved the largest weight of a package from level 127 to 124."""
    rng = np.random.default_rng(0)
    step = np.full((4, 8, 3, 3), 0.01)
    codes = rng.integers(-100, 101, (4, 8, 3, 3)).astype(np.float64)
    codes[:, 0, 0, 0] = 124
    _, breach = measure_loss(linear(codes, step, np.zeros_like(step)), codes * step)
    assert breach is None
    narrow = np.round(codes * 100 / 124)
    _, breach = measure_loss(linear(narrow, step, np.zeros_like(step)), narrow * step)
    assert breach is not None and "coarser" in breach.rule


def test_a_scale_far_too_coarse_is_seen_though_each_code_is_the_nearest() -> None:
    reference = weights(3)
    _, step, shift, _ = quantize(reference, symmetric=True)
    coarse = step * 4
    codes = np.round(reference / coarse)
    _, breach = measure_loss(linear(codes, coarse, shift), reference)
    assert breach is not None and "coarser" in breach.rule


def palettized(reference: F64, table: F64, vector_axis: int = 0) -> tuple[npt.NDArray[np.int64], Stored]:
    indices = np.abs(reference[..., None] - table).argmin(-1)
    palette = Palette(table.reshape((1,) * reference.ndim + (-1, 1)), vector_axis)
    return indices, stored(table[indices], "4-bit palette", palette=palette)


def fit_table(reference: F64, entries: int) -> F64:
    """Lloyd's iterations from evenly spaced entries, which they can only improve on."""
    table = np.linspace(reference.min(), reference.max(), entries)
    for _ in range(10):
        nearest = np.abs(reference[..., None] - table).argmin(-1)
        table = np.array(
            [reference[nearest == i].mean() if (nearest == i).any() else table[i] for i in range(entries)]
        )
    return np.asarray(table.astype(np.float16), np.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
@example(3190)  # a table of quantiles, as it once was, serves this one worse than even spacing
def test_palettes_point_to_the_nearest_entry(seed: int) -> None:
    reference = weights(seed)
    table = fit_table(reference, 16)
    indices, sound = palettized(reference, table)
    share, breach = measure_loss(sound, reference)
    assert breach is None and share <= 1
    off = indices.copy()
    off.flat[seed % off.size] = (off.flat[seed % off.size] + 8) % 16
    assert sound.palette is not None
    wrong = stored(table[off], "4-bit palette", palette=sound.palette)
    _, breach = measure_loss(wrong, reference)
    assert breach is not None and "nearer" in breach.rule


def test_a_palette_of_another_weight_is_seen_though_each_index_is_the_nearest() -> None:
    reference = weights(5)
    other = np.linspace(2, 3, 16).astype(np.float16).astype(np.float64)
    _, breach = measure_loss(palettized(reference, other)[1], reference)
    assert breach is not None and "its palette loses" in breach.rule


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1]), st.sampled_from([1, 2]))
def test_nearest_entries_of_vectors_and_groups_agree_with_brute_force(
    seed: int, axis: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    reference, vector, entries = rng.standard_normal((4, 6)), 2, 4
    tables = rng.standard_normal((groups, 1, entries, vector))
    found = find_nearest(Palette(tables, axis), reference)
    moved, gaps = np.moveaxis(reference, axis, -1), np.moveaxis(found, axis, -1)
    for row in range(moved.shape[0]):
        for start in range(0, moved.shape[1], vector):
            # The group of a vector is that of its first element's row in the weight itself.
            place = row if axis == 1 else start
            table = tables[place // (4 // groups), 0]
            value = moved[row, start : start + vector]
            best = table[((table - value) ** 2).sum(1).argmin()]
            assert np.allclose(gaps[row, start : start + vector], np.abs(best - value))


def test_sparse_weights_drop_only_what_is_small() -> None:
    reference = weights(7)
    kept = np.abs(reference) >= np.quantile(np.abs(reference), 0.5)
    values = np.where(kept, reference, 0).astype(np.float16)
    assert measure_loss(stored(values, "sparse fp16", kept=kept), reference)[1] is None
    largest = np.unravel_index(int(np.abs(reference).argmax()), reference.shape)
    kept[largest], values[largest] = False, 0
    _, breach = measure_loss(stored(values, "sparse fp16", kept=kept), reference)
    assert breach is not None and "dropped, though" in breach.rule and breach.place == largest
