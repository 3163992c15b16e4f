"""The drop of a file: pairs of images cancel what is hard for both, and parity counts as accuracy does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.accuracy_drop import DropCounter, count_image, describe_drop
from model_zoo import find_variant
from nailcore.facts import ImageDrop
from nailcore.metrics import bootstrap, bootstrap_drop
from nailcore.variant import Variant

VARIANT = find_variant("nail43-288")
counts = st.tuples(*[st.integers(0, 5000)] * 3, st.integers(1, 100_000))
pairs = st.lists(st.tuples(counts, counts), min_size=1, max_size=12)


def make_images(
    found: list[tuple[int, int, int, int]], reference: list[tuple[int, int, int, int]]
) -> list[ImageDrop]:
    return [
        ImageDrop(name=f"image {n}", found=f, reference=r)
        for n, (f, r) in enumerate(zip(found, reference, strict=True))
    ]


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_the_drop_is_the_difference_of_both_pooled_figures(
    images: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    drop = describe_drop([ImageDrop(name="", found=f, reference=r) for f, r in images])
    assert drop.drop_points.value == pytest.approx(
        100 * (drop.reference_nail_iou.value - drop.nail_iou.value), abs=1e-9
    )
    assert drop.miou_drop_points.value == pytest.approx(
        100 * (drop.reference_miou.value - drop.miou.value), abs=1e-9
    )
    assert -100 <= drop.drop_points.low <= drop.drop_points.high <= 100


@settings(deadline=None, max_examples=40)
@given(st.lists(counts, min_size=1, max_size=12))
def test_a_file_that_marks_what_the_network_marks_loses_nothing_for_sure(
    images: list[tuple[int, int, int, int]],
) -> None:
    drop = describe_drop(make_images(images, images)).drop_points
    assert (drop.low, drop.value, drop.high) == (0.0, 0.0, 0.0)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_exchanging_both_sides_turns_the_interval_round(
    images: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    found = np.array([f for f, _ in images], np.float64)
    reference = np.array([r for _, r in images], np.float64)
    one = bootstrap_drop("nail_iou", reference, found)
    other = bootstrap_drop("nail_iou", found, reference)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(50, 3000), min_size=5, max_size=12), st.floats(0.01, 0.1))
def test_pairing_is_sharper_than_two_intervals_where_both_find_the_same_images_hard(
    hits: list[int], share: float
) -> None:
    """The file loses the same share of every image's hits: far surer than how hard the images are."""
    reference = np.array([[tp, 100, 3000 - tp + 50, 90_000] for tp in hits], np.float64)
    lost = np.round(share * reference[:, 0])
    found = reference + np.stack([-lost, 0 * lost, lost, 0 * lost], axis=1)
    paired = bootstrap_drop("nail_iou", reference, found)
    alone = 100 * (bootstrap("nail_iou", reference).high - bootstrap("nail_iou", reference).low)
    assert paired.high - paired.low <= max(alone, 1e-9)
    assert paired.low <= paired.value <= paired.high


@pytest.mark.parametrize("shape", [(0, 4), (3, 3), (12,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        bootstrap_drop("nail_iou", np.zeros(shape), np.zeros(shape))
    with pytest.raises(ValueError, match="expected"):
        bootstrap_drop("nail_iou", np.zeros((2, 4)), np.zeros((3, 4)))


def make_logits(variant: Variant, nail: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.float32]]:
    margin = np.where(nail, 5.0, -5.0).astype(np.float32)
    return {"fgbg": np.stack([np.zeros_like(margin), margin])[None]}


def test_a_nail_that_a_file_forgets_is_lost_in_pixels_of_the_photo() -> None:
    """A 144 x 288 photo lies unscaled in a 288 px input: a cell of the logits is four pixels wide."""
    truth = np.zeros((144, 288), np.bool_)
    truth[40:60, 100:140] = True
    cells = np.zeros((72, 72), np.bool_)
    cells[(40 + 72) // 4 : (60 + 72) // 4, 25:35] = True
    counter = DropCounter(VARIANT)
    assert counter.describe() is None
    counter.add("photo", truth, make_logits(VARIANT, cells), make_logits(VARIANT, np.zeros_like(cells)))
    drop = counter.describe()
    assert drop is not None
    # Bilinear stretching rounds each corner of the rectangle by one pixel.
    assert drop.per_image[0].reference == (796, 0, 4, truth.size - 800)
    assert drop.per_image[0].found == (0, 0, 800, truth.size - 800)
    assert (drop.drop_points.value, drop.reference_nail_iou.value, drop.nail_iou.value) == (99.5, 0.995, 0.0)
    assert count_image(VARIANT, truth, make_logits(VARIANT, cells)) == drop.per_image[0].reference
