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
from quantize.layer_names import choose_float_layers, list_convolutions
from quantize.onnx_ranges import measure_ranges
from quantize.ranges import Range, choose_affine
from quantize.recipe import Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

# What onnxruntime computes in 8 bits on a CPU, as far as our graphs hold it.
_QUANTIZED_OPS = ("Conv", "Clip", "Relu", "Add", "Resize", "AveragePool")
IMAGE_RANGE = Range(0.0, 255.0)  # by contract, whatever the calibration images hold


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

    if recipe.activations is None or recipe.calibration is None:
        raise ConversionError(f"Recipe '{recipe.name}' says neither how activations are rounded nor on what.")
    refuse_quantized(model)
    work = onnx.ModelProto()
    work.CopyFrom(model)
    layers = name_convolutions(work, network)
    keep = set(choose_float_layers((*recipe.weights.keep_float, *sorted(float_layers)), layers))
    nodes = _choose_nodes(work, keep)
    ranges = {work.graph.input[0].name: IMAGE_RANGE}
    tensors = [name for name in _list_activations(work, nodes) if name not in ranges]
    ranges |= measure_ranges(work, tensors, images, recipe.calibration)
    quantized = _insert_pairs(work, nodes, ranges, recipe)
    return quantized, {
        "ops_before": _count_ops(model),
        "layers_quantized": len(layers) - len(keep),
        "layers_float": sorted(keep),
    }


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
    """Nodes to quantize: all of a known kind but the convolutions kept in float and what only they feed."""
    writer = {name: node for node in model.graph.node for name in node.output}
    chosen = []
    for node in model.graph.node:
        if node.op_type not in _QUANTIZED_OPS or node.name in keep_float:
            continue
        # An activation behind a float convolution is fused into it.
        source = writer.get(node.input[0])
        if node.op_type in ("Clip", "Relu") and source is not None and source.name in keep_float:
            continue
        chosen.append(node)
    return chosen


def _list_activations(model: Any, nodes: list[Any]) -> list[str]:
    """Tensors the chosen nodes read and write, without constants."""
    constants = {t.name for t in model.graph.initializer} | {""}
    names = [name for node in nodes for name in (*node.input[:2], *node.output)]
    return [name for name in dict.fromkeys(names) if name not in constants]


def _insert_pairs(model: Any, nodes: list[Any], ranges: dict[str, Range], recipe: Recipe) -> Any:
    """onnxruntime's own quantizer, told every scale and zero point."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    activations = recipe.activations
    if activations is None:
        raise ConversionError(f"Recipe '{recipe.name}' does not say how activations are rounded.")
    kind = QuantType.QUInt8 if activations.dtype == "uint8" else QuantType.QInt8
    overrides = {}
    for name, range_ in ranges.items():
        affine = choose_affine(range_, activations)
        zero_point = np.array(affine.zero_point, activations.dtype)
        overrides[name] = [{"scale": np.array(affine.scale), "zero_point": zero_point, "quant_type": kind}]
    with _silence():
        quantizer = QDQQuantizer(
            model,
            per_channel=recipe.weights.granularity == "per-channel",
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=kind,
            tensors_range={
                name: TensorData(lowest=np.float32(r.low), highest=np.float32(r.high))
                for name, r in ranges.items()
            },
            nodes_to_quantize=[node.name for node in nodes],
            nodes_to_exclude=[],
            op_types_to_quantize=list(_QUANTIZED_OPS),
            extra_options={"TensorQuantOverrides": overrides},
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
