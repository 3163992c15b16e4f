"""The variants: six of the paper, weights that match their facts, and a seventh by one new file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import model_zoo
from model_zoo.card import render_card
from nailcore.errors import NailtoolError, UnknownNameError, WeightsError
from nailcore.facts import WeightsFacts, read_fact
from nailcore.nets import load_network
from nailcore.nets.weights import load_weights
from nailcore.storage import hash_file
from nailcore.variant import load_variant

ROOT = Path(model_zoo.__file__).parent.parent
ROOMS = ("nailcore", "model_zoo", "quantize", "deploy", "benchmark", "nailtool")
SEVENTH = """name = "nail55-416"
encoder_layers = 55
height_px = 416
width_px = 416
weights = "nail55-480"
"""


def test_the_six_variants_of_the_paper() -> None:
    found = {(v.encoder_layers, v.height_px, v.width_px) for v in model_zoo.load_variants().values()}
    assert found == {(layers, px, px) for layers in (43, 55) for px in (288, 352, 480)}
    with pytest.raises(UnknownNameError, match="Did you mean nail55-480"):
        model_zoo.find_variant("nail55-408")


@pytest.mark.parametrize("weights", sorted({v.weights for v in model_zoo.load_variants().values()}))
def test_shipped_weights_match_their_facts_and_card(weights: str) -> None:
    facts = read_fact(model_zoo.WEIGHTS_DIR / f"{weights}.json", WeightsFacts)
    assert hash_file(model_zoo.WEIGHTS_DIR / f"{weights}.safetensors") == facts.sha256
    assert (model_zoo.WEIGHTS_DIR / f"{weights}.md").read_text("utf-8") == render_card(facts)
    variant = next(v for v in model_zoo.load_variants().values() if v.weights == weights)
    network = load_network(variant, model_zoo.weights_path(variant))
    assert sum(p.numel() for p in network.parameters()) == facts.parameters
    assert not facts.accuracy[0].images.synthetic
    ships_in = {v.name for v in model_zoo.load_variants().values() if v.weights == weights}
    assert ships_in <= {accuracy.variant for accuracy in facts.accuracy}
    for accuracy in facts.accuracy:
        assert accuracy.weights_sha256 == facts.sha256
        assert accuracy.miou.low <= accuracy.miou.value <= accuracy.miou.high


def test_one_flipped_byte_in_the_shipped_weights_is_refused(tmp_path: Path) -> None:
    """safetensors itself loads such a file without a word."""
    variant = model_zoo.find_variant("nail43-288")
    source = model_zoo.weights_path(variant)
    for suffix in (".safetensors", ".json"):
        shutil.copy(source.with_suffix(suffix), tmp_path)
    copy = tmp_path / source.name
    assert load_weights(variant, copy)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(WeightsError, match="bytes changed since it was trained"):
        load_weights(variant, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("height_px = 416", "height_px = 400"), "multiple of 32"),
        (("encoder_layers = 55", "encoder_layers = 54"), r"encoder_layers.*found 54"),
        (
            ('weights = "nail55-480"', 'weight = "nail55-480"'),
            r"weight: Extra inputs.*|weights: Field required",
        ),
        (("height_px = 416", "height_px = "), "not valid TOML"),
        (('name = "nail55-416"', 'name = "nail55-417"'), "declares name 'nail55-417'"),
    ],
)
def test_bad_declarations_name_file_key_and_value(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "nail55-416.toml"
    path.write_text(SEVENTH.replace(*change))
    with pytest.raises(NailtoolError, match=rf"(?s)nail55-416\.toml.*({message})"):
        load_variant(path)


def test_a_seventh_variant_is_one_new_file(tmp_path: Path) -> None:
    """A copy of the project, one declaration added, and every command knows and builds it."""
    for room in ROOMS:
        shutil.copytree(
            ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
        )
    (tmp_path / "model_zoo" / "variants" / "nail55-416.toml").write_text(SEVENTH)
    out = tmp_path / "out"
    command = ["build-variants", "--variants", "nail55-416", "--targets", "onnx,coreml", "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "nailtool", *command, "--out", str(out)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {(a["kind"], a["recipe"]): a for a in json.loads(done.stdout)["artifacts"]}
    assert set(made) == {("onnx", "fp32"), ("coreml", "fp32"), ("coreml", "fp16")}
    assert all(a["status"] == "built" for a in made.values())
    manifest = json.loads((out / "nail55-416" / "nail55-416.fp32.onnx.manifest.json").read_text())
    assert manifest["made_by"]["config"]["variant"]["height_px"] == 416
