"""Fingers and directions named by eye: read strictly, put in whole or not at all; guesses confirmed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nailcore.data import by_eye
from nailcore.data.by_eye import LETTERS, RIGHT, UNKNOWN, Said, name_nails, parse_line
from nailcore.data.coco import CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import ImageRecord, NailRecord, Sample, open_dataset
from nailcore.data.labels import MachineMade
from nailcore.errors import DataError
from nailcore.variant import FINGER_CLASSES

GUESS = MachineMade(by="x 1", labels={"finger": 0.4, "direction": 0.9})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos a and b with two nails each: the first with a guess, of the second nothing is known."""
    (tmp_path / "images").mkdir()
    index = np.zeros((60, 80), np.uint8)
    index[10:30, 10:22] = 1
    index[20:40, 50:62] = 2
    guessed = NailRecord(finger="left ring", base=(16, 29), tip=(16, 11), area_px=240, machine=GUESS)
    unknown = NailRecord(finger=None, base=None, tip=None, area_px=240)
    images = []
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((60, 80, 3), 90, np.uint8))
        images.append(LabelledImage.of(f"{name}.png", index, ImageRecord(nails=(guessed, unknown))))
    write_coco(tmp_path / "annotations.json", build_coco(CocoInfo(description="x"), images))
    return tmp_path


def sample(root: Path, name: str = "a") -> Sample:
    return next(s for s in open_dataset(root).samples if s.name == name)


def test_what_is_named_becomes_truth_and_the_rest_stays(root: Path) -> None:
    done = name_nails(root, "# by me\n\na.png 1=RI@180 2=?@90   # the second by its direction alone\n", "x")
    assert (done.photos, done.fingers, done.directions, done.confirmed, done.unknown) == (1, 1, 2, 0, 1)
    first, second = sample(root).load_labels().nails
    assert first.finger == "right index" and first.machine is None
    assert first.base is not None and first.tip is not None and first.tip[1] > first.base[1]  # downwards
    assert second.finger is None and second.base is not None and second.tip is not None
    assert second.tip[0] > second.base[0] and second.tip[1] == second.base[1]  # to the right
    assert sample(root).record.labels == ("mask", "finger", "direction")
    assert sample(root, "b").record.labels == ("mask",)


def test_a_guess_is_confirmed_as_a_whole_or_replaced_in_part(root: Path) -> None:
    assert name_nails(root, "a 1=ok\nb 1=LP", "x").confirmed == 1
    machine = sample(root).record.nails[0].machine
    assert machine == GUESS.model_copy(update={"confirmed": True})
    assert sample(root).load_labels().nails[0].finger == "left ring"
    other = sample(root, "b").record.nails[0]  # its direction is a guess still
    assert other.finger == "left pinky" and other.machine is not None
    assert set(other.machine.labels) == {"direction"} and not other.machine.confirmed
    assert sample(root, "b").record.labels == ("mask", "finger")
    name_nails(root, "a 1=?@?", "x")
    assert sample(root).record.labels == ("mask",) and sample(root).record.nails[0].machine is None


def test_a_confirmed_guess_that_is_named_otherwise_is_a_person_s(root: Path) -> None:
    name_nails(root, "a 1=ok", "x")
    name_nails(root, "a 1=LP", "x")
    nail = sample(root).load_labels().nails[0]
    assert nail.finger == "left pinky" and nail.tip == (16, 11)
    assert nail.machine is not None and nail.machine.confirmed and set(nail.machine.labels) == {"direction"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1=LI\nc 1=LI", "line 2: there is no photo 'c'"),
        ("a 3=LI", "'a' has 2 nails, and no 3"),
        ("a 0=LI", "'a' has 2 nails, and no 0"),
        ("a 2=ok", "nail 2 carries no guess"),
        ("a 1=LI\na 2=LI", "line 2: 'a' is named twice"),
        ("a 1=LI 1=LM", "nail 1 is named twice"),
        ("a 1=XX", "'1=XX' is not understood. Expected NUMBER=FINGER@DEGREES"),
        ("a 1=", "'1=' is not understood"),
        ("a 1=LI@", "is not understood"),
        ("a 1=LI@nan", "is not understood"),
        ("a 1=ok@90", "has its direction already"),
        ("a", "nothing is said of 'a'"),
    ],
)
def test_one_wrong_line_and_nothing_is_written(root: Path, text: str, message: str) -> None:
    before = (root / "annotations.json").read_bytes()
    with pytest.raises(DataError) as raised:
        name_nails(root, f"b 1=LT@20\n{text}" if "line" not in message else text, "names.txt")
    assert message in raised.value.message and "names.txt, line" in raised.value.message
    assert (root / "annotations.json").read_bytes() == before


@pytest.mark.parametrize("name", ["WhatsApp Image 1.png", "a#1.jpg", "two  spaces", "3.png"])
def test_any_name_of_a_photo_can_be_written(name: str) -> None:
    wanted = (name, (Said(1, "left thumb", 60.0), Said(2, None, 5.0)))
    assert parse_line(f"  {name}   1=LT@60 2=@5  # a comment 3=LI") == wanted


def test_ids_that_another_tool_wrote_as_text_are_found(root: Path) -> None:
    path = root / "annotations.json"
    data = json.loads(path.read_text())
    for entry in data["annotations"]:
        entry["id"] = str(entry["id"])
    path.write_text(json.dumps(data))
    assert name_nails(root, "a 2=LI@0", "x").fingers == 1


def test_other_tools_keys_are_kept(root: Path) -> None:
    path = root / "annotations.json"
    data = json.loads(path.read_text())
    data["licenses"] = [{"id": 1}]
    data["annotations"][1]["score"] = 0.5
    path.write_text(json.dumps(data))
    name_nails(root, "a 2=LI@0", "x")
    data = json.loads(path.read_text())
    assert data["licenses"] == [{"id": 1}] and data["annotations"][1]["score"] == 0.5
    with pytest.raises(DataError, match="data import"):
        name_nails(root / "images", "a 1=LI", "x")


FINGERS = st.sampled_from([None, UNKNOWN, *FINGER_CLASSES])
ANGLES = st.one_of(st.none(), st.just(UNKNOWN), st.integers(-720, 720).map(float))


@given(st.lists(st.tuples(FINGERS, ANGLES).filter(lambda pair: pair != (None, None)), min_size=1, max_size=9))
def test_lines_are_read_as_they_are_written(said: list[tuple[str | None, float | str | None]]) -> None:
    letters = {name: letter for letter, name in LETTERS.items()}

    def write(finger: str | None, angle: float | str | None) -> str:
        degrees = angle if isinstance(angle, str) else "" if angle is None else f"{angle:g}"
        return (letters.get(finger, finger) if finger else "") + (f"@{degrees}" if degrees else "")

    words = [f"{number}={write(*pair)}" for number, pair in enumerate(said, start=1)]
    wanted = tuple(Said(n, f, a) for n, (f, a) in enumerate(said, start=1))
    assert parse_line(" ".join(["hand.jpg", *words])) == ("hand.jpg", wanted)
    assert parse_line("hand.jpg 1=OK") == ("hand.jpg", (Said(1, RIGHT),))


@given(st.floats(0, 360))
def test_the_direction_is_that_of_a_clock(degrees: float) -> None:
    disc = np.zeros((81, 81), np.uint8)
    cv2.circle(disc, (40, 40), 30, 1, -1)
    entry: dict[str, Any] = {"category_id": 11}
    counts = dict.fromkeys(("fingers", "directions", "confirmed", "unknown"), 0)
    by_eye._put(entry, Said(1, None, degrees), disc > 0, counts)
    x0, y0, _, x1, y1, _ = entry["keypoints"]
    found = math.degrees(math.atan2(x1 - x0, y0 - y1))
    assert abs((found - degrees + 180) % 360 - 180) < 0.1
