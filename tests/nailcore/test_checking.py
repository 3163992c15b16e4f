"""Checks of a data folder: a sound one passes, and each planted defect is found under its own kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nailcore.data.checking import KINDS, CheckReport, check_folder
from nailcore.data.coco import UNKNOWN_ID, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.copies import find_copies, hash_photo, join_groups
from nailcore.data.folder import SPLITS_DIR, SplitFile, open_dataset
from nailcore.data.labels import ImageRecord, MachineMade, NailRecord
from nailcore.data.shapes import encode_rle
from nailcore.data.synth import draw_few
from nailcore.errors import DataError
from tests.nailcore import foreign_files as files

Data = dict[str, Any]
FINGERS = ("index", "middle", "ring", "pinky")


def make_photo(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(96, 128, 3): smooth blobs, unlike those of any other seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos of three people, each with four fingers of a left hand; split by person."""
    images = []
    for seed, who in enumerate(("anna", "ben", "cleo")):
        path = tmp_path / "images" / f"{who}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), make_photo(seed))
        index = np.zeros((96, 128), np.uint8)
        nails = []
        for k, finger in enumerate(FINGERS, start=1):
            left = 25 * k
            index[20:40, left : left + 12] = k
            nails.append(
                NailRecord(finger=f"left {finger}", base=(left + 6, 39), tip=(left + 6, 21), area_px=240)
            )
        record = ImageRecord(labels=("mask", "finger", "direction"), subject=who, nails=tuple(nails))
        images.append(LabelledImage.of(path.name, index, record))
    write_coco(tmp_path / "annotations.json", build_coco(CocoInfo(description="x"), images))
    split = {
        "dataset": "x",
        "note": "",
        "groups": {who: [who] for who in ("anna", "ben", "cleo")},
        "held_out": ["ben", "cleo"],
        "validation": ["ben"],
    }
    (tmp_path / "split.json").write_text(json.dumps(split))
    return tmp_path


def change(folder: Path, edit: Callable[[Data], None]) -> CheckReport:
    path = folder / "annotations.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return check_folder(folder)


def kinds(report: CheckReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_a_sound_folder_passes(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_folder(folder, progress=lambda done, total: seen.append((done, total)))
    assert not report.findings
    assert (report.photos, report.nails, report.people) == (3, 12, 3)
    assert report.parts == {"train": 1, "validation": 1, "test": 1} and seen[-1] == (3, 3)


def _square(x: float, y: float, side: float = 12) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def _inverted() -> Data:
    mask = np.ones((96, 128), bool)
    mask[20:40, 25:37] = False
    return encode_rle(mask).model_dump(mode="json")


def _ring() -> Data:
    mask = np.zeros((96, 128), bool)
    mask[60:90, 60:90] = True
    mask[64:86, 64:86] = False
    return encode_rle(mask).model_dump(mode="json")


SHAPES: list[tuple[str, Any, str]] = [
    ("bow-tie", [[25, 20, 37, 40, 37, 20, 25, 40]], "nail inside out"),
    ("inverted mask", _inverted(), "nail inside out"),
    ("ring", _ring(), "nail inside out"),
    ("hole as a polygon", [_square(20, 60, 30), _square(25, 65)], "nail inside out"),
    ("outside", [[120, 60, 150, 60, 150, 80, 120, 80]], "nail outside the photo"),
    ("far outside", [[200, 200, 220, 200, 220, 220]], "nail empty"),
    ("no area", [[30, 30, 40, 30, 50, 30]], "nail empty"),
    ("tiny", [_square(60, 60, 3)], "nail tiny"),
    ("copy of the next", [[50, 20, 62, 20, 62, 40, 50, 40]], "nails overlap"),
    ("run lengths of another size", {"size": [9, 9], "counts": [81]}, "entry not valid"),
    ("damaged run lengths", {"size": [96, 128], "counts": "0" * 5}, "entry not valid"),
]


@pytest.mark.parametrize(("shape", "kind"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_shapes_that_cannot_be_are_found(folder: Path, shape: Any, kind: str) -> None:
    def edit(data: Data) -> None:
        data["annotations"][0] |= {"segmentation": shape, "keypoints": [0] * 6}

    report = change(folder, edit)
    found = [f for f in report.findings if f.kind == kind]
    assert found and "annotation 1" in found[0].what and found[0].file == "anna.png"
    assert report.problems


@pytest.mark.parametrize(
    ("pair", "named", "expected"),
    [
        (True, "", ["two nails in one?"]),
        (False, "", []),
        (True, "by a person", []),
        (True, "by a machine", ["two nails in one?", "machine-made"]),
    ],
)
def test_nails_that_touch_in_a_mask_are_pointed_out(
    folder: Path, pair: bool, named: str, expected: list[str]
) -> None:
    """Two ellipses of 20 by 36 px side by side, one of them alone, and the two under a finger's name."""
    mask = np.zeros((96, 128), np.uint8)
    for x, y in ((30, 76), (50, 70))[: 1 + pair]:
        cv2.ellipse(mask, (x, y), (10, 18), 0, 0, 360, 1, -1)

    def edit(data: Data) -> None:
        shape = encode_rle(mask.astype(bool)).model_dump(mode="json")
        data["annotations"][0] |= {"segmentation": shape, "keypoints": [0] * 6}
        if not named:
            data["annotations"][0]["category_id"] = UNKNOWN_ID
        if named == "by a machine":
            guess = MachineMade(by="x 1", labels={"finger": 0.9})
            data["annotations"][0]["machine"] = guess.model_dump(mode="json")

    report = change(folder, edit)
    assert kinds(report) == expected and not report.problems


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ([[25, 40, 25, 20, 37, 20, 37, 40]], "the other way round"),
        ([[25, 20, 37, 20, 37, 40, 25, 40, 25, 20]], "closed"),
        ([[25, 20, 31, 20, 31, 20, 37, 20, 37, 40, 25, 40]], "a point twice"),
        ([[25, 20, 37, 20, 37, 40, 25, 40], _square(25, 60, 8)], "two pieces"),
    ],
)
def test_sound_shapes_are_not_complained_of(folder: Path, shape: Any, why: str) -> None:
    report = change(folder, lambda data: data["annotations"][0].update(segmentation=shape))
    assert not report.problems, (why, report.problems)


POINTS: list[tuple[list[float], str]] = [
    ([31, 90, 2, 31, 21, 2], "base or tip outside"),
    ([31, 39, 2, 31, -30, 2], "base or tip outside"),
    ([31, 30, 2, 31.2, 30, 2], "base equals tip"),
    ([31, 21, 2, 31, 39, 2], "base and tip swapped"),
    ([31, float("nan"), 2, 31, 21, 2], "keypoints not valid"),
    ([31, 39, 2], "keypoints not valid"),
    ([31, 39, 2, 0, 0, 0], "one keypoint alone"),
]


@pytest.mark.parametrize(("points", "kind"), POINTS)
def test_base_and_tip_in_the_wrong_place_are_found(folder: Path, points: list[float], kind: str) -> None:
    report = change(folder, lambda data: data["annotations"][0].update(keypoints=points))
    assert kinds(report) == [kind] and "annotation 1" in report.findings[0].what
    assert bool(report.problems) == (kind != "one keypoint alone")


def test_hidden_points_may_lie_anywhere(folder: Path) -> None:
    report = change(folder, lambda data: data["annotations"][0].update(keypoints=[31, 39, 2, 31, -30, 1]))
    assert not report.findings


def test_photos_that_cannot_be_read_or_are_unusual_are_found(folder: Path) -> None:
    from PIL import Image

    images = folder / "images"
    good = (images / "anna.png").read_bytes()
    (images / "anna.png").write_bytes(good[: len(good) // 2])
    photo = make_photo(1)
    cv2.imwrite(str(images / "ben.png"), photo[:50])
    (images / "cleo.png").unlink()
    (images / "stray.jpg").write_bytes(b"")
    assert kinds(check_folder(folder)) == [
        "photo missing",
        "photo unreadable",
        "size differs",
        "photo not listed",
    ]
    (images / "anna.png").write_bytes(good)
    alpha = np.full((96, 128, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([photo[..., ::-1], alpha], -1)).save(images / "ben.png")
    cv2.imwrite(str(images / "cleo.png"), make_photo(2).astype(np.uint16) * 257)
    (images / "stray.jpg").unlink()
    report = check_folder(folder)
    assert kinds(report) == ["unusual photo"] * 2 and not report.problems
    assert "transparency" in report.notes[0].what and "16 bits" in report.notes[1].what
    Image.fromarray(photo[..., 0]).save(images / "ben.png")
    Image.fromarray(make_photo(2)).convert("CMYK").save(images / "cleo.png", format="JPEG")
    assert [f.what.partition(":")[0] for f in check_folder(folder).findings] == ["L", "CMYK"]


def test_turned_photos_are_judged_upright(folder: Path) -> None:
    jpeg = files.encode(".jpg", np.ascontiguousarray(np.rot90(make_photo(0))))
    (folder / "images" / "anna.png").write_bytes(files.with_exif(jpeg, 6))  # stored 96×128, upright 128×96
    report = check_folder(folder)
    assert kinds(report) == ["turned by EXIF"] and not report.problems


def test_people_and_copies_on_both_sides_are_found(folder: Path) -> None:
    report = change(folder, lambda data: data["images"][1].update(subject="anna"))
    with pytest.raises(DataError, match=r"has anna in two parts, train and validation \(ben\.png\)"):
        open_dataset(folder)
    assert open_dataset(folder, with_split=False).split is None
    assert (
        kinds(report) == ["person in two parts"] and "1 in train, 1 in validation" in report.findings[0].what
    )
    smaller = cv2.resize(cv2.resize(make_photo(0), (64, 48)), (128, 96))
    cv2.imwrite(str(folder / "images" / "cleo.png"), smaller)
    report = check_folder(folder)
    assert kinds(report) == ["same photo across parts", "person in two parts"]
    split = json.loads((folder / "split.json").read_text())
    (folder / "split.json").write_text(
        json.dumps(
            split | {"groups": {"all": ["anna", "ben", "cleo"]}, "held_out": ["all"], "validation": []}
        )
    )
    report = check_folder(folder)
    assert kinds(report) == ["same photo twice"] and not report.problems
    (folder / "split.json").write_text(json.dumps(split | {"groups": {"all": ["anna"]}}))
    assert "split does not fit" in kinds(check_folder(folder))
    (folder / "split.json").unlink()
    assert kinds(check_folder(folder)) == ["no split", "same photo twice"]


def test_bad_entries_are_listed_together(folder: Path) -> None:
    def edit(data: Data) -> None:
        data["annotations"][0]["category_id"] = 40
        data["annotations"][1]["segmentation"] = [[1, 2]]
        data["annotations"][2]["image_id"] = 99
        data["annotations"][3] = 7
        data["images"][2] = {"id": 3, "file_name": "cleo.png"}
        data["categories"][0]["name"] = "left toe"

    report = change(folder, edit)
    bad = [f for f in report.findings if f.kind == "entry not valid"]
    assert len(bad) >= 6 and report.nails == 4
    assert any("left toe" in f.what for f in bad) and any("image 99" in f.what for f in bad)
    assert "split does not fit" in kinds(report)


def test_entries_of_any_kind_are_findings_and_no_crash(folder: Path) -> None:
    def edit(data: Data) -> None:
        data["annotations"][0]["image_id"] = [1]
        data["annotations"][1]["image_id"] = {"a": 1}

    assert kinds(change(folder, edit)).count("entry not valid") == 2


@pytest.mark.parametrize("broken", [{"info": {"description": None}}, {"annotations": 3}])
def test_what_every_other_command_would_stop_at_is_found(folder: Path, broken: Data) -> None:
    report = change(folder, lambda data: data.update(broken))
    assert [f.kind for f in report.problems] == ["folder not readable"]
    with pytest.raises(DataError):
        open_dataset(folder)


def test_two_photos_of_one_name_are_found(tmp_path: Path) -> None:
    files.write_masks(tmp_path, ("a", "b"))
    photo = next((tmp_path / "images").glob("a.*"))
    other = photo.with_suffix(".jpg" if photo.suffix == ".png" else ".png")
    cv2.imwrite(str(other), make_photo(9))
    assert "folder not readable" in kinds(check_folder(tmp_path)) or check_folder(tmp_path).problems


def test_photos_that_shipped_weights_learnt_are_worth_knowing(folder: Path) -> None:
    """A set of one's own that holds some of a public one, and a split that takes no heed of its split."""
    known = SplitFile.model_validate_json((SPLITS_DIR / "nails_cc0.json").read_bytes())
    learnt, held = (next(s for s, part in known.parts().items() if part == p) for p in ("train", "test"))

    def edit(data: Data) -> None:
        for image, stem in zip(data["images"][1:], (learnt, held), strict=True):
            (folder / "images" / image["file_name"]).rename(folder / "images" / f"{stem}.png")
            image["file_name"] = f"{stem}.png"

    split = json.loads((folder / "split.json").read_text())
    split["groups"] = {"anna": ["anna"], "ben": [learnt], "cleo": [held]}
    (folder / "split.json").write_text(json.dumps(split))
    report = change(folder, edit)
    assert [(f.kind, f.file) for f in report.findings] == [("learnt by what ships", f"{learnt}.png")]


def test_guesses_and_double_fingers_are_worth_knowing(folder: Path) -> None:
    machine = MachineMade(by="x 1", labels={"finger": 0.5}).model_dump(mode="json")

    def edit(data: Data) -> None:
        data["annotations"][0] |= {"category_id": 3, "machine": machine}
        data["annotations"][4] |= {"machine": machine | {"confirmed": True}}

    report = change(folder, edit)
    assert kinds(report) == ["finger named twice", "machine-made"] and not report.problems
    assert "1 of 4 nails carry labels by x 1" in report.notes[1].what


def test_folders_with_masks_are_checked_too(tmp_path: Path) -> None:
    files.write_masks(tmp_path, ("a", "b", "c"))
    (tmp_path / "masks" / "a.png").unlink()
    (tmp_path / "masks" / "b.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "masks" / "c.png"), np.zeros((9, 9), np.uint8))
    report = check_folder(tmp_path)
    assert [k for k in kinds(report) if KINDS[k].level == "problem"] == [
        "size differs",
        "mask missing",
        "mask unreadable",
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 3}'])
def test_a_folder_that_cannot_be_read_at_all_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="images: no such folder"):
        check_folder(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(DataError, match=r"annotations\.json: not"):
        check_folder(tmp_path)
    (tmp_path / "annotations.json").unlink()
    with pytest.raises(DataError, match="holds no photos"):
        check_folder(tmp_path)


def test_rendered_hands_pass(tmp_path: Path) -> None:
    draw_few(tmp_path / "hands", (21, 23))
    report = check_folder(tmp_path / "hands")
    assert not report.problems, report.problems


def test_copies_are_near_and_others_far() -> None:
    photos = {f"{seed}": make_photo(seed) for seed in range(12)}
    done, jpeg = cv2.imencode(".jpg", photos["0"], [cv2.IMWRITE_JPEG_QUALITY, 40])
    assert done
    again = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
    photos["copy"] = np.asarray(cv2.resize(again, (90, 70)), np.uint8)
    pairs = find_copies({name: hash_photo(photo) for name, photo in photos.items()})
    assert [(a, b) for a, b, _ in pairs] == [("0", "copy")]


def test_chains_become_one_group() -> None:
    joined = join_groups([["a"], ["b", "c"], ["d"], ["c", "d"], ["a", "a"]])
    assert sorted(sorted(map(str, group)) for group in joined) == [["a"], ["b", "c", "d"]]
