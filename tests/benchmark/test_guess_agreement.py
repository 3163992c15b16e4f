"""Agreement with machine-made labels: surer guesses alone count, and evaluation goes on counting none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark import accuracy
from benchmark.accuracy import evaluate_accuracy
from benchmark.guess_agreement import accept_guesses, measure_agreement, render_markdown
from model_zoo import find_variant
from nailcore.data.coco import CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import Dataset, ImageRecord, NailRecord, open_dataset
from nailcore.data.labels import MachineMade
from nailcore.errors import DataError
from nailcore.preprocess import letterbox
from nailcore.storage import write_bytes
from tests.benchmark.test_accuracy import Oracle, tell

THUMB, INDEX = "left thumb", "left index"


@pytest.fixture
def guessed(tmp_path: Path) -> Dataset:
    """a: guessed right; b: its finger wrong, its direction turned by 90°; c: with little confidence."""
    import cv2

    parts = []
    (tmp_path / "images").mkdir()
    for number, (name, sure) in enumerate((("a", 0.9), ("b", 0.8), ("c", 0.3))):
        index = np.zeros((288, 288), np.uint8)
        index[80:120, 80:112] = 1
        image = np.random.default_rng(number).integers(0, 255, (288, 288, 3), np.uint8)
        write_bytes(tmp_path / "images" / f"{name}.png", cv2.imencode(".png", image)[1].tobytes())
        made = MachineMade(by="x 1", labels={"finger": sure, "direction": sure})
        finger, tip = (THUMB, (96 + 40, 120)) if name == "b" else (INDEX, (96, 80))
        nail = NailRecord(finger=finger, base=(96, 120), tip=tip, area_px=1280, machine=made)
        parts.append(LabelledImage.of(f"{name}.png", index, ImageRecord(labels=("mask",), nails=(nail,))))
    write_coco(tmp_path / "annotations.json", build_coco(CocoInfo(description="guessed"), parts))
    return open_dataset(tmp_path)


@pytest.fixture
def weights(guessed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a network that says left index and upwards on every image."""
    right = accept_guesses(guessed, 0.9).samples[0].load_labels()
    known = [(letterbox(s.load_image(), 288, 288).tobytes(), tell(right, 0)) for s in guessed.samples]
    monkeypatch.setattr(Oracle, "known", known)
    monkeypatch.setattr(accuracy, "TorchReference", Oracle)
    (tmp_path / "w.safetensors").write_bytes(b"x")
    return tmp_path / "w.safetensors"


def test_surer_guesses_count_and_no_others(guessed: Dataset, weights: Path) -> None:
    found = measure_agreement("nail43-288", weights, guessed, 0.6)
    assert (found.images.count, found.nails) == (2, 2)
    assert found.same_finger.value == 0.5 and found.same_finger_alone.value == 0.5
    assert found.direction_difference_median_deg.value == pytest.approx(45, abs=0.5)  # of 0° and 90°
    assert measure_agreement("nail43-288", weights, guessed, 0.9).same_finger.value == 1
    assert measure_agreement("nail43-288", weights, guessed, 0).nails == 3
    text = render_markdown([found])
    assert "2 held-out photographs" in text and "confirmed by nobody" in text and "| 50.0 [" in text
    with pytest.raises(DataError, match=r"confidence of 0\.95"):
        measure_agreement("nail43-288", weights, guessed, 0.95)


def test_evaluation_still_counts_no_guess(guessed: Dataset, weights: Path, tmp_path: Path) -> None:
    result = evaluate_accuracy(
        find_variant("nail43-288"), weights, guessed, "held-out", tmp_path / "o", heads=("fgbg", "finger")
    )
    assert result.finger_accuracy is None and result.images.count == 3
