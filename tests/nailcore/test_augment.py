"""Crops: image, mask, fingers and directions must move together, whatever turn, mirror or tilt is drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data.augment import (
    IGNORE,
    AugmentConfig,
    Crop,
    CropPlan,
    LabelledPhoto,
    apply_plan,
    draw_crop,
    draw_plan,
    move_point,
    repaint_nails,
    tilt,
)
from nailcore.data.augment_kornia import apply_plan_kornia
from nailcore.data.labels import MIRRORED_FINGER, NailRecord, unit_vector
from nailcore.variant import FINGER_CLASSES

ALL = frozenset({"mask", "finger", "direction"})
SIZE = 128


def make_photo(labels: frozenset[str] = ALL) -> LabelledPhoto:
    """Two elongated nails, drawn from their keypoints, of known fingers and directions."""
    nails = (
        NailRecord(finger="left index", base=(50.0, 90.0), tip=(70.0, 40.0), area_px=1),
        NailRecord(finger="right thumb", base=(120.0, 60.0), tip=(160.0, 70.0), area_px=1),
    )
    return LabelledPhoto(*draw_nails(nails, 200, 140), nails, labels)  # type: ignore[arg-type]


def draw_nails(
    nails: tuple[NailRecord, ...], width: int, height: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    image = np.full((height, width, 3), 60, np.uint8)
    index = np.zeros((height, width), np.uint8)
    for k, nail in enumerate(nails, start=1):
        assert nail.base is not None and nail.tip is not None
        (x0, y0), (x1, y1) = nail.base, nail.tip
        cv2.line(index, (int(x0), int(y0)), (int(x1), int(y1)), k, 15)
    image[index > 0] = 210
    return image, index


def make_plan(matrix: npt.NDArray[np.float64], *, reflect: bool = False) -> CropPlan:
    return CropPlan(matrix, reflect, None, np.ones(3), 1.0, 1.0, 0.0, 0.0, 0, 0)


def about_centre(turn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(3, 3) that turns the photo about (100, 65) and puts this point into the crop's middle."""
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = np.array([SIZE / 2, SIZE / 2]) - turn @ np.array([100.0, 65.0])
    return matrix


def mean_direction(crop: Crop, finger: str) -> npt.NDArray[np.float64]:
    inside = crop.finger == FINGER_CLASSES.index(finger)
    assert inside.sum() > 100
    found = crop.direction[:, inside]
    assert np.ptp(found, axis=1).max() < 1e-6  # one vector per nail
    return np.asarray(found[:, 0], np.float64)


@pytest.mark.parametrize("degrees", [0, 17, 90, -123, 180])
def test_turning_the_photo_turns_the_vectors_by_the_same_angle(degrees: float) -> None:
    photo, angle = make_photo(), math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    crop = apply_plan(photo, make_plan(about_centre(turn)), SIZE)
    for nail in photo.nails:
        assert nail.base is not None and nail.tip is not None and nail.finger is not None
        np.testing.assert_allclose(
            mean_direction(crop, nail.finger), turn @ unit_vector(nail.base, nail.tip), atol=1e-6
        )


def test_a_mirror_flips_x_and_swaps_the_hands() -> None:
    photo = make_photo()
    crop = apply_plan(photo, make_plan(about_centre(np.diag([-1.0, 1.0]))), SIZE)
    for finger, nail in zip(("right index", "left thumb"), photo.nails, strict=True):
        assert nail.base is not None and nail.tip is not None
        x, y = unit_vector(nail.base, nail.tip)
        np.testing.assert_allclose(mean_direction(crop, finger), (-x, y), atol=1e-6)
    assert set(np.unique(crop.finger)) == {-1, 1 + 5, 0}
    twice = make_plan(about_centre(np.diag([-1.0, -1.0])))  # both axes: a turn by 180°, no mirror
    assert set(np.unique(apply_plan(photo, twice, SIZE).finger)) == {-1, 1, 5}


def test_uneven_scaling_bends_the_vectors_as_the_jacobian_says() -> None:
    photo = make_photo()
    crop = apply_plan(photo, make_plan(about_centre(np.diag([1.2, 0.7]))), SIZE)
    for nail in photo.nails:
        assert nail.base is not None and nail.tip is not None and nail.finger is not None
        bent = np.diag([1.2, 0.7]) @ unit_vector(nail.base, nail.tip)
        np.testing.assert_allclose(mean_direction(crop, nail.finger), bent / np.linalg.norm(bent), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_labels_agree_with_nails_drawn_anew_from_the_moved_keypoints(seed: int) -> None:
    """Slow and obvious: move each pixel's centre back into the photo and look there."""
    photo = make_photo()
    config = AugmentConfig(crop_px=SIZE, long_side_px=160, perspective=0.3, repaint=0)
    plan = draw_plan(photo.nail_index, config, np.random.default_rng(seed))
    crop = apply_plan(photo, plan, SIZE)
    yy, xx = np.mgrid[:SIZE, :SIZE]
    back = np.linalg.inv(plan.matrix) @ np.stack([xx.ravel(), yy.ravel(), np.ones(xx.size)])
    assert (plan.matrix[2] @ (back / back[2]) > 0).all()  # nothing comes from behind the camera
    columns, rows = np.round(back[:2] / back[2]).astype(int)
    height, width = photo.nail_index.shape
    inside = ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)).reshape(SIZE, SIZE)
    index = photo.nail_index[rows.clip(0, height - 1), columns.clip(0, width - 1)].reshape(SIZE, SIZE)
    index = np.where(inside, index, 0)
    swap = np.linalg.det(plan.matrix[:2, :2]) < 0
    for k, nail in enumerate(photo.nails, start=1):
        assert nail.base is not None and nail.tip is not None
        core = cv2.erode((index == k).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if not core.any():
            continue
        assert (crop.mask[core] == 1).all()
        finger = (nail.finger_class + 5) % 10 if swap else nail.finger_class
        assert (crop.finger[core] == finger).all()
        base, tip = (move_point(plan.matrix, p) for p in (nail.base, nail.tip))
        expected = unit_vector(base, tip)[:, None]
        np.testing.assert_allclose(
            crop.direction[:, core], np.broadcast_to(expected, (2, core.sum())), atol=1e-5
        )
    away = cv2.dilate((index > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert (crop.finger[away] == -1).all() and not crop.direction[:, away].any()
    assert (crop.mask[away & inside & (cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0)] == 0).all()
    lengths = np.linalg.norm(crop.direction, axis=0)
    assert ((lengths == 0) | (np.abs(lengths - 1) < 1e-5)).all()
    assert ((crop.finger >= 0) == (lengths > 0)).all()


def test_a_tilted_crop_keeps_its_middle_and_moves_points_as_pixels() -> None:
    photo = make_photo()
    plain = about_centre(np.eye(2))
    matrix = tilt(plain, np.array([0.25, -0.1]), SIZE)
    middle = (100 - 0.5 + 0.5, 65 - 0.5 + 0.5)
    np.testing.assert_allclose(move_point(matrix, middle), move_point(plain, middle), atol=1.0)
    dot = np.zeros_like(photo.nail_index)
    dot[60:63, 120:123] = 1
    crop = apply_plan(replace(photo, nail_index=dot), make_plan(matrix), SIZE)
    rows, columns = np.nonzero(crop.mask)
    x, y = move_point(matrix, (121.5, 61.5))
    assert abs(columns.mean() + 0.5 - x) < 0.6 and abs(rows.mean() + 0.5 - y) < 0.6


def test_reflected_nails_have_a_mask_but_no_finger_and_no_direction() -> None:
    photo = make_photo()
    matrix = np.eye(3)
    matrix[0, 2] = 90.0  # the photo starts at column 90: left of it lies its reflection
    crop = apply_plan(photo, make_plan(matrix, reflect=True), SIZE)
    beyond = np.zeros((SIZE, SIZE), bool)
    beyond[:, :89] = True
    assert (crop.mask[beyond] == 1).any()
    assert (crop.finger[beyond] == -1).all() and not crop.direction[:, beyond].any()
    grey = apply_plan(photo, make_plan(matrix), SIZE)
    assert (grey.image[:, :89] == 128).all() and not grey.mask[beyond].any()


def test_what_is_not_labelled_stays_unknown() -> None:
    crop = apply_plan(make_photo(frozenset({"mask"})), make_plan(about_centre(np.eye(2))), SIZE)
    assert (crop.mask == 1).any() and (crop.finger == -1).all() and not crop.direction.any()
    crop = apply_plan(make_photo(frozenset({"finger"})), make_plan(about_centre(np.eye(2))), SIZE)
    assert (crop.mask == IGNORE).all() and (crop.finger >= 0).any() and not crop.direction.any()


def test_crop_moves_image_and_mask_together() -> None:
    """The bright nails must stay where the mask says, whatever the affine and the colours did."""
    photo, agreements = make_photo(), []
    for seed in range(12):
        config = AugmentConfig(crop_px=96, repaint=0)
        crop = draw_crop(photo, config, np.random.default_rng(seed))
        if 100 < crop.mask.sum() < 8000:
            grey = crop.image.astype(np.float32).mean(2)
            bright = grey > (grey[crop.mask > 0].mean() + grey[crop.mask == 0].mean()) / 2
            agreements.append((bright & (crop.mask > 0)).sum() / crop.mask.sum())
    assert len(agreements) >= 6 and min(agreements) > 0.85


@pytest.mark.parametrize("seed", range(8))
def test_a_whole_view_shows_every_nail_of_one_hand(seed: int) -> None:
    photo = make_photo()
    config = AugmentConfig(crop_px=128, long_side_px=320, whole_share=1.0, repaint=0)
    plan = draw_plan(photo.nail_index, config, np.random.default_rng(seed))
    assert not plan.reflect, "a mirrored hand would contradict the fingers"
    height, width = photo.nail_index.shape
    corners = [plan.matrix @ (x, y, 1) for x in (0, width - 1) for y in (0, height - 1)]
    lengths = [np.hypot(*(a[:2] / a[2] - b[:2] / b[2])) for a in corners for b in corners]
    assert 0.6 * 128 < max(lengths) < 1.9 * 128  # the diagonal: about the crop's side, not the photo's 320
    crop = draw_crop(photo, config, np.random.default_rng(seed))
    seen = {int(f) for f in np.unique(crop.finger) if f >= 0}
    everything = {MIRRORED_FINGER[n.finger_class] if plan.mirrored else n.finger_class for n in photo.nails}
    assert seen <= everything and len(seen) >= len(everything) - 1  # one may be cut off by the shift


def test_the_share_of_whole_views_is_as_asked_for() -> None:
    photo, rng = make_photo(), np.random.default_rng(0)
    config = AugmentConfig(crop_px=64, long_side_px=640, whole_share=0.25)
    shrinks = [draw_plan(photo.nail_index, config, rng).shrink for _ in range(400)]
    whole = np.mean(np.array(shrinks) < 1.2 * 64 / max(photo.nail_index.shape))
    assert 0.17 < whole < 0.33


def test_photos_without_fingers_have_no_need_of_whole_views() -> None:
    config = AugmentConfig(crop_px=64, long_side_px=640, whole_share=1.0)
    crops = [
        draw_crop(make_photo(frozenset({"mask"})), c, np.random.default_rng(3))
        for c in (config, replace(config, whole_share=0.0))
    ]
    assert (crops[0].image == crops[1].image).all()


def test_repainting_touches_the_nails_alone() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((80, 80), np.uint8)
    mask[30:50, 30:50] = 1
    image = rng.integers(60, 200, (80, 80, 3)).astype(np.uint8)
    painted = repaint_nails(image, mask, rng)
    away = cv2.dilate(mask, np.ones((13, 13), np.uint8)) == 0
    assert (painted[away] == image[away]).all() and (painted[mask > 0] != image[mask > 0]).any()
    assert (repaint_nails(image, np.zeros_like(mask), rng) == image).all()


@pytest.mark.parametrize("seed", range(6))
def test_kornia_makes_the_crop_that_opencv_makes(seed: int) -> None:
    photo = make_photo()
    config = AugmentConfig(crop_px=96, long_side_px=160, perspective=0.3)
    plan = replace(
        draw_plan(photo.nail_index, config, np.random.default_rng(seed)), noise=0.0, jpeg_quality=0
    )
    ours, theirs = apply_plan(photo, plan, 96), apply_plan_kornia(photo, plan, 96)
    assert np.abs(ours.image.astype(int) - theirs.image).mean() < 1.0
    assert np.mean(ours.mask != theirs.mask) < 0.002 and np.mean(ours.finger != theirs.finger) < 0.002
    same = ours.finger == theirs.finger
    np.testing.assert_array_equal(ours.direction[:, same], theirs.direction[:, same])
    drawn = draw_crop(photo, replace(config, crops="kornia"), np.random.default_rng(seed))
    assert (drawn.mask == draw_crop(photo, config, np.random.default_rng(seed)).mask).mean() > 0.998


def test_kornia_adds_noise_and_compression_from_the_plan() -> None:
    photo = make_photo()
    plan = replace(make_plan(about_centre(np.eye(2))), noise=8.0, jpeg_quality=40)
    noisy, again = (apply_plan_kornia(photo, plan, 96) for _ in range(2))
    plain = apply_plan_kornia(photo, replace(plan, noise=0.0, jpeg_quality=0), 96)
    assert (noisy.image == again.image).all()
    assert 2 < np.abs(noisy.image.astype(int) - plain.image).mean() < 12
    assert (noisy.finger == plain.finger).all()
