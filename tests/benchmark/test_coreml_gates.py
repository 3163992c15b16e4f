"""The three gates of CoreML on trained weights: sound files pass, each planted defect is caught by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.coreml_gates import check_gates, load_gate_limits, make_pattern
from deploy.coreml_runners import MilRunner
from deploy.coremltools_import import import_coremltools, silence_coremltools
from deploy.mil.reader import read_spec
from model_zoo import find_variant, weights_path
from nailcore.artifact import Artifact, open_artifact
from nailcore.data.folder import Sample
from nailcore.errors import DataError, NailtoolError
from nailcore.facts import Gate
from nailcore.nets.weights import load_weights, save_weights
from nailcore.storage import hash_path
from nailcore.variant import Variant
from tests.built import build_artifact
from tests.deploy import broken_packages as broken
from tests.photos import load_images

VARIANT = find_variant("nail43-288")
WEIGHTS = weights_path(VARIANT)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return load_images(tmp_path_factory.mktemp("images") / "set").samples[:1]


@pytest.fixture(scope="module")
def fp32() -> tuple[Artifact, Path]:
    return open_artifact(build_artifact(VARIANT.name, "coreml", "fp32"))


@pytest.fixture(scope="module")
def fp16() -> tuple[Artifact, Path]:
    return open_artifact(build_artifact(VARIANT.name, "coreml", "fp16"))


Check = Callable[..., dict[str, Gate]]


@pytest.fixture(scope="module")
def check(photos: tuple[Sample, ...], fp32: tuple[Artifact, Path]) -> Check:
    """Gates by name; the artefact is re-described, so that content alone must tell."""

    def run(
        artifact: Artifact, path: Path, sibling: Path | None = None, weights: Path = WEIGHTS
    ) -> dict[str, Gate]:
        honest = artifact.model_copy(update={"sha256": hash_path(path)})
        gates = check_gates(VARIANT, honest, path, sibling or fp32[1], weights, photos)
        assert [gate.name for gate in gates] == ["semantics", "identity", "end to end"]
        return {gate.name: gate for gate in gates}

    return run


def failed(gates: dict[str, Gate]) -> set[str]:
    return {name for name, gate in gates.items() if not gate.passed}


def test_sound_files_pass_with_figures(
    check: Check, fp32: tuple[Artifact, Path], fp16: tuple[Artifact, Path]
) -> None:
    for artifact, path in (fp32, fp16):
        gates = check(artifact, path)
        assert not failed(gates), {name: gate.detail for name, gate in gates.items()}
        semantics, identity, end = gates.values()
        assert semantics.figures["photos"] == 1 and semantics.figures["patterns"] == 1
        assert semantics.figures["max_abs fgbg"] <= 1e-4
        assert identity.figures["operations"] == 124 and identity.figures["differences"] == 0
        assert "weight.bin" in identity.detail and "model.mlmodel" in identity.detail
        assert end.figures["layers_not_finite"] == 0 and end.figures["headroom"] > 100
    # The last one is float16: its weights are rounded as well as can be, and its sums have a band.
    assert 0.99 < identity.figures["largest_share_of_bound"] <= 1
    assert end.figures["psnr_db fgbg"] > 48 and end.figures["accumulation_max_abs"] > 0


# Planted into the shipped float16 file alone: what identity says, and whether float16's noise hides it
# from the photographs.
SHIPPED_DEFECTS = {
    "flip_align_corners": ("align_corners of upsample_bilinear", True),
    "swap_colours": ("input 'image' is image 288×288 BGR", True),
    "undilate": ("dilations of conv", True),
    "lower_clip": ("beta of clip", True),
    "swap_heads": ("output 'fgbg' is computed by", True),
    "flip_exponent_bit": ("weight 'network_fusion8_project_f1_weight", False),
    "flip_sign_bit": ("weight 'network_fusion8_project_f1_weight", None),
    "flip_lowest_bit": ("weight 'network_fusion8_project_f1_weight", False),
    "drop_bias": ("has no bias", True),
    "transpose_kernel": ("weight 'network_fusion8_project_f1_weight", True),
    "transpose_channels": ("weight 'network_fusion8_project_f1_weight", True),
    "wrong_std": ("weight 'network_low_stage1_0_weight", False),
    "wrong_mean": ("constant 'mean_to_fp16'", False),
    "wrong_epsilon": ("weight 'network_low_stage5_0_layers_3_weight", False),
    "stale_weights": ("(and 127 more)", True),
    "truncate_weights": ("weight.bin: constant", True),
    "rename_op": ("conv_of_tomorrow", True),
    "overflow": ("weight 'network_low_stage4_1_layers_0_weight", True),
    "swap_fingers": ("network_output_heads_finger", True),
    "swap_direction_axes": ("network_output_heads_direction", True),
    "shift_padding": ("pad of conv", True),
    "rewire_residual": ("comes from another operation", True),
    "drop_relu": ("in the sibling relu", True),
}


def test_every_plant_has_its_expectation() -> None:
    assert set(SHIPPED_DEFECTS) == set(broken.PLANTS)


@pytest.mark.parametrize("name", SHIPPED_DEFECTS)
def test_a_defect_of_the_shipped_file_is_caught_by_identity(
    name: str, check: Check, fp16: tuple[Artifact, Path], tmp_path: Path
) -> None:
    words, visible = SHIPPED_DEFECTS[name]
    artifact, path = fp16
    copy = tmp_path / path.name
    broken.PLANTS[name](path, copy)
    gates = check(artifact, copy)
    found = failed(gates)
    assert "identity" in found
    if visible is not None:  # None: it depends on the images whether the outputs show it
        assert found == ({"identity", "end to end"} if visible else {"identity"})
    assert words in gates["identity"].detail, gates["identity"].detail


# A conversion that goes wrong goes wrong in the sibling too: float32 shows it, however small.
CONVERSION_DEFECTS = (
    "flip_align_corners",
    "flip_sign_bit",
    "wrong_std",
    "wrong_mean",
    "wrong_epsilon",
    "swap_direction_axes",
    "shift_padding",
)


@pytest.mark.parametrize("name", CONVERSION_DEFECTS)
def test_a_defect_of_the_conversion_is_caught_by_semantics(
    name: str, check: Check, fp32: tuple[Artifact, Path], tmp_path: Path
) -> None:
    artifact, path = fp32
    copy = tmp_path / path.name
    broken.PLANTS[name](path, copy)
    gates = check(artifact, copy)
    assert "semantics" in failed(gates)
    assert max(v for k, v in gates["semantics"].figures.items() if k.startswith("max_abs")) > 1e-3


def test_the_lowest_bit_of_a_float32_weight_is_seen_against_torch_alone(
    check: Check, fp32: tuple[Artifact, Path], tmp_path: Path
) -> None:
    artifact, path = fp32
    copy = tmp_path / path.name
    broken.flip_lowest_bit(path, copy)
    gates = check(artifact, copy)
    assert failed(gates) == {"identity"}
    assert "is not bit for bit the torch network's" in gates["identity"].detail


def test_an_overflow_that_a_clip_hides_is_named_though_every_output_is_finite(
    check: Check, fp32: tuple[Artifact, Path], fp16: tuple[Artifact, Path], tmp_path: Path
) -> None:
    """The network itself is sound in float32 and rounded correctly; only float16's range is too small."""
    layer = broken.NARROW.removeprefix("network.")
    grown = load_weights(VARIANT, WEIGHTS)
    grown.state_dict()[f"{layer}.weight"].mul_(broken.OVERFLOW)
    weights = tmp_path / "grown.safetensors"
    save_weights(grown, weights, {})
    sibling, shipped = tmp_path / fp32[1].name, tmp_path / fp16[1].name
    broken.overflow(fp32[1], sibling)
    exact = MilRunner(fp32[0], sibling).read_weight("input_43")
    assert exact is not None
    edit = broken.Editor(fp16[1], shipped)
    edit.change(edit.holder(edit.conv(broken.NARROW), "weight"), lambda _: exact)
    edit.save()
    gates = check(fp16[0], shipped, sibling, weights)
    assert failed(gates) == {"end to end"}, {name: gate.detail for name, gate in gates.items()}
    end = gates["end to end"]
    assert end.detail.startswith("conv 'input_43_cast_fp16' (infinity) is the first of ")
    assert end.figures["layers_not_finite"] >= 1
    assert "psnr_db fgbg" in end.figures  # the outputs are finite: only the scan tells


def test_too_little_headroom_is_a_failure_before_anything_overflows(
    check: Check, fp32: tuple[Artifact, Path], fp16: tuple[Artifact, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(broken, "OVERFLOW", 2.0**11)
    shipped = tmp_path / fp16[1].name
    broken.overflow(fp16[1], shipped)
    end = check(fp16[0], shipped)["end to end"]
    assert end.figures["layers_not_finite"] == 0
    assert 1 < end.figures["headroom"] < 4
    assert "conv 'input_43_cast_fp16' reaches" in end.detail


def test_changed_bytes_are_seen_by_hash_even_where_nothing_else_tells(
    fp16: tuple[Artifact, Path], fp32: tuple[Artifact, Path], photos: tuple[Sample, ...], tmp_path: Path
) -> None:
    artifact, path = fp16
    copy = tmp_path / path.name
    shutil.copytree(path, copy)
    manifest = copy / "Manifest.json"
    manifest.write_text(manifest.read_text("utf-8") + " ", "utf-8")
    gates = {g.name: g for g in check_gates(VARIANT, artifact, copy, fp32[1], WEIGHTS, photos)}
    assert failed(gates) == {"identity"}
    assert "its bytes are not those its manifest describes" in gates["identity"].detail


def test_a_missing_sibling_is_converted_anew(
    fp16: tuple[Artifact, Path], fp32: tuple[Artifact, Path], photos: tuple[Sample, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    artifact, path = fp16

    def convert(variant: Variant, recipe: dict[str, Any], weights: Path, out: Path) -> None:
        assert (variant, recipe["compute_dtype"], weights) == (VARIANT, "float32", WEIGHTS)
        shutil.copytree(fp32[1], out)

    monkeypatch.setattr("deploy.coreml.convert", convert)
    gates = check_gates(VARIANT, artifact, path, tmp_path / "gone.mlpackage", WEIGHTS, photos)
    assert all(gate.passed for gate in gates)
    assert "a sibling converted for this check" in gates[1].detail


def test_a_sibling_of_other_weights_does_not_pass_for_the_networks_own(
    check: Check, fp32: tuple[Artifact, Path], fp16: tuple[Artifact, Path], tmp_path: Path
) -> None:
    sibling = tmp_path / fp32[1].name
    broken.stale_weights(fp32[1], sibling)
    gates = check(*fp16, sibling)
    assert failed(gates) == {"semantics", "identity"}


def test_no_photographs_are_no_proof(fp16: tuple[Artifact, Path], fp32: tuple[Artifact, Path]) -> None:
    with pytest.raises(DataError, match="at least one photograph"):
        check_gates(VARIANT, *fp16, fp32[1], WEIGHTS, [])


# -- compressed packages --------------------------------------------------------------------------


def find_dense_op(package: Path) -> str:
    """The name coremltools gives the operation of broken.DENSE, which is not that of its output."""
    spec, _ = read_spec(package)
    function = spec.mlProgram.functions["main"]
    for op in function.block_specializations[function.opset].operations:
        weight = op.inputs["weight"].arguments[0].name if "weight" in op.inputs else ""
        if weight.startswith(broken.DENSE.replace(".", "_")):
            return str(op.attributes["name"].immediateValue.tensor.strings.values[0])
    raise AssertionError("no such convolution")


def compress(package: Path, out: Path, config: Callable[[Any], tuple[Any, Any]]) -> Path:
    """Compress the one convolution that the defects hit, as coremltools does it."""
    scratch = out.with_name("scratch.mlpackage")
    shutil.copytree(package, scratch)  # coremltools rewrites the manifest of what it opens
    ct = import_coremltools()
    import coremltools.optimize.coreml as cto

    with silence_coremltools():
        model = ct.models.MLModel(str(scratch), skip_model_load=True)
        function, settings = config(cto)
        configs = cto.OptimizationConfig(op_name_configs={find_dense_op(package): settings})
        function(model, configs).save(str(out))
    return out


COMPRESSIONS: dict[str, tuple[tuple[str, ...], Callable[[Any], tuple[Any, Any]]]] = {
    "int8 linear": (
        ("wrong_zero_point", "wrong_scale"),
        lambda cto: (cto.linear_quantize_weights, cto.OpLinearQuantizerConfig(mode="linear")),
    ),
    "6-bit palette": (
        ("shift_palette_index",),
        lambda cto: (cto.palettize_weights, cto.OpPalettizerConfig(mode="kmeans", nbits=6)),
    ),
}


@pytest.mark.parametrize("form", COMPRESSIONS)
def test_a_compressed_weight_keeps_its_formats_bound_and_a_wrong_code_does_not(
    form: str, check: Check, fp16: tuple[Artifact, Path], tmp_path: Path
) -> None:
    defects, config = COMPRESSIONS[form]
    artifact, path = fp16
    sound = compress(path, tmp_path / "sound.mlpackage", config)
    gates = check(artifact, sound)
    assert "identity" not in failed(gates), gates["identity"].detail
    for name in defects:
        copy = tmp_path / name / path.name
        broken.COMPRESSED_PLANTS[name](sound, copy)
        gates = check(artifact, copy)
        assert "identity" in failed(gates)
        assert f"network_fusion8_project_f1_weight_to_fp16_{SUFFIXES[form]}" in gates["identity"].detail
        assert form in gates["identity"].detail


SUFFIXES = {"int8 linear": "quantized", "6-bit palette": "palettized"}


# -- limits and pattern ---------------------------------------------------------------------------


def test_limits_come_from_the_file_and_a_recipe_may_have_its_own(tmp_path: Path) -> None:
    assert load_gate_limits("fp16").semantics_max_abs == 1e-4
    file = tmp_path / "limits.toml"
    base = '["gates.coreml"]\nsemantics_max_abs = 1e-4\npsnr_db = 48\nheadroom = 4\nreason = "r"\n'
    file.write_text(base + '["gates.coreml.int4"]\npsnr_db = 20\n', "utf-8")
    assert load_gate_limits("int4", file).psnr_db == 20 and load_gate_limits("int8", file).psnr_db == 48
    for damage in ("", base.replace("headroom = 4\n", ""), base + "typo = 1\n"):
        other = tmp_path / f"{len(damage)}.toml"
        other.write_text(damage, "utf-8")
        with pytest.raises(NailtoolError, match=r"no valid table \['gates\.coreml'\]"):
            load_gate_limits("fp16", other)


def test_the_pattern_tells_colours_mirrors_and_shifts_apart() -> None:
    pattern = make_pattern(288, 256).astype(int)
    assert pattern.shape == (288, 256, 3)

    def apart(other: np.ndarray[Any, Any]) -> float:
        return float(np.abs(pattern - other).mean())

    variants: list[Callable[[Any], Any]] = [
        lambda p: p[..., ::-1],
        lambda p: p[..., [1, 0, 2]],
        lambda p: p[:, ::-1],
        lambda p: p[::-1],
        partial(np.roll, shift=4, axis=0),
        partial(np.roll, shift=4, axis=1),
    ]
    assert min(apart(change(pattern)) for change in variants) > 1
