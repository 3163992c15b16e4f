"""The ladder in README and docs is that of docs/ladder.json, which is about the weights that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.ladder_text import BLOCKS
from model_zoo import find_variant, weights_path
from nailcore.facts import read_fact
from nailcore.gate_facts import Ladder
from nailcore.storage import hash_file

ROOT = Path(__file__).parent.parent
LADDER = ROOT / "docs" / "ladder.json"
RUN_AGAIN = (
    "run `nailtool ladder --run --data photos --save docs/ladder.json --update README.md "
    "--update docs/quantize.md` again"
)


@pytest.mark.parametrize(("page", "name"), [("README.md", "which-file"), ("docs/quantize.md", "ladder")])
def test_the_printed_tables_are_the_measured_ones(page: str, name: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    printed = text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
    assert printed == BLOCKS[name](read_fact(LADDER, Ladder)), RUN_AGAIN


def test_the_measured_files_descend_from_the_weights_that_ship() -> None:
    ladder = read_fact(LADDER, Ladder)
    assert {v.artifact.variant for v in ladder.verdicts} >= {"nail55-480", "nail43-288"}
    for verdict in ladder.verdicts:
        shipped = hash_file(weights_path(find_variant(verdict.artifact.variant)))
        assert verdict.weights_sha256 == shipped, f"{verdict.artifact.label}: {RUN_AGAIN}"


def test_the_measured_files_were_seen_on_photographs_and_name_no_single_one() -> None:
    ladder = read_fact(LADDER, Ladder)
    assert ladder == ladder.without_images()
    assert all(v.images and not v.images.synthetic and v.images.count >= 8 for v in ladder.verdicts)
    kinds = {v.artifact.kind for v in ladder.verdicts if v.artifact.variant == "nail55-480"}
    assert kinds == {"onnx", "coreml", "tfjs", "tflite"}
    hurting = [v for v in ladder.verdicts if v.artifact.recipe == "int8-per-tensor"]
    assert hurting and all(v.decision == "not shippable" for v in hurting), (
        "the rung that hurts belongs in it"
    )
