"""Target CoreML: deterministic packages, and structural defects that the checks must see."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from deploy import coreml
from deploy.coreml_runners import MilRunner
from deploy.coremltools_import import import_coremltools
from deploy.mil import load_package
from deploy.mil.reader import read_spec
from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, ConversionError, MissingToolError, UnknownNameError
from nailcore.nets import load_network
from nailcore.nets.cascade import build_cascade
from nailcore.nets.weights import save_weights
from nailcore.runtime import Images, Logits
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
    function = spec.mlProgram.functions["main"]
    operations = list(function.block_specializations[function.opset].operations)
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
    spec, model_file = read_spec(copy)
    plant(spec)
    model_file.write_bytes(spec.SerializeToString())
    failed = [check.name for check in coreml.check_structure(VARIANT, artifact, copy) if not check.passed]
    assert len(failed) == 1 and failed[0].startswith(DEFECTS[plant])


def test_a_float32_program_is_not_passed_off_as_float16(built: dict[str, tuple[Artifact, Path]]) -> None:
    checks = coreml.check_structure(VARIANT, built["fp16"][0], built["fp32"][1])
    assert [c.name for c in checks if not c.passed] == ["convolutions compute in fp16"]


def test_a_damaged_package_is_named(built: dict[str, tuple[Artifact, Path]], tmp_path: Path) -> None:
    copy = tmp_path / "cut.mlpackage"
    shutil.copytree(built["fp16"][1], copy)
    model_file = copy / "Data/com.apple.CoreML/model.mlmodel"
    model_file.write_bytes(model_file.read_bytes()[:3000])
    with pytest.raises(ArtifactError, match=r"cut\.mlpackage/.*model\.mlmodel: cannot be read"):
        coreml.check_structure(VARIANT, built["fp16"][0], copy)


@pytest.fixture
def image() -> Images:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, VARIANT.height_px, VARIANT.width_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference(weights: Path) -> Callable[[Images], Logits]:
    network = load_network(VARIANT, weights)

    def run(images: Images) -> Logits:
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
        with torch.inference_mode():
            return {n: v.numpy() for n, v in zip(network.names, network(x), strict=True)}

    return run


@pytest.mark.parametrize(("recipe", "tolerance"), [("fp32", 1e-4), ("fp16", 0.1)])
def test_the_mil_reference_computes_what_torch_computes_and_never_says_coreml(
    recipe: str,
    tolerance: float,
    built: dict[str, tuple[Artifact, Path]],
    image: Images,
    reference: Callable[[Images], Logits],
) -> None:
    runner = coreml.open_runner(*built[recipe])
    found, expected = runner.run(image), reference(image)
    assert list(found) == [output.name for output in VARIANT.outputs]
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == np.float32
        assert np.abs(found[name] - value).max() <= tolerance
    words = {"fp32": "MIL reference (fp32)", "fp16": "MIL reference (fp16 emulated, fp32 accumulation)"}
    assert runner.runtime == words[recipe]
    assert set(runner.versions) == {"torch", "coremltools", "nailtool"}
    runner.close()


def test_the_mil_reference_traces_layers_and_reads_weights(
    built: dict[str, tuple[Artifact, Path]], image: Images, weights: Path
) -> None:
    runner = cast(MilRunner, coreml.open_runner(*built["fp32"]))
    layers = runner.list_layers()
    convolutions = [layer for layer in layers if layer.op == "conv"]
    assert len(convolutions) == 43 + 18 + 4  # the low branch and fusions, the high branch, refine and heads
    traced = runner.trace(image[:1], [convolutions[0].name, "fgbg"])
    assert set(traced) == {convolutions[0].name, "fgbg"}
    assert np.array_equal(traced["fgbg"], runner.run(image[:1])["fgbg"])
    first = load_network(VARIANT, weights).get_submodule("network.low.stage1.0")
    assert isinstance(first, torch.nn.Conv2d)
    found = runner.read_weight(convolutions[0].name)
    assert found is not None and np.array_equal(found, first.weight.numpy())
    assert runner.read_weight(next(layer.name for layer in layers if layer.op == "clip")) is None


def test_a_package_without_our_outputs_is_refused(
    built: dict[str, tuple[Artifact, Path]], image: Images
) -> None:
    artifact, path = built["fp32"]
    other = artifact.model_copy(update={"output_names": {"fgbg": "nails"}})
    with pytest.raises(ConversionError, match="has no output 'nails'; it has direction, fgbg, finger"):
        coreml.open_runner(other, path).run(image)


def test_an_unknown_engine_is_named_with_the_known_ones(built: dict[str, tuple[Artifact, Path]]) -> None:
    with pytest.raises(UnknownNameError, match="known: coreml, mil-reference"):
        coreml.open_runner(*built["fp16"], engine="core-ml")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac executes it")
def test_coreml_is_refused_off_macos_with_the_way_to_a_golden(
    built: dict[str, tuple[Artifact, Path]],
) -> None:
    with pytest.raises(MissingToolError, match="executes on macOS only") as caught:
        coreml.open_runner(*built["fp16"], engine="coreml")
    assert "coreml_golden record" in caught.value.hint
    assert [e.name for e in coreml.ENGINES if e.default] == ["mil-reference"]


class FakeModel:
    """Stands for coremltools' MLModel on a Mac: computes with the MIL reference, checks what it is given."""

    opened: ClassVar[list[tuple[str, object]]] = []

    def __init__(self, path: str, compute_units: object) -> None:
        if "damaged" in path:
            raise RuntimeError("Error compiling model")
        self.opened.append((path, compute_units))
        self.model = load_package(Path(path))

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        (name, image), *rest = inputs.items()
        assert not rest and name == "image" and image.mode == "RGB"
        return self.model.run({name: image.pixels}, precision="fp32")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine looks like a Mac with Pillow to the engine."""
    coremltools = import_coremltools()

    def fromarray(pixels: Any) -> SimpleNamespace:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3
        return SimpleNamespace(pixels=pixels, mode="RGB")

    image = ModuleType("PIL.Image")
    image.__dict__["fromarray"] = fromarray
    pillow = ModuleType("PIL")
    pillow.__dict__["Image"] = image
    monkeypatch.setitem(sys.modules, "PIL", pillow)
    monkeypatch.setitem(sys.modules, "PIL.Image", image)
    monkeypatch.setattr(coremltools.models, "MLModel", FakeModel)
    monkeypatch.setattr("deploy.coreml_runners.sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr("deploy.coreml_runners.platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))


@pytest.mark.usefixtures("mac")
def test_on_a_mac_coreml_itself_predicts(
    built: dict[str, tuple[Artifact, Path]], image: Images, reference: Callable[[Images], Logits]
) -> None:
    runner = coreml.open_runner(*built["fp32"], engine="coreml")
    assert runner.runtime == "CoreML, macOS 15.1, ALL"
    assert runner.versions["macOS"] == "15.1"
    found, expected = runner.run(image), reference(image)
    assert all(np.abs(found[name] - expected[name]).max() < 1e-4 for name in expected)
    assert FakeModel.opened[-1][0] == str(built["fp32"][1])
    assert getattr(FakeModel.opened[-1][1], "name", "") == "ALL"


@pytest.mark.usefixtures("mac")
def test_on_a_mac_a_package_coreml_does_not_load_is_named(
    built: dict[str, tuple[Artifact, Path]], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"damaged\.mlpackage: CoreML does not load it: Error comp"):
        coreml.open_runner(built["fp16"][0], tmp_path / "damaged.mlpackage", engine="coreml")


@pytest.mark.usefixtures("mac")
def test_on_a_mac_without_pillow_the_remedy_is_named(
    built: dict[str, tuple[Artifact, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingToolError, match="Pillow"):
        coreml.open_runner(*built["fp16"], engine="coreml")
