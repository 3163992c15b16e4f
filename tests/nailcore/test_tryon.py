"""Post-processing maths: components against a flood fill, angles, fingers, extents, masks on the photo."""

from __future__ import annotations

from collections import deque
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.preprocess import Letterbox
from nailcore.tryon import (
    Nail,
    angle_of,
    angular_error_deg,
    find_nails,
    input_to_photo,
    label_components,
    mask_on_photo,
    mean_direction,
    nail_mask,
    nail_score,
    photo_to_input,
)
from nailcore.tryon.naming import MIN_CHANCE, SECOND_HAND_NATS, STEPS_PER_NAT, name_fingers

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
SEEDS = st.integers(0, 10_000)


def flood_fill(mask: Mask) -> npt.NDArray[np.int32]:
    """The slow and obvious labelling: raster scan, queue, eight neighbours."""
    labels = np.zeros(mask.shape, np.int32)
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count += 1
        labels[start] = count
        queue = deque([start])
        while queue:
            row, column = queue.popleft()
            for y in range(max(row - 1, 0), min(row + 2, mask.shape[0])):
                for x in range(max(column - 1, 0), min(column + 2, mask.shape[1])):
                    if mask[y, x] and not labels[y, x]:
                        labels[y, x] = count
                        queue.append((y, x))
    return labels


def logits_of(mask: Mask, x: float = 0.0, y: float = -1.0, finger: int = 3) -> tuple[F32, F32, F32]:
    """Confident logits of a mask, every cell with one direction and finger."""
    margin = np.where(mask, 4.0, -4.0).astype(np.float32)
    fingers = np.zeros((10, *mask.shape), np.float32)
    fingers[finger] = 5
    direction = np.empty((2, *mask.shape), np.float32)
    direction[0], direction[1] = x, y
    return np.stack([-margin, margin]), fingers, direction


def nails_of(mask: Mask, *, min_area_px: int = 1, x: float = 0.0, y: float = -1.0) -> list[Nail]:
    return find_nails(*logits_of(mask, x, y), min_area_px=min_area_px)


def random_logits(seed: int, side: int = 24) -> tuple[F32, F32, F32]:
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(2, side // 3, side // 3)).repeat(3, axis=1).repeat(3, axis=2)
    fgbg = (4 * smooth + rng.normal(size=(2, side, side))).astype(np.float32)
    return (
        fgbg,
        rng.normal(size=(10, side, side)).astype(np.float32),
        rng.normal(size=(2, side, side)).astype(np.float32),
    )


# -- components -----------------------------------------------------------------------------------
@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    share=st.sampled_from([0.2, 0.4, 0.6, 0.9]),
    seed=SEEDS,
)
def test_components_are_those_of_a_flood_fill(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(label_components(mask), flood_fill(mask))


def test_cells_that_touch_at_a_corner_are_one_nail() -> None:
    assert len(nails_of(np.eye(6, dtype=bool))) == 1
    assert len(nails_of(np.eye(6, dtype=bool)[:, ::2])) == 3


def test_an_empty_mask_has_no_nails() -> None:
    assert nails_of(np.zeros((8, 8), bool)) == []
    assert not label_components(np.zeros((3, 4), bool)).any()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_flips_of_the_image_keep_the_nails_and_move_their_numbers_alone(seed: int) -> None:
    logits = random_logits(seed)
    mirrored = [values[:, :, ::-1] for values in logits]
    mirrored[2] = mirrored[2] * np.array([-1, 1], np.float32)[:, None, None]
    side = logits[0].shape[2]

    def key(nail: Nail, sign: int) -> tuple[float, ...]:
        x = nail.centroid[0] if sign > 0 else side - 1 - nail.centroid[0]
        assert nail.direction is not None
        return (
            nail.area,
            round(x, 6),
            round(nail.centroid[1], 6),
            nail.finger,
            round(sign * nail.direction.x, 6),
        )

    found = sorted(key(n, 1) for n in find_nails(*logits, min_area_px=1))
    assert found == pytest.approx(sorted(key(n, -1) for n in find_nails(*mirrored, min_area_px=1)), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_the_classes_decides_nothing_but_their_number(seed: int) -> None:
    fgbg, finger, direction = random_logits(seed)
    within = np.random.default_rng(seed).permutation(5)
    order = np.roll(np.concatenate([within, within + 5]), 5 * (seed % 2))  # hands stay hands
    before = find_nails(fgbg, finger, direction, min_area_px=2)
    after = find_nails(fgbg, finger[order], direction, min_area_px=2)
    assert [n.finger for n in before] == [int(order[n.finger]) for n in after]
    assert [n.finger_score for n in before] == pytest.approx([n.finger_score for n in after])


def test_small_components_are_dropped_at_the_limit() -> None:
    mask = np.zeros((10, 10), bool)
    mask[1:3, 1:3] = mask[6, 2:5] = True  # 4 and 3 cells
    assert [n.area for n in nails_of(mask, min_area_px=3)] == [4, 3]
    assert [n.area for n in nails_of(mask, min_area_px=4)] == [4]
    assert nails_of(mask, min_area_px=5) == []


# -- one known nail ---------------------------------------------------------------------------------
def test_a_known_nail_is_described_in_full() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:13, 10:14] = True  # 8 rows, 4 columns, pointing up
    (nail,) = nails_of(mask)
    assert (nail.left, nail.top, nail.width, nail.height, nail.area) == (10, 5, 4, 8, 32)
    assert nail.centroid == (11.5, 8.5)
    assert nail.angle_deg == pytest.approx(-90)
    assert nail.base == pytest.approx((11.5, 12.5)) and nail.tip == pytest.approx((11.5, 4.5))
    assert (nail.finger, nail.finger_name) == (3, "left ring")
    assert nail.direction is not None and nail.direction.coherence == pytest.approx(1)
    assert nail.score == pytest.approx(1 / (1 + np.exp(-8))) and nail.finger_score > 0.9


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(-179, 179), long=st.floats(6, 14), wide=st.floats(2, 4))
def test_base_and_tip_span_an_ellipse_along_its_axis(angle: float, long: float, wide: float) -> None:
    rows, columns = np.mgrid[:40, :40] - 19.5
    x, y = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = columns * x + rows * y, -columns * y + rows * x
    (nail,) = nails_of((along / long) ** 2 + (across / wide) ** 2 <= 1, x=x, y=y)
    assert nail.base is not None and nail.tip is not None
    assert np.hypot(*np.subtract(nail.tip, nail.base)) == pytest.approx(2 * long, abs=2.5)
    assert float(angular_error_deg(angle_of(*np.subtract(nail.tip, nail.base)), angle)) < 1e-3


# -- directions -------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, turn=st.floats(-360, 360))
def test_turning_every_vector_turns_the_mean_by_as_much(seed: int, turn: float) -> None:
    rng = np.random.default_rng(seed)
    x, y, weights = rng.normal(1, 1, 50), rng.normal(0, 1, 50), rng.random(50)
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    before, after = mean_direction(x, y, weights), mean_direction(c * x - s * y, s * x + c * y, weights)
    assert before is not None and after is not None
    assert angular_error_deg(after.angle_deg, before.angle_deg + turn) < 1e-6
    assert after.coherence == pytest.approx(before.coherence)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, quarters=st.integers(1, 3))
def test_turning_the_image_by_quarters_turns_every_angle(seed: int, quarters: int) -> None:
    fgbg, finger, direction = random_logits(seed)
    c, s = np.cos(np.pi / 2 * quarters), -np.sin(np.pi / 2 * quarters)  # rot90 is counter-clockwise, y down
    turned = np.stack([c * direction[0] - s * direction[1], s * direction[0] + c * direction[1]])
    images = [np.rot90(v, quarters, axes=(1, 2)) for v in (fgbg, finger, turned.astype(np.float32))]
    before, after = find_nails(fgbg, finger, direction, min_area_px=3), find_nails(*images, min_area_px=3)
    assert sorted(n.area for n in before) == sorted(n.area for n in after)
    for nail in before:
        assert nail.angle_deg is not None
        errors = [
            angular_error_deg(n.angle_deg or 0.0, nail.angle_deg - 90 * quarters)
            for n in after
            if n.area == nail.area and n.finger == nail.finger
        ]
        assert min(float(e) for e in errors) < 1e-3


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_lengths_of_predictions_and_the_scale_of_the_weights_mean_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, w = rng.normal(1, 1, 30), rng.normal(0, 1, 30), rng.random(30) + 0.01
    lengths = rng.uniform(0.1, 9, 30)
    one, other = mean_direction(x, y, w), mean_direction(x * lengths, y * lengths, 7 * w)
    assert one is not None and other is not None
    assert angular_error_deg(one.angle_deg, other.angle_deg) < 1e-6


def test_the_mean_is_weighted_and_does_not_wrap_around() -> None:
    ends = np.radians([179.0, -179.0])
    across = mean_direction(np.cos(ends), np.sin(ends), np.ones(2))
    assert across is not None and angular_error_deg(across.angle_deg, 180) < 1e-9
    heavy = mean_direction(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([3.0, 1.0]))
    assert heavy is not None and heavy.angle_deg == pytest.approx(np.degrees(np.arctan2(1, 3)))


def test_directions_that_cancel_out_have_no_mean() -> None:
    x, y = np.array([1.0, -1.0]), np.array([0.0, 0.0])
    assert mean_direction(x, y, np.ones(2)) is None
    assert mean_direction(np.zeros(3), np.zeros(3), np.ones(3)) is None
    assert mean_direction(x, y, np.zeros(2)) is None
    (nail,) = nails_of(np.ones((3, 3), bool), x=0, y=0)
    assert (nail.direction, nail.angle_deg, nail.base, nail.tip) == (None, None, None, None)


def test_angles_are_in_image_axes_and_errors_on_the_circle() -> None:
    assert angle_of([1, 0, -1, 0], [0, 1, 0, -1]).tolist() == [0, 90, 180, -90]
    assert angle_of(-1.0, -0.0) == 180
    assert angular_error_deg([179, 10, 0], [-179, 350, 180]).tolist() == [2, 20, 180]


# -- scores, fingers, bad input ---------------------------------------------------------------------
def test_the_score_is_the_softmax_and_survives_huge_logits() -> None:
    fgbg = np.array([[[0, 3e4, -3e4, 1]], [[0, -3e4, 3e4, 2]]], np.float32)
    assert nail_score(fgbg)[0] == pytest.approx([0.5, 0, 1, 1 / (1 + np.exp(-1))])
    assert nail_mask(fgbg).tolist() == [[False, False, True, True]]  # a tie is background


def test_the_finger_is_voted_by_probability_not_by_logits() -> None:
    mask = np.ones((1, 4), bool)
    fgbg, finger, direction = logits_of(mask)
    finger[:] = 0
    finger[7, 0, 0] = 1000  # one cell, certain beyond measure: still one vote
    finger[2, 0, 1:] = 4
    (nail,) = find_nails(fgbg, finger, direction, min_area_px=1)
    assert nail.finger == 2


def test_what_does_not_fit_is_refused() -> None:
    fgbg, finger, direction = logits_of(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="finger"):
        find_nails(fgbg, finger[:9], direction, min_area_px=1)
    with pytest.raises(ValueError, match="direction"):
        find_nails(fgbg, finger, direction[:, :3], min_area_px=1)
    with pytest.raises(ValueError, match="min_area_px"):
        find_nails(fgbg, finger, direction, min_area_px=0)
    fgbg[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="fgbg holds NaN"):
        find_nails(fgbg, finger, direction, min_area_px=1)


# -- back to the photograph -------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(height=st.integers(30, 900), width=st.integers(30, 900), side=st.sampled_from([96, 288]), seed=SEEDS)
def test_points_go_to_the_photo_and_back(height: int, width: int, side: int, seed: int) -> None:
    box = Letterbox(height, width, side, side)
    points = np.random.default_rng(seed).uniform(0, side / 4, (5, 2))
    assert photo_to_input(input_to_photo(points, box, 4), box, 4) == pytest.approx(points)
    # The photo's own corners are the letterboxed rectangle's.
    corners = photo_to_input([[-0.5, -0.5], [width - 0.5, height - 0.5]], box, 4)
    (h, w), (top, left) = box.scaled, box.origin
    assert (corners + 0.5) * 4 == pytest.approx(np.array([[left, top], [left + w, top + h]]))


def test_mask_and_points_agree_on_where_a_nail_is() -> None:
    mask = np.zeros((72, 72), bool)
    mask[30:42, 20:28] = True
    box = Letterbox(700, 400, 288, 288)
    on_photo = mask_on_photo(logits_of(mask)[0], box, 4)
    rows, columns = np.nonzero(on_photo)
    (nail,) = nails_of(mask)
    assert input_to_photo(nail.centroid, box, 4) == pytest.approx([columns.mean(), rows.mean()], abs=1)
    assert on_photo.sum() == pytest.approx(mask.sum() * 16 / box.scale**2, rel=0.05)


# -- fingers named together -------------------------------------------------------------------------
def _enumerate_names(chances: npt.NDArray[np.float64]) -> list[int]:
    """The slow, obvious reference: every way to give each nail its own finger."""
    scores = np.floor(np.log(chances + MIN_CHANCE) * STEPS_PER_NAT + 0.5).astype(int)
    best, names = -np.inf, []
    for way in permutations(range(10), len(chances)):
        both = len({name // 5 for name in way}) > 1
        total = sum(scores[i, name] for i, name in enumerate(way)) - both * SECOND_HAND_NATS * STEPS_PER_NAT
        if total > best:
            best, names = total, list(way)
    return names


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_fingers_are_named_as_by_trying_every_way(nails: int, seed: int) -> None:
    chances = np.random.default_rng(seed).dirichlet(np.full(10, 0.4), nails)
    assert name_fingers(chances) == _enumerate_names(chances)


def test_a_doubtful_nail_follows_its_neighbours() -> None:
    chances = np.full((3, 10), 0.01)
    chances[0, 1] = chances[1, 2] = 0.9  # left index, left middle
    chances[2, 3], chances[2, 8] = 0.4, 0.5  # by itself: the right ring
    assert chances[2].argmax() == 8 and name_fingers(chances) == [1, 2, 3]
    chances[2] = chances[0]  # two nails that look the same: a tie, and the earlier one gets the lower finger
    assert name_fingers(chances) == [0, 2, 1]
    chances[2] = 1e-9
    chances[2, 5] = 1  # surely another hand's thumb
    assert name_fingers(chances) == [1, 2, 5]


def test_more_nails_than_two_hands_have_are_named_one_by_one() -> None:
    chances = np.full((11, 10), 0.05)
    chances[:, 4] = 0.5
    assert name_fingers(chances) == [4] * 11 and len(set(name_fingers(chances[:10]))) == 10
    with pytest.raises(ValueError, match=r"expected \(n, 10\)"):
        name_fingers(chances[:, :9])
    with pytest.raises(ValueError, match="NaN"):
        name_fingers(chances * np.nan)
