"""Mixing: shares are kept, photos seen equally often, and a batch depends on seed and number alone."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data.augment import AugmentConfig
from nailcore.data.coco import CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import Dataset, ImageRecord, NailRecord, open_dataset
from nailcore.data.folds import Fold, make_folds, select_fold
from nailcore.data.mixing import LIMIT_PX, MixedBatches, Phase, PhotoStore, count_shares
from nailcore.errors import DataError, NailtoolError

AUGMENT = AugmentConfig(crop_px=64)


def write_set(root: Path, names: str, *, size: tuple[int, int] = (90, 120)) -> Dataset:
    """Images named by letters; group h (the last letter) is held out."""
    (root / "images").mkdir(parents=True)
    parts = []
    for name in names:
        index = np.zeros(size, np.uint8)
        cv2.ellipse(index, (size[1] // 2, size[0] // 2), (14, 22), 20, 0, 360, 1, -1)
        image = np.full((*size, 3), 40 + 10 * (ord(name) % 20), np.uint8)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        nail = NailRecord(finger="left ring", base=(60, 60), tip=(60, 30), area_px=int(index.sum()))
        record = ImageRecord(labels=("mask", "finger", "direction"), subject=name, nails=(nail,))
        parts.append(LabelledImage.of(f"{name}.png", index, record))
    write_coco(root / "annotations.json", build_coco(CocoInfo(description=root.name), parts))
    split = {"dataset": "x", "note": "", "groups": {n: [n] for n in names}, "held_out": [names[-1]]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[PhotoStore]:
    root = tmp_path_factory.mktemp("sets")
    return [PhotoStore(write_set(root / "one", "abch")), PhotoStore(write_set(root / "two", "defgiz"))]


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda s: sum(s) > 0.01),
    batch=st.integers(1, 9),
    steps=st.integers(1, 60),
)
def test_shares_are_kept_in_every_stretch(shares: list[float], batch: int, steps: int) -> None:
    counts = count_shares([Phase(steps=steps, shares=tuple(shares))], batch)
    assert (counts.sum(axis=1) == batch).all() and (counts >= 0).all()
    due = np.outer(np.arange(1, steps + 1) * batch, np.asarray(shares) / sum(shares))
    assert np.abs(np.cumsum(counts, axis=0) - due).max() <= len(shares)
    assert (counts[:, [s == 0 for s in shares]] == 0).all()


def test_phases_follow_each_other(stores: list[PhotoStore]) -> None:
    phases = (Phase(steps=3, shares=(1, 0)), Phase(steps=2, shares=(0, 1)), Phase(steps=8, shares=(1, 3)))
    batches = MixedBatches(stores, phases, 4, AUGMENT, 0)
    sources = [[source for source, _ in batches.list_photos(step)] for step in range(len(batches))]
    assert sources[:3] == [[0] * 4] * 3 and sources[3:5] == [[1] * 4] * 2
    assert Counter(itertools.chain.from_iterable(sources[5:])) == {0: 8, 1: 24}
    with pytest.raises(DataError, match="Phase 1 names 1 shares for 2 data sets"):
        MixedBatches(stores, (Phase(steps=1, shares=(1,)),), 4, AUGMENT, 0)


def test_every_photo_is_seen_equally_often(stores: list[PhotoStore]) -> None:
    batches = MixedBatches(stores, (Phase(steps=30, shares=(1, 1)),), 4, AUGMENT, 0)
    seen = Counter(photo for step in range(30) for photo in batches.list_photos(step))
    assert {n for (source, _), n in seen.items() if source == 0} == {60 // 3}
    assert {n for (source, _), n in seen.items() if source == 1} == {60 // 5}


def test_a_batch_depends_on_seed_and_number_alone(stores: list[PhotoStore]) -> None:
    phases = (Phase(steps=9, shares=(1, 1)),)
    one, other = MixedBatches(stores, phases, 4, AUGMENT, 0), MixedBatches(stores, phases, 4, AUGMENT, 0)
    one[1]
    a, b = one[5], other[5]
    assert (a.images == b.images).all() and (a.directions == b.directions).all()
    assert (a.masks == b.masks).all() and (a.fingers == b.fingers).all()
    assert not (one[6].images == a.images).all()
    assert not (MixedBatches(stores, phases, 4, AUGMENT, 1)[5].images == a.images).all()
    assert a.images.shape == (4, 64, 64, 3) and a.directions.shape == (4, 2, 64, 64)


def test_processes_share_the_same_batch(stores: list[PhotoStore]) -> None:
    phases = (Phase(steps=4, shares=(1, 1)),)
    whole = MixedBatches(stores, phases, 4, AUGMENT, 0)[2]
    halves = [MixedBatches(stores, phases, 4, AUGMENT, 0, rank, 2)[2] for rank in range(2)]
    assert (whole.images[0::2] == halves[0].images).all() and (whole.masks[1::2] == halves[1].masks).all()


def test_large_photos_are_scaled_with_their_labels(tmp_path: Path) -> None:
    store = PhotoStore(write_set(tmp_path / "big", "ab", size=(1200, 1600)))
    photo = store.load(0)
    assert photo.image.shape == (600, LIMIT_PX, 3) and photo.nail_index.shape == (600, LIMIT_PX)
    assert photo.nails[0].base == (30, 30) and photo.nails[0].tip == (30, 15)
    assert abs(int(photo.nail_index.sum()) - photo.nails[0].area_px / 4) < 25


def test_held_out_photos_are_never_drawn_and_damaged_ones_found_at_once(tmp_path: Path) -> None:
    dataset = write_set(tmp_path / "x", "abh")
    assert {kept.name for kept in PhotoStore(dataset).kept} == {"a", "b"}
    (tmp_path / "x" / "images" / "b.png").write_bytes(b"\x89PNG truncated")
    with pytest.raises(DataError, match=r"b\.png: not a readable image"):
        PhotoStore(dataset)
    cv2.imwrite(str(tmp_path / "x" / "images" / "b.png"), np.zeros((91, 120, 3), np.uint8))
    with pytest.raises(DataError, match=r"b\.png: is 120×91 px"):
        PhotoStore(dataset)


def test_folds_keep_groups_whole_cover_all_and_stay_the_same(tmp_path: Path) -> None:
    dataset = write_set(tmp_path / "x", "abcdefghij")
    assert dataset.split is not None
    groups = {"anna": ("a", "b", "c"), "ben": ("d", "e"), **{n: (n,) for n in "fghij"}}
    split = dataset.split.model_copy(update={"groups": groups, "held_out": ("f",)})
    dataset = Dataset(dataset.root, dataset.card, dataset.samples, split)
    folds = make_folds(dataset, 3)
    assert sorted(itertools.chain.from_iterable(folds)) == sorted(groups)
    assert sorted(sum(len(groups[g]) for g in fold) for fold in folds) == [3, 3, 4]
    turned = split.model_copy(update={"groups": dict(reversed(groups.items()))})
    assert make_folds(Dataset(dataset.root, dataset.card, dataset.samples, turned), 3) == folds
    seen: list[str] = []
    for number in (1, 2, 3):
        part = select_fold(dataset, Fold(number, 3))
        held = {s.name for s in part.part("held-out")}
        assert not held & {s.name for s in part.part("train")}
        assert part.describe("held-out").name == f"x fold {number}/3 held-out"
        seen += held
    assert sorted(seen) == list("abcdefghij")
    with pytest.raises(DataError, match="7 groups cannot be cut into 8 folds"):
        make_folds(dataset, 8)


def test_a_person_with_several_groups_stays_in_one_fold(tmp_path: Path) -> None:
    """A group for each photo shoot: a, c and e show one person."""
    dataset = write_set(tmp_path / "x", "abcdef")
    one = {"a", "c", "e"}
    samples = tuple(
        replace(s, record=s.record.model_copy(update={"subject": "anna"})) if s.name in one else s
        for s in dataset.samples
    )
    dataset = replace(dataset, samples=samples)
    assert sorted(map(set, make_folds(dataset, 2)), key=sorted) == [one, {"b", "d", "f"}]
    with pytest.raises(DataError, match=r"6 groups \(4 of different people\) cannot be cut into 5"):
        make_folds(dataset, 5)


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "a/5", "1", ""])
def test_folds_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(NailtoolError, match="expected k/n"):
        Fold.parse(text)
