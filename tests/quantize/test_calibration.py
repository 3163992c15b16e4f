"""Calibration images: spread over kinds of photos, the same each time, refused when they say nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from nailcore.data.folder import Dataset, open_dataset
from nailcore.errors import DataError
from nailcore.facts import ImageKind
from quantize import calibration
from quantize.calibration import FewImagesWarning, choose_samples, load_samples
from quantize.recipe import Calibration
from tests.quantize.small_network import tiny_variant


def make_folder(root: Path, images: dict[str, np.ndarray], held_out: str = "z") -> Dataset:  # type: ignore[type-arg]
    """Photographs with a written split: whatever begins with ``held_out`` is held out."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for name, image in images.items():
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[5:15, 5:15] = 255
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    groups = {name: f'["{name}"]' for name in images}
    listed = ", ".join(f'"{name}": {stems}' for name, stems in groups.items())
    out = ", ".join(f'"{name}"' for name in images if name.startswith(held_out))
    (root / "split.json").write_text(
        f'{{"dataset": "t", "note": "", "groups": {{{listed}}}, "held_out": [{out}]}}'
    )
    return open_dataset(root)


def photo(level: int, seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:  # type: ignore[type-arg]
    noise = np.random.default_rng(seed).integers(-20, 20, (*size, 3))
    return np.clip(noise + level, 0, 255).astype(np.uint8)


def test_rare_kinds_are_drawn_before_common_ones_twice(tmp_path: Path) -> None:
    images = {f"a{i:02}": photo(40, i) for i in range(20)} | {"b0": photo(230, 99), "z": photo(120, 7)}
    dataset = make_folder(tmp_path / "d", images)
    for seed in range(4):
        drawn = choose_samples(dataset, Calibration(images=4, seed=seed))
        names = [sample.name for sample in drawn]
        assert "b0" in names and len(set(names)) == 4 and "z" not in names
        assert drawn == choose_samples(dataset, Calibration(images=4, seed=seed))


def test_slices_are_filled_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = {f"a{i:02}": photo(100, i) for i in range(30)} | {"z": photo(1, 1)}
    dataset = make_folder(tmp_path / "d", images)
    light = {f"a{i:02}": 60.0 if i < 24 else 0.0 for i in range(30)}
    monkeypatch.setattr(
        calibration,
        "_describe",
        lambda sample: ImageKind(nail_size_px=10, skin_ita_deg=light[sample.name], brightness=50),
    )
    drawn = choose_samples(dataset, Calibration(images=12))
    assert Counter(light[sample.name] for sample in drawn) == {60.0: 6, 0.0: 6}


def test_an_empty_training_part_is_refused(tmp_path: Path) -> None:
    dataset = make_folder(tmp_path / "d", {"z0": photo(10, 0), "z1": photo(90, 1)})
    with pytest.raises(DataError, match="training part is empty"):
        choose_samples(dataset, Calibration())
    with pytest.raises(DataError, match="No calibration images"):
        load_samples((), tiny_variant())


def test_images_of_one_colour_are_refused_with_the_reason(tmp_path: Path) -> None:
    flat = {f"a{i}": np.full((30, 50, 3), 60 * i, np.uint8) for i in range(4)}
    dataset = make_folder(tmp_path / "d", flat | {"z": photo(9, 9)})
    with pytest.raises(DataError, match="All 4 calibration images are of a single colour") as caught:
        load_samples(choose_samples(dataset, Calibration()), tiny_variant())
    assert "every range would be far too small" in caught.value.hint


def test_few_images_are_warned_about_with_their_number(tmp_path: Path) -> None:
    images = {f"a{i}": photo(50 + 20 * i, i) for i in range(3)} | {"z": photo(9, 9)}
    dataset = make_folder(tmp_path / "d", images)
    with pytest.warns(FewImagesWarning, match="Calibrated on 3 images"):
        load_samples(choose_samples(dataset, Calibration()), tiny_variant())


def test_photos_of_any_size_become_the_input_and_nothing_else_is_said(tmp_path: Path) -> None:
    sizes = [(30, 90), (120, 40), (64, 64), (10, 10), (200, 300), (31, 33), (90, 30), (50, 50)]
    images = {f"a{i}": photo(100, i, size) for i, size in enumerate(sizes)} | {"z": photo(9, 9)}
    dataset = make_folder(tmp_path / "d", images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = load_samples(choose_samples(dataset, Calibration()), tiny_variant())
    assert made.shape == (8, 64, 64, 3) and made.dtype == np.uint8
