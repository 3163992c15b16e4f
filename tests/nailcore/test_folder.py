"""Data folders: what is accepted, what is refused and how it is named."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nailcore.data.folder import SPLITS_DIR, SplitFile, open_dataset, read_image
from nailcore.errors import DataError


def write_pair(
    root: Path, name: str, *, size: tuple[int, int] = (40, 60), mask: tuple[int, int] | None = None
) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    cv2.imwrite(str(root / "images" / f"{name}.jpg"), rng.integers(0, 255, (*size, 3), np.uint8))
    cv2.imwrite(str(root / "masks" / f"{name}.png"), np.zeros(mask or size, np.uint8))


def test_a_folder_without_a_split_is_all_held_out_and_never_trained_on(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_pair(tmp_path, name)
    dataset = open_dataset(tmp_path)
    assert [s.name for s in dataset.part("held-out")] == ["a", "b"]
    assert dataset.samples[0].record.labels == ("mask",)
    with pytest.raises(DataError, match="no written split"):
        dataset.part("train")


def test_own_split_parts_the_folder_by_group(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name)
    split = {"dataset": "x", "note": "", "groups": {"one": ["a", "b"], "two": ["c"]}, "held_out": ["two"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    dataset = open_dataset(tmp_path)
    assert [s.name for s in dataset.part("train")] == ["a", "b"]
    assert [s.name for s in dataset.part("held-out")] == ["c"]
    for wrong, message in (
        ({"held_out": ["three"]}, "names no group: three"),
        ({"held_out": []}, "at least 1"),
        ({"groups": {"one": ["a", "b"], "two": ["c", "a"]}}, "several groups: a"),
    ):
        (tmp_path / "split.json").write_text(json.dumps(split | wrong))
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path)
    (tmp_path / "split.json").write_text(json.dumps(split))
    write_pair(tmp_path, "d")
    with pytest.raises(DataError, match=r"only in images/: \['d'\]"):
        open_dataset(tmp_path)


def test_content_hash_changes_with_one_mask_pixel(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    before = open_dataset(tmp_path).describe("held-out").sha256
    mask = np.zeros((40, 60), np.uint8)
    mask[3, 3] = 255
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask)
    assert open_dataset(tmp_path).describe("held-out").sha256 != before


@pytest.mark.parametrize("missing", ["", "images", "masks"])
def test_missing_folders_are_named(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "data"
    if missing:
        write_pair(root, "a")
        for file in (root / missing).iterdir():
            file.unlink()
        (root / missing).rmdir()
    with pytest.raises(DataError, match=f"{missing}: no such folder"):
        open_dataset(root)


def test_mask_of_another_size_missing_mask_and_empty_folder(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", mask=(40, 61))
    with pytest.raises(DataError, match=r"a\.jpg: is 60×40 px but its mask a\.png is 61×40 px"):
        open_dataset(tmp_path)
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.jpg: has no mask"):
        open_dataset(tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match="holds no images"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 truncated"])
def test_damaged_images_and_masks_are_named(tmp_path: Path, content: bytes) -> None:
    write_pair(tmp_path, "a")
    image = tmp_path / "images" / "a.jpg"
    good = image.read_bytes()
    image.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image"):
        open_dataset(tmp_path)
    image.write_bytes(good)
    (tmp_path / "masks" / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: not a readable mask"):
        open_dataset(tmp_path)


def test_missing_image_and_damaged_card(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "gone.jpg")
    write_pair(tmp_path, "a")
    (tmp_path / "dataset.json").write_text('{"name": "x", "synthetic": "perhaps"}')
    with pytest.raises(DataError, match=r"dataset\.json: not a valid dataset file: synthetic: "):
        open_dataset(tmp_path)


def test_the_written_split_keeps_every_group_in_one_part_and_the_double_photo_together() -> None:
    split = SplitFile.model_validate_json((SPLITS_DIR / "nails_cc0.json").read_bytes())
    stems = [stem for group in split.groups.values() for stem in group]
    assert len(stems) == len(set(stems)) == 52
    assert set(split.held_out) < set(split.groups)
    double = split.groups["same-photo-two-masks"]
    assert [stem[:8] for stem in double] == ["2C29D473", "d61a32a0"]
