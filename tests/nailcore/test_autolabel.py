"""Guessed fingers and directions: voting, both hands, what is never touched, and a worker that fails."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data import autolabel, hands_worker
from nailcore.data.autolabel import Hand, autolabel_folder, guess_nails, read_hands
from nailcore.data.coco import CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import ImageRecord, NailRecord, open_dataset
from nailcore.errors import DataError, MissingToolError
from nailcore.variant import FINGERS

VIEWS = [view[0] for view in hands_worker.VIEWS]


def make_points(left: float = 0.0, mirrored: bool = False) -> list[list[float]]:
    """21 landmarks of an upright hand: wrist below, fingers 20 px apart, the thumb first."""
    points = [[50.0, 150.0]]
    for finger in range(5):
        x = 10.0 + 20 * finger
        points += [[x, y] for y in (100.0, 80.0, 60.0, 40.0)]
    return [[left + (100 - x if mirrored else x), y] for x, y in points]


CENTRES = [(10.0 + 20 * k, 46.0) for k in range(5)]  # 0.7 of the way from joint (60) to tip (40)


def answer(label: str = "Left", views: list[str] = VIEWS, **more: Any) -> list[dict[str, Any]]:
    return [{"view": v, "label": label, "score": 1.0, "points": make_points(**more)} for v in views]


def test_mediapipes_left_is_the_photographs_right() -> None:
    found = guess_nails(CENTRES, read_hands(answer("Left")))
    assert [g.finger for g in found if g] == [f"right {name}" for name in FINGERS]
    for guess in found:
        assert guess is not None and guess.finger_confidence == guess.direction_confidence == 1.0
        assert guess.direction == pytest.approx((0.0, -1.0))
    other = guess_nails(CENTRES, read_hands(answer("Right")))[0]
    assert other is not None and other.finger == "left thumb"


def test_confidence_is_the_share_of_views_and_of_nearness() -> None:
    half = guess_nails(CENTRES, read_hands(answer(views=VIEWS[:3])))[1]
    assert half is not None and half.finger_confidence == pytest.approx(0.5)
    palm = np.hypot(50 - 50, 150 - 100)  # wrist to the knuckle of the middle finger
    away = guess_nails([(30.0, 46 - 0.5 * autolabel.NEAR * palm)], read_hands(answer()))[0]
    assert away is not None and away.finger_confidence == pytest.approx(0.5)
    assert guess_nails([(30.0, 46 - 1.01 * autolabel.NEAR * palm)], read_hands(answer())) == [None]
    assert guess_nails(CENTRES, read_hands(answer(views=VIEWS[:1])))[0] is not None
    weak = [h | {"score": 0.5} for h in answer(views=VIEWS[:1])]
    assert guess_nails(CENTRES, read_hands(weak)) == [None] * 5
    assert guess_nails(CENTRES, []) == [None] * 5 and guess_nails([], read_hands(answer())) == []


def test_views_that_disagree_vote() -> None:
    hands = read_hands(answer("Left", VIEWS[:4]) + answer("Right", VIEWS[4:]))
    guess = guess_nails(CENTRES, hands)[2]
    assert guess is not None and guess.finger == "right middle"
    assert guess.finger_confidence == pytest.approx(4 / 6) and guess.direction_confidence == pytest.approx(1)


def test_two_hands_on_one_photo_keep_their_own_nails() -> None:
    hands = read_hands(answer("Left") + answer("Right", left=300.0, mirrored=True))
    centres = CENTRES + [(400 - x, y) for x, y in CENTRES]
    found = guess_nails(centres, hands)
    expected = [f"{side} {name}" for side in ("right", "left") for name in FINGERS]
    assert [g.finger for g in found if g] == expected


def test_one_finger_on_two_nails_needs_two_hands_in_one_view() -> None:
    centres = [*CENTRES, (310.0, 46.0)]
    two = read_hands(answer("Left") + answer("Left", left=300.0))
    assert [g.finger for g in guess_nails(centres, two) if g][::5] == ["right thumb"] * 2
    turns = read_hands(answer("Left", VIEWS[:4]) + answer("Left", VIEWS[4:], left=300.0))
    found = guess_nails(centres, turns)
    assert found[0] is not None and found[0].finger == "right thumb"
    assert found[5] is not None and found[5].finger is None and found[5].direction is not None


# -- the folder --------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One photo with five nails; the second one has a finger and a direction that a person gave."""
    worker = tmp_path / "worker"
    worker.mkdir()
    shutil.copyfile(Path(__file__).with_name("fake_hands.py"), worker / "fake.py")
    monkeypatch.setattr(autolabel, "WORKER", worker / "fake.py")
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    cv2.imwrite(str(root / "images" / "a.png"), np.full((160, 110, 3), 90, np.uint8))
    index = np.zeros((160, 110), np.uint8)
    for k in range(5):
        index[40:53, 20 * k + 7 : 20 * k + 14] = k + 1
    unknown = NailRecord(finger=None, base=None, tip=None, area_px=91)
    human = NailRecord(finger="left pinky", base=(30, 41), tip=(30, 52), area_px=91)
    record = ImageRecord(labels=("mask",), nails=(unknown, human, unknown, unknown, unknown))
    write_coco(root / "annotations.json", build_coco(CocoInfo(), [LabelledImage.of("a.png", index, record)]))
    write_answers(root, {"a": {"hands": answer("Left")}})
    return root


def write_answers(root: Path, photos: dict[str, Any], version: str = "0.10.21") -> None:
    path = root.parent / "worker" / "answers.json"
    path.write_text(json.dumps({"version": version, "photos": photos}))


def run(root: Path) -> autolabel.AutoLabelled:
    return autolabel_folder(root, Path(sys.executable), root / ".nailtool" / "hands.jsonl")


def test_guesses_are_written_and_what_people_said_is_kept(folder: Path) -> None:
    data = json.loads((folder / "annotations.json").read_text())
    data["annotations"][0]["score"] = "of another tool"
    (folder / "annotations.json").write_text(json.dumps(data))
    done = run(folder)
    assert (done.photos, done.nails, done.with_hands) == (1, 5, 1)
    assert (done.fingers, done.directions, done.kept) == (4, 4, 1)
    sample = open_dataset(folder).samples[0]
    first, second = sample.record.nails[:2]
    assert first.finger == "right thumb" and first.machine is not None
    assert first.machine.by == "mediapipe 0.10.21 hands" and (first.machine.labels["finger"] or 0) > 0.9
    assert first.base == (10.5, 52.5) and first.tip == (10.5, 40.5)
    assert second.finger == "left pinky" and second.machine is None and second.base == (30, 41)
    truth = sample.load_labels()
    assert truth.labels == {"mask"} and (truth.finger == -1).all() and not truth.direction.any()
    written = json.loads((folder / "annotations.json").read_text())["annotations"]
    assert written[0]["score"] == "of another tool" and "machine" not in written[1]
    assert run(folder) == done  # from the cache, and to the same bytes
    assert json.loads((folder / "annotations.json").read_text())["annotations"] == written


def test_old_guesses_go_and_confirmed_ones_stay(folder: Path) -> None:
    run(folder)
    data = json.loads((folder / "annotations.json").read_text())
    data["annotations"][2]["machine"]["confirmed"] = True
    (folder / "annotations.json").write_text(json.dumps(data))
    write_answers(folder, {"a": {"hands": []}}, version="0.10.20")  # another version is asked again
    done = run(folder)
    assert (done.fingers, done.kept) == (0, 2)
    first, _, third = open_dataset(folder).samples[0].record.nails[:3]
    assert first.finger is None and first.base is None and first.machine is None
    assert third.finger == "right middle" and third.machine is not None and third.machine.confirmed


@pytest.mark.parametrize(
    ("photo", "error", "message"),
    [
        ("die", MissingToolError, "last words"),
        ({"error": "not a readable image"}, DataError, r"a\.png: not a readable image"),
    ],
)
def test_a_worker_that_fails_is_named_and_the_labels_stay(
    folder: Path, photo: Any, error: type[Exception], message: str
) -> None:
    before = (folder / "annotations.json").read_bytes()
    write_answers(folder, {"a": photo})
    with pytest.raises(error, match=message):
        run(folder)
    assert (folder / "annotations.json").read_bytes() == before


def test_a_python_without_mediapipe_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "c.jsonl"
    with pytest.raises(MissingToolError, match=r"cannot be run.*\n.*pip install mediapipe==0\.10\.21"):
        autolabel_folder(folder, tmp_path / "no-python", cache)
    monkeypatch.setattr(autolabel, "WORKER", Path(hands_worker.__file__))
    with pytest.raises(MissingToolError, match=r"No module named 'mediapipe'"):
        autolabel_folder(folder, Path(sys.executable), cache)
    (folder / "annotations.json").unlink()
    with pytest.raises(DataError, match="data import"):
        autolabel_folder(folder, Path(sys.executable), cache)


# -- the worker's own geometry -----------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(
    view=st.sampled_from(hands_worker.VIEWS),
    size=st.tuples(st.integers(4, 30), st.integers(4, 30)),
    seed=st.integers(0, 99),
)
def test_points_of_a_view_lead_back_to_the_photo(view: Any, size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    image[y, x] = 255
    seen, back = hands_worker.make_view(np, image, *view[1:])
    assert seen.shape[0] == seen.shape[1]
    (row,), (column,) = np.nonzero(seen[..., 0] == 255)
    assert back[:, :2] @ (column + 0.5, row + 0.5) + back[:, 2] == pytest.approx((x + 0.5, y + 0.5))


def test_a_mirrored_view_names_the_other_hand() -> None:
    mark = SimpleNamespace(x=0.25, y=0.5)
    found = SimpleNamespace(
        multi_hand_landmarks=[SimpleNamespace(landmark=[mark] * 21)],
        multi_handedness=[SimpleNamespace(classification=[SimpleNamespace(label="Left", score=0.9)])],
    )
    back = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    plain, mirrored = (hands_worker.read_hands(np, found, "v", (40, 20), back, m)[0] for m in (False, True))
    assert (plain["label"], mirrored["label"]) == ("Left", "Right") and plain["points"][0] == [10, 10]
    assert Hand("v", "left", 0.9, np.array(plain["points"])).palm_px == 0
    assert (
        hands_worker.read_hands(
            np, SimpleNamespace(multi_hand_landmarks=None, multi_handedness=None), "v", (1, 1), back, False
        )
        == []
    )
