"""Letterbox and its inverse."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.preprocess import PAD_VALUE, Letterbox, letterbox, unletterbox_mask

SIDES = st.integers(8, 700)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, side=st.sampled_from([96, 288, 352]))
def test_photo_fits_centred_with_its_aspect_kept(height: int, width: int, side: int) -> None:
    box = Letterbox(height, width, side, side)
    (h, w), (top, left) = box.scaled, box.origin
    assert max(h, w) == side and min(h, w) >= 1
    assert abs(h - height * box.scale) <= 0.5 + 1e-9 or h == 1
    assert abs((side - h) - 2 * top) <= 1 and abs((side - w) - 2 * left) <= 1
    canvas = letterbox(np.zeros((height, width, 3), np.uint8), side, side)
    assert canvas.shape == (side, side, 3)
    inside = canvas[top : top + h, left : left + w]
    assert not inside.any() and (canvas == PAD_VALUE).sum() == canvas.size - inside.size


@settings(max_examples=25, deadline=None)
@given(height=st.integers(200, 600), width=st.integers(200, 600), seed=st.integers(0, 99))
def test_a_mask_survives_the_way_in_and_out(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), bool)
    y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
    truth[y : y + height // 3, x : x + width // 3] = True
    image = np.repeat((truth * np.uint8(255))[..., None], 3, axis=2)
    box = Letterbox(height, width, 480, 480)
    inside = letterbox(image, 480, 480)[..., 0].astype(np.float32)
    cells = inside.reshape(120, 4, 120, 4).mean(axis=(1, 3)) - 127.5
    found = unletterbox_mask(np.stack([-cells, cells]), box, 4)
    assert found.shape == truth.shape
    iou = (found & truth).sum() / (found | truth).sum()
    assert iou > 0.9  # cells are four pixels wide; a shift of one cell would give less


def test_the_argmax_of_the_resampled_pair_is_what_is_cut() -> None:
    logits = np.zeros((2, 72, 72), np.float32)
    logits[1, :36] = 3
    mask = unletterbox_mask(logits, Letterbox(288, 288, 288, 288), 4)
    assert mask[:144].all() and not mask[150:].any()
