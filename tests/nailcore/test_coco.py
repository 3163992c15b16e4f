"""The label format: run lengths, polygons, what is refused and how it is named, and dense maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data.coco import CocoInfo, LabelledImage, build_coco, read_coco, write_coco
from nailcore.data.folder import ImageRecord, NailRecord, open_dataset
from nailcore.data.labels import Labels, match_nails
from nailcore.data.shapes import Rle, decode_rle, encode_rle, fill_polygons
from nailcore.errors import DataError
from nailcore.variant import FINGER_CLASSES

ALL = ("mask", "finger", "direction")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_run_lengths_survive_both_ways(seed: int, shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    assert (decode_rle(encode_rle(mask)) == mask).all()
    # Slow and obvious: walk down the columns.
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = bool(pixel)
        counts[-1] += 1
    assert (decode_rle(Rle(size=shape, counts=counts)) == mask).all()


def test_the_text_form_is_that_of_coco() -> None:
    """What pycocotools writes for this mask: runs 10 4 4 4 4 4 18, from the fourth on as differences."""
    mask = np.zeros((8, 6), bool)
    mask[2:6, 1:4] = True
    rle = encode_rle(mask)
    assert rle.counts == ":44000>"
    assert [int(c) for c in np.flatnonzero(decode_rle(rle).any(0))] == [1, 2, 3]


@pytest.mark.parametrize("counts", ["x~", "0" * 5, [5, 7], [-1, 49]])
def test_damaged_run_lengths_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match=r"cover|occur|middle|greater"):
        decode_rle(Rle(size=(8, 6), counts=counts))


def test_polygons_cover_what_they_enclose() -> None:
    mask = fill_polygons([[2, 1, 6, 1, 6, 4, 2, 4]], 8, 10)
    expected = np.zeros((8, 10), bool)
    expected[1:4, 2:6] = True
    assert (mask == expected).all()
    assert not fill_polygons([[20, 20, 30, 20, 30, 30]], 8, 10).any()
    circle = np.array([[50 + 30.3 * np.cos(a), 48 + 30.3 * np.sin(a)] for a in np.linspace(0, 6.28, 200)])
    yy, xx = np.mgrid[:100, :100] + 0.5
    inside = np.hypot(xx - 50, yy - 48) < 30.3
    found = fill_polygons([circle.ravel().tolist()], 100, 100)
    assert np.count_nonzero(found ^ inside) < 0.015 * inside.sum()


def make_folder(root: Path) -> dict[str, Any]:
    (root / "images").mkdir()
    cv2.imwrite(str(root / "images" / "a.png"), np.full((40, 60, 3), 90, np.uint8))
    index = np.zeros((40, 60), np.uint8)
    index[5:15, 5:11], index[20:32, 30:38] = 1, 2
    nails = (
        NailRecord(finger="right thumb", base=(8, 15), tip=(8, 5), area_px=60),
        NailRecord(finger=None, base=None, tip=None, area_px=96),
    )
    record = ImageRecord(labels=ALL, subject="anna", nails=nails)
    file = build_coco(CocoInfo(description="two nails"), [LabelledImage.of("a.png", index, record)])
    write_coco(root / "annotations.json", file)
    return dict(json.loads((root / "annotations.json").read_text()))


def test_a_written_folder_reads_back(tmp_path: Path) -> None:
    make_folder(tmp_path)
    sample = open_dataset(tmp_path).samples[0]
    labels = sample.load_labels()
    assert sample.record.subject == "anna" and sample.record.nails[0].area_px == 60
    assert labels.mask.sum() == sample.load_mask().sum() == 60 + 96
    finger = labels.finger
    assert (finger[5:15, 5:11] == FINGER_CLASSES.index("right thumb")).all()
    assert (finger[20:32, 30:38] == -1).all() and finger[0, 0] == -1
    assert np.allclose(labels.direction[:, 10, 8], (0, -1))
    assert not labels.direction[:, 25, 33].any() and not labels.direction[:, 0, 0].any()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("annotations", 0, "keypoints"), [1, 2, 2, float("nan"), 4, 2], "finite|valid"),
        (("annotations", 0, "keypoints"), [1, 2, 2], "at least 6"),
        (("annotations", 0, "category_id"), 12, "less than or equal to 11"),
        (("annotations", 0, "image_id"), 7, "belongs to image 7"),
        (("annotations", 1, "id"), 1, "several annotations have the id 1"),
        (("annotations", 0, "segmentation"), [[1, 2, 3, 4]], "at least 6"),
        (("annotations", 0, "segmentation"), [], "at least one polygon"),
        (("images", 0, "labels"), ["mask", "colour"], "labels"),
        (("images", 0, "file_name"), "../a.png", "leads out of images"),
        (("categories", 0, "name"), "left toe", "category 1 is 'left toe'"),
    ],
)
def test_bad_files_are_refused_with_the_place_named(
    tmp_path: Path, place: tuple[str, int, str], value: Any, message: str
) -> None:
    data = make_folder(tmp_path)
    data[place[0]][place[1]][place[2]] = value
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / "annotations.json")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[100, 100, 120, 100, 120, 120]], "covers no pixel"),
        ({"size": [41, 60], "counts": "0"}, "run lengths are for 60×41 px"),
        ({"size": [40, 60], "counts": [5, 7]}, "damaged run lengths"),
    ],
)
def test_shapes_that_cannot_be_are_named_when_they_are_loaded(
    tmp_path: Path, segmentation: Any, message: str
) -> None:
    data = make_folder(tmp_path)
    data["annotations"][1]["segmentation"] = segmentation
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=rf"annotation 2.*{message}"):
        open_dataset(tmp_path).samples[0].load_labels()


def test_an_old_folder_with_records_gives_each_blob_its_nail() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:15, 5:11] = mask[20:32, 30:38] = mask[2:6, 50:56] = True
    nails = (
        NailRecord(finger="left ring", base=(34, 33), tip=(34, 19), area_px=96),
        NailRecord(finger="left index", base=(8, 16), tip=(8, 4), area_px=60),
    )
    index = match_nails(mask, nails)
    assert (index[20:32, 30:38] == 1).all() and (index[5:15, 5:11] == 2).all()
    assert (index[2:6, 50:56] == 3).all() and ((index > 0) == mask).all()
    finger = Labels(index, nails, frozenset({"mask", "finger"})).finger
    assert finger[8, 7] == FINGER_CLASSES.index("left index") and finger[3, 52] == -1
