"""Recipe files: what cannot be is refused in one message with key, value found and values allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import TARGETS
from nailcore.errors import NailtoolError, UnknownNameError
from quantize import Recipe, find_recipe, load_recipe, load_recipes

INTEGER = """
name = "int8-x"
summary = "integer arithmetic"
targets = ["onnx"]
weights_dtype = "int8"
compute_dtype = "int8"
[activations]
[calibration]
"""
STORED = """
name = "int8-x"
summary = "stored"
targets = ["onnx"]
weights_dtype = "int8"
"""


def load(folder: Path, text: str, name: str = "int8-x") -> Recipe:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return load_recipe(path)


def test_sound_recipes_load(tmp_path: Path) -> None:
    recipe = load(tmp_path, INTEGER)
    assert recipe.quantized and recipe.needs_preparation and recipe.calibration is not None
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    stored = load(tmp_path, STORED)
    assert stored.quantized and not stored.needs_preparation


@pytest.mark.parametrize("name", sorted(load_recipes()))
def test_every_shipped_recipe_is_served_by_targets_that_exist(name: str) -> None:
    recipe = find_recipe(name)
    assert set(recipe.targets) <= set(TARGETS) and recipe.summary
    assert recipe.quantized == (name not in ("fp32", "fp16"))
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            STORED + "rungs = 3\n",
            ["'rungs'", "found 3", "keys of a recipe: name, summary", "Did you mean 'rung'"],
        ),
        (STORED + "[weights]\ngranularty = 1\n", ["'weights.granularty'", "keys of [weights]: granularity"]),
        (
            STORED + '[weights]\ngranularity = "per-row"\n',
            ["'weights.granularity'", "found 'per-row'", "'per-tensor', 'per-channel' or 'per-group'"],
        ),
        (STORED.replace('"int8"', '"int4"'), ["'weights_dtype'", "found 'int4'", "'palette4'"]),
        (STORED.replace('targets = ["onnx"]', ""), ["'targets' is missing"]),
        (STORED.replace('targets = ["onnx"]', "targets = []"), ["'targets'", "found []", "at least 1"]),
        (INTEGER + "images = 0\n", ["'calibration.images'", "found 0", "greater than or equal to 1"]),
        (STORED + "[finetune]\ncrop_px = 100\n", ["'finetune.crop_px'", "found 100", "multiple of 32"]),
        (STORED + '[weights]\ngranularity = "per-group"\n', ["[weights]", "group_size 0", "'per-group'"]),
        (STORED + "[weights]\ngroup_size = 4\n", ["[weights]", "'per-channel' with group_size 4"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(
    text: str, told: list[str], tmp_path: Path
) -> None:
    with pytest.raises(NailtoolError) as caught:
        load(tmp_path, text)
    message = caught.value.message
    assert "int8-x.toml" in message and "\n" not in message and "nailtool recipes" in caught.value.hint
    for words in told:
        assert words in message, message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (INTEGER.replace("[activations]", ""), "compute_dtype 'int8' and [activations] missing"),
        (STORED + "[activations]\n", "compute_dtype 'float32' and [activations] given"),
        (INTEGER.replace("[calibration]", ""), "without [calibration]"),
        (
            STORED + "[passes]\ncorrect_bias = true\n",
            "passes.correct_bias True and passes.equalize False without [calibration]",
        ),
        (INTEGER.replace('weights_dtype = "int8"', 'weights_dtype = "palette4"'), "weights_dtype 'palette4'"),
        (INTEGER + "percentile = 99.0\n", "percentile 99 with method 'min-max'"),
        (STORED.replace('"int8"', '"float16"') + "[search]\n", "weights_dtype 'float16' with [search]"),
        (
            STORED.replace('"int8"', '"float32"') + '[weights]\nkeep_float = ["network.low."]\n[finetune]\n',
            "weights_dtype 'float32' with [finetune], [weights]",
        ),
        (STORED + "[weights]\nchannel_scale = true\n", "channel_scale true with weights_dtype 'int8'"),
        (STORED + "[weights]\nsize_ratio = 0.27\n", "size_ratio 0.27 with weights_dtype 'int8'"),
    ],
)
def test_choices_that_contradict_each_other_are_both_named(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(NailtoolError) as caught:
        load(tmp_path, text)
    assert told in caught.value.message


def test_several_problems_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(NailtoolError) as caught:
        load(tmp_path, STORED + 'rung = -1\ndefault = "perhaps"\nsumary = "x"\n')
    assert all(key in caught.value.message for key in ("'rung'", "'default'", "'sumary'"))


def test_no_toml_another_name_and_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(NailtoolError, match="not valid TOML"):
        load(tmp_path, "name = ")
    with pytest.raises(NailtoolError, match="name and file must agree"):
        load(tmp_path, STORED, name="int8-y")
    with pytest.raises(UnknownNameError, match="fp32"):
        find_recipe("fp23")
