"""The same function in a shape that integer kernels are fast at: the first convolutions, and the heads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
PACK = 4  # pixels of a row that become channels: 12 of them, and kernels want multiples of 4
CHANNEL_BLOCK = 16
IMAGE_ZERO = 128  # level that stands for 0 in the packed image


@dataclass(frozen=True)
class Rewritten:
    """What was changed, by what it is good for."""

    byte_tensors: list[str]  # hold the image's bytes less 128; the first one is computed from the image
    notes: dict[str, Any]


def rewrite_graph(model: Any, mean: F32, keep_float: set[str]) -> Rewritten:
    """All of the below, in place; layers kept in float stay as they are.

    Convolutions must carry their torch names. A merged head that stays in float is added to ``keep_float``.
    """
    import onnx

    stems = {n.name for n in model.graph.node if n.op_type == "Conv" and n.name.endswith(".stage1.0")}
    byte_tensors = [] if stems & keep_float or not stems else pack_image(model, mean)
    pairs = merge_pointwise(model, keep_float)
    heads = [n.name for o in model.graph.output for n in model.graph.node if o.name in n.output]
    merged = merge_heads(model, keep_float)
    if merged and keep_float.intersection(heads):
        keep_float.add(merged)
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    notes = {"packed_image": bool(byte_tensors), "merged_pointwise": pairs, "merged_heads": bool(merged)}
    return Rewritten(byte_tensors, notes)


class Graph:
    """A graph under reconstruction: constants by name, nodes by what they write and read."""

    def __init__(self, model: Any) -> None:
        self.graph = model.graph

    def find_writer(self, tensor: str) -> Any | None:
        """The node that writes a tensor."""
        return next((n for n in self.graph.node if tensor in n.output), None)

    def list_readers(self, tensor: str) -> list[Any]:
        """The nodes that read a tensor."""
        return [n for n in self.graph.node if tensor in n.input]

    def read(self, name: str) -> F32:
        """A constant's value."""
        import onnx

        for tensor in self.graph.initializer:
            if tensor.name == name:
                return np.asarray(onnx.numpy_helper.to_array(tensor))
        raise ConversionError(f"{name}: no constant of that name in the graph.")

    def add_constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Store a constant."""
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def replace(self, old: list[Any], new: list[Any]) -> None:
        """Put ``new`` nodes where the first of ``old`` stood; drop the old ones."""
        nodes = list(self.graph.node)
        place = next(i for i, n in enumerate(nodes) if any(n is o for o in old))
        kept_before = [n for n in nodes[:place] if not any(n is o for o in old)]
        kept_after = [n for n in nodes[place:] if not any(n is o for o in old)]
        copies = []
        for node in (*kept_before, *new, *kept_after):
            copy = type(node)()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def drop_unused(self) -> None:
        """Forget constants and shape notes that nothing reads any more."""
        used = {name for node in self.graph.node for name in node.input}
        kept = [t for t in self.graph.initializer if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]


def _read_attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def pack_image(model: Any, mean: F32) -> list[str]:
    """Rewrite what reads the normalised image so that four pixels of a row are 12 channels, in place.

    A convolution of 3 channels wastes integer kernels, which work on 4 channels at a time, and an average
    pool in 8 bits is slow and rounds. Here the 2×2 mean is part of the kernel behind it (6×6, stride 4), and
    ``image - mean`` becomes ``image - 128`` with the rest in the bias, so that bytes stay what they are;
    outside the image lies 128 instead of the mean.

    Returns:
        names of the tensors that hold the bytes of the image, ``image - 128`` first.

    Raises:
        ConversionError: the graph does not begin as our export form does.
    """
    graph = Graph(model)
    image = model.graph.input[0].name
    first = graph.list_readers(image)
    if len(first) != 1 or first[0].op_type != "Sub":
        raise ConversionError(f"'{image}' is read by something else than one subtraction of the mean.")
    subtraction = first[0]
    shifted = subtraction.output[0]
    rest = (IMAGE_ZERO - mean.reshape(3)).astype(np.float64)
    readers = graph.list_readers(shifted)
    pools = [n for n in readers if n.op_type == "AveragePool"]
    convs = [n for n in readers if n.op_type == "Conv"]
    behind = [n for pool in pools for n in graph.list_readers(pool.output[0])]
    if len(pools) != 1 or len(convs) != 1 or len(behind) != 1 or behind[0].op_type != "Conv":
        raise ConversionError("The image does not go into one convolution and one pooled convolution.")
    for conv in (*convs, *behind):
        found = _read_attributes(conv)
        if (list(found["strides"]), list(found["pads"])) != ([2, 2], [1, 1, 1, 1]):
            raise ConversionError(f"{conv.name}: expected a convolution with stride 2 and padding 1.")
    import onnx

    make = onnx.helper.make_node
    zero = graph.add_constant("image_zero", np.full((1, 1, 1, 1), IMAGE_ZERO, np.float32))
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    shape = graph.add_constant("packed_shape", np.array([1, height, width // PACK, 3 * PACK], np.int64))
    nodes = [
        make("Sub", [image, zero], ["image_centred"], "image_centred"),
        make("Transpose", ["image_centred"], ["image_rows"], "image_rows", perm=[0, 2, 3, 1]),
        make("Reshape", ["image_rows", shape], ["image_quads"], "image_quads"),
        make("Transpose", ["image_quads"], ["image_packed"], "image_packed", perm=[0, 3, 1, 2]),
    ]
    graph.replace([subtraction], nodes)
    _pack_pooled(Graph(model), behind[0].name, pools[0].name, rest)
    _pack_direct(Graph(model), convs[0].name, (height, width), rest)
    Graph(model).drop_unused()
    return [node.output[0] for node in nodes]


def _find(graph: Graph, name: str) -> Any:
    return next(n for n in graph.graph.node if n.name == name)


def _shift_bias(bias: F32, weight: F32, rest: F64) -> F32:
    """conv(x - mean) = conv(x - 128) + the kernel's answer to 128 - mean."""
    answer = np.einsum("ocyx,c->o", weight.astype(np.float64), rest)
    return np.asarray(bias + answer, np.float32)


def _pack_pooled(graph: Graph, conv_name: str, pool_name: str, rest: F64) -> None:
    """2×2 mean, then 3×3 with stride 2 = 6×6 with stride 4 = 6×2 with stride (4, 1) on packed pixels."""
    import onnx

    conv, pool = _find(graph, conv_name), _find(graph, pool_name)
    weight, bias = graph.read(conv.input[1]), graph.read(conv.input[2])
    wide = np.repeat(np.repeat(weight, 2, axis=2), 2, axis=3) / 4  # (O, 3, 6, 6)
    padded = np.pad(wide, ((0, 0), (0, 0), (0, 0), (2, 0)))  # columns -4..3 of the output's pixel
    packed = padded.reshape(*wide.shape[:3], 2, PACK).transpose(0, 4, 1, 2, 3)  # (O, 4, 3, 6, 2)
    packed = packed.reshape(len(weight), 3 * PACK, 6, 2)
    inputs = [
        "image_packed",
        graph.add_constant(f"{conv_name}.packed_weight", packed.astype(np.float32)),
        graph.add_constant(f"{conv_name}.packed_bias", _shift_bias(bias, weight, rest)),
    ]
    new = onnx.helper.make_node(
        "Conv", inputs, list(conv.output), conv_name, strides=[4, 1], pads=[2, 1, 0, 0], kernel_shape=[6, 2]
    )
    graph.replace([conv, pool], [new])


def _pack_direct(graph: Graph, conv_name: str, size: tuple[int, int], rest: F64) -> None:
    """3×3 with stride 2 = 3×2 with stride (2, 1) on packed pixels, two pixels of a row at once."""
    import onnx

    conv = _find(graph, conv_name)
    weight, bias = graph.read(conv.input[1]), graph.read(conv.input[2])
    outputs = len(weight)
    # Pixels -4..3 around the pair: the first output sees -1..1, the second 1..3.
    around = np.zeros((2, outputs, 3, 3, 2 * PACK), np.float32)
    around[0, ..., 3:6] = weight
    around[1, ..., 5:8] = weight
    packed = around.reshape(2, outputs, 3, 3, 2, PACK).transpose(0, 1, 5, 2, 3, 4)
    packed = packed.reshape(2 * outputs, 3 * PACK, 3, 2)
    shifted = _shift_bias(bias, weight, rest)
    pair, rows, quads, out = (f"{conv.output[0]}_{s}" for s in ("pairs", "pair_rows", "rows", ""))
    out = conv.output[0]
    inputs = [
        "image_packed",
        graph.add_constant(f"{conv_name}.packed_weight", packed),
        graph.add_constant(f"{conv_name}.packed_bias", np.concatenate([shifted, shifted])),
    ]
    shape = graph.add_constant(
        f"{conv_name}.unpacked_shape", np.array([1, size[0] // 2, size[1] // 2, outputs], np.int64)
    )
    make = onnx.helper.make_node
    clips = [n for n in graph.list_readers(out) if n.op_type == "Clip"]
    if len(clips) != 1:
        raise ConversionError(f"{conv_name}: expected one ReLU6 behind it.")
    clip, final = clips[0], clips[0].output[0]
    nodes = [
        make("Conv", inputs, [out], conv_name, strides=[2, 1], pads=[1, 1, 0, 0], kernel_shape=[3, 2]),
        make("Clip", list(clip.input), [pair], clip.name),
        make("Transpose", [pair], [rows], f"{conv_name}.rows", perm=[0, 2, 3, 1]),
        make("Reshape", [rows, shape], [quads], f"{conv_name}.unpack"),
        make("Transpose", [quads], [final], f"{conv_name}.columns", perm=[0, 3, 1, 2]),
    ]
    graph.replace([conv, clip], nodes)


def merge_heads(model: Any, keep_float: Collection[str] = ()) -> str | None:
    """One convolution for all heads, split behind it, in place: narrow ones cost as much as a wide one.

    Channels are filled up to a multiple of 16, which fast kernels ask for; nobody reads what they hold.

    Returns:
        name of the merged convolution; None when the outputs are not 1×1 convolutions of one tensor, or some
        of them stay in float and some do not.
    """
    import onnx

    graph = Graph(model)
    outputs = [o.name for o in model.graph.output]
    heads = [graph.find_writer(name) for name in outputs]
    found = [h for h in heads if h is not None and h.op_type == "Conv"]
    if len(found) != len(outputs) or len({h.input[0] for h in found}) != 1:
        return None
    if len({h.name in keep_float for h in found}) != 1:
        return None
    weights = [graph.read(h.input[1]) for h in found]
    sizes = [len(w) for w in weights]
    unused = -sum(sizes) % CHANNEL_BLOCK
    weight = np.concatenate([*weights, np.zeros((unused, *weights[0].shape[1:]), np.float32)])
    bias = np.concatenate([*(graph.read(h.input[2]) for h in found), np.zeros(unused, np.float32)])
    if unused:
        sizes, outputs = [*sizes, unused], [*outputs, "heads_unused"]
    inputs = [
        found[0].input[0],
        graph.add_constant("heads.weight", weight),
        graph.add_constant("heads.bias", bias),
    ]
    make = onnx.helper.make_node
    split = graph.add_constant("heads.sizes", np.array(sizes, np.int64))
    nodes = [
        make("Conv", inputs, ["heads"], "heads", kernel_shape=[1, 1]),
        make("Split", ["heads", split], outputs, "split_heads", axis=1),
    ]
    graph.replace(found, nodes)
    Graph(model).drop_unused()
    return "heads"


def merge_pointwise(model: Any, keep_float: Collection[str] = ()) -> list[str]:
    """A 1×1 convolution that feeds nothing but another 1×1 convolution becomes one with it, in place.

    MobileNetV2's bottlenecks are linear: where no residual reads one, its rounding and its time are saved.
    Done where the merged kernel is at most twice the two, and neither stays in float.

    Returns:
        names of the convolutions that took another one in.
    """
    merged = []
    for name in [n.name for n in model.graph.node if n.op_type == "Conv"]:
        graph = Graph(model)
        second = _find(graph, name)
        first = graph.find_writer(second.input[0])
        if first is None or not _is_pointwise(graph, first) or not _is_pointwise(graph, second):
            continue
        if len(graph.list_readers(first.output[0])) != 1 or {name, first.name} & set(keep_float):
            continue
        inner, outer = (graph.read(n.input[1])[..., 0, 0].astype(np.float64) for n in (first, second))
        if outer.shape[0] * inner.shape[1] > 2 * (outer.size + inner.size):
            continue
        _merge_pair(graph, first, second, inner, outer)
        merged.append(name)
    if merged:
        Graph(model).drop_unused()
    return merged


def _is_pointwise(graph: Graph, node: Any) -> bool:
    if node.op_type != "Conv" or len(node.input) != 3:
        return False
    found = _read_attributes(node)
    plain = found.get("group", 1) == 1 and set(found.get("strides", [1])) == {1}
    return bool(plain and graph.read(node.input[1]).shape[2:] == (1, 1) and not any(found.get("pads", [0])))


def _merge_pair(graph: Graph, first: Any, second: Any, inner: F64, outer: F64) -> None:
    import onnx

    bias = outer @ graph.read(first.input[2]) + graph.read(second.input[2])
    weight = (outer @ inner).astype(np.float32)[..., None, None]
    inputs = [
        first.input[0],
        graph.add_constant(f"{second.name}.merged_weight", weight),
        graph.add_constant(f"{second.name}.merged_bias", bias.astype(np.float32)),
    ]
    new = onnx.helper.make_node("Conv", inputs, list(second.output), second.name, kernel_shape=[1, 1])
    graph.replace([first, second], [new])
