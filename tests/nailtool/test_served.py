"""Recipes that a target would not carry out are refused by name, before anything is built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deploy
from nailcore.errors import NailtoolError
from nailtool import jobs
from nailtool.rooms import find_registry
from nailtool.sensitivity import SensitivityRequest, search_layers
from nailtool.served import check_served, find_service, keep_layers
from quantize import Recipe, load_recipe, load_recipes

INTEGER: dict[str, Any] = {
    "weights_dtype": "int8",
    "compute_dtype": "int8",
    "activations": {},
    "calibration": {},
}
HALF: dict[str, Any] = {"compute_dtype": "float16", "calibration": {}}


def make(*targets: str, **keys: Any) -> Recipe:
    return Recipe.model_validate({"name": "mine", "summary": "", "targets": targets, **keys})


def test_every_shipped_target_says_what_it_makes_and_serves_every_shipped_recipe() -> None:
    assert all(find_service(kind) for kind in deploy.TARGETS) and find_service("mine") is None
    for recipe in load_recipes().values():
        check_served(recipe)
    assert find_registry().recipes == load_recipes()


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (make("onnx", weights_dtype="palette4"), ["'onnx'", "'palette4'", "it stores float32, int8"]),
        (make("onnx", weights_dtype="float16"), ["'float16'", "it stores float32, int8"]),
        (make("onnx", weights_dtype="int8"), ["compute_dtype 'float32'", "go with 'int8'"]),
        (
            make("tfjs", weights_dtype="uint8", weights={"granularity": "per-tensor", "size_ratio": 0.27}),
            ["weights.size_ratio without [calibration]"],
        ),
        (
            make("tfjs", weights_dtype="uint8", calibration={}, passes={"equalize": True}),
            ["'tfjs'", "passes.equalize", "it knows weights.size_ratio"],
        ),
        (make("tflite", **INTEGER, passes={"equalize": True}), ["passes.equalize", "passes.correct_bias"]),
        (make("tflite", **INTEGER, finetune={}, search={}), ["[search], [finetune]"]),
        (make("tfjs", **INTEGER), ["'tfjs'", "'int8'", "uint8, uint16"]),
        (make("coreml", weights_dtype="palette4", compute_dtype="float16"), ["without [calibration]"]),
        (make("coreml", **INTEGER, passes={"correct_bias": True}), ["'coreml'", "passes.correct_bias"]),
        (make("onnx", "coreml", **INTEGER), ["'coreml'", "beside onnx"]),
    ],
)
def test_what_a_target_would_not_do_is_refused(recipe: Recipe, told: list[str]) -> None:
    with pytest.raises(NailtoolError) as stop:
        check_served(recipe)
    assert all(word in stop.value.message for word in ["recipes/mine.toml", *told])
    assert "targets" in stop.value.hint


def test_sound_ones_pass_and_a_target_without_a_word_is_not_judged() -> None:
    check_served(make("onnx", **INTEGER, passes={"equalize": True, "correct_bias": True}))
    check_served(make("coreml", weights_dtype="palette4", **HALF, weights={"size_ratio": 0.2}))
    check_served(make("mine", weights_dtype="uint16"))
    assert keep_layers(("onnx", "tflite", "mine")) == ("onnx", "mine")


def test_a_search_that_could_not_be_built_is_refused_before_it_starts(tmp_path: Path) -> None:
    from nailtool.pipeline import Order

    order = Order(find_registry(), out_dir=tmp_path)
    request = SensitivityRequest((), make("tflite", **INTEGER), tmp_path)
    with pytest.raises(NailtoolError, match="rounds every layer") as stop:
        search_layers(order, request, 0.5)
    assert "onnx or coreml" in stop.value.hint


@pytest.mark.parametrize(
    ("float_layers", "targets"), [(("high.stage1.0",), ("onnx",)), ((), ("onnx", "tflite"))]
)
def test_a_search_writes_a_recipe_for_the_targets_that_can_build_it(
    float_layers: tuple[str, ...], targets: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(float_layers=float_layers)
    monkeypatch.setattr("quantize.sensitivity.open_simulation", lambda *_: None)
    monkeypatch.setattr("quantize.training.search_training_part", lambda *_: found)
    monkeypatch.setattr(jobs, "_open_dataset", lambda _: None)
    monkeypatch.setattr(jobs, "write_fact", lambda *_: None)
    out = tmp_path / "mix.toml"
    jobs.search_float_layers(
        variant=find_registry().variants["nail43-288"],
        recipe=make("onnx", "tflite", **INTEGER),
        weights=tmp_path,
        prepared=tmp_path,
        data=tmp_path,
        max_drop_points=0.5,
        out=tmp_path / "found.json",
        recipe_out=out,
        progress=lambda *_: None,
    )
    recipe = load_recipe(out)
    assert recipe.targets == targets and recipe.weights.keep_float == float_layers
    check_served(recipe)
