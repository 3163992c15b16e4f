"""How TF.js stores each weight where a recipe asks for integers, and what model.json can do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.onnx_to_tf import INPUT_NAME
from nailcore.errors import ConversionError, MissingToolError

U8 = npt.NDArray[np.uint8]
STORED = ("float32", "float16", "uint16", "uint8")
# A tensor's only scale drowns quiet output channels beside a loud one: two depthwise kernels of 288 values
# cost 50 points of nail IoU. Small kernels stand first or last, where errors spread furthest, and cost
# nothing; larger ones keep two bytes where their channels lose too much and the file can afford it.
SMALL_VALUES = 1600
MAX_CHANNEL_NOISE = 0.08
MAX_WIDE_SHARE = 0.01  # of all weights, for one kernel
# Attributes TF.js never reads, and those that say what it assumes without them.
_UNREAD = {
    "Const": ("dtype", "value"),  # they stand in the list of weights, too
    "_FusedConv2D": (
        "T",
        "TArgs",
        "data_format",
        "epsilon",
        "filter_format",
        "leakyrelu_alpha",
        "num_host_args",
        "use_cudnn_on_gpu",
    ),
    "FusedDepthwiseConv2dNative": ("T", "data_format"),
}
_CONVOLUTIONS = ("_FusedConv2D", "FusedDepthwiseConv2dNative")
_NHWC = "TkhXQw=="  # protobuf's JSON writes bytes in base64


def choose_storage(weights: Mapping[str, npt.NDArray[Any]], weights_dtype: str) -> dict[str, list[str]]:
    """Storage dtype -> names of the weights stored in it; what is not named keeps its own.

    Args:
        weights: values by name; kernels have four axes, the last but one being the channels of a
            depthwise kernel, the last one the outputs of any other.
        weights_dtype: the recipe's: one of ``STORED``.

    Raises:
        ConversionError: an unknown dtype.
    """
    if weights_dtype not in STORED:
        raise ConversionError(
            f"TF.js target: weights_dtype '{weights_dtype}' is not one of {', '.join(STORED)}.",
            hint="Change weights_dtype in the recipe.",
        )
    kernels = [name for name, values in weights.items() if values.ndim == 4 and max(values.shape[:3]) > 1]
    if weights_dtype == "float32":
        return {}
    if weights_dtype != "uint8":
        return {weights_dtype: kernels}
    limit = MAX_WIDE_SHARE * sum(weights[name].size for name in kernels)
    wide = {
        name
        for name in kernels
        if weights[name].size <= SMALL_VALUES
        or (weights[name].size <= limit and measure_noise(weights[name]) > MAX_CHANNEL_NOISE)
    }
    return {
        "uint8": [name for name in kernels if name not in wide],
        "uint16": sorted(wide),
        "float16": [
            name for name, values in weights.items() if values.ndim == 1 and values.dtype == np.float32
        ],
    }


def correct_biases(
    graph: Any, weights: list[dict[str, Any]], storage: Mapping[str, list[str]], images: U8
) -> None:
    """Take out of each bias, in place, the mean shift that rounding its kernel to 8 bits causes.

    A kernel off by d shifts its output by d times the mean of its input, the same everywhere: half of all
    that rounding does here, and the half that changes masks. Means are those of the float graph.

    Args:
        graph: what ``optimise`` returned, values included.
        weights: entries of the graph's constants, with "name" and "data".
        storage: what ``choose_storage`` returned.
        images: calibration images (N, H, W, 3) uint8 RGB.
    """
    quantize_weights, dequantize_weights = _load_quantization()

    entries = {entry["name"]: entry for entry in weights}
    rounded = set(storage.get("uint8", []))
    nodes = [
        node
        for node in graph.node
        if node.op in _CONVOLUTIONS and node.input[1] in rounded and len(node.input) > 2
    ]
    means = _measure_means(graph, [node.input[0] for node in nodes], images)
    for node, mean in zip(nodes, means, strict=True):
        kernel, bias = entries[node.input[1]]["data"], entries[node.input[2]]
        codes, scales = quantize_weights(kernel, np.uint8)
        loss = np.asarray(dequantize_weights(codes, scales), np.float64) - kernel
        if node.op.startswith("Fused"):  # (kh, kw, channels, 1)
            shift = loss.sum((0, 1, 3)) * mean
        else:  # (kh, kw, in, out)
            shift = np.einsum("hwio,i->o", loss, mean)
        bias["data"] = np.asarray(bias["data"] - shift, np.float32)


def _measure_means(graph: Any, names: list[str], images: U8) -> list[npt.NDArray[np.float64]]:
    """Mean of each channel of the named tensors (1, h, w, C) over all images."""
    import tensorflow as tf

    with tf.Graph().as_default() as live, tf.compat.v1.Session() as session:
        tf.import_graph_def(_unfuse_depthwise(graph), name="")
        wanted = [
            tf.reduce_mean(live.get_tensor_by_name(name if ":" in name else f"{name}:0"), (0, 1, 2))
            for name in names
        ]
        feed = live.get_tensor_by_name(f"{INPUT_NAME}:0")
        rows = [session.run(wanted, {feed: image[None].astype(np.float32)}) for image in images]
    return [np.mean(np.asarray(parts, np.float64), 0) for parts in zip(*rows, strict=True)]


def _unfuse_depthwise(graph: Any) -> Any:
    """A copy that TensorFlow executes: it knows depthwise convolutions neither fused nor dilated."""
    kernels = {node.name: node for node in graph.node if node.op == "Const"}
    copied = type(graph)()
    for node in graph.node:
        if node.op != "FusedDepthwiseConv2dNative":
            copied.node.add().CopyFrom(node)
            continue
        kernel, conv, bias, last = (copied.node.add() for _ in range(4))
        kernel.CopyFrom(kernels[node.input[1]])
        kernel.name = f"{node.name}/kernel"
        _spread_kernel(kernel, list(node.attr["dilations"].list.i))
        conv.name, conv.op = f"{node.name}/conv", "DepthwiseConv2dNative"
        conv.input.extend([node.input[0], kernel.name])
        for key in ("T", "strides", "padding", "explicit_paddings", "data_format"):
            if key in node.attr:
                conv.attr[key].CopyFrom(node.attr[key])
        bias.name, bias.op = f"{node.name}/bias", "BiasAdd"
        bias.input.extend([conv.name, node.input[2]])
        activations = [op.decode() for op in node.attr["fused_ops"].list.s[1:]]
        last.name, last.op = node.name, activations[0] if activations else "Identity"
        last.input.append(bias.name)
        for one in (bias, last):
            one.attr["T"].CopyFrom(node.attr["T"])
    return copied


def _spread_kernel(constant: Any, dilations: list[int]) -> None:
    """Write a dilation into the kernel itself, as zeros between its values."""
    from tensorflow.python.framework import tensor_util

    values = tensor_util.MakeNdarray(constant.attr["value"].tensor)
    _, down, right, _ = dilations or [1, 1, 1, 1]
    height, width = (
        (side - 1) * step + 1 for side, step in zip(values.shape[:2], (down, right), strict=True)
    )
    spread = np.zeros((height, width, *values.shape[2:]), values.dtype)
    spread[::down, ::right] = values
    constant.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(spread))


@cache
def _load_quantization() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """tensorflowjs' own (quantize_weights, dequantize_weights), from the file alone.

    Importing the package brings in TensorFlow, which must not meet torch in one process; the file needs
    NumPy only.
    """
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    package = find_spec("tensorflowjs")
    if package is None or package.origin is None:
        raise MissingToolError("tensorflowjs is not installed.", hint="Install nailtool again.")
    file = Path(package.origin).with_name("quantization.py")
    spec = spec_from_file_location("_tfjs_quantization", file)
    if spec is None or spec.loader is None:
        raise MissingToolError(f"{file} is missing.", hint="Install nailtool again.")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.quantize_weights, module.dequantize_weights


def measure_noise(kernel: npt.NDArray[Any]) -> float:
    """What uint8 with one scale takes from the output channels of a kernel: RMS share of each one's norm."""
    quantize_weights, dequantize_weights = _load_quantization()

    codes, scales = quantize_weights(kernel, np.uint8)
    loss = np.asarray(dequantize_weights(codes, scales), np.float64) - kernel
    # (kh, kw, in, out), or (kh, kw, channels, 1) of a depthwise kernel
    axes = (0, 1, 3) if kernel.shape[3] == 1 else (0, 1, 2)
    norms = np.sum(np.asarray(kernel, np.float64) ** 2, axes)
    share = np.sum(loss**2, axes)[norms > 0] / norms[norms > 0]
    return float(np.sqrt(np.mean(share))) if share.size else 0.0


def trim_scales(manifest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A weights manifest whose scales and minima have the nine digits that float32 can hold."""
    for group in manifest:
        for weight in group["weights"]:
            for key in ("scale", "min"):
                if key in weight.get("quantization", {}):
                    weight["quantization"][key] = float(f"{weight['quantization'][key]:.9g}")
    return manifest


def trim_topology(topology: dict[str, Any]) -> dict[str, Any]:
    """A graph in JSON without the attributes TF.js has no use for: a third of what uint8 leaves of a file."""
    for node in topology["node"]:
        if node.get("attr", {}).get("data_format", {"s": _NHWC}) != {"s": _NHWC}:
            continue
        attributes = node.get("attr", {})
        for name in _UNREAD.get(node["op"], ()):
            attributes.pop(name, None)
        if attributes.get("explicit_paddings") == {"list": {}}:
            del attributes["explicit_paddings"]
    return topology
