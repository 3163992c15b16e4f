"""Rendered hands: labels follow from the geometry, hands keep their side, folders are whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data.coco import read_coco
from nailcore.data.folder import NailRecord, open_dataset
from nailcore.data.synth import Rendering, Scene, draw_few, render_scene, sample_scene
from nailcore.data.synth.drawing import Drawing, draw
from nailcore.data.synth.geometry import build_hand
from nailcore.data.synth.mesh import load_hand, pose_bones, shape_hand
from nailcore.data.synth.nail_plate import ABOVE_SKIN_MM, COLUMNS, ROWS, fit_plates, outline_half_width
from nailcore.data.synth.raster import rasterise
from nailcore.data.synth.sample import POSES, sample_pose, sample_subject
from nailcore.data.synth.scene import FingerPose, Hand, NailShape, Pose
from nailcore.data.synth.subdivision import subdivide
from nailcore.variant import FINGER_CLASSES, FINGERS

SMALL = {"width_px": 192, "height_px": 144}
REST = Pose(
    name="rest",
    fingers=(FingerPose(bends_deg=(0.0, 0.0, 0.0), spread_deg=0.0),) * 5,
    wrist_bend_deg=0.0,
    wrist_side_deg=0.0,
)


@pytest.fixture(scope="module", params=[0, 3, 5])
def rendering(request: pytest.FixtureRequest) -> Rendering:
    return render_scene(int(request.param), **SMALL)


def _show_back(side: str, *, palm: bool = False) -> Scene:
    """One open hand, fingers up, its back (or palm) square to the camera."""
    scene = sample_scene(4, width_px=320, height_px=240)
    values = scene.hands[0].model_dump() | {
        "side": side, "pose": REST, "pitch_deg": 0.0, "yaw_deg": 180.0 if palm else 0.0,
        "roll_deg": 0.0, "centre_mm": (0.0, 0.0, 700.0),
    }  # fmt: skip
    return scene.model_copy(update={"hands": (Hand.model_validate(values),)})


def _find(drawing: Drawing, finger: str) -> NailRecord:
    return next(nail for nail in drawing.nails if nail.finger is not None and nail.finger.endswith(finger))


def test_equal_seeds_give_equal_pixels_and_labels(rendering: Rendering) -> None:
    again = render_scene(_seed_of(rendering), **SMALL)
    assert np.array_equal(again.image, rendering.image)
    assert np.array_equal(again.nail_index, rendering.nail_index)
    assert again.nails == rendering.nails
    other = render_scene(_seed_of(rendering) + 100, **SMALL)
    assert not np.array_equal(other.image, rendering.image)


def _seed_of(rendering: Rendering) -> int:
    return int(rendering.scene.subject.rsplit("-", 1)[1])


def test_every_nail_is_one_blob_with_its_ends_beside_it(rendering: Rendering) -> None:
    assert len(rendering.nails) >= 3
    blobs, labels = cv2.connectedComponents(rendering.mask.astype(np.uint8), connectivity=8)
    assert blobs - 1 == len(rendering.nails)
    for number, nail in enumerate(rendering.nails, start=1):
        own = rendering.nail_index == number
        assert own.sum() == nail.area_px >= 12
        assert len(np.unique(labels[own])) == 1
        assert nail.finger in FINGER_CLASSES
        assert nail.base is not None
        assert nail.tip is not None
        distance = cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, 3)
        height, width = own.shape
        middle = (np.asarray(nail.base) + np.asarray(nail.tip)) / 2
        length = float(np.hypot(*np.subtract(nail.tip, nail.base)))
        x, y = np.clip(middle.astype(int), 0, [width - 1, height - 1])
        assert distance[y, x] <= 2 + 0.5 * length
    assert len({nail.finger for nail in rendering.nails}) == len(rendering.nails)


def test_the_picture_shows_hands_in_colour(rendering: Rendering) -> None:
    assert rendering.image.shape == (*rendering.nail_index.shape, 3)
    assert rendering.image.dtype == np.uint8
    red, _, blue = rendering.image.reshape(-1, 3).astype(float).T
    assert rendering.image.std() > 8
    assert np.abs(red - blue).mean() > 2


@pytest.mark.parametrize(("side", "thumb_side"), [("right", -1), ("left", 1)])
def test_with_the_palm_away_a_thumb_points_to_the_other_side_of_its_hand(side: str, thumb_side: int) -> None:
    hand = build_hand(_show_back(side).hands[0])
    x = [float(plate.base[0] / plate.base[2]) for plate in hand.plates]
    assert np.sign(x[0] - np.mean(x[1:])) == thumb_side
    assert all(np.diff(x[1:]) * -thumb_side > 0), "index to little finger run away from the thumb"
    assert [plate.label for plate in hand.plates] == [f"{side} {finger}" for finger in FINGERS]


@pytest.mark.parametrize("side", ["right", "left"])
def test_fingers_up_have_arrows_up_and_a_palm_hides_its_nails(side: str) -> None:
    back = draw(_show_back(side))
    assert len(back.nails) >= 4
    for finger in FINGERS[1:]:
        nail = _find(back, finger)
        assert nail.base is not None
        assert nail.tip is not None
        dx, dy = np.subtract(nail.tip, nail.base)
        assert -dy > 2 * abs(dx), "image y points down"
        y, x = np.nonzero(back.nail_index == 1 + back.nails.index(nail))
        reach = (x - nail.base[0]) * dx + (y - nail.base[1]) * dy
        assert reach.mean() > 0, "the blob lies on the tip's side of the base"
    assert draw(_show_back(side, palm=True)).nails == () or all(
        nail.finger == f"{side} thumb" for nail in draw(_show_back(side, palm=True)).nails
    )


def test_a_left_hand_is_the_mirror_image_of_a_right_one() -> None:
    right, left = draw(_show_back("right")), draw(_show_back("left"))
    mirrored = right.nail_index[:, ::-1]
    overlap = ((mirrored > 0) & (left.nail_index > 0)).sum() / ((mirrored > 0) | (left.nail_index > 0)).sum()
    assert overlap > 0.97
    assert {nail.finger for nail in left.nails} == {
        (nail.finger or "").replace("right", "left") for nail in right.nails
    }


def test_normals_of_both_hands_point_outwards() -> None:
    for side in ("right", "left"):
        hand = build_hand(_show_back(side).hands[0])
        for plate in hand.plates[1:]:
            assert plate.normals[:, 2].mean() < -0.5, "towards the camera"
        inside = hand.vertices.mean(axis=0)
        outwards = np.einsum("vi,vi->v", hand.normals, hand.vertices - inside)
        assert (outwards > 0).mean() > 0.6


@pytest.mark.parametrize("shape", ["round", "square", "almond", "coffin", "stiletto"])
def test_plates_lie_just_above_the_skin(shape: NailShape) -> None:
    rest = shape_hand(sample_subject(7)[0])
    for plate in fit_plates(rest, shape, 6.0):
        assert np.isclose(np.linalg.det(plate.frame), 1, atol=1e-5)
        skin = (rest.fine - plate.origin) @ plate.frame.T
        sheet = (plate.vertices - plate.origin) @ plate.frame.T
        middle = sheet.reshape(ROWS, COLUMNS, 3)[ROWS // 3, COLUMNS // 2]
        near = np.argsort(np.hypot(*(skin[:, :2] - middle[:2]).T) + 10 * (skin[:, 2] < -3))[:4]
        gap = middle[2] - skin[near, 2].mean()
        assert ABOVE_SKIN_MM / 4 < gap < 3 * ABOVE_SKIN_MM
        assert plate.length_mm > plate.bed_mm > 5
        assert (plate.tip - plate.base) @ plate.frame[1] > 0.95 * plate.length_mm


@given(
    shape=st.sampled_from(["round", "square", "almond", "coffin", "stiletto"]),
    bed=st.floats(6, 16),
    free=st.floats(0, 14),
    half=st.floats(3, 9),
)
def test_outlines_stay_within_the_bed_and_close_at_the_base(
    shape: NailShape, bed: float, free: float, half: float
) -> None:
    along = np.linspace(0, bed + free, 60)
    width = outline_half_width(shape, along, bed + free, bed, half)
    assert np.isfinite(width).all()
    assert width[0] == 0
    assert (width >= 0).all()
    assert width.max() <= half * 1.001
    if shape in ("round", "almond", "stiletto"):
        assert width[-1] < 1e-6
    else:
        assert width[-1] > 0.3 * half


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(POSES))
def test_posed_bones_are_proper_rotations_that_keep_joints_together(seed: int, name: str) -> None:
    rest = shape_hand(sample_subject(seed)[0])
    bones = pose_bones(rest, sample_pose(np.random.default_rng(seed), name))
    assert np.allclose(np.linalg.det(bones[:, :3, :3]), 1, atol=1e-4)
    for bone, parent in enumerate(load_hand().parents):
        if parent >= 2:  # the forearm turns about the wrist on its own
            head = np.append(rest.joints[bone, 0], 1)
            assert np.allclose(bones[bone] @ head, bones[parent] @ head, atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_rasteriser_agrees_with_a_slow_obvious_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-3, 18, (12, 2)).astype(np.float32)
    depth = rng.uniform(50, 150, 12).astype(np.float32)
    triangles = rng.integers(0, 12, (6, 3)).astype(np.int32)
    found = rasterise(points, depth, triangles, (12, 15))
    expected = np.full(12 * 15, np.inf)
    for tri in triangles:
        matrix = np.vstack([points[tri].T, np.ones(3)]).astype(float)
        if abs(np.linalg.det(matrix)) < 1e-4:
            continue
        for pixel in range(12 * 15):
            weights = np.linalg.solve(matrix, [pixel % 15 + 0.5, pixel // 15 + 0.5, 1])
            if (weights >= 0).all():
                expected[pixel] = min(expected[pixel], 1 / (weights @ (1 / depth[tri])))
    got = np.full(12 * 15, np.inf)
    got[found.pixels] = found.depth_mm
    differing = ~np.isclose(got, expected, rtol=1e-3)
    assert differing.sum() <= 2, "only pixels exactly on an edge may fall either way"
    assert np.allclose(found.weights.sum(axis=1), 1, atol=1e-4)


def test_subdivision_keeps_flat_things_flat_and_has_euler_s_number() -> None:
    cube = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
    matrix, quads = subdivide(cube.astype(np.int32), 8)
    assert matrix.shape == (26, 8)
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-6)
    edges = np.sort(np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
    assert 26 - len(np.unique(edges, axis=0)) + len(quads) == 2


def test_a_written_set_opens_and_its_records_match_its_masks(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "few"
    draw_few(out, (5, 9), progress=lambda done, total: steps.append((done, total)), **SMALL)
    assert steps == [(1, 2), (2, 2)]
    dataset = open_dataset(out)
    assert dataset.card.synthetic
    assert dataset.card.licence == "CC0-1.0"
    assert len(dataset.samples) == 2
    for sample in dataset.samples:
        assert sample.record.labels == ("mask", "finger", "direction")
        assert sample.record.subject
        assert sample.load_mask().sum() == sum(nail.area_px for nail in sample.record.nails)
        assert (sample.load_labels().finger >= 0).sum() == sample.load_mask().sum()
    assert len(read_coco(out / "annotations.json").images) == 2


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        draw_few(tmp_path / "few", (5, 9), progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == []
