"""Choices of a network: trained once per seed, found again when the same, measured anew when not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmark import choices_command
from benchmark.choices import (
    Budget,
    Choice,
    ChoicesResult,
    Cost,
    render_markdown,
    run_choices,
)
from benchmark.choices_cost import measure_costs
from benchmark.decoder_ablation import CHOICES, choose, list_decoders, name_decoder
from benchmark.devices import chromium
from benchmark.encoder_comparison import list_choices, read_inits
from nailcore.data.folder import Dataset, open_dataset
from nailcore.errors import NailtoolError, WeightsError
from nailcore.facts import AccuracyResult, Skipped, read_fact
from nailcore.train import StepReport, TrainConfig
from nailcore.variant import Variant

TINY = Variant(
    name="nail43-64", encoder_layers=43, height_px=64, width_px=64, fusion_width=16, weights="tiny"
)
CONFIG = TrainConfig(steps=1, batch=2, crop_px=64, threads=1, warmup_steps=1)


def make_photos(root: Path, colour: int) -> Dataset:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate("abc"):
        mask = np.zeros((60, 80), np.uint8)
        cv2.circle(mask, (40, 30), 12 + number, 255, -1)
        image = np.full((60, 80, 3), colour, np.uint8)
        image[mask > 0] = (40, 40, 200)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {n: [n] for n in "abc"}, "held_out": ["b", "c"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_photos(tmp_path_factory.mktemp("photos") / "p", 120)


def price(variants: list[Variant], scratch: Path) -> list[Cost]:
    return [Cost(cpu_ms=v.fusion_width, size_bytes=1000 * v.fusion_width, samples=4) for v in variants]


def test_choices_are_trained_once_found_again_and_never_taken_for_others(
    dataset: Dataset, tmp_path: Path
) -> None:
    choices = [
        Choice(f"{w}-{c}", choose(TINY, (w, c, 4)), None) for w, c in ((16, "dense"), (8, "separable"))
    ]
    budget = Budget((dataset,), dataset, CONFIG, 2, tmp_path)
    steps: list[str] = []

    def note(name: str, report: StepReport) -> None:
        steps.append(name)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_choices("Decoders", choices, budget, price, note)
    result = run_choices("Decoders", choices, budget, price, note)
    names = ["16-dense-seed0", "8-separable-seed0", "16-dense-seed1", "16-dense-seed1", "8-separable-seed1"]
    assert steps == names  # the one that was cut is trained again, whole ones are not
    rows = {row.name: row for row in result.rows}
    assert rows["8-separable"].fusion_conv == "separable" and rows["8-separable"].cost.cpu_ms == 8
    assert rows["16-dense"].gain.value == 0 and len(set(rows["16-dense"].weights_sha256)) == 2
    gain = rows["8-separable"].gain
    assert gain.low <= gain.value <= gain.high
    assert gain.value == pytest.approx(rows["8-separable"].nail_iou.value - rows["16-dense"].nail_iou.value)
    text = render_markdown(result)
    assert "images in pairs and seeds resampled" in text
    single = render_markdown(result.model_copy(update={"seeds": 1}))
    assert "images in pairs resampled (one seed: how much" in single
    assert "2 seeds each" in text and "| 16-dense | random |" in text and "torch " in text
    # Another budget in the same folder is refused, not answered with the old figures.
    longer = Budget((dataset,), dataset, CONFIG.model_copy(update={"steps": 2}), 1, tmp_path)
    with pytest.raises(WeightsError, match=r"these differ: config\.steps"):
        run_choices("Decoders", choices, longer, price)
    # Other held-out photographs: measured anew, not trained anew.
    other = make_photos(tmp_path / "other", 60)
    moved = run_choices("Decoders", choices[:1], Budget((dataset,), other, CONFIG, 1, tmp_path), price, note)
    assert len(steps) == 5 and moved.images.sha256 != result.images.sha256
    kept = read_fact(tmp_path / "16-dense-seed0" / "accuracy.json", AccuracyResult)
    assert kept.images.sha256 == moved.images.sha256


def test_encoders_start_from_their_own_weights_and_from_scratch(tmp_path: Path) -> None:
    file = tmp_path / "lite.pth"
    file.write_bytes(b"x")
    inits = read_inits([f"efficientnet-lite0={file}", f"mobilenetv2={file}"])
    found = [(c.name, c.variant.encoder, c.init) for c in list_choices(TINY, inits, scratch=True)]
    assert found == [
        ("mobilenetv2", "mobilenetv2", file),
        ("efficientnet-lite0", "efficientnet-lite0", file),
        ("mobilenetv2-random", "mobilenetv2", None),
        ("efficientnet-lite0-random", "efficientnet-lite0", None),
    ]
    assert [c.init for c in list_choices(TINY, {}, scratch=False)] == [None, None]
    for wrong in ("efficientnet-lite0", f"resnet={file}", f"mobilenetv2={tmp_path / 'gone'}"):
        with pytest.raises(NailtoolError, match="expected ENCODER=FILE"):
            read_inits([wrong])


def test_further_settings_are_read_as_toml_writes_them() -> None:
    texts = ["lr_encoder=1e-4", "steps=3", "mask_loss='plain'", "phases=[{steps=3, shares=[1, 0.5]}]"]
    config = TrainConfig(**choices_command.read_settings(texts))
    assert config.lr_encoder == 1e-4 and config.mask_loss == "plain" and config.phases[0].shares == (1, 0.5)
    for wrong in ("lr_encoder", "lr_encoder=", "mask_loss=plain"):
        with pytest.raises(NailtoolError, match=r"expected KEY=VALUE as in TOML"):
            choices_command.read_settings([wrong])


@pytest.mark.slow
def test_costs_and_the_two_files_of_a_comparison(
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ships = list_decoders(TINY)[0]
    assert choose(TINY, ships) == TINY and set(list_decoders(TINY)[1:]) == set(CHOICES)
    assert len({name_decoder(decoder) for decoder in CHOICES}) == len(CHOICES)
    assert name_decoder((128, "dense", 8)) == "128-dense-heads8"
    monkeypatch.setattr(chromium, "find_obstacle", lambda: Skipped(what="latency", reason="none", remedy=""))
    cost = measure_costs([TINY], tmp_path, 1)[0]
    assert cost.cpu_ms > 0 and cost.size_bytes > 100_000 and cost.samples == 2
    assert cost.tfjs_wasm_cpu_ms is None
    monkeypatch.setattr(choices_command, "measure_costs", lambda variants, scratch, rounds: [cost])
    choices_command.compare(
        "Decoders",
        [Choice("16-dense", TINY, None)],
        [dataset.root],
        CONFIG.model_dump(include={"steps", "batch", "crop_px", "threads", "warmup_steps"}),
        seeds=1,
        rounds=1,
        out=tmp_path / "out",
    )
    assert read_fact(tmp_path / "out" / "choices.json", ChoicesResult).rows[0].name == "16-dense"
    assert "| 16-dense | random |" in (tmp_path / "out" / "choices.md").read_text("utf-8")
    printed = capsys.readouterr().out
    assert "| 16-dense | random |" in printed and "TF.js not measured here" in printed


@pytest.mark.browser
@pytest.mark.slow
def test_the_cost_in_a_browser_stands_beside_the_cost_in_onnxruntime(tmp_path: Path) -> None:
    cost = measure_costs([TINY], tmp_path, 1)[0]
    assert cost.tfjs_wasm_cpu_ms is not None and cost.tfjs_wasm_cpu_ms > 0
    assert cost.tfjs_wasm_samples >= 1 and "tfjs-core" in cost.tfjs_versions
