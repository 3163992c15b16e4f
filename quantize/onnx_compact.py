"""Makes a QDQ graph small: a third of an int8 file can be zero points, scales and long names."""

from __future__ import annotations

from typing import Any

import numpy as np

_SMALL = 64  # elements; only constants up to this are worth comparing
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def compact_graph(model: Any) -> None:
    """Say the same in fewer bytes, in place.

    Zero points that are all 0 go, as ONNX lets them; scales of biases, which must be the input's scale times
    the weights', are computed when the file is loaded; equal small constants are stored once; tensors inside
    get short names. Convolutions keep their torch names, inputs and outputs theirs.
    """
    _drop_zero_points(model.graph)
    _compute_bias_scales(model.graph)
    _share_constants(model.graph)
    _drop_unused(model.graph)
    _shorten_names(model.graph)


def _values(graph: Any) -> dict[str, Any]:
    import onnx

    return {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}


def _drop_zero_points(graph: Any) -> None:
    """Of weights and biases: an activation's says whether its levels are signed."""
    values = _values(graph)
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in values or len(node.input) < 3:
            continue
        if not values[node.input[2]].any():
            del node.input[2]


def _compute_bias_scales(graph: Any) -> None:
    import onnx

    values, writers = _values(graph), {name: n for n in graph.node for name in n.output}
    products: dict[tuple[str, str], str] = {}
    for conv in [n for n in graph.node if n.op_type == "Conv" and len(n.input) == 3]:
        sources = [writers.get(name) for name in conv.input]
        if any(s is None or s.op_type != "DequantizeLinear" for s in sources):
            continue
        scales = [s.input[1] for s in sources if s is not None]
        bias = sources[2]
        if bias is None or any(name not in values for name in scales):
            continue
        if not np.array_equal(values[scales[2]], (values[scales[0]] * values[scales[1]]).astype(np.float32)):
            continue
        pair = (scales[0], scales[1])
        if pair not in products:
            products[pair] = f"{conv.name}.bias_scale"
            product = onnx.helper.make_node("Mul", list(pair), [products[pair]])
            graph.node.insert(next(i for i, n in enumerate(graph.node) if n.output == bias.output), product)
        bias.input[1] = products[pair]


def _share_constants(graph: Any) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    values = _values(graph)
    for tensor in graph.initializer:
        value = values[tensor.name]
        if value.size <= _SMALL:
            key = (tensor.data_type, tuple(tensor.dims), value.tobytes())
            renamed[tensor.name] = first.setdefault(key, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]


def _shorten_names(graph: Any) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {}

    def rename(name: str) -> str:
        if not name or name in fixed:
            return name
        if name not in short:
            short[name] = _spell(len(short))
        return short[name]

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for node in graph.node:
        if node.op_type != "Conv":
            node.name = ""
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = rename(name)


def _spell(number: int) -> str:
    """A letter first: t0, t1, ... in base 36."""
    digits = ""
    while True:
        digits = _DIGITS[number % 36] + digits
        number //= 36
        if not number:
            return f"t{digits}"
