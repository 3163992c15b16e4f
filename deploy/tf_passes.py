"""Graph passes on a frozen TensorFlow GraphDef: dilations folded back, pads absorbed, biases made fusable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploy.onnx_to_tf import INPUT_NAME

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_PADS = ("Pad", "PadV2")
SPLITS = ("SpaceToBatchND", "BatchToSpaceND")  # how TensorFlow writes a dilated convolution
# Short names for what is left after optimisation; any other op keeps its own, in lower case.
_SHORT_NAMES = {
    "_FusedConv2D": "conv",
    "Conv2D": "conv",
    "AddV2": "add",
    "AddN": "add",
    "ResizeBilinear": "resize",
}
_SHORT_NAMES |= {"FusedDepthwiseConv2dNative": "depthwise", "DepthwiseConv2dNative": "depthwise"}


@dataclass(frozen=True)
class Padding:
    """Zero rows and columns around an NHWC image."""

    top: int
    bottom: int
    left: int
    right: int

    def __add__(self, other: Padding) -> Padding:
        return Padding(
            self.top + other.top,
            self.bottom + other.bottom,
            self.left + other.left,
            self.right + other.right,
        )

    @property
    def negative(self) -> bool:
        """Whether any side would cut the image instead of padding it."""
        return min(self.top, self.bottom, self.left, self.right) < 0


class _Graph:
    """Nodes by name, with who reads whom."""

    def __init__(self, graph: GraphDef, keep: tuple[str, ...]) -> None:
        self.nodes: dict[str, NodeDef] = {node.name: node for node in graph.node}
        self.readers = Counter(_base(name) for node in graph.node for name in node.input)
        self.readers.update(keep)  # a graph output is read by the client

    def find(self, name: str, ops: tuple[str, ...]) -> NodeDef | None:
        """The node behind an input name if it is one of ``ops``."""
        node = self.nodes.get(_base(name))
        return node if node is not None and node.op in ops else None

    def find_sole(self, name: str, ops: tuple[str, ...]) -> NodeDef | None:
        """As ``find``, if nobody else reads that node: then it may be rewritten."""
        node = self.find(name, ops)
        return node if node is not None and self.readers[node.name] == 1 else None

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a Const behind an input name."""
        from tensorflow.python.framework import tensor_util

        node = self.find(name, ("Const",))
        if node is None:
            return None
        return np.asarray(tensor_util.MakeNdarray(node.attr["value"].tensor))


def _base(name: str) -> str:
    """``^a/b:0`` names output 0 of, or a control edge from, node ``a/b``."""
    return name.lstrip("^").split(":")[0]


def count_ops(graph: GraphDef) -> dict[str, int]:
    """Nodes per op, constants left out, sorted by op."""
    return dict(sorted(Counter(node.op for node in graph.node if node.op != "Const").items()))


def drop_noops(graph: GraphDef, outputs: tuple[str, ...]) -> GraphDef:
    """Remove Identity nodes and transpositions that move nothing, unless a client reads them. Exact."""
    view = _Graph(result := _copy(graph), outputs)
    for node in result.node:
        for index, name in enumerate(node.input):
            node.input[index] = _skip_noops(view, name)
    return _pruned(result, outputs)


def _skip_noops(view: _Graph, name: str) -> str:
    while node := view.find(name, ("Identity", "Transpose")):
        order = view.constant(node.input[1]) if node.op == "Transpose" else np.arange(0)
        if order is None or not np.array_equal(order, np.arange(order.size)):
            break
        name = node.input[0]
    return name


def fold_dilations(graph: GraphDef, outputs: tuple[str, ...]) -> GraphDef:
    """Replace every SpaceToBatchND → convolution → BatchToSpaceND by one convolution with ``dilations``.

    SpaceToBatchND pads by (p, q) and splits rows into d phases; a VALID convolution on each phase and
    the merge afterwards equal a VALID convolution dilated by d on the padded image, and cropping (c, e)
    rows of its result equals padding by (p - c, q - e) instead. So the rewrite is exact, not approximate.

    Args:
        graph: a frozen graph; not changed.
        outputs: node names a client reads.
    """
    view = _Graph(result := _copy(graph), outputs)
    for merge in [node for node in result.node if node.op == "BatchToSpaceND"]:
        conv = view.find_sole(merge.input[0], CONVOLUTIONS)
        split = conv and view.find_sole(conv.input[0], ("SpaceToBatchND",))
        if not conv or not split or not _is_plain(conv):
            continue
        blocks = [view.constant(node.input[1]) for node in (split, merge)]
        pads, crops = view.constant(split.input[2]), view.constant(merge.input[2])
        if blocks[0] is None or blocks[1] is None or pads is None or crops is None:
            continue
        if blocks[0].shape != (2,) or not np.array_equal(blocks[0], blocks[1]):
            continue
        padding = Padding(*(int(value) for value in (pads - crops).ravel()))
        if padding.negative:
            continue
        dilation_h, dilation_w = (int(value) for value in blocks[0])
        _set_ints(conv, "dilations", [1, dilation_h, dilation_w, 1])
        _set_padding(conv, padding, _kernel_size(view, conv))
        conv.input[0] = split.input[0]
        _become(merge, conv)
    return _pruned(result, outputs)


def fold_pads(graph: GraphDef, outputs: tuple[str, ...]) -> GraphDef:
    """Absorb zero padding of rows and columns into the convolution that alone reads it. Exact."""
    view = _Graph(result := _copy(graph), outputs)
    for conv in [node for node in result.node if node.op in CONVOLUTIONS]:
        pad = view.find_sole(conv.input[0], _PADS)
        if pad is None or conv.attr["data_format"].s not in (b"", b"NHWC"):
            continue
        kernel = _kernel_size(view, conv)
        own = _own_padding(conv, kernel)
        if own is None:
            continue
        widths = view.constant(pad.input[1])
        value = view.constant(pad.input[2]) if pad.op == "PadV2" else np.zeros(())
        if widths is None or value is None or value.any() or widths.shape != (4, 2):
            continue
        if widths[[0, 3]].any() or (widths < 0).any():  # batch or channels
            continue
        _set_padding(conv, own + Padding(*(int(v) for v in widths[1:3].ravel())), kernel)
        conv.input[0] = pad.input[0]
    return _pruned(result, outputs)


def mark_biases(graph: GraphDef, outputs: tuple[str, ...]) -> GraphDef:
    """Turn ``AddV2(convolution, one constant per channel)`` into BiasAdd, which the fusing pass looks for.

    Left as additions, TensorFlow's optimiser regroups them with the residual additions, and those
    convolutions then ship without their bias fused. Exact: the same numbers are added once.
    """
    from tensorflow.python.framework import tensor_util

    view = _Graph(result := _copy(graph), outputs)
    for add in [node for node in result.node if node.op in ("AddV2", "Add") and len(node.input) == 2]:
        conv = view.find_sole(add.input[0], CONVOLUTIONS)
        bias_node = view.find_sole(add.input[1], ("Const",))
        if conv is None or bias_node is None:
            continue
        bias = tensor_util.MakeNdarray(bias_node.attr["value"].tensor)
        if bias.size != _channels(view, conv) or bias.shape[-1:] != (bias.size,):
            continue
        bias_node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(bias.reshape(-1)))
        add.op = "BiasAdd"
        add.attr["data_format"].s = b"NHWC"
    return result


def rename_nodes(graph: GraphDef, input_node: str, output_nodes: dict[str, str]) -> GraphDef:
    """Order nodes by depth-first search from the outputs and name them by op and place.

    The nodes behind the outputs get our output names, the placeholder is called ``image``. The
    converters' names carry counters that depend on what else the process converted; these do not.
    """
    nodes = {node.name: node for node in graph.node}
    given = {node: name for name, node in output_nodes.items()} | {input_node: INPUT_NAME}
    ordered = _order(nodes, tuple(output_nodes.values()))
    counters: Counter[str] = Counter()
    names: dict[str, str] = {}
    for node in ordered:
        if node.op == "Const":
            continue
        short = _SHORT_NAMES.get(node.op, node.op.lower().lstrip("_"))
        counters[short] += 1
        names[node.name] = given.get(node.name, f"{short}_{counters[short]}")
        for place, source in enumerate(node.input):
            if nodes[source.split(":")[0]].op == "Const":  # named by its first reader
                names.setdefault(source.split(":")[0], f"{names[node.name]}/{place}")
    result = type(graph)(versions=graph.versions)
    for node in ordered:
        copy = result.node.add()
        copy.CopyFrom(node)
        copy.name = names[node.name]
        copy.input[:] = [names[source.split(":")[0]] for source in node.input]
        copy.device = ""
        for key in [key for key in copy.attr if key.startswith("_")]:
            del copy.attr[key]
    return result


def _order(nodes: dict[str, NodeDef], outputs: tuple[str, ...]) -> list[NodeDef]:
    """Topological order, unique for a given graph whatever the order of its nodes in the file."""
    ordered: dict[str, NodeDef] = {}
    for output in outputs:
        waiting = [(output, False)]
        while waiting:
            name, ready = waiting.pop()
            if name in ordered:
                continue
            sources = [source.lstrip("^").split(":")[0] for source in nodes[name].input]
            if ready:
                ordered[name] = nodes[name]
            else:
                waiting.append((name, True))
                waiting.extend((source, False) for source in reversed(sources))
    return list(ordered.values())


def _copy(graph: GraphDef) -> GraphDef:
    result = type(graph)()
    result.CopyFrom(graph)
    return result


def _pruned(graph: GraphDef, outputs: tuple[str, ...]) -> GraphDef:
    """Drop what no output needs; placeholders stay, they are the signature."""
    nodes = {node.name: node for node in graph.node}
    needed: set[str] = set()
    waiting = [*outputs, *(node.name for node in graph.node if node.op == "Placeholder")]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(_base(i) for i in nodes[name].input)
    kept = [node for node in graph.node if node.name in needed]
    result = type(graph)(versions=graph.versions, library=graph.library)
    result.node.extend(kept)
    return result


def _is_plain(conv: NodeDef) -> bool:
    """A VALID, undilated convolution of stride 1 on NHWC: the only kind the split form holds."""
    ints = [*conv.attr["strides"].list.i, *conv.attr["dilations"].list.i]
    return (
        conv.attr["padding"].s == b"VALID"
        and conv.attr["data_format"].s in (b"", b"NHWC")
        and all(value == 1 for value in ints)
    )


def _kernel_size(view: _Graph, conv: NodeDef) -> tuple[int, int] | None:
    kernel = view.constant(conv.input[1])  # (kh, kw, in, out or multiplier)
    return None if kernel is None else (kernel.shape[0], kernel.shape[1])


def _channels(view: _Graph, conv: NodeDef) -> int:
    kernel = view.constant(conv.input[1])
    if kernel is None:
        return -1
    return int(kernel.shape[3] * (kernel.shape[2] if conv.op == "DepthwiseConv2dNative" else 1))


def _own_padding(conv: NodeDef, kernel: tuple[int, int] | None) -> Padding | None:
    """What a convolution pads by itself; None for SAME whose amount depends on the image size."""
    if conv.attr["padding"].s == b"VALID":
        return Padding(0, 0, 0, 0)
    if conv.attr["padding"].s == b"EXPLICIT":
        return Padding(*conv.attr["explicit_paddings"].list.i[2:6])
    return _same_padding(conv, kernel)


def _same_padding(conv: NodeDef, kernel: tuple[int, int] | None) -> Padding | None:
    """What SAME pads whatever the image size: known at stride 1 alone."""
    if kernel is None or any(stride != 1 for stride in conv.attr["strides"].list.i[1:3]):
        return None
    # d·(k-1) in all, the odd one at the end.
    dilations = conv.attr["dilations"].list.i[1:3] or [1, 1]
    rows, columns = (d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
    return Padding(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)


def _set_padding(conv: NodeDef, padding: Padding, kernel: tuple[int, int] | None) -> None:
    """Write VALID or SAME where they mean exactly ``padding``, EXPLICIT otherwise."""
    conv.attr["explicit_paddings"].list.Clear()
    if padding == Padding(0, 0, 0, 0):
        conv.attr["padding"].s = b"VALID"
        return
    if padding == _same_padding(conv, kernel):
        conv.attr["padding"].s = b"SAME"
        return
    conv.attr["padding"].s = b"EXPLICIT"
    sides = [0, 0, padding.top, padding.bottom, padding.left, padding.right, 0, 0]
    _set_ints(conv, "explicit_paddings", sides)


def _set_ints(node: NodeDef, key: str, values: list[int]) -> None:
    node.attr[key].list.i[:] = values


def _become(node: NodeDef, other: NodeDef) -> None:
    """Make ``node`` a copy of ``other`` under its own name, so that its readers need no change."""
    name = node.name
    node.CopyFrom(other)
    node.name = name
