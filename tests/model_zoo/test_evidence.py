"""The evidence of the shipped weights: cards that are what their facts say, of the very weights that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

import model_zoo
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact
from nailtool.family_card import CARD, render_family
from nailtool.retraining import RESULT
from nailtool.retraining_facts import RetrainingResult

EVIDENCE = Path(model_zoo.__file__).parent / "evidence"
FAMILIES = sorted(path.name for path in EVIDENCE.iterdir())


def test_each_depth_has_evidence() -> None:
    assert sorted({f"nail{v.encoder_layers}" for v in model_zoo.load_variants().values()}) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_is_what_its_facts_say(family: str) -> None:
    folder = EVIDENCE / family
    assert (folder / CARD).read_text("utf-8") == render_family(folder, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_end_in_the_weights_that_ship(family: str) -> None:
    stages = {
        stage.weights: stage
        for stage in read_fact(EVIDENCE / family / f"{RESULT}.json", RetrainingResult).stages
    }
    variants = [v for v in model_zoo.load_variants().values() if f"nail{v.encoder_layers}" == family]
    for variant in variants:
        facts = read_fact(model_zoo.WEIGHTS_DIR / f"{variant.weights}.json", WeightsFacts)
        assert stages[variant.weights].sha256 == facts.sha256
        rendered = EVIDENCE / family / "rendered" / f"{variant.weights}.{variant.name}.embedded-whole.json"
        assert read_fact(rendered, AccuracyResult).weights_sha256 == facts.sha256
        assert set(facts.heads_trained) == {"fgbg", "finger", "direction"}
