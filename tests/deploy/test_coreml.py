"""Target CoreML: deterministic packages, and structural defects that the checks must see."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy import coreml
from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, MissingToolError
from nailcore.nets.cascade import build_cascade
from nailcore.nets.weights import save_weights
from nailcore.variant import Variant

VARIANT = Variant(name="nail43-96", encoder_layers=43, height_px=96, width_px=64, weights="tiny")
RECIPES = {
    "fp32": {"name": "fp32", "compute_dtype": "float32"},
    "fp16": {"name": "fp16", "compute_dtype": "float16"},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_cascade(VARIANT), path, {})
    return path


@pytest.fixture(scope="module")
def built(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, Path]]:
    out = tmp_path_factory.mktemp("out")
    made = {}
    for name, recipe in RECIPES.items():
        path = out / f"nail43-96.{name}.mlpackage"
        made[name] = (coreml.convert(VARIANT, recipe, weights, path), path)
    return made


def test_equal_inputs_make_equal_bytes(
    built: dict[str, tuple[Artifact, Path]], weights: Path, tmp_path: Path
) -> None:
    again = coreml.convert(VARIANT, RECIPES["fp16"], weights, tmp_path / "again.mlpackage")
    assert again.sha256 == built["fp16"][0].sha256


def test_siblings_hold_the_same_ops_but_for_casts_and_fp16_is_half(
    built: dict[str, tuple[Artifact, Path]],
) -> None:
    fp32, fp16 = (dict(built[name][0].structure["ops"]) for name in ("fp32", "fp16"))
    assert fp16.pop("cast") == 4 and "cast" not in fp32  # image in, three heads out
    assert fp16 == fp32
    assert built["fp16"][0].size_bytes < 0.6 * built["fp32"][0].size_bytes


@pytest.mark.parametrize("recipe", RECIPES)
def test_sound_packages_pass_every_check(recipe: str, built: dict[str, tuple[Artifact, Path]]) -> None:
    checks = coreml.check_structure(VARIANT, *built[recipe])
    assert len(checks) == 5 and all(check.passed for check in checks)


def edit_constant(spec: Any, op_type: str, argument: str, value: Any) -> None:
    """Change an op's argument where it lies: inline or in the constant it names."""
    operations = coreml._operations(spec)
    constants = {op.outputs[0].name: op for op in operations if op.type == "const"}
    for op in operations:
        if op.type != op_type:
            continue
        holder = op.inputs[argument].arguments[0]
        tensor = (
            constants[holder.name].attributes["val"].immediateValue.tensor
            if holder.WhichOneof("binding") == "name"
            else holder.value.immediateValue.tensor
        )
        values = getattr(tensor, tensor.WhichOneof("value")).values
        if values[0] != value:
            values[0] = value
            return
    raise AssertionError("the defect was not planted")


def swap_colours(spec: Any) -> None:
    from coremltools.proto import FeatureTypes_pb2

    spec.description.input[0].type.imageType.colorSpace = FeatureTypes_pb2.ImageFeatureType.BGR


def align_corners(spec: Any) -> None:
    edit_constant(spec, "upsample_bilinear", "align_corners", True)


def dilate_otherwise(spec: Any) -> None:
    edit_constant(spec, "conv", "dilations", 3)


def swap_output_order(spec: Any) -> None:
    names = [output.name for output in spec.description.output]
    spec.description.output[0].name, spec.description.output[2].name = names[2], names[0]


def resize_input(spec: Any) -> None:
    spec.description.input[0].type.imageType.height = 64


DEFECTS: dict[Callable[[Any], None], str] = {
    swap_colours: "input is an RGB image",
    align_corners: "every resize",
    dilate_otherwise: "convolutions keep",
    swap_output_order: "outputs keep",
    resize_input: "input is an RGB image",
}


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda f: f.__name__)
def test_planted_structural_defect_fails_its_own_check(
    plant: Callable[[Any], None], built: dict[str, tuple[Artifact, Path]], tmp_path: Path
) -> None:
    artifact, path = built["fp16"]
    copy = tmp_path / path.name
    shutil.copytree(path, copy)
    spec = coreml._read_spec(copy)
    plant(spec)
    (copy / coreml.MODEL_FILE).write_bytes(spec.SerializeToString())
    failed = [check.name for check in coreml.check_structure(VARIANT, artifact, copy) if not check.passed]
    assert len(failed) == 1 and failed[0].startswith(DEFECTS[plant])


def test_a_float32_program_is_not_passed_off_as_float16(built: dict[str, tuple[Artifact, Path]]) -> None:
    checks = coreml.check_structure(VARIANT, built["fp16"][0], built["fp32"][1])
    assert [c.name for c in checks if not c.passed] == ["convolutions compute in fp16"]


def test_a_damaged_package_is_named(built: dict[str, tuple[Artifact, Path]], tmp_path: Path) -> None:
    copy = tmp_path / "cut.mlpackage"
    shutil.copytree(built["fp16"][1], copy)
    (copy / coreml.MODEL_FILE).write_bytes((copy / coreml.MODEL_FILE).read_bytes()[:3000])
    with pytest.raises(ArtifactError, match=r"cut\.mlpackage: its .* cannot be read"):
        coreml.check_structure(VARIANT, built["fp16"][0], copy)


def test_execution_is_refused_with_a_reason(built: dict[str, tuple[Artifact, Path]]) -> None:
    with pytest.raises(MissingToolError, match="not executed yet"):
        coreml.open_runner(*built["fp16"])
