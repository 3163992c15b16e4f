"""Parity catches what must be caught: planted defects in real converted files, on trained weights."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import quantize
from benchmark import parity
from benchmark.accuracy import evaluate_accuracy
from benchmark.coreml_golden import record_runner
from benchmark.parity import check_parity, find_weights_hash
from deploy import find_target
from model_zoo import find_variant, weights_path
from nailcore.artifact import (
    Artifact,
    artifact_path,
    manifest_path,
    open_artifact,
    read_manifest,
    write_manifest,
)
from nailcore.data.folder import Dataset
from nailcore.errors import ArtifactError, BrowserError, MissingToolError, UnknownNameError
from nailcore.facts import Gate, ParityResult
from nailcore.runtime import Engine
from nailcore.storage import hash_path, size_bytes
from nailtool import cli
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


def test_the_drop_counts_the_network_as_evaluate_does(
    onnx_manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    drop = check(onnx_manifest, images).accuracy
    known = evaluate_accuracy(VARIANT, WEIGHTS, images, "held-out", tmp_path)
    assert drop is not None
    ours = np.array([i.reference for i in drop.per_image])
    theirs = np.array([(i.tp, i.fp, i.fn, i.tn) for i in known.per_image])
    assert np.abs(ours - theirs).max() <= 2, "a pixel on the fence may fall otherwise in another precision"
    assert drop.reference_nail_iou.value == pytest.approx(known.nail_iou.value, abs=1e-3)
    assert abs(drop.drop_points.value) < 0.1


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


def swap_x_and_y(model: Any) -> None:
    """The two channels of the last convolution before 'direction' change places."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers["direction"]
    while node.op_type != "Conv":
        node = producers[node.input[0]]
    for tensor in model.graph.initializer:
        if tensor.name in list(node.input)[1:]:
            values = numpy_helper.to_array(tensor)[::-1]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def test_a_swapped_direction_is_told_in_degrees_where_its_head_is_trained(
    onnx_manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    artifact, path = copy_of(onnx_manifest, tmp_path / VARIANT.name)
    model = onnx.load(path)
    swap_x_and_y(model)
    onnx.save(model, path)
    manifest = sign_again(artifact, path)
    untrained = check_parity(manifest, WEIGHTS, images, "held-out", heads_trained=("fgbg",))
    assert untrained.heads_trained == ("fgbg",) and not any("turns by" in f for f in untrained.failures)
    assert untrained.direction_error_p90_deg is not None and untrained.direction_error_p90_deg > 2
    trained = check_parity(manifest, WEIGHTS, images, "held-out", heads_trained=("fgbg", "direction"))
    assert any("output 'direction' turns by" in failure for failure in trained.failures)
    assert trained.flipped_permille == 0


# -- engines ---------------------------------------------------------------------------------------
def test_an_engine_is_asked_for_by_name(onnx_manifest: Path, images: Dataset) -> None:
    assert (
        check_parity(onnx_manifest, WEIGHTS, images, "held-out", engine="onnxruntime").engine == "onnxruntime"
    )
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        check_parity(onnx_manifest, WEIGHTS, images, "held-out", engine="onnxruntim")


def test_a_slow_engine_sees_the_first_images_and_says_so(
    onnx_manifest: Path, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Engine("onnxruntime", software_gpu=True, image_limit=1)
    monkeypatch.setattr(find_target("onnx"), "ENGINES", (slow,))
    result, whole = check(onnx_manifest, images), images.describe("held-out")
    assert (result.images.count, result.software_gpu) == (1, True)
    assert result.images.name == f"first 1 of {whole.count}, {whole.name}"
    assert result.images.sha256 != whole.sha256 and result.images.part_of_sha256 == whole.sha256


def test_what_cannot_be_executed_is_never_a_pass(
    onnx_manifest: Path, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: object) -> None:
        raise MissingToolError("No such browser here.", hint="Install it.")

    def crash(*_: object) -> None:
        raise BrowserError("The browser crashed.")

    monkeypatch.setattr(find_target("onnx"), "open_runner", lack)
    result = check(onnx_manifest, images)
    assert (result.status, result.note) == ("not executed", "No such browser here.\nInstall it.")
    assert result.outputs == [] and result.mask_iou is None
    monkeypatch.setattr(find_target("onnx"), "open_runner", crash)
    with pytest.raises(BrowserError):  # no verdict about the file, and none is kept
        check(onnx_manifest, images)


def test_recorded_answers_stand_in_for_an_engine(
    onnx_manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    artifact, path = open_artifact(onnx_manifest)
    runner = find_target("onnx").open_runner(artifact, path)
    golden = tmp_path / "golden.npz"
    record_runner(runner, artifact, images, "held-out", golden)
    result = check_parity(onnx_manifest, WEIGHTS, images, "held-out", golden=golden)
    assert (result.status, result.flipped_permille) == ("passed", 0)
    assert result.settings["recorded in"] == "golden.npz" and result.runtime.endswith("(recorded)")
    other = artifact.model_copy(update={"sha256": "0" * 64})
    write_manifest(tmp_path / artifact.file, other)
    with pytest.raises(ArtifactError, match="recorded from"):
        check_parity(manifest_path(tmp_path / artifact.file), WEIGHTS, images, "held-out", golden=golden)


def test_gates_are_kept_and_a_failing_one_fails_the_file(
    onnx_manifest: Path, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []

    def check_gates(*given: Any) -> list[Gate]:
        seen.append(given[3])
        return [
            Gate(name="identity", passed=False, detail="a clip is 1, not 6"),
            Gate(name="b", passed=True, detail=""),
        ]

    gates = types.ModuleType("made_up_gates")
    gates.check_gates = check_gates  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_gates", gates)
    monkeypatch.setattr(parity, "GATES", {"onnx": "made_up_gates"})
    result = check(onnx_manifest, images)
    assert result.status == "failed" and [gate.passed for gate in result.gates] == [False, True]
    assert result.failures == ["nail43-288 onnx fp32: gate 'identity': a clip is 1, not 6"]
    assert seen == [None]  # the fp32 file has no sibling but itself


# -- the first divergence, through the command ------------------------------------------------------
def test_bisect_says_what_changed_and_where(
    onnx_manifest: Path, images: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = copy_of(onnx_manifest, tmp_path / VARIANT.name)

    def bisect(*options: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(
                [
                    "parity-check",
                    "--bisect",
                    str(path),
                    "--data",
                    str(images.root),
                    "--out",
                    str(tmp_path),
                    *options,
                ]
            )
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    assert bisect("--quiet")[0] == 0
    kept = list((tmp_path / "facts/divergence").glob("*.json"))
    assert [p.name for p in kept] == ["nail43-288.fp32.onnx.onnxruntime.json"]
    model = onnx.load(path)
    align_corners(model)
    onnx.save(model, path)
    code, out, err = bisect()
    assert code == 1 and "are not those its manifest describes" in err
    assert "first divergence at layer" in out and "(Resize)" in out and "cause: " in out
    code, out, _ = bisect("--json", "--quiet")
    document = json.loads(out)
    assert (code, document["changed"], document["fact"]) == (1, True, None)
    assert document["divergence"]["op"] == "Resize" and document["divergence"]["module"]
    assert bisect("--engines", "all")[0] == 2

    manifest = manifest_path(path)
    said = json.loads(manifest.read_text("utf-8"))
    said["made_by"]["config"]["recipe"]["compute_dtype"] = "int8"
    manifest.write_text(json.dumps(said), "utf-8")
    code, _, err = bisect()
    assert code == 2 and "cannot be compared layer by layer" in err and "sensitivity" in err


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
