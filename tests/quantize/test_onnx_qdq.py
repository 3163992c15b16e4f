"""ONNX int8: what the file holds, that float stays float, and that parity catches what can go wrong."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from benchmark.comparison import Comparison, judge
from benchmark.limits import limits_of
from benchmark.parity import TorchReference
from model_zoo import find_variant, weights_path
from nailcore.artifact import Artifact, open_artifact
from nailcore.errors import ConversionError, UnknownNameError
from nailcore.nets import load_network
from nailcore.nets.export_form import ExportForm
from nailcore.preprocess import letterbox
from quantize import Recipe, find_recipe
from quantize.equalize import list_links, scale_link
from quantize.layer_names import list_convolutions
from quantize.onnx_qdq import quantize_onnx
from tests.built import build_artifact
from tests.photos import load_images

VARIANT = find_variant("nail43-288")
Images = npt.NDArray[np.uint8]
DEPTHWISE = "network.high.stage2.0.layers.0"


@cache
def float_file() -> tuple[Artifact, Any]:
    artifact, path = open_artifact(build_artifact(VARIANT.name, "onnx"))
    return artifact, onnx.load(path)


@cache
def network() -> ExportForm:
    return load_network(VARIANT, weights_path(VARIANT))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    samples = load_images(tmp_path_factory.mktemp("photos") / "set").samples
    return np.stack([letterbox(s.load_image(), VARIANT.height_px, VARIANT.width_px) for s in samples])


@pytest.fixture(scope="module")
def reference(images: Images) -> list[dict[str, npt.NDArray[np.float32]]]:
    torch = TorchReference(VARIANT, weights_path(VARIANT))
    return [torch.run(image[None]) for image in images]


def make(images: Images, recipe: str = "int8-corrected", **options: Any) -> tuple[Any, dict[str, Any]]:
    return quantize_onnx(float_file()[1], network(), images, find_recipe(recipe), **options)


@pytest.fixture(scope="module")
def made(images: Images) -> tuple[Any, dict[str, Any]]:
    return make(images)


def run(
    model: Any, image: npt.NDArray[np.uint8], optimize: bool = True
) -> dict[str, npt.NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = image.transpose(2, 0, 1)[None].astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": feed}), strict=True))


def complain(model: Any, images: Images, reference: Any) -> list[str]:
    """What parity says, by the limits of the recipe."""
    comparison = Comparison()
    for index, image in enumerate(images):
        comparison.add(str(index), reference[index], run(model, image))
    artifact = float_file()[0].model_copy(update={"recipe": "int8-corrected"})
    return judge("file", comparison, limits_of(artifact))


def copy_model(model: Any) -> Any:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def find_constant(model: Any, name: str) -> Any:
    return next(t for t in model.graph.initializer if t.name == name)


# -- what the file is --------------------------------------------------------------------------------
def test_a_sound_file_passes(made: Any, images: Images, reference: Any) -> None:
    assert complain(made[0], images, reference) == []


def test_outputs_types_and_bytes(made: Any, images: Images) -> None:
    model, notes = made
    assert [o.name for o in model.graph.output] == [o.name for o in VARIANT.outputs]
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {onnx.TensorProto.FLOAT}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    data = model.SerializeToString(deterministic=True)
    assert data == make(images)[0].SerializeToString(deterministic=True)
    size = len(float_file()[1].SerializeToString())
    assert len(data) <= 0.30 * size
    assert notes["layers_quantized"] == 65 and notes["layers_float"] == []
    assert notes["rewritten"]["packed_image"] and notes["rewritten"]["merged_heads"]


def test_onnxruntime_computes_every_convolution_in_integers(made: Any, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 3
    ort.InferenceSession(made[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = Counter(n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node)
    assert ops["QLinearConv"] == 61 and ops["Conv"] == 0 and ops["Clip"] == ops["Sub"] == 0
    assert ops["QuantizeLinear"] == 4 and ops["Transpose"] == 2


def test_a_model_is_not_quantized_twice(made: Any, images: Images) -> None:
    with pytest.raises(ConversionError, match="quantized already"):
        quantize_onnx(made[0], network(), images, find_recipe("int8-per-channel"))


def test_an_unknown_layer_names_the_nearest(images: Images) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean network\.high\.stage2\.0\.layers\.0"):
        make(images, float_layers=["network.high.stage2.0.layer.0"])


def test_another_networks_graph_is_refused(images: Images) -> None:
    other = copy_model(float_file()[1])
    weight = find_constant(other, "network.output.refine.0.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    with pytest.raises(ConversionError, match=r"does not hold the weights of network\.output\.refine\.0"):
        quantize_onnx(other, network(), images, find_recipe("int8-per-channel"))


# -- float layers ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "layers",
    [
        [DEPTHWISE],
        ["network.high.stage1.0", "network.low.stage1.0"],
        ["network.output."],
        ["network.low.stage3.0.layers.3", "network.fusion8.project_f1"],
    ],
)
def test_what_is_kept_in_float_is_float_after_onnxruntime_optimized_it(
    layers: list[str], images: Images
) -> None:
    recipe = find_recipe("int8-per-channel")
    recipe = recipe.model_copy(
        update={"weights": recipe.weights.model_copy(update={"keep_float": tuple(layers)})}
    )
    model, notes = quantize_onnx(float_file()[1], network(), images, recipe)
    assert notes["layers_float"] and notes["layers_quantized"] == 65 - len(notes["layers_float"])
    exact, fast = (run(model, images[0], optimize)["fgbg"] for optimize in (False, True))
    # Integer kernels round ties otherwise; weights that onnxruntime rounds behind our back are off by logits.
    assert np.abs(exact - fast).mean() < 0.1


def test_all_in_float_is_nearly_the_network(images: Images, reference: Any) -> None:
    model, notes = make(images, float_layers=["network."])
    assert notes["layers_quantized"] == 0
    assert np.abs(run(model, images[0])["fgbg"] - reference[0]["fgbg"]).mean() < 0.2  # residuals are 8 bits


# -- what parity must catch --------------------------------------------------------------------------
def test_a_wrong_zero_point_is_caught(made: Any, images: Images, reference: Any) -> None:
    broken = copy_model(made[0])
    conv = next(n for n in broken.graph.node if n.name == "network.high.stage4.0.layers.0")
    source = next(n for n in broken.graph.node if conv.input[0] in n.output)
    level = onnx.numpy_helper.to_array(find_constant(broken, source.input[2]))
    assert level > 60  # values of both signs, read as if there were none below 0
    broken.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.uint8), "wrong"))
    source.input[2] = "wrong"
    assert any("flips" in line for line in complain(broken, images, reference))


def test_one_scale_for_a_depthwise_layer_is_caught(made: Any, images: Images, reference: Any) -> None:
    broken = copy_model(made[0])
    conv = next(n for n in broken.graph.node if n.name == DEPTHWISE)
    source = next(n for n in broken.graph.node if conv.input[1] in n.output)
    levels = onnx.numpy_helper.to_array(find_constant(broken, source.input[0]))
    scales = onnx.numpy_helper.to_array(find_constant(broken, source.input[1]))
    weight = levels * scales[:, None, None, None]
    scale = np.abs(weight).max() / 127
    for name, value in (
        ("levels", np.rint(weight / scale).astype(np.int8)),
        ("scales", np.full_like(scales, scale)),
    ):
        broken.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    source.input[0], source.input[1] = "levels", "scales"
    assert any("flips" in line for line in complain(broken, images, reference))


def test_per_tensor_int8_is_caught(images: Images, reference: Any) -> None:
    assert complain(make(images, "int8-per-tensor")[0], images, reference)


def test_a_pair_equalized_across_a_clip_without_the_guard_is_caught(images: Images, reference: Any) -> None:
    changed = copy.deepcopy(network())
    links = [link for link in list_links(changed) if link.activation == "relu6" and ".stage" in link.name]
    for link in links[:12]:
        channels = list_convolutions(changed)[link.name].out_channels
        scale_link(changed, link, np.full(channels, 4, np.float32))
    model = copy_model(float_file()[1])
    for node, (name, conv) in zip(
        [n for n in model.graph.node if n.op_type == "Conv"], list_convolutions(changed).items(), strict=True
    ):
        for place, tensor in ((1, conv.weight), (2, conv.bias)):
            node.input[place] = f"{name}.{place}"
            assert tensor is not None
            value = tensor.detach().numpy().copy()
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, node.input[place]))
    broken, _ = quantize_onnx(model, changed, images, find_recipe("int8-corrected"))
    assert any("flips" in line for line in complain(broken, images, reference))


# -- the passes --------------------------------------------------------------------------------------
def test_bias_correction_lowers_the_mean_error(images: Images, reference: Any) -> None:
    plain = find_recipe("int8-per-channel")
    passes = plain.passes.model_copy(update={"correct_bias": True})
    errors = {}
    for name, recipe in (
        ("plain", plain),
        ("corrected", Recipe.model_validate(plain.model_copy(update={"passes": passes}).model_dump())),
    ):
        model, _ = quantize_onnx(float_file()[1], network(), images, recipe)
        shifts = [
            run(model, image)["fgbg"] - known["fgbg"] for image, known in zip(images, reference, strict=True)
        ]
        errors[name] = (
            float(np.abs(np.mean(shifts, axis=(0, 1, 3, 4))).max()),
            float(np.square(shifts).mean()),
        )
    assert errors["corrected"][0] < 0.7 * errors["plain"][0]
    assert errors["corrected"][1] < errors["plain"][1]
