"""Labels that ship for a public set: an import of its photographs takes them over, and no other does."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nailcore.data import known_labels
from nailcore.data.folder import SPLITS_DIR, SplitFile, open_dataset
from nailcore.data.importing import ImportOrder, import_set
from nailcore.data.importing.found import Wishes
from nailcore.data.known_labels import KNOWN_DIR, KnownLabels, find_known_labels
from nailcore.data.labels import match_nails
from nailcore.errors import DataError
from tests.nailcore import foreign_files as files

AREA_PX = int(np.count_nonzero(match_nails(files.make_mask(), ()) == 1))
NAIL = {"finger": "left index", "base": [11, 15], "tip": [11, 6], "area_px": AREA_PX}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos a and b with masks; of a, b and c the finger and direction of one nail are known."""
    monkeypatch.setattr(known_labels, "KNOWN_DIR", tmp_path / "known")
    (tmp_path / "known").mkdir()
    records = {stem: {"labels": ["mask", "finger", "direction"], "nails": [NAIL]} for stem in "abc"}
    text = json.dumps({"dataset": "famous", "note": "by eye", "images": records})
    (tmp_path / "known" / "famous.json").write_text(text)
    files.write_masks(tmp_path / "famous", ("a", "b"))
    return tmp_path / "famous"


def test_an_import_takes_them_over_where_they_lie_inside_a_nail(source: Path, tmp_path: Path) -> None:
    order = ImportOrder(source, tmp_path / "out")
    record, _ = import_set(order)
    assert record.settings["known_labels"] == "famous"
    assert json.loads((tmp_path / "out" / "annotations.json").read_text())["info"]["note"].endswith("by eye")
    for sample in open_dataset(tmp_path / "out").samples:
        first, second = sample.load_labels().nails
        assert (first.finger, first.base, first.tip) == ("left index", (11, 15), (11, 6))
        assert first.machine is None and second.finger is None and second.base is None
        assert set(sample.record.labels) == {"mask", "finger", "direction"}
        assert sample.load_labels().nail_index[10, 11] == 1
        assert (sample.load_mask() == files.make_mask()).all()
    assert import_set(order) == (record, False)


def test_an_import_before_there_were_any_is_not_taken_for_one_with_them(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_set(ImportOrder(source, out, wishes=Wishes(known_labels=False)))
    assert all(nail.finger is None for sample in open_dataset(out).samples for nail in sample.record.nails)
    with pytest.raises(DataError, match=r"(?s)other settings: known_labels ''.*give --no-known-labels"):
        import_set(ImportOrder(source, out))


@pytest.mark.parametrize("change", ["half the size", "mirrored", "another nail"])
def test_copies_whose_nails_lie_elsewhere_get_none(change: str, source: Path, tmp_path: Path) -> None:
    for path in (*(source / "images").iterdir(), *(source / "masks").iterdir()):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        if change == "half the size":
            pixels = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_NEAREST)
        elif change == "mirrored":
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        elif path.parent.name == "masks":
            pixels[14:20, 5:9] = 255  # the same nail, annotated anew
        cv2.imwrite(str(path), pixels)
    record, _ = import_set(ImportOrder(source, tmp_path / "out"))
    assert all("known labels left out" in " ".join(photo.notes) for photo in record.photos)
    for sample in open_dataset(tmp_path / "out").samples:
        assert sample.record.labels == ("mask",)
        assert all(nail.finger is None and nail.base is None for nail in sample.record.nails)


def test_other_photographs_and_the_source_s_own_labels_come_first(source: Path, tmp_path: Path) -> None:
    own = {"labels": ["mask", "finger"], "nails": [{**NAIL, "finger": "right pinky"}]}
    (source / "dataset.json").write_text(json.dumps({"name": "mine", "images": {"a": own}}))
    record, _ = import_set(ImportOrder(source, tmp_path / "own"))
    fingers = [s.record.nails[0].finger for s in open_dataset(tmp_path / "own").samples]
    assert "known_labels" not in record.settings and fingers == ["right pinky", None]
    (source / "dataset.json").unlink()
    files.write_masks(source, ("a", "b", "stranger"))
    record, _ = import_set(ImportOrder(source, tmp_path / "others"))
    assert "known_labels" not in record.settings
    assert find_known_labels(()) is None


def test_what_a_folder_with_masks_says_of_its_nails_is_part_of_its_hash(tmp_path: Path) -> None:
    files.write_masks(tmp_path, ("a",))
    hashes = []
    for finger in (None, "left index", "left ring"):
        if finger is not None:
            record = {"labels": ["mask", "finger"], "nails": [{**NAIL, "finger": finger}]}
            (tmp_path / "dataset.json").write_text(json.dumps({"name": "x", "images": {"a": record}}))
        hashes.append(open_dataset(tmp_path).describe("test").sha256)
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("path", sorted(KNOWN_DIR.glob("*.json")), ids=lambda path: path.stem)
def test_what_ships_is_whole_and_names_no_finger_of_a_hand_twice(path: Path) -> None:
    known = KnownLabels.model_validate_json(path.read_bytes())
    assert known.dataset == path.stem
    split = SplitFile.model_validate_json((SPLITS_DIR / path.name).read_bytes())
    assert set(known.images) == {stem for stems in split.groups.values() for stem in stems}
    for stem, record in known.images.items():
        fingers = [nail.finger for nail in record.nails if nail.finger]
        assert len(set(fingers)) == len(fingers), stem
        assert ("finger" in record.labels) == bool(fingers), stem
        for nail in record.nails:
            assert nail.base is not None and nail.tip is not None, stem
            length = np.hypot(*np.subtract(nail.tip, nail.base))
            assert 3 <= length <= 4 * np.sqrt(nail.area_px), (stem, nail)
