"""Training: crops are a pure function of seed and step, and a killed run resumes exactly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nailcore.data.augment import AugmentConfig, draw_crop, repaint_nails
from nailcore.data.folder import Dataset, open_dataset
from nailcore.errors import NailtoolError, WeightsError
from nailcore.train import Photos, StepReport, TrainConfig, learning_rate_factor, run_training
from nailcore.variant import Variant

TINY = Variant(
    name="nail43-64", encoder_layers=43, height_px=64, width_px=64, fusion_width=16, weights="tiny"
)
CONFIG = TrainConfig(steps=4, batch=2, crop_px=64, checkpoint_every=1, threads=1, warmup_steps=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        image = np.full((90, 120, 3), rng.integers(90, 200, 3), np.uint8)
        mask = np.zeros((90, 120), np.uint8)
        cv2.ellipse(mask, (60, 45), (14, 22), 20, 0, 360, 255, -1)
        image[mask > 0] = (60, 40, 200)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {"t": ["a", "b"], "h": ["c"]}, "held_out": ["h"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


def test_batches_depend_on_seed_and_step_alone(dataset: Dataset) -> None:
    photos, augment = Photos(dataset), AugmentConfig(crop_px=64)
    x, m = photos.draw_batch(3, CONFIG, augment)
    again = photos.draw_batch(3, CONFIG, augment)
    assert (x == again[0]).all() and (m == again[1]).all()
    assert not (x == photos.draw_batch(4, CONFIG, augment)[0]).all()
    assert x.shape == (2, 3, 64, 64) and m.shape == (2, 64, 64)
    assert bool(((m == 0) | (m == 1)).all()) and 0 <= float(x.min()) <= float(x.max()) <= 255


def test_held_out_photos_are_never_drawn(dataset: Dataset) -> None:
    assert len(Photos(dataset).pairs) == 2


def test_crop_moves_image_and_mask_together() -> None:
    """The painted ellipse must stay where the mask says, whatever the affine and the colours did."""
    mask = np.zeros((200, 300), np.uint8)
    cv2.ellipse(mask, (150, 100), (30, 50), 10, 0, 360, 1, -1)
    image = np.full((200, 300, 3), 40, np.uint8)
    image[mask > 0] = 220
    agreements = []
    for seed in range(12):
        crop, found = draw_crop(
            image, mask, AugmentConfig(crop_px=96, repaint=0), np.random.default_rng(seed)
        )
        if 100 < found.sum() < 9000:
            grey = crop.astype(np.float32).mean(2)
            bright = grey > (grey[found > 0].mean() + grey[found == 0].mean()) / 2
            agreements.append((bright & (found > 0)).sum() / found.sum())
    assert len(agreements) >= 6 and min(agreements) > 0.85


def test_repainting_touches_the_nails_alone() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((80, 80), np.uint8)
    mask[30:50, 30:50] = 1
    image = rng.integers(60, 200, (80, 80, 3)).astype(np.uint8)
    painted = repaint_nails(image, mask, rng)
    away = cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0
    assert (painted[away] == image[away]).all() and (painted[mask > 0] != image[mask > 0]).any()


def test_learning_rate_warms_up_then_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors.index(max(factors)) in (9, 10) and max(factors) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:])) and factors[-1] < 0.02


def test_a_killed_run_resumes_to_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    whole = run_training(TINY, dataset, CONFIG, tmp_path / "whole", init=None)

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(TINY, dataset, CONFIG, tmp_path / "cut", init=None, report=stop)
    seen: list[int] = []
    resumed = run_training(
        TINY, dataset, CONFIG, tmp_path / "cut", init=None, report=lambda r: seen.append(r.step)
    )
    assert seen[0] == 3  # steps 1 and 2 were kept; 3 was cut before its checkpoint
    assert resumed.read_bytes() == whole.read_bytes()


def test_damaged_and_foreign_checkpoints_are_named_and_kept(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 1})
    run_training(TINY, dataset, config, tmp_path, init=None)
    checkpoint = tmp_path / "checkpoint.pt"
    other = config.model_copy(update={"seed": 1, "lr_decoder": 1e-3})
    with pytest.raises(WeightsError, match="these differ: config"):
        run_training(TINY, dataset, other, tmp_path, init=None)
    damaged = checkpoint.read_bytes()[:200]
    checkpoint.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a readable checkpoint"):
        run_training(TINY, dataset, config, tmp_path, init=None)
    assert checkpoint.read_bytes() == damaged


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr_encoder": 1e30, "lr_decoder": 1e30, "steps": 30})
    with pytest.raises(NailtoolError, match=r"loss became .* at step \d+"):
        run_training(TINY, dataset, config, tmp_path, init=None)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "tiny.safetensors").exists()
