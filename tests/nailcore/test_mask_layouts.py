"""Where photos and their masks may lie, whose photos they are, and how their nails are counted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from nailcore.data.folder import open_dataset
from nailcore.errors import DataError
from tests.nailcore import foreign_files as files
from tests.nailcore.test_importing import run, sample


def test_folders_of_another_split_are_no_part_of_a_person_s_name(tmp_path: Path) -> None:
    for place in ("train/anna_1", "valid/anna_2", "valid/ben_1"):
        part, _, name = place.partition("/")
        files.write_photo(tmp_path / "src" / "images" / part / f"{name}.jpg")
        (tmp_path / "src" / "masks" / part).mkdir(parents=True, exist_ok=True)
        mask = files.make_mask().astype(np.uint8) * 255
        cv2.imwrite(str(tmp_path / "src" / "masks" / part / f"{name}.png"), mask)
    record = run(tmp_path, subject="^([^_]+)_")
    assert [(photo.file, photo.subject) for photo in record.photos] == [
        ("anna_1.jpg", "anna"),
        ("anna_2.jpg", "anna"),
        ("ben_1.jpg", "ben"),
    ]


@pytest.mark.parametrize(
    ("photo", "mask", "stem"),
    [
        ("anna/images/1.jpg", "anna/masks/1.png", "anna-1"),
        ("anna/1.jpg", "anna/1_mask.png", "anna-1"),
        ("anna/1.jpg", "anna/1.png", "anna-1"),
        ("anna/1.png", "anna/1-mask.png", "anna-1"),
    ],
)
def test_masks_are_found_in_a_folder_for_each_person_and_beside_photos(
    photo: str, mask: str, stem: str, tmp_path: Path
) -> None:
    for person in ("anna", "ben"):
        files.write_photo(tmp_path / "src" / photo.replace("anna", person))
        path = tmp_path / "src" / mask.replace("anna", person)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), files.make_mask().astype(np.uint8) * 255)
    assert run(tmp_path, subject="folder").settings["format"] == "masks"
    found = {s.name: s for s in open_dataset(tmp_path / "out").samples}
    assert {name: s.record.subject for name, s in found.items()} == {stem: "anna", "ben-1": "ben"}
    assert all((s.load_mask() == files.make_mask()).all() for s in found.values())


def test_pictures_without_masks_are_no_masks_and_the_layouts_are_told(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        files.write_photo(tmp_path / "src" / name)
    with pytest.raises(DataError, match=r"no format that can be told(?s:.)*NAME_mask\.png beside NAME\.jpg"):
        run(tmp_path)
    cv2.imwrite(str(tmp_path / "src" / "a_mask.png"), files.make_mask().astype(np.uint8) * 255)
    with pytest.raises(DataError, match=r"b\.png: has no mask(?s:.)*--skip-bad leaves such photos out"):
        run(tmp_path)
    record = run(tmp_path, skip_bad=True)  # goes on with the import that was stopped
    assert [photo.file for photo in record.photos] == ["a.jpg"] and record.left_out[0][0] == "b.png"
    assert run(tmp_path, skip_bad=True) == record
    with pytest.raises(DataError, match="other settings: licence ''"):
        run(tmp_path, licence="CC0-1.0")


def test_nails_of_which_nothing_is_known_are_counted_from_left_to_right(tmp_path: Path) -> None:
    files.write_masks(tmp_path / "src", ("a",))
    mask = np.zeros((files.HEIGHT, files.WIDTH), np.uint8)
    for left, top in ((40, 4), (25, 10), (10, 20)):  # the rightmost is the topmost
        mask[top : top + 10, left : left + 8] = 255
    cv2.imwrite(str(tmp_path / "src" / "masks" / "a.png"), mask)
    run(tmp_path)
    index = sample(tmp_path).load_labels().nail_index
    assert [int(np.nonzero(index == k)[1].min()) for k in (1, 2, 3)] == [10, 25, 40]
