"""How TF.js stores each weight where a recipe asks for integers, and what model.json can do without."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.onnx_to_tf import INPUT_NAME
from nailcore.errors import ConversionError, MissingToolError
from quantize.prepared import Prepared

U8 = npt.NDArray[np.uint8]
STORED = ("float32", "float16", "uint16", "uint8")
# Attributes TF.js never reads, and those that say what it assumes without them.
_UNREAD = {
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


@dataclass(frozen=True)
class Rounding:
    """What is known of a network before its weights are rounded to 8 bits.

    A tensor's only scale drowns quiet output channels beside a loud one: two depthwise kernels of 288 values
    alone cost 50 points of nail IoU. So some kernels keep 16 bits.
    """

    images: U8  # calibration images (N, H, W, 3) RGB
    errors: Mapping[bytes, float]  # of a kernel's ``spell_kernel``: what 8 bits do to the nail logits
    size_ratio: float  # of the float32 file, at most


def read_rounding(parent: Path, prepared: Prepared, size_ratio: float) -> Rounding:
    """What was prepared, with the errors of kernels by the values that the ONNX file at ``parent`` holds.

    Raises:
        ArtifactError: the calibration images are damaged.
        ConversionError: the file lacks layers that were prepared.
    """
    import onnx

    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(parent)).graph.initializer}
    errors = {
        _spell(stored[f"{layer}.weight"]): error
        for layer, error in prepared.card.kernel_errors.items()
        if f"{layer}.weight" in stored  # of equal kernels one is stored
    }
    if not errors:
        raise ConversionError(
            f"{parent}: none of the {len(prepared.card.kernel_errors)} prepared layers is in it.",
            hint="Run `nailtool build-variants`; what does not fit will be made again.",
        )
    return Rounding(prepared.load_images(), errors, size_ratio)


def _spell(kernel: npt.NDArray[Any]) -> bytes:
    return repr(kernel.shape).encode() + np.ascontiguousarray(kernel, np.float32).tobytes()


def spell_kernel(values: npt.NDArray[Any]) -> bytes:
    """A kernel as TensorFlow lays it out, by what identifies it wherever it is stored."""
    depthwise = values.shape[3] == 1  # (kh, kw, channels, 1), else (kh, kw, in, out)
    return _spell(values.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))


def list_kernels(weights: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Names of the kernels: four axes, and more than one value beside the outputs."""
    return [name for name, values in weights.items() if values.ndim == 4 and max(values.shape[:3]) > 1]


def choose_storage(
    weights: Mapping[str, npt.NDArray[Any]], weights_dtype: str, wide: Collection[str] = ()
) -> dict[str, list[str]]:
    """Storage dtype -> names of the weights stored in it; what is not named keeps its own.

    Args:
        weights: values by name.
        weights_dtype: the recipe's: one of ``STORED``.
        wide: kernels that keep 16 bits where the others have 8.

    Raises:
        ConversionError: an unknown dtype.
    """
    if weights_dtype not in STORED:
        raise ConversionError(
            f"TF.js target: weights_dtype '{weights_dtype}' is not one of {', '.join(STORED)}.",
            hint="Change weights_dtype in the recipe.",
        )
    kernels = list_kernels(weights)
    if weights_dtype == "float32":
        return {}
    if weights_dtype != "uint8":
        return {weights_dtype: kernels}
    return {
        "uint8": [name for name in kernels if name not in wide],
        "uint16": [name for name in kernels if name in wide],
        "float16": [
            name for name, values in weights.items() if values.ndim == 1 and values.dtype == np.float32
        ],
    }


def choose_wide(
    weights: Mapping[str, npt.NDArray[Any]], errors: Mapping[bytes, float], room_bytes: float
) -> set[str]:
    """Kernels that keep 16 bits: those whose 8 bits do most harm for each byte, while there is room.

    Equal kernels count once, because they are stored once.

    Raises:
        ConversionError: a kernel that nobody knows the error of.
    """
    groups: dict[bytes, list[str]] = {}
    for name in list_kernels(weights):
        groups.setdefault(spell_kernel(weights[name]), []).append(name)
    unknown = next((names[0] for spelled, names in groups.items() if spelled not in errors), None)
    if unknown is not None:
        raise ConversionError(
            f"Kernel {unknown} holds the weights of no layer that was prepared.",
            hint="Run `nailtool build-variants`; what does not fit will be made again.",
        )
    chosen: set[str] = set()
    for _, names in sorted(groups.items(), key=lambda g: -errors[g[0]] / weights[g[1][0]].size):
        size = weights[names[0]].size
        if size <= room_bytes:
            chosen.update(names)
            room_bytes -= size
    return chosen


def share_constants(topology: Any, weights: list[dict[str, Any]], storage: Mapping[str, list[str]]) -> None:
    """Store equal weights once, in place: both branches begin with the same frozen stages."""
    dtypes = {name: dtype for dtype, names in storage.items() for name in names}
    first: dict[tuple[Any, ...], str] = {}
    moved: dict[str, str] = {}
    for entry in weights:
        name, data = entry["name"], entry["data"]
        key = (dtypes.get(name), str(data.dtype), data.shape, data.tobytes())
        if name in dtypes and first.setdefault(key, name) != name:
            moved[name] = first[key]
    weights[:] = [entry for entry in weights if entry["name"] not in moved]
    kept = [node for node in topology.node if node.name not in moved]
    copied = [type(node).FromString(node.SerializeToString()) for node in kept]
    del topology.node[:]
    topology.node.extend(copied)
    for node in topology.node:
        node.input[:] = [moved.get(name.split(":")[0], name) for name in node.input]


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


def trim_manifest(manifest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A weights manifest with what TF.js reads; scales and minima have the nine digits float32 can hold."""
    for group in manifest:
        for weight in group["weights"]:
            stored = weight.get("quantization", {})
            stored.pop("original_dtype", None)  # the entry's own dtype says it
            for key in ("scale", "min"):
                if key in stored:
                    stored[key] = float(f"{stored[key]:.9g}")
    return manifest


def trim_topology(topology: dict[str, Any]) -> dict[str, Any]:
    """A graph in JSON without the attributes TF.js has no use for: a third of what uint8 leaves of a file."""
    for node in topology["node"]:
        if node["op"] == "Const":
            node.pop("attr", None)  # they stand in the list of weights, too
            continue
        if node.get("attr", {}).get("data_format", {"s": _NHWC}) != {"s": _NHWC}:
            continue
        attributes = node.get("attr", {})
        for name in _UNREAD.get(node["op"], ()):
            attributes.pop(name, None)
        if attributes.get("explicit_paddings") == {"list": {}}:
            del attributes["explicit_paddings"]
    return topology
