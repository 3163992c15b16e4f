"""Compressed files of a shipped variant: sizes, stable bytes, and planted defects that their checks find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmark.coreml_identity import compare_packages, open_package
from benchmark.coreml_quantizers import check_quantizers
from deploy import coreml, tfjs, tflite
from deploy.coreml_compact import pack_weights, share_constants, shorten_names
from deploy.coreml_structure import read_package
from deploy.mil.program import Operation, Reference
from deploy.tfjs_graph import GraphModel
from deploy.tfjs_quantize import choose_storage, choose_wide, spell_kernel
from deploy.tflite import TfliteRunner
from model_zoo import find_variant, weights_path
from nailcore.artifact import open_artifact, read_manifest
from nailcore.errors import ConversionError
from nailcore.preprocess import letterbox
from quantize import find_recipe
from quantize.prepared import open_prepared
from tests.built import build_artifact, load_hands, prepare_recipe
from tests.deploy.broken_packages import Editor

VARIANT = find_variant("nail43-288")
LAYER = "network.low.stage6.1.layers.0"
# Of the fp32 file of the same target.
MAX_RATIO = {
    ("coreml", "palette-4"): 0.15,
    ("coreml", "int8-weights"): 0.30,
    ("coreml", "w8a8"): 0.29,
    ("tfjs", "uint8"): 0.27,
    ("tflite", "int8-per-channel"): 0.36,
}


@pytest.mark.parametrize(("kind", "recipe"), MAX_RATIO)
def test_a_file_is_as_small_as_its_recipe_promises(kind: str, recipe: str) -> None:
    small, full = (read_manifest(build_artifact(VARIANT.name, kind, r)) for r in (recipe, "fp32"))
    assert small.size_bytes <= MAX_RATIO[kind, recipe] * full.size_bytes
    if kind == "coreml":
        expected = {"palette-4": "iOS18", "int8-weights": "iOS16", "w8a8": "iOS17"}[recipe]
        assert small.made_by.config["minimum_target"] == expected


def test_equal_inputs_make_equal_bytes(tmp_path: Path) -> None:
    built = read_manifest(build_artifact(VARIANT.name, "coreml", "palette-4"))
    recipe = find_recipe("palette-4").model_dump(mode="json")
    prepared = prepare_recipe(VARIANT.name, "palette-4")
    again = coreml.convert(VARIANT, recipe, weights_path(VARIANT), tmp_path / built.file, prepared=prepared)
    assert again.sha256 == built.sha256


def test_without_what_was_prepared_nothing_is_written(tmp_path: Path) -> None:
    _, onnx = open_artifact(build_artifact(VARIANT.name, "onnx"))
    for target, name, parent in (
        (coreml, "palette-4", weights_path(VARIANT)),
        (tflite, "int8-per-channel", onnx),
        (tfjs, "uint8", onnx),
    ):
        recipe = find_recipe(name).model_dump(mode="json")
        with pytest.raises(ConversionError, match="prepared"):
            target.convert(VARIANT, recipe, parent, tmp_path / f"x{target.SUFFIX}")
    assert not list(tmp_path.iterdir())


# -- CoreML: the identity gate ------------------------------------------------------------
@cache
def sibling_of(recipe: str) -> Path:
    """The float32 package of what a recipe prepared."""
    folder = prepare_recipe(VARIANT.name, recipe)
    path = folder.parent.parent / f"{recipe}.sibling.mlpackage"
    coreml.convert_sibling(VARIANT, open_prepared(folder).load_network(VARIANT, weights_path(VARIANT)), path)
    return path


def find_problems(package: Path, recipe: str) -> list[str]:
    shipped, sibling = open_package(package), open_package(sibling_of(recipe))
    problems = list(compare_packages(shipped, sibling, exact=True).breaches)
    if shipped.quantizers and not problems:
        image = letterbox(load_hands().samples[0].load_image(), VARIANT.height_px, VARIANT.width_px)
        problems += check_quantizers(shipped, sibling, sibling_of(recipe), "image", [image])
    return problems


@pytest.mark.parametrize("recipe", ["palette-4", "int8-weights", "w8a8"])
def test_sound_packages_pass_the_identity_gate(recipe: str) -> None:
    _, package = open_artifact(build_artifact(VARIANT.name, "coreml", recipe))
    assert find_problems(package, recipe) == []
    if recipe == "w8a8":
        assert len(open_package(package).quantizers) > 50


def test_only_what_integers_read_is_rounded() -> None:
    """A ReLU6 is one with its convolution; what is resized, outputs and stages in float stay as they are."""
    _, package = open_artifact(build_artifact(VARIANT.name, "coreml", "w8a8"))
    _, program = read_package(package)
    made_by = {name: op for op in program.block.operations for name, _ in op.outputs}

    def sources(op: Operation) -> list[Operation]:
        named = [op.inputs[key][0] for key in ("x", "y", "input") if key in op.inputs]
        return [made_by[n.name] for n in named if isinstance(n, Reference) and n.name in made_by]

    readers = [op for op in program.block.operations if any(s.op == "dequantize" for s in sources(op))]
    assert {op.op for op in readers} == {"conv", "add"}
    assert all(all(s.op == "dequantize" for s in sources(op)) for op in readers)
    kernels = [str(op.inputs["weight"]) for op in readers if op.op == "conv"]
    assert not [name for name in kernels if any(f"stage{n}" in name for n in (1, 2, 3))]
    assert sum("stage4" in name for name in kernels) == 18


@pytest.mark.parametrize("recipe", ["palette-4", "int8-weights", "w8a8"])
def test_coremltools_reads_its_shortened_programs(recipe: str) -> None:
    from coremltools.converters.mil.frontend.milproto.load import load

    _, package = open_artifact(build_artifact(VARIANT.name, "coreml", recipe))
    spec, program = read_package(package)
    names = [name for op in program.block.operations for name, _ in op.outputs]
    assert len(set(names)) == len(names)
    read = load(spec, spec.specificationVersion, str(package / "Data/com.apple.CoreML/weights"))
    function = read.functions["main"]
    assert [var.name for var in function.outputs] == [output.name for output in VARIANT.outputs]
    if recipe != "palette-4":
        rows = [op for op in function.operations if op.op_type == "constexpr_affine_dequantize"]
        assert {(op.zero_point.rank, int(op.zero_point.val)) for op in rows} == {(0, 0)}


def test_a_packed_weight_file_holds_each_content_once_and_all_of_it(tmp_path: Path) -> None:
    _, package = open_artifact(build_artifact(VARIANT.name, "coreml", "fp16"))
    edit = Editor(package, tmp_path / "packed.mlpackage")
    size = len(edit.blob)
    constants = [op for op in edit.block.operations if op.attributes["val"].HasField("blobFileValue")]
    for op in constants[1:]:  # one more, of the same bytes as the first
        if edit.read(op.attributes["val"]).shape == edit.read(constants[0].attributes["val"]).shape:
            edit.write(op.attributes["val"], edit.read(constants[0].attributes["val"]))
            break
    before = [edit.read(op.attributes["val"]).tobytes() for op in constants]
    edit.blob = bytearray(pack_weights(edit.block, bytes(edit.blob)))
    assert [edit.read(op.attributes["val"]).tobytes() for op in constants] == before
    assert len(edit.blob) < size
    edit.save()
    assert len(open_package(edit.out).constants) == len(open_package(package).constants)


def find_part(edit: Editor, kind: str, part: str) -> Any:
    """A stored value of the decompression of ``LAYER``'s kernel."""
    spelled = LAYER.replace(".", "_")
    op = next(o for o in edit.block.operations if o.type == kind and spelled in o.outputs[0].name)
    return op.inputs[part].arguments[0].value if part in op.inputs else op.attributes[part]


def shuffle_palette(edit: Editor) -> None:
    edit.change(find_part(edit, "constexpr_lut_to_dense", "lut"), lambda a: np.flip(a, -2))


def grow_channel_scale(edit: Editor) -> None:
    def grow(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        scale[3] *= 1.01
        return scale

    edit.change(find_part(edit, "constexpr_blockwise_shift_scale", "scale"), grow)


def wrong_scale(edit: Editor) -> None:
    edit.change(find_part(edit, "constexpr_affine_dequantize", "scale"), lambda a: a * 1.02)


def wrong_zero_point(edit: Editor) -> None:
    edit.change(find_part(edit, "constexpr_affine_dequantize", "zero_point"), lambda a: a + 1)


def one_way_scale(edit: Editor) -> None:
    """What a quantize divides by, its dequantize does not multiply with."""
    op = next(o for o in edit.block.operations if o.type == "dequantize")
    edit.rebind(op, "scale", lambda a: a * 1.1)


def narrow_levels(edit: Editor) -> None:
    """Levels that end at a tenth of the activations."""
    narrowed: dict[str, str] = {}
    for op in [o for o in edit.block.operations if o.type in ("quantize", "dequantize")]:
        binding = op.inputs["scale"].arguments[0]
        if binding.name in narrowed:
            binding.name = narrowed[binding.name]
            continue
        shared = binding.name
        edit.rebind(op, "scale", lambda a: a * 0.1)
        narrowed[shared] = binding.name


DEFECTS: list[tuple[str, Callable[[Editor], None], str]] = [
    ("palette-4", shuffle_palette, "palette"),
    ("palette-4", grow_channel_scale, "palette"),
    ("int8-weights", wrong_scale, "int8 linear"),
    ("int8-weights", wrong_zero_point, "int8 linear"),
    ("w8a8", one_way_scale, "widens with another scale"),
    ("w8a8", narrow_levels, "beyond its levels"),
]


@pytest.mark.parametrize(("recipe", "plant", "word"), DEFECTS)
def test_planted_defects_fail_the_identity_gate(
    recipe: str, plant: Callable[[Editor], None], word: str, tmp_path: Path
) -> None:
    _, package = open_artifact(build_artifact(VARIANT.name, "coreml", recipe))
    edit = Editor(package, tmp_path / "broken.mlpackage")
    plant(edit)
    edit.save()
    problems = find_problems(edit.out, recipe)
    assert problems
    assert word in problems[0], problems[0]


def test_shared_constants_leave_the_program_what_it_was() -> None:
    _, package = open_artifact(build_artifact(VARIANT.name, "coreml", "fp16"))
    before = open_package(package)
    folder = package.parent / "shared.mlpackage"
    edit = Editor(package, folder)
    count = len(edit.block.operations)
    share_constants(edit.block)
    shorten_names(edit.block)
    edit.save()
    after = open_package(folder)
    shutil.rmtree(folder)
    assert len(edit.block.operations) < 0.6 * count
    assert len(edit.spec.SerializeToString()) < 0.7 * len(read_package(package)[0].SerializeToString())
    assert not [b for b in compare_packages(after, before).breaches if "files of" not in b]


# -- TF.js --------------------------------------------------------------------------------
def test_16_bits_go_where_8_do_most_harm_for_their_bytes() -> None:
    rng = np.random.default_rng(0)
    early = rng.standard_normal((3, 3, 3, 8))
    kernels = {
        "early": early,
        "again": early,  # of the other branch
        "deep": rng.standard_normal((3, 3, 40, 1)),
        "big": rng.standard_normal((1, 1, 40, 40)),
    }
    weights = {name: values.astype(np.float32) for name, values in kernels.items()}
    errors = {spell_kernel(weights[n]): e for n, e in (("early", 1.0), ("deep", 9.0), ("big", 20.0))}
    assert choose_wide(weights, errors, 100) == set()
    assert choose_wide(weights, errors, 360) == {"deep"}
    assert choose_wide(weights, errors, 600) == {"deep", "early", "again"}
    assert choose_wide(weights, errors, 2200) == {"deep", "big", "early", "again"}
    weights["bias"] = np.zeros(8, np.float32)
    stored = choose_storage(weights, "uint8", {"deep"})
    assert stored == {"uint8": ["early", "again", "big"], "uint16": ["deep"], "float16": ["bias"]}
    weights["deep"] = weights["deep"] + 1
    with pytest.raises(ConversionError, match="deep"):
        choose_wide(weights, errors, 600)


def test_weights_of_both_branches_are_stored_once_and_the_first_kernels_keep_16_bits() -> None:
    (_, small), (_, full) = (
        open_artifact(build_artifact(VARIANT.name, "tfjs", recipe)) for recipe in ("uint8", "fp32")
    )
    entries, before = (
        json.loads((folder / "model.json").read_text())["weightsManifest"][0]["weights"]
        for folder in (small, full)
    )
    assert len(entries) < len(before)
    layers = [one.name for one in GraphModel(full).list_layers() if "Conv" in one.op]
    assert [one.name for one in GraphModel(small).list_layers() if "Conv" in one.op] == layers
    dtypes = {e["name"]: e.get("quantization", {}).get("dtype") for e in entries}
    # The first depthwise kernel: 8 bits of it cost 50 points of nail IoU.
    first = next(one for one in layers if one.startswith("depthwise"))
    assert dtypes[f"{first}/1"] == "uint16"
    assert sorted({str(d) for d in dtypes.values()}) == ["None", "float16", "uint16", "uint8"]


def test_codes_stand_for_the_weights_and_a_swapped_scale_does_not(tmp_path: Path) -> None:
    (_, small), (_, full) = (
        open_artifact(build_artifact(VARIANT.name, "tfjs", recipe)) for recipe in ("uint8", "fp32")
    )
    convolutions = [one.name for one in GraphModel(full).list_layers() if "Conv" in one.op]

    def measure_worst(folder: Path) -> float:
        found, expected = GraphModel(folder), GraphModel(full)
        worst = 0.0
        for name in convolutions:
            a, b = found.read_weight(name), expected.read_weight(name)
            assert a is not None
            assert b is not None
            worst = max(worst, float(np.abs(a - b).max() / np.ptp(b)))
        return worst

    assert 0 < measure_worst(small) <= 0.5 / 255 * 1.001
    broken = shutil.copytree(small, tmp_path / "broken.tfjs")
    document = json.loads((broken / "model.json").read_text())
    for weight in document["weightsManifest"][0]["weights"]:
        stored = weight.get("quantization", {})
        if stored.get("dtype") == "uint8":
            stored["scale"], stored["min"] = stored["min"], stored["scale"]
    (broken / "model.json").write_text(json.dumps(document))
    assert measure_worst(broken) > 1


def test_a_layer_to_keep_in_float_is_refused_by_name(tmp_path: Path) -> None:
    recipe = find_recipe("uint8").model_dump(mode="json")
    recipe["weights"]["keep_float"] = ["network.high.stage1.0"]
    with pytest.raises(ConversionError, match="keep_float"):
        tfjs.convert(VARIANT, recipe, tmp_path / "none.onnx", tmp_path / "x.tfjs")


# -- TFLite -------------------------------------------------------------------------------
def test_integers_inside_floats_outside_and_a_changed_scale_shows(tmp_path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    artifact, path = open_artifact(build_artifact(VARIANT.name, "tflite", "int8-per-channel"))
    _, full = open_artifact(build_artifact(VARIANT.name, "tflite"))
    image = letterbox(load_hands().samples[0].load_image(), VARIANT.height_px, VARIANT.width_px)[None]

    def measure_error(file: Path) -> float:
        """RMS of what the nail logits are off by, as a share of their spread."""
        found, expected = (TfliteRunner(artifact, one).run(image)["fgbg"] for one in (file, full))
        return float(np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected))

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    graph = model.subgraphs[0]
    kinds = {graph.tensors[i].type for i in (*graph.inputs, *graph.outputs)}
    assert kinds == {schema.TensorType.FLOAT32}
    assert set(artifact.output_names) == {output.name for output in VARIANT.outputs}
    sound = measure_error(path)
    kernels = [
        graph.tensors[op.inputs[1]]
        for op in graph.operators
        if len(op.inputs) == 3 and len(graph.tensors[op.inputs[1]].shape) == 4
    ]
    kernel = max(kernels, key=lambda tensor: int(np.prod(tensor.shape)))
    kernel.quantization.scale = np.asarray(kernel.quantization.scale) * 3
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(bytes(builder.Output()))
    assert sound < 0.25
    assert measure_error(broken) > 2 * sound


def measure_shift(recipe: str) -> float:
    """RMS over classes of the mean that a file's nail logits are off by, over the images it was made on."""
    artifact, path = open_artifact(build_artifact(VARIANT.name, "tflite", recipe))
    _, full = open_artifact(build_artifact(VARIANT.name, "tflite"))
    images = open_prepared(prepare_recipe(VARIANT.name, recipe)).load_images()
    found, expected = (TfliteRunner(artifact, file).run(images)["fgbg"] for file in (path, full))
    return float(np.sqrt(np.mean((found - expected).mean((0, 2, 3)) ** 2)))


def test_corrected_biases_take_out_what_integers_shift_and_the_parent_stays_the_trained_network() -> None:
    corrected = read_manifest(build_artifact(VARIANT.name, "tflite", "int8-centred"))
    plain = read_manifest(build_artifact(VARIANT.name, "tflite", "int8-per-channel"))
    trained = read_manifest(build_artifact(VARIANT.name, "onnx"))
    assert corrected.made_by.parent_sha256 == plain.made_by.parent_sha256 == trained.sha256
    assert corrected.structure["biases_corrected"] == 65
    assert "biases_corrected" not in plain.structure
    assert measure_shift("int8-centred") < 0.6 * measure_shift("int8-per-channel")


@pytest.mark.parametrize("recipe", ["int8-centred", "int8-weights"])
def test_a_correction_changes_biases_alone_and_one_of_the_wrong_sign_doubles_the_shift(
    recipe: str, tmp_path: Path
) -> None:
    import onnx

    from deploy.tflite_quantize import correct_parent
    from quantize.onnx_ranges import execute_graph
    from quantize.ranges import round_kernel

    _, parent = open_artifact(build_artifact(VARIANT.name, "onnx"))
    images = open_prepared(prepare_recipe(VARIANT.name, recipe)).load_images()
    trained, corrected = onnx.load(parent), tmp_path / "corrected.onnx"
    convolutions = [n for n in trained.graph.node if n.op_type == "Conv"]
    assert correct_parent(parent, find_recipe(recipe), images, corrected) == len(convolutions)
    made = onnx.load(corrected)
    values, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (trained, made)
    )
    assert all(np.array_equal(after[name], value) for name, value in values.items())

    def measure(sign: float) -> float:
        """Squared mean shift of a late tensor when kernels are rounded and biases corrected by ``sign``."""
        work = onnx.ModelProto()
        work.CopyFrom(made)
        own = {n.name: n.input[2] for n in convolutions}
        for tensor in work.graph.initializer:
            if tensor.name.endswith(".corrected_bias"):
                first = values[own[tensor.name.removesuffix(".corrected_bias")]]
                value = first + sign * (after[tensor.name] - first)
            elif tensor.name.endswith(".weight"):
                value = round_kernel(values[tensor.name], per_channel=True)
            else:
                continue
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
        late = convolutions[len(convolutions) // 4].output[0]
        shift = 0.0
        for (_, found), (_, expected) in zip(
            execute_graph(work, [late], images), execute_graph(trained, [late], images), strict=True
        ):
            shift = shift + (found - expected).mean((0, 2, 3))
        return float(np.sum(np.square(shift)))

    assert measure(1.0) < 0.6 * measure(0.0)
    assert measure(-1.0) > 1.5 * measure(0.0)
