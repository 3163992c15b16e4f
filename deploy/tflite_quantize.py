"""8-bit TFLite files by ai-edge-quantizer: weights alone, or integer arithmetic calibrated on images."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploy.onnx_to_tf import INPUT_NAME
from nailcore.errors import ConversionError
from quantize.recipe import Recipe

SIGNATURE = "serving_default"


def quantize_tflite(data: bytes, recipe: Recipe, images: npt.NDArray[np.uint8]) -> bytes:
    """A float32 file with 8-bit weights, one scale per output channel; input and outputs stay float32.

    Args:
        data: the float file.
        recipe: with ``compute_dtype`` "int8" activations are 8 bits too; otherwise weights are widened to
            float32 when the file is opened.
        images: calibration images (N, H, W, 3) uint8 RGB; for integer arithmetic alone.

    Raises:
        ConversionError: the quantizer failed, or the recipe wants what it lacks.
    """
    if recipe.weights.granularity != "per-channel" or recipe.weights.keep_float:
        raise ConversionError(
            f"TFLite target: recipe '{recipe.name}' wants {recipe.weights.granularity} scales"
            f"{' and layers in float' if recipe.weights.keep_float else ''}; only per-channel ones, for all "
            "layers, are made here.",
            hint="Take tflite out of the recipe's targets.",
        )
    with _quiet():
        from ai_edge_quantizer import quantizer

        work = quantizer.Quantizer(data, _describe(integer=recipe.compute_dtype == "int8"))
        try:
            ranges = None
            if work.need_calibration:
                samples = [{INPUT_NAME: image[None].astype(np.float32)} for image in images]
                ranges = work.calibrate({SIGNATURE: samples}, num_threads=1)
            found = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        except (ValueError, RuntimeError) as error:
            raise ConversionError(f"ai-edge-quantizer failed: {error}") from error
    if found.quantized_model is None:
        raise ConversionError("ai-edge-quantizer gave no file.")
    return inline_buffers(bytes(found.quantized_model))


def correct_parent(parent: Path, recipe: Recipe, images: npt.NDArray[np.uint8], out: Path) -> int:
    """Write the float ONNX file whose biases make up for the mean shift that 8 bits will cause.

    Args:
        parent: ONNX file of the trained network; stays as it is, and what the result is compared with.
        recipe: whether activations are rounded, too, and how their ranges are chosen.
        images: calibration images (N, H, W, 3) uint8 RGB.
        out: to write.

    Returns:
        how many biases were corrected.

    Raises:
        DataError: the network gives NaN or infinite values on a calibration image.
    """
    import onnx

    from quantize.correct_bias import correct_biases
    from quantize.onnx_ranges import measure_ranges
    from quantize.ranges import choose_affine

    model = onnx.load(str(parent))
    affines = None
    if recipe.activations is not None and recipe.calibration is not None:
        tensors = list(dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type == "Conv"))
        ranges = measure_ranges(model, tensors, images, recipe.calibration)
        # The quantizer's int8 levels are these less 128.
        affines = {name: choose_affine(found, recipe.activations) for name, found in ranges.items()}
    changes = correct_biases(model, affines, images, per_channel=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
    return len(changes)


def inline_buffers(data: bytes) -> bytes:
    """The same file with its constants inside the flatbuffer, where every reader looks.

    The quantizer appends them and notes offsets, a way meant for files beyond two gigabytes.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1: there is none
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _describe(*, integer: bool) -> list[dict[str, object]]:
    """The quantizer's own recipe."""
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.recipe_manager import RecipeManager

    if not integer:
        # Dynamic ranges would round activations anew for each image: three times as slow in LiteRT.
        return list(recipe.weight_only_wi8_afp32())
    manager = RecipeManager()
    operations = recipe.TFLOperationName
    manager.add_static_config(
        regex=".*", operation_name=operations.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
    )
    for one in (operations.INPUT, operations.OUTPUT):
        manager.add_quantization_config(
            regex=".*", operation_name=one, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE
        )
    return list(manager.get_quantization_recipe())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its progress bars write to stderr whatever they are told; of channels of zeros it warns."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
