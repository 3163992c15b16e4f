"""What the prepare stage trains and searches, and the recipes a search writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo import weights_path
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.synth import make_embedded_set
from nailcore.errors import CheckFailedError, NailtoolError
from nailcore.facts import Interval
from quantize import find_recipe, load_recipe, load_recipes, search
from quantize.finetune import hash_network
from quantize.palettes import PALETTES, load_tables
from quantize.prepare import prepare
from quantize.prepared import open_prepared
from quantize.recipe import FineTune, Recipe, Search
from quantize.search import SearchResult, Trial
from quantize.training import finetune_network, write_recipe
from tests.quantize.small_network import tiny_images, tiny_layers, tiny_network, tiny_variant

INTEGER = sorted(name for name, recipe in load_recipes().items() if recipe.activations is not None)


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("hands") / "set"
    make_embedded_set(folder, test_images=2, train_images=2)
    return open_dataset(folder)


def make(recipe: Recipe, hands: Dataset, out: Path) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    prepare(tiny_variant(), recipe, weights_path(tiny_variant()), hands, out, lambda *step: told.append(step))
    return told


def test_a_fine_tuned_network_is_prepared_with_a_note_and_its_checkpoint_is_gone(
    hands: Dataset, tmp_path: Path
) -> None:
    short = FineTune(steps=2, batch=1, crop_px=64, lr=0.02)
    recipe = find_recipe("int8-qat").model_copy(update={"finetune": short})
    told = make(recipe, hands, tmp_path / "prepared")
    assert told[-1] == (2, 2)
    opened = open_prepared(tmp_path / "prepared")
    assert opened.card.network_changed
    note = opened.card.notes["finetune"]
    assert note["steps"] == 2
    assert note["images"]["count"] == 2
    changed = opened.load_network(tiny_variant(), weights_path(tiny_variant()))
    assert hash_network(changed) != hash_network(tiny_network())
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    make(recipe, hands, tmp_path / "again")
    again = open_prepared(tmp_path / "again").load_network(tiny_variant(), weights_path(tiny_variant()))
    assert hash_network(again) == hash_network(changed)


def test_fitted_palettes_are_trained_where_a_recipe_says_so(hands: Dataset, tmp_path: Path) -> None:
    short = FineTune(steps=2, batch=1, crop_px=64, lr=0.05)
    fitted = find_recipe("palette-6").model_copy(update={"targets": ("coreml",)})
    make(fitted, hands, tmp_path / "fitted")
    make(fitted.model_copy(update={"finetune": short}), hands, tmp_path / "tuned")
    before, after = (load_tables(tmp_path / name / PALETTES) for name in ("fitted", "tuned"))
    assert set(before) == set(after)
    assert any(not np.array_equal(before[name].values, after[name].values) for name in before)
    opened = open_prepared(tmp_path / "tuned")
    assert opened.card.notes["finetune"]["steps"] == 2
    network = opened.load_network(tiny_variant(), weights_path(tiny_variant()))
    for name, table in after.items():
        weight = network.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        np.testing.assert_array_equal(weight.numpy(), table.values)


def test_what_a_search_chose_stays_in_float_and_everything_tried_is_noted(
    hands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_TRIALS", 3)
    recipe = find_recipe("int8-mixed").model_copy(update={"search": Search(max_drop_points=50)})
    make(recipe, hands, tmp_path / "prepared")
    card = open_prepared(tmp_path / "prepared").card
    found = SearchResult.model_validate(card.notes["search"])
    assert found.kept
    assert card.float_layers == found.float_layers
    assert set(card.float_layers) <= set(tiny_layers())
    assert not card.network_changed


def test_a_promise_that_no_mix_keeps_fails_the_stage_and_says_by_how_much(
    hands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = Trial(
        float_layers=("a",),
        cost_share=1.0,
        drop_points=Interval(value=1.0, low=0.5, high=1.75),
        flipped_permille=3.0,
        kept=False,
    )
    result = SearchResult(max_drop_points=0.1, float_layers=("a",), kept=False, trials=(worst,))
    monkeypatch.setattr(search, "choose_float_layers", lambda *_args, **_more: result)
    with pytest.raises(CheckFailedError, match=r"below 0\.1 points.*1 layers in float, reaches 1\.75"):
        make(find_recipe("int8-mixed"), hands, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


def test_float_weights_are_not_fine_tuned(hands: Dataset, tmp_path: Path) -> None:
    recipe = find_recipe("fp16").model_copy(update={"finetune": FineTune(steps=1)})
    with pytest.raises(NailtoolError, match="float16"):
        finetune_network(
            tiny_network(), tiny_variant(), recipe, hands, tiny_images(1), tmp_path / "c.pt", lambda *_: None
        )


@given(
    base=st.sampled_from(INTEGER),
    layers=st.lists(st.sampled_from(tiny_layers()), unique=True, max_size=5),
    summary=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30),
)
@settings(max_examples=40)
def test_a_written_recipe_is_read_back_as_it_was_meant(
    tmp_path_factory: pytest.TempPathFactory, base: str, layers: list[str], summary: str
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "chosen.toml"
    recipe = find_recipe(base)
    path.write_text(write_recipe(recipe, "chosen", summary, layers), "utf-8")
    found = load_recipe(path)
    assert found.summary == summary
    assert set(found.weights.keep_float) == {*recipe.weights.keep_float, *layers}
    same = {"name": base, "summary": "", "default": False, "rung": 0, "search": None}
    kept = recipe.weights.model_copy(update={"keep_float": found.weights.keep_float})
    assert found.model_copy(update=same) == recipe.model_copy(update={**same, "weights": kept})
