"""Target TFLite: names, bytes and numbers of what LiteRT executes, and planted defects it must refuse."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmark.parity import TorchReference
from deploy import onnx_to_tf, tflite
from deploy.onnx_to_tf import make_probe_image, run_onnx
from deploy.tflite_file import FileOperator, TfliteFile, read_tflite
from model_zoo import find_variant, weights_path
from nailcore.artifact import Artifact, manifest_path, open_artifact, write_manifest
from nailcore.errors import ArtifactError, ConversionError
from tests.deploy.tiny_onnx import FP16, FP32, NAMES, SIZE_PX, VARIANT, write_onnx

F32 = npt.NDArray[np.float32]
Built = dict[str, tuple[Artifact, Path]]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="module")
def built(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("built")
    paths = {name: out / f"tiny.{name}.tflite" for name in ("fp32", "fp16")}
    recipes = {"fp32": FP32, "fp16": FP16}
    return {name: (tflite.convert(VARIANT, recipes[name], onnx_file, p), p) for name, p in paths.items()}


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    return make_probe_image(SIZE_PX, SIZE_PX).astype(np.uint8)


def differ(found: dict[str, F32], expected: dict[str, F32]) -> float:
    """Largest difference relative to the output's own size; ``expected`` as NHWC."""
    return max(
        float(np.abs(found[name].transpose(0, 2, 3, 1) - value).max() / np.abs(value).max())
        for name, value in expected.items()
    )


def test_trained_weights_compute_the_same_as_in_torch(trained_files: dict[str, Path]) -> None:
    variant = find_variant("nail43-288")
    artifact, path = open_artifact(manifest_path(trained_files["tflite"]))
    picture = make_probe_image(variant.height_px, variant.width_px).astype(np.uint8)
    expected = TorchReference(variant, weights_path(variant)).run(picture)
    found = tflite.open_runner(artifact, path).run(picture)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == np.float32
        assert float(np.abs(found[name] - value).max()) <= 1e-4


def test_dilations_stay_on_the_convolutions_and_outputs_have_our_names(built: Built) -> None:
    artifact, path = built["fp32"]
    content = read_tflite(path.read_bytes())
    assert sorted(content.signature) == sorted(NAMES)
    assert list(content.inputs) == ["image"]
    assert artifact.structure["space_to_batch_before"] == 2
    assert artifact.structure["space_to_batch_after"] == 0
    assert artifact.structure["dilated_convolutions"] == 2
    assert not {"SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "RELU6"} & set(artifact.structure["ops"])
    assert artifact.output_names == {name: name for name in NAMES}


@pytest.mark.parametrize("engine", [engine.name for engine in tflite.ENGINES])
@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_litert_computes_what_onnxruntime_computes(
    onnx_file: Path, built: Built, image: Any, engine: str, name: str
) -> None:
    limit = {"fp32": 1e-5, "fp16": 5e-3}[name]
    expected = run_onnx(onnx_file, image.astype(np.float32), NAMES)
    runner = tflite.open_runner(*built[name], engine)
    found = runner.run(np.repeat(image, 2, axis=0))
    assert list(found) == list(NAMES)
    for part in (0, 1):
        assert differ({key: value[part : part + 1] for key, value in found.items()}, expected) < limit
    delegated = runner.settings["delegated groups"] != "0"
    assert delegated == (engine == "litert")
    runner.close()


def test_the_same_bytes_again(onnx_file: Path, built: Built, tmp_path: Path) -> None:
    onnx_to_tf._freeze_cached.cache_clear()
    for name, recipe in (("fp16", FP16), ("fp32", FP32)):
        again = tflite.convert(VARIANT, recipe, onnx_file, tmp_path / f"{name}.tflite")
        assert again.sha256 == built[name][0].sha256


def test_heads_listed_in_another_order_keep_their_names(built: Built, image: Any, tmp_path: Path) -> None:
    permuted = write_onnx(tmp_path / "permuted.onnx", order=(2, 1, 0))
    artifact = tflite.convert(VARIANT, FP32, permuted, path := tmp_path / "tiny.tflite")
    ours, theirs = (tflite.open_runner(a, p).run(image) for a, p in (built["fp32"], (artifact, path)))
    for name in NAMES:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_float16_halves_the_file(built: Built) -> None:
    assert 0.4 < built["fp16"][0].size_bytes / built["fp32"][0].size_bytes < 0.8  # names weigh, it is tiny
    content = read_tflite(built["fp16"][1].read_bytes())
    assert {t.dtype for t in content.tensors if t.data.size > 64} == {"FLOAT16"}


# -- tracing -------------------------------------------------------------------------------------


def test_layers_are_traced_by_name_and_the_last_ones_are_the_outputs(built: Built, image: Any) -> None:
    runner = tflite.open_runner(*built["fp16"])
    layers = runner.list_layers()
    assert len({layer.name for layer in layers}) == len(layers)
    assert "DEQUANTIZE" not in {layer.op for layer in layers}
    dilated = [layer for layer in layers if max(layer.attributes.get("dilations", (1,))) > 1]
    assert len(dilated) == 2 and all(layer.attributes["strides"] == (1, 1) for layer in dilated)
    content = read_tflite(built["fp16"][1].read_bytes())
    heads = {name: content.tensors[place].name for name, place in content.signature.items()}
    traced = runner.trace(image, [*heads.values(), dilated[0].name])
    outputs = runner.run(image)
    for name, layer in heads.items():
        np.testing.assert_allclose(traced[layer], outputs[name], atol=1e-4)
    assert traced[dilated[0].name].shape[2:] == (8, 8)


def test_kernels_read_back_are_those_of_the_parent(onnx_file: Path, built: Built) -> None:

    import onnx

    weights = onnx.load(str(onnx_file)).graph.initializer
    stored = [onnx.numpy_helper.to_array(weight) for weight in weights]
    kernels = [array for array in stored if array.ndim == 4 and array.shape[2] <= 3 and array.shape[0] > 1]
    for name, tolerance in (("fp32", 1e-6), ("fp16", 1e-3)):
        runner = tflite.open_runner(*built[name])
        read = [runner.read_weight(layer.name) for layer in runner.list_layers()]
        found = [kernel for kernel in read if kernel is not None]
        assert len(found) == len(kernels)
        for kernel in kernels:
            alike = [k for k in found if k.shape == kernel.shape]
            assert min(float(np.abs(k - kernel).max()) for k in alike) <= tolerance * np.abs(kernel).max()


# -- planted defects -----------------------------------------------------------------------------


def test_swapped_outputs_stop_the_conversion(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tflite._run_converter

    def swap(graph: Any, names: tuple[str, ...], *, half: bool) -> bytes:
        return _swap_signature(original(graph, names, half=half), "fgbg", "direction")

    monkeypatch.setattr(tflite, "_run_converter", swap)
    with pytest.raises(ConversionError, match=r"'fgbg'.*holds 'direction'"):
        tflite.convert(VARIANT, FP32, onnx_file, out := tmp_path / "swapped.tflite")
    assert not out.exists()


def _swap_signature(data: bytes, one: str, other: str) -> bytes:
    """Exchange the tensor indices of two signature outputs in place."""
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.Model.GetRootAs(data, 0).SignatureDefs(0)
    places = {}
    for i in range(entry.OutputsLength()):
        table = entry.Outputs(i)
        places[table.Name().decode()] = (table._tab.Pos + table._tab.Offset(6), table.TensorIndex())
    changed = bytearray(data)
    (a, index_a), (b, index_b) = places[one], places[other]
    struct.pack_into("<I", changed, a, index_b)
    struct.pack_into("<I", changed, b, index_a)
    return bytes(changed)


def test_a_split_convolution_stops_the_conversion(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes) -> TfliteFile:
        content = read_tflite(data)
        split = FileOperator("SPACE_TO_BATCH_ND", (0,), (0,))
        return replace(content, operators=(*content.operators, split))

    monkeypatch.setattr(tflite, "read_tflite", read)
    with pytest.raises(ConversionError, match="SpaceToBatchND"):
        tflite.convert(VARIANT, FP32, onnx_file, tmp_path / "split.tflite")


def test_a_weight_beyond_float16_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    huge = write_onnx(tmp_path / "huge.onnx", scale=1e7)
    with pytest.raises(ConversionError, match="float16"):
        tflite.convert(VARIANT, FP16, huge, out := tmp_path / "huge.tflite")
    assert not out.exists()


def test_flipped_bytes_do_not_match_the_manifest(built: Built, tmp_path: Path) -> None:
    artifact, path = built["fp32"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / path.name).write_bytes(data)
    manifest = write_manifest(tmp_path / path.name, artifact)
    with pytest.raises(ArtifactError, match="bytes changed"):
        open_artifact(manifest)


def test_an_output_the_file_lacks_is_refused(built: Built) -> None:
    artifact, path = built["fp32"]
    other = artifact.model_copy(update={"output_names": {"fgbg": "mask"}})
    with pytest.raises(ArtifactError, match=r"no output mask; the model has .*fgbg"):
        tflite.open_runner(other, path)


def test_an_unknown_weights_dtype_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    recipe = {"name": "odd", "weights_dtype": "int3"}
    with pytest.raises(ConversionError, match="int3"):
        tflite.convert(VARIANT, recipe, onnx_file, tmp_path / "odd.tflite")
