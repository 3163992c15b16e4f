"""What a machine guessed: written and read back, never truth, learnt from only when told to or confirmed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nailcore.data.coco import CocoInfo, CocoNail, LabelledImage, build_coco, read_coco, write_coco
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.labels import ImageRecord, MachineMade, NailRecord
from nailcore.data.mixing import PhotoStore
from nailcore.errors import DataError
from nailcore.nail_metrics import measure_nails
from nailcore.preprocess import Letterbox
from nailtool.training import find_trained_heads

ALL = ("mask", "finger", "direction")


def write_folder(root: Path, machine: MachineMade | None, labels: tuple[Any, ...] = ALL) -> Dataset:
    """Two photos, one to learn from; each with one nail that carries ``machine``."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    index = np.zeros((40, 60), np.uint8)
    index[10:30, 20:32] = 1
    nail = NailRecord(finger="left ring", base=(26, 29), tip=(26, 11), area_px=240, machine=machine)
    record = ImageRecord(labels=labels, nails=(nail,))
    for name in ("a", "b"):
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((40, 60, 3), 90, np.uint8))
    images = [LabelledImage.of(f"{name}.png", index, record) for name in ("a", "b")]
    write_coco(root / "annotations.json", build_coco(CocoInfo(description="x"), images))
    split = {"dataset": "x", "note": "", "groups": {"a": ["a"], "b": ["b"]}, "held_out": ["b"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


def test_it_is_written_only_where_it_is_and_changes_no_older_hash(tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", None)
    assert "machine" not in (tmp_path / "plain" / "annotations.json").read_text()
    nail = read_coco(tmp_path / "plain" / "annotations.json").annotations[0]
    assert "machine" not in nail.model_dump() and "machine" not in nail.model_dump_json()
    made = MachineMade(by="x 1", labels={"finger": 0.4, "direction": None})
    marked = write_folder(tmp_path / "marked", made)
    assert marked.samples[0].record.nails[0].machine == made
    assert marked.describe("train").sha256 != plain.describe("train").sha256
    assert CocoNail.model_validate_json(
        read_coco(tmp_path / "marked" / "annotations.json").annotations[0].model_dump_json()
    ).machine == made  # fmt: skip


@pytest.mark.parametrize(
    "machine",
    [
        {"labels": {}},
        {"labels": {"finger": 1.5}},
        {"labels": {"finger": -0.1}},
        {"labels": {"colour": 0.5}},
        {"labels": {"finger": float("nan")}},
        {"by": "x"},
        {"labels": {"finger": 0.5}, "sure": True},
    ],
)
def test_other_marks_are_refused(tmp_path: Path, machine: dict[str, Any]) -> None:
    write_folder(tmp_path, None)
    path = tmp_path / "annotations.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["machine"] = machine
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="machine"):
        read_coco(path)


@pytest.mark.parametrize("guessed", ["finger", "direction"])
def test_a_guess_is_no_truth_and_the_rest_of_the_nail_is(tmp_path: Path, guessed: Any) -> None:
    dataset = write_folder(tmp_path, MachineMade(labels={guessed: 0.99}))
    sample = dataset.samples[0]
    labels = sample.load_labels()
    assert sample.record.labels == tuple(label for label in ALL if label != guessed)
    assert (labels.finger[20, 25] == -1) == (guessed == "finger")
    assert labels.direction[:, 20, 25].any() == (guessed != "direction")
    logits = {
        name: np.ones((n, 10, 15), np.float32) for name, n in (("fgbg", 2), ("finger", 10), ("direction", 2))
    }
    (nail,) = measure_nails(labels.mask, labels, logits, Letterbox(40, 60, 40, 60), ALL)
    assert (nail.finger_right is None) == (guessed == "finger")
    assert (nail.direction_error_deg is None) == (guessed == "direction")
    store = PhotoStore(dataset)
    assert store.labels == set(ALL) - {guessed}
    loaded = store.load(0).nails[0]
    assert (loaded.finger is None) == (guessed == "finger") and (loaded.base is None) == (
        guessed == "direction"
    )


@pytest.mark.parametrize("declared", [ALL, ("mask",)])
def test_confirmed_guesses_are_truth(tmp_path: Path, declared: tuple[Any, ...]) -> None:
    made = MachineMade(labels={"finger": 0.2, "direction": 0.2}, confirmed=True)
    sample = write_folder(tmp_path, made, declared).samples[0]
    assert sample.record.labels == ALL
    labels = sample.load_labels()
    assert labels.finger[20, 25] == 3 and labels.direction[:, 20, 25] == pytest.approx((0, -1))


def test_training_learns_from_sure_guesses_only_when_told_to(tmp_path: Path) -> None:
    made = MachineMade(labels={"finger": 0.8, "direction": 0.3})
    dataset = write_folder(tmp_path, made, ("mask",))
    assert PhotoStore(dataset).labels == {"mask"}
    told = replace(dataset, learn_guesses=0.5)
    store = PhotoStore(told)
    assert store.labels == {"mask", "finger"}
    nail = store.load(0).nails[0]
    assert nail.finger == "left ring" and nail.base is None
    assert told.part("test")[0].record.labels == ("mask",)
    assert (told.part("test")[0].load_labels().finger == -1).all()
    assert told.describe("train") == dataset.describe("train")
    from nailcore.train import TrainConfig

    config = TrainConfig(steps=1)
    assert find_trained_heads(config, [dataset], None) == ("fgbg",)
    assert find_trained_heads(config, [told], None) == ("fgbg", "finger")
    unknown = write_folder(tmp_path / "u", MachineMade(labels={"finger": None}), ("mask",))
    assert PhotoStore(replace(unknown, learn_guesses=0.01)).labels == {"mask"}
    assert PhotoStore(replace(unknown, learn_guesses=0.0)).labels == {"mask", "finger"}
