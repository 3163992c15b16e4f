"""The TF.js target: exact folds, restored names, stable bytes, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import chromium, onnx_to_tf, tfjs
from deploy.onnx_to_tf import freeze_onnx, make_probe_image, run_onnx, verify_outputs
from deploy.tf_passes import count_ops, fold_dilations, fold_pads
from deploy.tfjs_write import optimise
from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, ConversionError
from tests.browser_marks import skip_without_browser
from tests.deploy.tiny_onnx import FP16, FP32, NAMES, SIZE_PX, VARIANT, write_onnx

F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="module")
def built(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, Path]]:
    """fp32 and fp16 as shipped, and fp32 by the official converter alone."""
    out = tmp_path_factory.mktemp("built")
    paths = {name: out / f"tiny.{name}.tfjs" for name in ("fp32", "fp16", "plain")}
    return {
        "fp32": (tfjs.convert(VARIANT, FP32, onnx_file, paths["fp32"]), paths["fp32"]),
        "fp16": (tfjs.convert(VARIANT, FP16, onnx_file, paths["fp16"]), paths["fp16"]),
        "plain": (tfjs.convert(VARIANT, FP32, onnx_file, paths["plain"], passes="none"), paths["plain"]),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[None]:
    """One browser for the tests that leave it intact."""
    session = chromium.borrow_session()
    yield
    chromium.return_session(session)


# -- the fold passes -----------------------------------------------------------------------------


def _split_graph(
    image: F32, kernel: F32, *, d: int, pads: list[int], crops: list[int], depthwise: bool
) -> tuple[Any, F32]:
    """Pad by one, then SpaceToBatchND -> VALID convolution -> BatchToSpaceND; graph and its result."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, image.shape, name="image")
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.raw_ops.SpaceToBatchND(input=x, block_shape=[d, d], paddings=np.reshape(pads, (2, 2)))
        conv = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
        x = conv(x, kernel, strides=[1, 1, 1, 1], padding="VALID")
        x = tf.raw_ops.BatchToSpaceND(input=x, block_shape=[d, d], crops=np.reshape(crops, (2, 2)))
        tf.identity(x, name="out")
        with tf.compat.v1.Session(graph=graph) as session:
            value = session.run("out:0", {"image:0": image})
    return graph.as_graph_def(), value


def _run_folded(graph: Any, image: F32, kernel: F32, depthwise: bool) -> F32:
    """Execute the one convolution that is left by torch, from nothing but its attributes."""
    import torch

    conv = next(node for node in graph.node if node.op in ("Conv2D", "DepthwiseConv2dNative"))
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    weight = torch.from_numpy(kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1))
    dilation = list(conv.attr["dilations"].list.i)[1:3]
    padding = conv.attr["padding"].s
    if padding == b"EXPLICIT":
        top, bottom, left, right = list(conv.attr["explicit_paddings"].list.i)[2:6]
    elif padding == b"SAME":
        rows, columns = (step * (k - 1) for step, k in zip(dilation, kernel.shape, strict=False))
        top, bottom, left, right = rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    else:
        top = bottom = left = right = 0
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    groups = image.shape[3] if depthwise else 1
    y = torch.nn.functional.conv2d(x, weight, dilation=dilation, groups=groups)
    return np.asarray(y.numpy().transpose(0, 2, 3, 1), np.float32)


def test_padding_before_a_convolution_that_pads_alike_is_absorbed() -> None:
    """The first fold makes SAME of the split's own padding; the Pad before it must not stay behind."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    graph, expected = _split_graph(image, kernel, d=2, pads=[1, 1, 1, 1], crops=[0, 0, 0, 0], depthwise=False)
    folded = fold_pads(fold_dilations(graph, ("out",)), ("out",))
    assert "Pad" not in count_ops(folded)
    np.testing.assert_allclose(_run_folded(folded, image, kernel, False), expected, atol=2e-5)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_folding_is_exact_for_any_padding(data: st.DataObject) -> None:
    d, k = data.draw(st.sampled_from([2, 3])), data.draw(st.sampled_from([1, 2, 3]))
    height, width = data.draw(st.integers(8, 14)), data.draw(st.integers(8, 14))
    depthwise = data.draw(st.booleans())
    pads, crops = [], []
    for size in (height, width):
        before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
        extra = -(size + 2 + before + after) % d  # SpaceToBatchND wants a multiple of the block
        pads += [before, after + extra]
        crops += [data.draw(st.integers(0, min(before, 1))), extra]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = rng.normal(size=(1, height, width, 3)).astype(np.float32)
    kernel = rng.normal(size=(k, k, 3, 1 if depthwise else 4)).astype(np.float32)
    graph, expected = _split_graph(image, kernel, d=d, pads=pads, crops=crops, depthwise=depthwise)
    folded = fold_pads(fold_dilations(graph, ("out",)), ("out",))
    assert set(count_ops(folded)) <= {"Placeholder", "Conv2D", "DepthwiseConv2dNative", "Identity"}
    np.testing.assert_allclose(_run_folded(folded, image, kernel, depthwise), expected, atol=2e-5)


def test_a_split_image_with_a_second_reader_stays(onnx_file: Path) -> None:
    graph = freeze_onnx(onnx_file, NAMES).graph
    split = next(node for node in graph.node if node.op == "SpaceToBatchND")
    spy = graph.node.add(op="Identity", name="spy", input=[split.name])
    spy.attr["T"].type = 1
    folded = fold_dilations(graph, ("spy", *freeze_onnx(onnx_file, NAMES).output_nodes.values()))
    assert count_ops(folded)["SpaceToBatchND"] == 1


def test_padding_with_another_value_is_not_absorbed() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as live:
        x = tf.compat.v1.placeholder(tf.float32, (1, 8, 8, 1), name="image")
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)
        x = tf.nn.conv2d(x, np.ones((3, 3, 1, 1), np.float32), 1, "VALID")
        tf.identity(x, name="out")
    assert count_ops(fold_pads(live.as_graph_def(), ("out",)))["PadV2"] == 1


def test_a_convolution_that_could_not_be_folded_stops_the_conversion(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.tfjs_write.fold_dilations", lambda graph, outputs: graph)
    with pytest.raises(ConversionError, match="SpaceToBatchND"):
        optimise(freeze_onnx(onnx_file, NAMES))


# -- what is written -----------------------------------------------------------------------------


def test_the_folder_holds_a_folded_fused_model_with_our_names(
    built: dict[str, tuple[Artifact, Path]],
) -> None:
    artifact, path = built["fp32"]
    document = json.loads((path / "model.json").read_text())
    ops = artifact.structure["ops"]
    assert sorted(p.name for p in path.iterdir()) == ["group1-shard1of1.bin", "model.json"]
    assert list(document["signature"]["outputs"]) == list(NAMES)
    assert list(document["signature"]["inputs"]) == ["image"]
    assert artifact.structure["space_to_batch_before"] == 2
    assert artifact.structure["space_to_batch_after"] == 0
    assert "SpaceToBatchND" not in {node["op"] for node in document["modelTopology"]["node"]}
    assert not {"Conv2D", "DepthwiseConv2dNative", "Pad", "Relu6", "BiasAdd"} & set(ops), ops
    assert artifact.input_layout == "NHWC"
    assert artifact.output_names == {name: name for name in NAMES}


def test_heads_listed_in_another_order_give_the_same_bytes(
    built: dict[str, tuple[Artifact, Path]], tmp_path: Path
) -> None:
    permuted = write_onnx(tmp_path / "permuted.onnx", order=(2, 1, 0))
    again = tfjs.convert(VARIANT, FP32, permuted, tmp_path / "tiny.fp32.tfjs")
    assert again.sha256 == built["fp32"][0].sha256


def test_the_same_bytes_again_and_nothing_from_the_network(
    onnx_file: Path,
    built: dict[str, tuple[Artifact, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the converter asked for the network")

    monkeypatch.setattr("requests.get", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    onnx_to_tf._freeze_cached.cache_clear()
    again = tfjs.convert(VARIANT, FP32, onnx_file, tmp_path / "again.tfjs")
    assert again.sha256 == built["fp32"][0].sha256


def test_float16_halves_the_kernels(built: dict[str, tuple[Artifact, Path]]) -> None:
    def shards(path: Path) -> int:
        return sum(p.stat().st_size for p in path.glob("*.bin"))

    assert 0.5 < shards(built["fp16"][1]) / shards(built["fp32"][1]) < 0.6
    assert built["fp16"][0].sha256 != built["fp32"][0].sha256


def test_a_weight_beyond_float16_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    huge = write_onnx(tmp_path / "huge.onnx", scale=1e7)
    out = tmp_path / "huge.tfjs"
    with pytest.raises(ConversionError, match="float16"):
        tfjs.convert(VARIANT, FP16, huge, out)
    assert not out.exists()


# -- planted defects -----------------------------------------------------------------------------


def test_swapped_outputs_are_caught(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = onnx_to_tf._order_outputs

    def swap(parent: Path, model: Any, names: tuple[str, ...]) -> list[Any]:
        fgbg, finger, direction = original(parent, model, names)
        return [direction, finger, fgbg]

    monkeypatch.setattr(onnx_to_tf, "_order_outputs", swap)
    onnx_to_tf._freeze_cached.cache_clear()
    with pytest.raises(ConversionError, match=r"'fgbg'.*holds 'direction'"):
        tfjs.convert(VARIANT, FP32, onnx_file, tmp_path / "swapped.tfjs")
    onnx_to_tf._freeze_cached.cache_clear()


def test_a_graph_that_computes_something_else_is_caught(onnx_file: Path) -> None:
    image = make_probe_image(SIZE_PX, SIZE_PX)
    expected = run_onnx(onnx_file, image, NAMES)
    bgr = run_onnx(onnx_file, np.ascontiguousarray(image[..., ::-1]), NAMES)
    verify_outputs(expected, expected, "itself")
    with pytest.raises(ConversionError, match="relative error"):
        verify_outputs(expected, bgr, "BGR")


def test_missing_and_foreign_parents_say_so(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no such ONNX file"):
        freeze_onnx(tmp_path / "none.onnx", NAMES)
    with pytest.raises(ConversionError, match="expected fgbg, other"):
        freeze_onnx(onnx_file, ("fgbg", "other"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "group1-shard1of1.bin").unlink(), "group1-shard1of1.bin"),
        (lambda folder: (folder / "group1-shard1of1.bin").write_bytes(b"short"), "hold 5 bytes"),
        (lambda folder: (folder / "model.json").write_text('{"format": "gra'), "not a TF.js model"),
        (lambda folder: (folder / "model.json").write_text("{}"), "not a TF.js model"),
        (lambda folder: (folder / "model.json").unlink(), "model.json"),
    ],
)
def test_damaged_folders_are_named(
    built: dict[str, tuple[Artifact, Path]], tmp_path: Path, damage: Any, message: str
) -> None:
    artifact, path = built["fp32"]
    copy = tmp_path / path.name
    shutil.copytree(path, copy)
    damage(copy)
    with pytest.raises(ArtifactError, match=message):
        tfjs.open_runner(artifact, copy)


# -- the browser ---------------------------------------------------------------------------------


@pytest.mark.browser
@skip_without_browser
@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(("name", "limit"), [("fp32", 1e-5), ("plain", 1e-5), ("fp16", 5e-3)])
def test_chromium_computes_what_onnxruntime_computes(
    onnx_file: Path, built: dict[str, tuple[Artifact, Path]], name: str, limit: float
) -> None:
    image = make_probe_image(SIZE_PX, SIZE_PX)
    expected = run_onnx(onnx_file, image, NAMES)
    runner = tfjs.open_runner(*built[name])
    try:
        found = runner.run(np.repeat(image.astype(np.uint8), 2, axis=0))
    finally:
        runner.close()
    assert runner.settings["cross-origin isolated"] == "yes"
    assert runner.settings["backend"] == "wasm"
    assert list(found) == list(NAMES)
    for output, reference in expected.items():
        assert found[output].dtype == np.float32
        assert found[output].shape == (2, reference.shape[3], 16, 16)
        scale = float(np.abs(reference).max())
        for one in found[output]:
            assert float(np.abs(one.transpose(1, 2, 0) - reference[0]).max()) / scale < limit


@pytest.mark.browser
@skip_without_browser
@pytest.mark.usefixtures("browser")
def test_an_output_name_the_file_lacks_is_refused(built: dict[str, tuple[Artifact, Path]]) -> None:
    artifact, path = built["fp32"]
    other = artifact.model_copy(update={"output_names": {"fgbg": "mask"}})
    with pytest.raises(ArtifactError, match="no output mask; the model has fgbg, finger, direction"):
        tfjs.open_runner(other, path)
