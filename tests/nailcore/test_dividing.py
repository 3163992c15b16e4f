"""Written splits: people and copies whole, the paper's proportions, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.data import folder
from nailcore.data.dividing import (
    PAPER_PROPORTIONS,
    PARTS,
    deal,
    divide,
    divide_folder,
    name_groups,
    parse_proportions,
)
from nailcore.data.folder import (
    SPLITS_DIR,
    Dataset,
    DatasetCard,
    ImageRecord,
    Sample,
    Split,
    SplitFile,
    open_dataset,
)
from nailcore.errors import DataError, NailtoolError
from tests.nailcore.foreign_files import write_masks

SPLITS: tuple[Split, ...] = ("train", "validation", "test", "held-out")


def make_dataset(people: dict[str, str | None]) -> Dataset:
    samples = tuple(
        Sample(name, Path(f"{name}.jpg"), None, ImageRecord(subject=who)) for name, who in people.items()
    )
    return Dataset(Path("x"), DatasetCard(name="x"), samples, None)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=60),
    seed=st.integers(0, 5),
    proportions=st.sampled_from([PAPER_PROPORTIONS, (4, 0, 1), (1, 1, 1)]),
)
def test_parts_are_whole_groups_near_their_share(
    sizes: list[int], seed: int, proportions: tuple[int, int, int]
) -> None:
    groups = {f"g{k}": [f"{k}-{n}" for n in range(size)] for k, size in enumerate(sizes)}
    parts = deal(groups, proportions, seed)
    assert set(parts) == set(groups)
    total = sum(sizes)
    for part, share in zip(PARTS, proportions, strict=True):
        images = sum(len(groups[name]) for name, where in parts.items() if where == part)
        assert (images > 0) == (share > 0)
        # A part misses its share by less than the largest group, unless it had to be given one.
        assert images <= total * share / sum(proportions) + max(sizes)
    assert parts == deal(dict(reversed(groups.items())), proportions, seed)


def test_the_papers_numbers_come_out_of_the_papers_numbers() -> None:
    groups = {f"person {k}": [f"{k}-{n}" for n in range(4 + k % 2)] for k in range(320)}
    images = {
        part: sum(len(groups[g]) for g, p in deal(groups, PAPER_PROPORTIONS, 0).items() if p == part)
        for part in PARTS
    }
    assert [round(images[part] * 1438 / sum(images.values())) for part in PARTS] == pytest.approx(
        [941, 254, 243], abs=3
    )
    other = deal(groups, PAPER_PROPORTIONS, 1)
    assert other != deal(groups, PAPER_PROPORTIONS, 0)


def test_people_and_copies_stay_together() -> None:
    people: dict[str, str | None] = {
        "a1": "anna",
        "a2": "anna",
        "b": "ben",
        "c": None,
        "anna": None,
        "d": "dora",
    }
    groups = name_groups(people, [("c", "d", 0), ("b", "d", 4)])
    assert groups == {"anna": ["a1", "a2"], "ben+dora": ["b", "c", "d"], "anna (anna)": ["anna"]}
    hashes = {
        "a1": 0,
        "a2": 1 << 40,
        "b": 2**20 - 1,
        "c": 2**63 + 2**61,
        "anna": 2**30 - 2**12,
        "d": 2**20 - 2,
    }
    division = divide(make_dataset(people), hashes, (4, 1, 1), seed=0)
    assert [pair[:2] for pair in division.copies] == [("a1", "a2"), ("a1", "c"), ("a2", "c"), ("b", "d")]
    parts = division.split.parts()
    assert parts["b"] == parts["d"] and parts["a1"] == parts["a2"] == parts["c"]


def test_too_few_people_are_told() -> None:
    with pytest.raises(DataError, match="2 groups of images cannot be dealt to 3 parts"):
        deal({"a": ["1"], "b": ["2"]}, PAPER_PROPORTIONS, 0)
    assert set(deal({"a": ["1"], "b": ["2"]}, (4, 0, 1), 0).values()) == {"train", "test"}


@pytest.mark.parametrize("text", ["", "1", "0/1", "1/0", "1/2/0", "a/b", "1/-1", "1/2/3/4", "1.5/2"])
def test_impossible_proportions_are_refused(text: str) -> None:
    with pytest.raises(NailtoolError, match="TRAIN/VALIDATION/TEST"):
        parse_proportions(text)
    assert parse_proportions("941/254/243") == PAPER_PROPORTIONS and parse_proportions("4/1") == (4, 0, 1)


def test_a_split_is_written_once_and_read_back(tmp_path: Path) -> None:
    names = tuple("abcdef")
    write_masks(tmp_path, names)
    made = divide_folder(tmp_path, proportions=(1, 1, 1))
    text = (tmp_path / "split.json").read_text()
    dataset = open_dataset(tmp_path)
    assert dataset.split == made.split
    parts = {part: {s.name for s in dataset.part(part)} for part in SPLITS}
    assert parts["held-out"] == parts["validation"] | parts["test"]
    assert not parts["train"] & parts["held-out"] and not parts["validation"] & parts["test"]
    assert dataset.describe("test").name.endswith(" test")
    with pytest.raises(DataError, match="exists already"):
        divide_folder(tmp_path, proportions=(1, 1, 1))
    (tmp_path / "split.json").write_text("damaged")
    divide_folder(tmp_path, proportions=(1, 1, 1), force=True)
    assert (tmp_path / "split.json").read_text() == text


def test_a_public_set_keeps_the_split_that_its_weights_were_trained_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_masks(tmp_path / "data", ("a", "b", "c"))
    groups = {name: [name] for name in "abc"}
    known = {"dataset": "known", "note": "", "groups": groups, "held_out": ["c"]}
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "known.json").write_text(json.dumps(known))
    monkeypatch.setattr(folder, "SPLITS_DIR", tmp_path / "splits")
    with pytest.raises(DataError, match="is the public set known, whose split ships"):
        divide_folder(tmp_path / "data", proportions=(1, 1, 1))
    assert not (tmp_path / "data" / "split.json").exists()
    divide_folder(tmp_path / "data", proportions=(1, 1, 1), force=True)
    assert open_dataset(tmp_path / "data").part("validation")


def test_two_parts_stay_what_they_were(tmp_path: Path) -> None:
    """In a file without validation, the test part is what is held out, under its old name."""
    write_masks(tmp_path)
    split = {"dataset": "x", "note": "", "groups": {"one": ["a"], "two": ["b"]}, "held_out": ["two"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    dataset = open_dataset(tmp_path)
    assert dataset.part("test") == dataset.part("held-out") and not dataset.part("validation")
    assert dataset.describe("test") == dataset.describe("held-out")
    assert dataset.describe("test").name.endswith(" held-out")
    (tmp_path / "split.json").write_text(json.dumps(split | {"validation": ["one"]}))
    with pytest.raises(DataError, match="validation names groups that are not in held_out: one"):
        open_dataset(tmp_path)
    (tmp_path / "split.json").unlink()
    with pytest.raises(DataError, match="no validation part"):
        open_dataset(tmp_path).part("validation")
    for path in SPLITS_DIR.glob("*.json"):
        assert SplitFile.model_validate_json(path.read_bytes()).validation == ()
