"""Figures per nail against slow references and logits whose right answer is known."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data.labels import Labels, NailRecord
from nailcore.facts import ImageKind
from nailcore.nail_metrics import (
    SLICES,
    bootstrap_values,
    describe_kind,
    find_slice,
    match_blobs,
    measure_nails,
)
from nailcore.preprocess import Letterbox
from nailcore.variant import FINGER_CLASSES

HEADS = ("fgbg", "finger", "direction")
SIDE, STRIDE = 128, 4


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_each_nail_is_compared_with_the_blob_that_fits_it_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.asarray(rng.integers(0, 4, (5, 7)), np.uint8)
    predicted = rng.random((5, 7)) < 0.5
    _, blobs = cv2.connectedComponents(predicted.astype(np.uint8), connectivity=8)
    found = match_blobs(predicted, index)
    for k in range(1, 4):
        best = 0.0
        for blob in range(1, int(blobs.max()) + 1):
            both = np.count_nonzero((index == k) & (blobs == blob))
            best = max(best, both / np.count_nonzero((index == k) | (blobs == blob)))
        assert found[k] == pytest.approx(best)


def make_truth(*, labels: tuple[str, ...] = ("mask", "finger", "direction")) -> Labels:
    index = np.zeros((SIDE, SIDE), np.uint8)
    index[20:60, 24:48], index[70:90, 60:110] = 1, 2
    nails = (
        NailRecord(finger="left ring", base=(36, 60), tip=(36, 20), area_px=960),
        NailRecord(finger="right thumb", base=(60, 80), tip=(110, 80), area_px=1000),
    )
    return Labels(index, nails, frozenset(labels))  # type: ignore[arg-type]


def make_logits(truth: Labels, turn_deg: float = 0.0) -> dict[str, npt.NDArray[np.float32]]:
    """What a perfect network would say, its directions turned by an angle."""
    cells = (slice(STRIDE // 2, None, STRIDE), slice(STRIDE // 2, None, STRIDE))
    mask, finger = truth.mask[cells], truth.finger[cells]
    fgbg = np.stack([np.where(mask, -5.0, 5.0), np.where(mask, 5.0, -5.0)])
    classes = np.stack([np.where(finger == i, 6.0, 0.0) for i in range(len(FINGER_CLASSES))])
    angle = math.radians(turn_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    direction = 3.0 * np.einsum("ij,jyx->iyx", turn, truth.direction[:, cells[0], cells[1]])
    values = {"fgbg": fgbg, "finger": classes, "direction": direction}
    return {name: value.astype(np.float32) for name, value in values.items()}


@pytest.mark.parametrize("turn_deg", [0.0, 30.0, -100.0])
def test_perfect_logits_and_turned_directions(turn_deg: float) -> None:
    truth = make_truth()
    nails = measure_nails(
        truth.mask, truth, make_logits(truth, turn_deg), Letterbox(SIDE, SIDE, SIDE, SIDE), HEADS
    )
    assert [n.iou for n in nails] == [1.0, 1.0] and all(n.finger_right for n in nails)
    for nail in nails:
        assert nail.direction_error_deg == pytest.approx(abs(turn_deg), abs=0.01)
    assert nails[0].size_px == pytest.approx(math.sqrt(40 * 24) * 480 / SIDE)


def test_swapped_fingers_missed_and_merged_nails_are_noticed() -> None:
    truth = make_truth()
    logits = make_logits(truth)
    logits["finger"] = logits["finger"][::-1].copy()
    predicted = truth.mask.copy()
    predicted[truth.nail_index == 2] = False
    box = Letterbox(SIDE, SIDE, SIDE, SIDE)
    nails = measure_nails(predicted, truth, logits, box, HEADS)
    assert [n.finger_right for n in nails] == [False, False] and [n.iou for n in nails] == [1.0, 0.0]
    merged = np.ones_like(truth.mask)
    assert all(n.iou < 0.1 for n in measure_nails(merged, truth, logits, box, HEADS))


def test_nothing_is_judged_without_labels_or_without_a_trained_head() -> None:
    box = Letterbox(SIDE, SIDE, SIDE, SIDE)
    full = make_truth()
    for truth, heads in ((make_truth(labels=("mask",)), HEADS), (full, ("fgbg",))):
        nails = measure_nails(truth.mask, truth, make_logits(full), box, heads)
        assert len(nails) == 2
        assert all(n.finger_right is None and n.direction_error_deg is None for n in nails)


def test_letterboxed_photos_are_judged_where_they_lie() -> None:
    truth = make_truth()
    wide = Labels(np.pad(truth.nail_index, ((0, 0), (0, SIDE))), truth.nails, truth.labels)
    # The photo (128 × 256) fills the upper part of no cell: it lies in the middle rows of the input.
    box = Letterbox(SIDE, 2 * SIDE, 2 * SIDE, 2 * SIDE)
    top = box.origin[0] // STRIDE
    placed = {}
    for name, value in make_logits(truth).items():
        canvas = np.zeros((len(value), 2 * SIDE // STRIDE, 2 * SIDE // STRIDE), np.float32)
        canvas[:, top : top + SIDE // STRIDE, : SIDE // STRIDE] = value
        placed[name] = canvas
    nails = measure_nails(wide.mask, wide, placed, box, HEADS)
    assert all(n.finger_right for n in nails)
    assert max(n.direction_error_deg or 0 for n in nails) < 0.01


@pytest.mark.parametrize(("lightness", "yellow"), [(75.0, 15.0), (60.0, 18.0), (42.0, 17.0)])
def test_skin_tone_is_the_typology_angle_of_the_skin_around_nails(lightness: float, yellow: float) -> None:
    skin = np.full((1, 1, 3), (lightness, 14.0, yellow), np.float32)
    rgb = cv2.cvtColor(skin, cv2.COLOR_LAB2RGB)[0, 0]
    image = np.full((240, 320, 3), (30, 160, 60), np.uint8)  # a green wall
    image[40:200, 60:260] = np.round(rgb * 255)
    index = np.zeros((240, 320), np.uint8)
    index[100:130, 140:160] = 1
    image[index > 0] = (250, 250, 250)  # white polish says nothing of the skin
    kind = describe_kind(image, index)
    expected = math.degrees(math.atan2(lightness - 50, yellow))
    assert kind.skin_ita_deg == pytest.approx(expected, abs=2.0)
    assert kind.nail_size_px == pytest.approx(math.sqrt(600) * 480 / 320)
    assert describe_kind(np.full_like(image, (30, 160, 60)), index).skin_ita_deg is None
    assert describe_kind(image, np.zeros_like(index)).nail_size_px is None


def test_slices_cover_every_value_once() -> None:
    for by, parts in SLICES.items():
        assert all(a[1] == b[2] or a[2] == b[1] for a, b in itertools.pairwise(parts)), by
    kind = ImageKind(nail_size_px=20.0, skin_ita_deg=None, brightness=12.0)
    assert find_slice("nail size", kind) == "medium" and find_slice("brightness", kind) == "dark"
    assert find_slice("skin tone", kind) is None


def test_intervals_resample_images_not_nails() -> None:
    """Ten nails of one image are one draw: the interval must be as wide as for two images."""
    values = [[0.0] * 10, [1.0] * 10]
    interval = bootstrap_values(values, lambda v: float(v.mean()))
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert bootstrap_values([[], []], lambda v: float(v.mean())) is None
    assert bootstrap_values([[], [2.0]], lambda v: float(v.mean())) is not None
