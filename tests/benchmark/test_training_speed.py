"""Speed of training: three parts are timed apart, a slow loader is called the bottleneck."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmark.training_speed import TrainingSpeed, measure_speed, render_markdown
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.mixing import Batch, MixedBatches
from nailcore.train import TrainConfig
from nailcore.variant import Variant

TINY = Variant(
    name="nail43-64", encoder_layers=43, height_px=64, width_px=64, fusion_width=16, weights="tiny"
)
CONFIG = TrainConfig(batch=2, crop_px=64, threads=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for name in ("a", "b"):
        mask = np.zeros((64, 80), np.uint8)
        cv2.circle(mask, (40, 30), 14, 255, -1)
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((64, 80, 3), 120, np.uint8))
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {"a": ["a"], "b": ["b"]}, "held_out": ["b"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


def test_what_is_frozen_is_told(dataset: Dataset, tmp_path: Path) -> None:
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.weights import save_weights

    init = tmp_path / "tiny.safetensors"
    save_weights(build_cascade(TINY), init, {})
    frozen = measure_speed(TINY, [dataset], CONFIG, rounds=1, steps=1, init=init)
    assert frozen.frozen_stages == CONFIG.frozen_stages
    assert "3 encoder stages frozen" in render_markdown(frozen)
    assert measure_speed(TINY, [dataset], CONFIG, rounds=1, steps=1).frozen_stages == 0


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def measure(dataset: Dataset) -> TrainingSpeed:
    return measure_speed(TINY, [dataset], CONFIG, rounds=2, steps=2)


def test_what_a_slow_loader_costs_stands_in_the_loading_and_not_in_the_step(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = measure(dataset)
    assert not plain.loader_is_bottleneck  # crops of 64 px
    assert plain.both.cpu_ms_per_image > plain.loading.cpu_ms_per_image
    assert len(plain.step.images_per_s_by_round) == 2
    real = MixedBatches.__getitem__

    def slow(self: MixedBatches, step: int) -> Batch:
        spin(0.3)
        return real(self, step)

    monkeypatch.setattr(MixedBatches, "__getitem__", slow)
    slowed = measure(dataset)
    assert slowed.loader_is_bottleneck and slowed.loading.cpu_ms_per_image > 140  # 0.3 s for 2 images
    assert slowed.both.cpu_ms_per_image > slowed.step.cpu_ms_per_image + 100
    assert slowed.step.cpu_ms_per_image < slowed.loading.cpu_ms_per_image
    assert slowed.waited_share > plain.waited_share
    assert "the loader is the bottleneck" in render_markdown(slowed)
    text = render_markdown(plain)
    assert "the loader is not the bottleneck" in text and "| loading alone |" in text


def test_workers_of_one_part_do_not_count_in_another(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MixedBatches.__getitem__

    def slow(self: MixedBatches, step: int) -> Batch:
        spin(0.2)
        return real(self, step)

    monkeypatch.setattr(MixedBatches, "__getitem__", slow)  # which the workers inherit
    config = CONFIG.model_copy(update={"workers": 2})
    speed = measure_speed(TINY, [dataset], config, rounds=1, steps=1)
    assert speed.steps_per_round == 4  # a burst of two workers, twice
    # 0.2 s for 2 images; what is made ahead falls before or into a round by chance.
    assert speed.loading.cpu_ms_per_image > 40 > speed.step.cpu_ms_per_image


def test_with_workers_waiting_is_what_counts(dataset: Dataset) -> None:
    speed = measure(dataset)
    helped = speed.model_copy(update={"workers": 2, "waited_share": 0.02})
    assert not helped.loader_is_bottleneck
    assert helped.model_copy(update={"waited_share": 0.3}).loader_is_bottleneck
