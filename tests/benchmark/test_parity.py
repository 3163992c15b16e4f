"""Parity catches what must be caught: planted defects in real converted files, on trained weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import quantize
from benchmark.parity import check_parity, find_weights_hash
from deploy import find_target
from model_zoo import find_variant, weights_path
from nailcore.artifact import Artifact, artifact_path, open_artifact, read_manifest, write_manifest
from nailcore.data.folder import Dataset
from nailcore.errors import ArtifactError
from nailcore.facts import ParityResult
from nailcore.storage import hash_path, size_bytes
from tests.browser_marks import skip_without_browser
from tests.photos import load_images

VARIANT = find_variant("nail43-288")
WEIGHTS = weights_path(VARIANT)
FP32 = quantize.find_recipe("fp32").model_dump(mode="json")
FP16 = quantize.find_recipe("fp16").model_dump(mode="json")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_images(tmp_path_factory.mktemp("images") / "set")


def build(kind: str, recipe: dict[str, Any], out: Path, parent: Path) -> Path:
    target = find_target(kind)
    path = artifact_path(out, VARIANT.name, recipe["name"], target.SUFFIX)
    return write_manifest(path, target.convert(VARIANT, recipe, parent, path))


@pytest.fixture(scope="module")
def onnx_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("onnx", FP32, tmp_path_factory.mktemp("built"), WEIGHTS)


@pytest.fixture(scope="module")
def tfjs_manifests(onnx_manifest: Path) -> dict[str, Path]:
    _, parent = open_artifact(onnx_manifest)
    out = onnx_manifest.parent.parent
    return {recipe["name"]: build("tfjs", recipe, out, parent) for recipe in (FP32, FP16)}


def copy_of(manifest: Path, folder: Path) -> tuple[Artifact, Path]:
    """A copy of the whole variant folder, so that a defect stays in its test."""
    shutil.copytree(manifest.parent, folder, dirs_exist_ok=True)
    return open_artifact(folder / manifest.name)


def sign_again(artifact: Artifact, path: Path) -> Path:
    """A manifest that vouches for the damaged bytes: only the content can now give the defect away."""
    signed = artifact.model_copy(update={"sha256": hash_path(path), "size_bytes": size_bytes(path)})
    return write_manifest(path, signed)


def check(manifest: Path, images: Dataset) -> ParityResult:
    return check_parity(manifest, WEIGHTS, images, "held-out")


# -- sound files pass ---------------------------------------------------------------------------
def test_sound_onnx_passes_with_every_output_named(onnx_manifest: Path, images: Dataset) -> None:
    result = check(onnx_manifest, images)
    assert (result.status, result.failures) == ("passed", [])
    assert [o.name for o in result.outputs] == ["fgbg", "finger", "direction"]
    assert all(o.max_abs <= 1e-4 for o in result.outputs) and result.flipped_permille == 0
    assert result.images.count == len(images.samples) and result.artifact.sha256 == hash_path(
        onnx_manifest.parent / result.artifact.file
    )


@skip_without_browser
@pytest.mark.browser
@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_sound_tfjs_passes_in_chromium(recipe: str, tfjs_manifests: dict[str, Path], images: Dataset) -> None:
    result = check(tfjs_manifests[recipe], images)
    assert (result.status, result.failures) == ("passed", [])
    assert "wasm" in result.runtime and result.versions["chromium"]
    assert result.flipped_permille is not None and result.flipped_permille <= 1.0
    if recipe == "fp32":
        assert max(o.max_abs for o in result.outputs) <= 1e-4


# -- planted defects, each in a file whose manifest vouches for it --------------------------------
def swap_heads(model: Any) -> None:
    """fgbg and direction share a shape: only their names tell them apart."""
    rename = {"fgbg": "direction", "direction": "fgbg"}
    for node in model.graph.node:
        node.output[:] = [rename.get(name, name) for name in node.output]


def swap_red_and_blue(model: Any) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4 and values.shape[1] == 3:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, ::-1]), tensor.name))


def align_corners(model: Any) -> None:
    resize = [node for node in model.graph.node if node.op_type == "Resize"][1]
    for attribute in resize.attribute:
        if attribute.name == "coordinate_transformation_mode":
            attribute.s = b"align_corners"


def scale_normalisation(model: Any) -> None:
    """x - 127.5 becomes x - 130.05: two per cent."""
    subtract = next(node for node in model.graph.node if node.op_type == "Sub")
    for tensor in model.graph.initializer:
        if tensor.name == subtract.input[1]:
            values = numpy_helper.to_array(tensor) * np.float32(1.02)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


ONNX_DEFECTS = [swap_heads, swap_red_and_blue, align_corners, scale_normalisation]


@pytest.mark.parametrize("plant", ONNX_DEFECTS, ids=lambda f: f.__name__)
def test_planted_onnx_defect_fails_by_name_and_figure(
    plant: Callable[[Any], None], onnx_manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    artifact, path = copy_of(onnx_manifest, tmp_path / VARIANT.name)
    model = onnx.load(path)
    before = model.SerializeToString(deterministic=True)
    plant(model)
    assert model.SerializeToString(deterministic=True) != before, "the defect was not planted"
    onnx.save(model, path)
    result = check(sign_again(artifact, path), images)
    assert result.status == "failed"
    assert any(
        "nail43-288 onnx fp32: output '" in sentence and "limit" in sentence for sentence in result.failures
    )


def test_flipped_byte_in_onnx_weights_fails_by_hash_and_by_content(
    onnx_manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    artifact, path = copy_of(onnx_manifest, tmp_path / VARIANT.name)
    model = onnx.load(path)
    kernel = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    data = bytearray(path.read_bytes())
    position = bytes(data).index(bytes(kernel.raw_data)) + 4 * 1000 + 3  # an exponent byte
    data[position] ^= 0x40
    path.write_bytes(data)
    by_hash = check(tmp_path / VARIANT.name / onnx_manifest.name, images)
    assert by_hash.status == "failed" and "bytes changed since it was built" in by_hash.failures[0]
    by_content = check(sign_again(artifact, path), images)
    assert by_content.status == "failed" and "output '" in by_content.failures[0]


def edit_model_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((path / "model.json").read_text())
    edit(document)
    (path / "model.json").write_text(json.dumps(document))


def swap_tfjs_heads(path: Path) -> None:
    """Two nodes exchange their names; the signature, and whoever reads it, notices nothing."""
    rename = {"fgbg": "direction", "direction": "fgbg"}

    def edit(document: dict[str, Any]) -> None:
        for node in document["modelTopology"]["node"]:
            node["name"] = rename.get(node["name"], node["name"])

    edit_model_json(path, edit)


def align_tfjs_corners(path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        resize = [n for n in document["modelTopology"]["node"] if n["op"] == "ResizeBilinear"][1]
        resize["attr"]["half_pixel_centers"] = {"b": False}
        resize["attr"]["align_corners"] = {"b": True}

    edit_model_json(path, edit)


def edit_tfjs_weight(
    path: Path, wanted: Callable[[dict[str, Any]], bool], edit: Callable[[Any], Any]
) -> None:
    group = json.loads((path / "model.json").read_text())["weightsManifest"][0]
    blob = bytearray(b"".join((path / shard).read_bytes() for shard in group["paths"]))
    offset, changed = 0, 0
    for weight in group["weights"]:
        size = int(np.prod(weight["shape"])) * 4
        if wanted(weight):
            values = np.frombuffer(blob[offset : offset + size], np.float32).reshape(weight["shape"])
            blob[offset : offset + size] = np.ascontiguousarray(edit(values), np.float32).tobytes()
            changed += 1
        offset += size
    assert changed
    start = 0
    for shard in group["paths"]:
        length = (path / shard).stat().st_size
        (path / shard).write_bytes(blob[start : start + length])
        start += length


def swap_tfjs_red_and_blue(path: Path) -> None:
    edit_tfjs_weight(path, lambda w: len(w["shape"]) == 4 and w["shape"][2] == 3, lambda v: v[:, :, ::-1])


def scale_tfjs_normalisation(path: Path) -> None:
    edit_tfjs_weight(
        path,
        lambda w: w["dtype"] == "float32" and int(np.prod(w["shape"])) in (1, 3),
        lambda v: np.where(np.abs(v) == 127.5, v * 1.02, v),
    )


def flip_tfjs_byte(path: Path) -> None:
    """One exponent bit of one weight of the largest kernel's shard."""
    shard = max(path.glob("*.bin"), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    words = np.frombuffer(bytes(data[: len(data) // 4 * 4]), np.float32)
    index = int(np.flatnonzero((np.abs(words) > 0.01) & (np.abs(words) < 1))[len(words) // 3])
    data[4 * index + 3] ^= 0x40
    shard.write_bytes(data)


TFJS_DEFECTS = [
    swap_tfjs_heads,
    align_tfjs_corners,
    swap_tfjs_red_and_blue,
    scale_tfjs_normalisation,
    flip_tfjs_byte,
]


@skip_without_browser
@pytest.mark.browser
@pytest.mark.parametrize("plant", TFJS_DEFECTS, ids=lambda f: f.__name__)
def test_planted_tfjs_defect_fails_in_chromium(
    plant: Callable[[Path], None], tfjs_manifests: dict[str, Path], images: Dataset, tmp_path: Path
) -> None:
    artifact, path = copy_of(tfjs_manifests["fp32"], tmp_path / VARIANT.name)
    plant(path)
    assert hash_path(path) != artifact.sha256, "the defect was not planted"
    unsigned = check(tmp_path / VARIANT.name / tfjs_manifests["fp32"].name, images)
    assert unsigned.status == "failed" and "bytes changed since it was built" in unsigned.failures[0]
    result = check(sign_again(artifact, path), images)
    assert result.status == "failed"
    assert any("nail43-288 tfjs fp32" in sentence for sentence in result.failures)


# -- provenance ------------------------------------------------------------------------------------
def test_an_artefact_of_other_weights_fails_although_it_runs(
    onnx_manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    """Were the defect in the weights file itself, file and reference would agree on it."""
    from nailcore.nets.weights import load_weights, save_weights

    network = load_weights(VARIANT, WEIGHTS)
    other = tmp_path / "other.safetensors"
    save_weights(network, other, {"note": "same values, another file"})
    result = check_parity(onnx_manifest, other, images, "held-out")
    assert result.status == "failed" and "not built from the weights" in result.failures[-1]


def test_a_replaced_parent_is_noticed(
    tfjs_manifests: dict[str, Path], images: Dataset, tmp_path: Path
) -> None:
    copy_of(tfjs_manifests["fp32"], tmp_path / VARIANT.name)
    manifest = tmp_path / VARIANT.name / tfjs_manifests["fp32"].name
    assert find_weights_hash(manifest) == hash_path(WEIGHTS)
    parent = manifest.with_name("nail43-288.fp32.onnx.manifest.json")
    parent.write_text(read_manifest(parent).model_copy(update={"sha256": "0" * 64}).model_dump_json())
    assert find_weights_hash(manifest) == ""


def test_missing_manifest_is_an_error_not_a_verdict(images: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no manifest there"):
        check(tmp_path / "gone.manifest.json", images)
