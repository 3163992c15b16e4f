"""The embedded set: what ships, its split by person, and how it is made and unpacked."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nailcore.data.checking import check_folder
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.synth import draw_few, make_embedded_set
from nailcore.data.synth.embedded import DOZEN, PACK
from nailcore.data.synth.pack_maker import make_pack
from nailcore.errors import DataError
from nailcore.storage import hash_file, size_bytes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("embedded") / "whole"
    make_embedded_set(folder, test_images=None)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("drawn")
    draw_few(folder / "test", (5, 9, 16), width_px=96, height_px=72)
    draw_few(folder / "train", (17, 21), width_px=96, height_px=72)
    return open_dataset(folder / "test"), open_dataset(folder / "train")


def test_what_ships_is_small_split_by_person_and_says_what_it_is(whole: Dataset) -> None:
    assert size_bytes(PACK) <= 10_000_000
    assert whole.card.synthetic and whole.card.licence == "CC0-1.0"
    assert whole.split is not None
    test, train = whole.part("test"), whole.part("train")
    assert len(test) >= 4 * DOZEN and len(train) >= 20
    assert whole.part("held-out") == test, "no part is set aside for choosing"
    people = [{sample.record.subject for sample in part} for part in (test, train)]
    assert not people[0] & people[1]
    assert len(people[0]) == len(test) and len(people[1]) == len(train), "everybody once"
    # Seeds that `data synth --seed` (0..99) cannot be given: nobody of a training set is met again.
    assert all(str(person) >= "rendered-10000000" for person in people[0] | people[1])
    fingers: set[str | None] = set()
    for sample in whole.samples:
        assert sample.record.labels == ("mask", "finger", "direction")
        height, width = sample.load_image().shape[:2]
        assert {height, width} == {360, 480}
        labels = sample.load_labels()
        assert labels.mask.sum() == sum(nail.area_px for nail in labels.nails)
        assert len(labels.nails) >= 3 and all(nail.area_px >= 12 for nail in labels.nails)
        fingers |= {nail.finger for nail in labels.nails}
    assert len(fingers) == 10
    assert (PACK.parent / "PROVENANCE.md").is_file()


def test_what_ships_passes_our_own_check(whole: Dataset) -> None:
    report = check_folder(whole.root)
    assert not report.problems, report.problems


def test_the_default_is_a_dozen_and_everybody_to_train_on(whole: Dataset, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    make_embedded_set(tmp_path / "few", progress=lambda done, total: steps.append((done, total)))
    few = open_dataset(tmp_path / "few")
    assert [s.name for s in few.part("test")] == [s.name for s in whole.part("test")[:DOZEN]]
    assert [s.name for s in few.part("train")] == [s.name for s in whole.part("train")]
    assert steps[-1] == (len(few.samples), len(few.samples)) and len(steps) == len(few.samples)
    again = tmp_path / "again"
    make_embedded_set(again)
    assert open_dataset(again).describe("test") == few.describe("test")


def test_a_pack_holds_the_very_pictures_and_labels(drawn: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    test, train = drawn
    names = [sample.name for sample in test.samples][::-1]
    for file in ("one.zip", "two.zip"):
        make_pack(tmp_path / file, (test, names), (train, [train.samples[0].name]))
    assert hash_file(tmp_path / "one.zip") == hash_file(tmp_path / "two.zip")
    make_embedded_set(tmp_path / "set", test_images=2, pack=tmp_path / "one.zip")
    unpacked = open_dataset(tmp_path / "set")
    assert [s.name for s in unpacked.samples] == ["test-000", "test-001", "train-000"]
    sources = [*(s for n in names[:2] for s in test.samples if s.name == n), train.samples[0]]
    for sample, source in zip(unpacked.samples, sources, strict=True):
        assert hash_file(sample.image) == hash_file(source.image)
        assert sample.record == source.record
        assert np.array_equal(sample.load_labels().nail_index, source.load_labels().nail_index)
    with pytest.raises(DataError, match="has no image 'nobody'"):
        make_pack(tmp_path / "three.zip", (test, ["nobody"]), (train, []))
    with pytest.raises(DataError, match="is in the test part as well"):
        make_pack(tmp_path / "three.zip", (test, names), (test, names[:1]))
    assert not (tmp_path / "three.zip").exists()


def test_a_damaged_pack_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out" / "set"
    with pytest.raises(DataError, match=r"hands\.zip: the embedded images are missing"):
        make_embedded_set(out, pack=tmp_path / "hands.zip")
    damaged = tmp_path / "damaged.zip"
    shutil.copy(PACK, damaged)
    with zipfile.ZipFile(damaged) as archive:
        place = archive.getinfo("images/test-000.jpg").header_offset + 5000
    with damaged.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\0" * 64)
    with pytest.raises(DataError, match=r"damaged\.zip.*Bad CRC-32") as raised:
        make_embedded_set(out, pack=damaged)
    assert "install nailtool again" in raised.value.hint
    damaged.write_bytes(PACK.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"damaged\.zip"):
        make_embedded_set(out, pack=damaged)
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        make_embedded_set(tmp_path / "embedded", progress=stop)
    assert list(tmp_path.iterdir()) == []
