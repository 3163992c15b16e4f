"""Accuracy of weights on images, and folds pooled into one result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmark import accuracy
from benchmark.accuracy import evaluate_accuracy, pool_accuracy
from model_zoo import find_variant
from nailcore.data.coco import CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import Dataset, ImageRecord, NailRecord, open_dataset
from nailcore.data.labels import Labels
from nailcore.errors import DataError
from nailcore.facts import AccuracyResult
from nailcore.preprocess import letterbox
from nailcore.runtime import Images, Logits
from nailcore.storage import write_bytes

VARIANT = find_variant("nail43-288")


class Oracle:
    """Says what the labels of the image it is shown say; its second image is shifted by two cells."""

    runtime, versions = "oracle", {"oracle": "1"}
    known: Sequence[tuple[bytes, Logits]] = ()

    def __init__(self, *_: object) -> None:
        pass

    def run(self, images: Images) -> Logits:
        return next(logits for image, logits in self.known if image == images[0].tobytes())

    def close(self) -> None:
        pass


def tell(labels: Labels, shift: int) -> Logits:
    cells = (slice(2, None, 4), slice(2, None, 4))
    mask, finger, direction = (
        labels.mask[cells],
        labels.finger[cells],
        labels.direction[:, cells[0], cells[1]],
    )
    values = {
        "fgbg": np.stack([np.where(mask, -4.0, 4.0), np.where(mask, 4.0, -4.0)]),
        "finger": np.stack([np.where(finger == i, 4.0, 0.0) for i in range(10)]),
        "direction": direction,
    }
    return {n: np.roll(v, shift, axis=2)[None].astype(np.float32) for n, v in values.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four images of 288 × 288, so that letterboxing changes nothing."""
    import cv2

    root = tmp_path_factory.mktemp("oracle")
    parts = []
    for number, name in enumerate("abcd"):
        rng = np.random.default_rng(number)
        index = np.zeros((288, 288), np.uint8)
        index[80:120, 80:112], index[160:176, 40:96] = 1, 2
        image = rng.integers(0, 255, (288, 288, 3), np.uint8)
        (root / "images").mkdir(exist_ok=True)
        write_bytes(root / "images" / f"{name}.png", cv2.imencode(".png", image)[1].tobytes())
        nails = (
            NailRecord(finger="left index", base=(96, 120), tip=(96, 80), area_px=1280),
            NailRecord(finger="left thumb", base=(96, 168), tip=(40, 168), area_px=896),
        )
        record = ImageRecord(labels=("mask", "finger", "direction"), nails=nails)
        parts.append(LabelledImage.of(f"{name}.png", index, record))
    write_coco(root / "annotations.json", build_coco(CocoInfo(description="oracle"), parts))
    return open_dataset(root)


@pytest.fixture
def result(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccuracyResult:
    known = []
    for number, sample in enumerate(data.samples):
        image = letterbox(sample.load_image(), 288, 288)
        known.append((image.tobytes(), tell(sample.load_labels(), 2 if number == 1 else 0)))
    monkeypatch.setattr(Oracle, "known", known)
    monkeypatch.setattr(accuracy, "TorchReference", Oracle)
    (tmp_path / "w.safetensors").write_bytes(b"x")
    return evaluate_accuracy(VARIANT, tmp_path / "w.safetensors", data, "all", tmp_path / "overlays")


def test_an_oracle_is_right_and_its_shifted_image_is_not(result: AccuracyResult, tmp_path: Path) -> None:
    ious = [image.nail_iou or 0 for image in result.per_image]
    assert [iou > 0.99 for iou in ious] == [True, False, True, True]
    assert result.finger_accuracy is not None and result.finger_accuracy.value == 1.0
    assert result.direction_error_p90_deg is not None and result.direction_error_p90_deg.value < 0.1
    assert result.nail_recall is not None and result.nail_recall.value == pytest.approx(1.0)
    assert result.nail_iou.low < result.nail_iou.value < result.nail_iou.high
    assert {(s.by, s.images) for s in result.slices} >= {("nail size", 4), ("brightness", 4)}
    assert len(list((tmp_path / "overlays").glob("*.jpg"))) == 4


def test_folds_pool_to_the_result_over_all_images(result: AccuracyResult) -> None:
    def part(images: slice, digest: str) -> AccuracyResult:
        chosen = result.per_image[images]
        return result.model_copy(
            update={
                "per_image": chosen,
                "images": result.images.model_copy(update={"name": "x fold 1/2 held-out", "sha256": digest}),
                **accuracy.sum_up(chosen),
            }
        )

    one, two = part(slice(0, 2), "1"), part(slice(2, 4), "2")
    assert one.nail_iou.value < two.nail_iou.value
    pooled = pool_accuracy([two, one])
    assert pooled.per_image == result.per_image and pooled.images.count == 4
    for name in ("miou", "nail_iou", "boundary_f", "nail_recall", "slices", "direction_error_median_deg"):
        assert getattr(pooled, name) == getattr(result, name), name
    assert pooled.images.name == "x held-out, 2 folds pooled"
    with pytest.raises(DataError, match="a is in two of the results"):
        pool_accuracy([one, one])
    with pytest.raises(DataError, match="one variant at a time"):
        pool_accuracy([one, two.model_copy(update={"variant": "nail43-352"})])
    with pytest.raises(DataError, match="There are no results"):
        pool_accuracy([])
    old = [image.model_copy(update={"boundary": None}) for image in two.per_image]
    with pytest.raises(DataError, match="hold no boundary counts"):
        pool_accuracy([one, two.model_copy(update={"per_image": old})])
