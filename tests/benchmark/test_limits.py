"""Limits: from the general to the particular, each with a reason, and never silently missing."""

from __future__ import annotations

from pathlib import Path

import pytest

import quantize
from benchmark.limits import limits_of, load_tables, name_precision
from deploy import TARGETS, find_target
from nailcore.artifact import Artifact, MadeBy
from nailcore.errors import NailtoolError
from quantize import Recipe


def make_artifact(kind: str = "tfjs", recipe: str = "fp32") -> Artifact:
    made_by = MadeBy(versions={}, config={}, parent="", parent_sha256="", cpu_s=0, wall_s=0, peak_rss_bytes=0)
    return Artifact(
        file="a",
        sha256="0" * 64,
        size_bytes=0,
        kind=kind,
        variant="nail43-288",
        recipe=recipe,
        input_name="image",
        input_layout="NHWC",
        output_names={},
        made_by=made_by,
    )


def write_limits(folder: Path, text: str) -> Path:
    path = folder / "limits.toml"
    path.write_text(text)
    load_tables.cache_clear()
    return path


LAYERS = """
["precision.float32"]
max_abs = 1e-4
flipped_permille = 0.1
reason = "by precision"
["tfjs.fp32"]
max_abs = 2e-4
reason = "by target"
["tfjs@chromium-webgl"]
max_abs = 1e-3
reason = "by engine"
["tfjs.fp32@chromium-webgl-fp16"]
max_abs = "off"
flipped_permille = 2
reason = "by all"
"""


def test_the_more_particular_table_wins_figure_by_figure(tmp_path: Path) -> None:
    path = write_limits(tmp_path, LAYERS)
    found = [
        limits_of(make_artifact(kind), engine, path=path)
        for kind, engine in (
            ("onnx", "onnxruntime"),
            ("tfjs", "chromium-wasm"),
            ("tfjs", "chromium-webgl"),
            ("tfjs", "chromium-webgl-fp16"),
        )
    ]
    assert [limits.max_abs for limits in found] == [1e-4, 2e-4, 1e-3, None]
    assert [limits.flipped_permille for limits in found] == [0.1, 0.1, 0.1, 2]
    assert [limits.reason for limits in found] == ["by precision", "by target", "by engine", "by all"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not toml [", "not valid TOML"),
        ('["precision.float32"]\nflipped_permille = 1\n', "gives no reason"),
        ('["precision.float32"]\nflipped_promille = 1\nreason = "r"\n', "flipped_promille"),
        ('["precision.float32"]\nflipped_permille = "much"\nreason = "r"\n', "flipped_permille"),
        ('["precision.float16"]\nflipped_permille = 1\nreason = "r"\n', "No limits for nail43-288 tfjs fp32"),
        ('["precision.float32"]\nmax_abs = 1\nreason = "r"\n', "No limits for nail43-288 tfjs fp32"),
    ],
)
def test_a_damaged_file_or_a_missing_table_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = write_limits(tmp_path, text)
    with pytest.raises(NailtoolError) as caught:
        limits_of(make_artifact(), "chromium-wasm", path=path)
    assert words in str(caught.value)


def test_a_new_recipe_falls_under_a_precision() -> None:
    fields = {"summary": "", "targets": ("onnx",)}
    assert name_precision(Recipe(name="a", **fields)) == "precision.float32"
    half = Recipe(name="b", weights_dtype="float16", compute_dtype="float16", **fields)
    assert name_precision(half) == "precision.float16"
    ranges = {"activations": {"dtype": "uint8"}, "calibration": {"images": 4}}
    integer = Recipe.model_validate(
        {"name": "c", "weights_dtype": "int8", "compute_dtype": "int8", **ranges, **fields}
    )
    assert name_precision(integer) == "precision.int8-int8"


def test_everything_that_is_built_has_limits_in_every_engine_with_the_mask_judged() -> None:
    for kind in TARGETS:
        for recipe in quantize.load_recipes().values():
            for engine in find_target(kind).ENGINES if kind in recipe.targets else ():
                limits = limits_of(make_artifact(kind, recipe.name), engine.name)
                assert limits.reason and limits.mask_iou and limits.boundary_iou, (kind, recipe.name)
                assert limits.flipped_permille < 100
    engines = {engine.name for kind in TARGETS for engine in find_target(kind).ENGINES}
    recipes = quantize.load_recipes()
    for name in load_tables():
        left, _, place = name.partition("@")
        kind, _, rest = left.partition(".")
        assert kind in (*TARGETS, "precision", "stage", "gates") and (not place or place in engines), name
        assert kind in ("precision", "stage", "gates") or not rest or rest in recipes, (
            f"{name}: no such recipe"
        )
