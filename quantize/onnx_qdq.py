"""ONNX int8: a float graph becomes one with QuantizeLinear/DequantizeLinear pairs (QDQ), for onnxruntime."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError
from quantize.correct_bias import correct_biases
from quantize.layer_names import choose_float_layers, list_convolutions
from quantize.onnx_compact import compact_graph
from quantize.onnx_ranges import measure_ranges
from quantize.onnx_rewrite import IMAGE_ZERO, rewrite_graph
from quantize.ranges import Affine, choose_affine
from quantize.recipe import Activations, Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

# What onnxruntime computes in 8 bits on a CPU, as far as our graphs hold it.
_COMPUTING = ("Conv", "Clip", "Relu", "Add")
_MOVING = ("Reshape", "Transpose")  # as their source: onnxruntime carries a DequantizeLinear through them
_INTERPOLATING = ("Resize",)  # worth it only before quantized nodes


def quantize_onnx(
    model: Any,
    network: ExportForm,
    images: npt.NDArray[np.uint8],
    recipe: Recipe,
    float_layers: Collection[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """The graph with 8-bit weights and activations, and what was done to it.

    Args:
        model: float onnx.ModelProto of ``network``; it is not changed.
        network: what the model was exported from; gives the layers their names.
        images: calibration images (N, H, W, 3) uint8 RGB of the model's size.
        recipe: with activations and calibration.
        float_layers: torch names of convolutions that stay in float, beside the recipe's own.

    Raises:
        ConversionError: the model is quantized already, or is not the network's.
        UnknownNameError: a layer to keep in float does not exist.
        DataError: the network gives NaN or infinite values on a calibration image.
    """
    import onnx

    activations, calibration = recipe.activations, recipe.calibration
    if activations is None or calibration is None:
        raise ConversionError(f"Recipe '{recipe.name}' says neither how activations are rounded nor on what.")
    refuse_quantized(model)
    work = onnx.ModelProto()
    work.CopyFrom(model)
    layers = name_convolutions(work, network)
    keep = set(choose_float_layers((*recipe.weights.keep_float, *sorted(float_layers)), layers))
    rewritten = rewrite_graph(work, network.mean.numpy(), keep)
    _unshare_constants(work, keep)
    nodes = _choose_nodes(work, keep)
    ranges = measure_ranges(work, _list_activations(work, nodes), images, calibration)
    affines = {name: choose_affine(range_, activations) for name, range_ in ranges.items()}
    affines |= {name: _keep_bytes(activations) for name in rewritten.byte_tensors if name in affines}
    corrected = {}
    if recipe.passes.correct_bias:
        per_channel = recipe.weights.granularity == "per-channel"
        corrected = correct_biases(work, affines, images, keep, per_channel=per_channel)
    quantized = _insert_pairs(work, nodes, affines, recipe)
    if rewritten.byte_tensors:
        _drop_centring(quantized, rewritten.byte_tensors[0])
    _shield_float_layers(quantized, keep)
    compact_graph(quantized)
    return quantized, {
        "ops_before": _count_ops(model),
        "layers_quantized": len(layers) - len(keep.intersection(layers)),
        "layers_float": sorted(keep.intersection(layers)),
        "rewritten": rewritten.notes,
        **({"biases_corrected": len(corrected)} if corrected else {}),
    }


def _unshare_constants(model: Any, keep_float: Collection[str]) -> None:
    """Both branches may hold equal weights, stored once: what stays in float gets its own copy, in place."""
    import onnx

    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name in keep_float:
            for place, name in enumerate(node.input[1:], 1):
                copy = onnx.TensorProto()
                copy.CopyFrom(values[name])
                copy.name = f"{node.name}.float_{'weight' if place == 1 else 'bias'}"
                model.graph.initializer.append(copy)
                node.input[place] = copy.name


def _shield_float_layers(model: Any, keep_float: Collection[str]) -> None:
    """Keep onnxruntime from quantizing what is to stay in float, in place.

    Its WeightBiasQuantization (1.31) rounds the float weights of any convolution behind a DequantizeLinear
    of one scale, with one scale per tensor, which is what ruins depthwise layers. A scale per channel, all of
    them equal, computes the same and is left alone.
    """
    import onnx

    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Conv" or node.name not in keep_float:
            continue
        source = next((n for n in graph.node if node.input[0] in n.output), None)
        if source is None or source.op_type != "DequantizeLinear":
            continue
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        channels = values[node.input[1]].dims[1] * group
        names = []
        for name, word in zip(source.input[1:], ("scale", "zero_point"), strict=True):
            value = np.full(channels, onnx.numpy_helper.to_array(values[name]))
            graph.initializer.append(onnx.numpy_helper.from_array(value, f"{node.name}.input_{word}"))
            names.append(f"{node.name}.input_{word}")
        own = f"{node.name}.input"
        shielded = onnx.helper.make_node(
            "DequantizeLinear", [source.input[0], *names], [own], f"{own}_dequantize", axis=1
        )
        place = next(i for i, n in enumerate(graph.node) if n is node or n.name == node.name)
        graph.node.insert(place, shielded)
        node.input[0] = own
    read = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] not in read]:
        graph.node.remove(node)


def _keep_bytes(activations: Activations) -> Affine:
    """Of ``image - 128``, by contract and whatever the calibration images hold: a byte stays what it is."""
    low, high = (0, 255) if activations.dtype == "uint8" else (-128, 127)
    return Affine(np.float32(1.0), low + IMAGE_ZERO, low, high)


def _drop_centring(model: Any, centred: str) -> None:
    """``image - 128`` at scale 1 is the image itself with another zero point: quantize that, in place."""
    import onnx

    graph = model.graph
    centring = next(n for n in graph.node if centred in n.output)
    readers = [n for n in graph.node if centred in n.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        raise ConversionError("The centred image is not quantized once.")
    zero = next(t for t in graph.initializer if t.name == readers[0].input[2])
    level = onnx.numpy_helper.to_array(zero)
    byte_zero = (level.astype(np.int64) - IMAGE_ZERO).astype(level.dtype)
    graph.initializer.append(onnx.numpy_helper.from_array(byte_zero, "image_byte_zero"))
    readers[0].input[0], readers[0].input[2] = centring.input[0], "image_byte_zero"
    unused = centring.input[1]
    graph.node.remove(centring)
    graph.initializer.remove(next(t for t in graph.initializer if t.name == unused))


def refuse_quantized(model: Any) -> None:
    """Raises ConversionError when the graph holds anything quantized."""
    found = Counter(n.op_type for n in model.graph.node if "Quantize" in n.op_type or "QLinear" in n.op_type)
    if found:
        what = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        raise ConversionError(
            f"The model is quantized already ({what}).",
            hint="Quantize the fp32 file: rounding twice adds errors and gains nothing.",
        )


def name_convolutions(model: Any, network: ExportForm) -> list[str]:
    """Call every convolution node as torch calls its module, in place; the names in order.

    Raises:
        ConversionError: the graph's convolutions are not the network's, in number, order or weights.
    """
    import onnx

    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    values = {t.name: t for t in model.graph.initializer}
    layers = list_convolutions(network)
    if len(nodes) != len(layers):
        raise ConversionError(f"The graph has {len(nodes)} convolutions, the network {len(layers)}.")
    for node, (name, module) in zip(nodes, layers.items(), strict=True):
        weight = onnx.numpy_helper.to_array(values[node.input[1]])
        if not np.array_equal(weight, module.weight.detach().numpy()):
            raise ConversionError(f"{node.name}: does not hold the weights of {name}.")
        node.name = name
    return list(layers)


def _choose_nodes(model: Any, keep_float: Collection[str]) -> list[Any]:
    """Nodes to quantize: what computes, but the convolutions kept in float and their activations; what moves
    or interpolates values between these."""
    nodes = list(model.graph.node)
    writer = {name: node for node in nodes for name in node.output}
    chosen = set()
    for node in nodes:
        source = writer.get(node.input[0])
        # An activation behind a float convolution is fused into it.
        owner = source if node.op_type in ("Clip", "Relu") and source is not None else node
        if node.op_type in _COMPUTING and owner.name not in keep_float:
            chosen.add(node.name)
        if node.op_type in _MOVING and source is not None and source.name in chosen:
            chosen.add(node.name)
    for node in reversed(nodes):
        readers = [n for n in nodes if node.output[0] in n.input]
        if node.op_type in (*_MOVING, *_INTERPOLATING) and any(r.name in chosen for r in readers):
            chosen.add(node.name)
    return [node for node in nodes if node.name in chosen]


def _list_activations(model: Any, nodes: list[Any]) -> list[str]:
    """Tensors the chosen nodes read and write, without constants."""
    constants = {t.name for t in model.graph.initializer} | {""}
    names = [name for node in nodes for name in (*node.input[:2], *node.output)]
    return [name for name in dict.fromkeys(names) if name not in constants]


def _insert_pairs(model: Any, nodes: list[Any], affines: dict[str, Affine], recipe: Recipe) -> Any:
    """onnxruntime's own quantizer, told every scale and zero point."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    signed = {affine.low_level < 0 for affine in affines.values()} == {True}
    kind, dtype = (QuantType.QInt8, np.int8) if signed else (QuantType.QUInt8, np.uint8)
    overrides = {
        name: [{"scale": np.array(a.scale), "zero_point": np.array(a.zero_point, dtype), "quant_type": kind}]
        for name, a in affines.items()
    }
    ends = {name: a.dequantize(np.array([a.low_level, a.high_level])) for name, a in affines.items()}
    with _silence():
        quantizer = QDQQuantizer(
            model,
            per_channel=recipe.weights.granularity == "per-channel",
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=kind,
            tensors_range={
                name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                for name, (low, high) in ends.items()
            },
            nodes_to_quantize=[node.name for node in nodes],
            nodes_to_exclude=[],
            op_types_to_quantize=[*_COMPUTING, *_MOVING, *_INTERPOLATING],
            # Reshape and Transpose are asked before what they read from is known to be quantized.
            extra_options={"TensorQuantOverrides": overrides, "ForceQuantizeNoInputCheck": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # it appends what it adds
        return quantizer.model.model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The quantizer logs what it decides."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _count_ops(model: Any) -> dict[str, int]:
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
