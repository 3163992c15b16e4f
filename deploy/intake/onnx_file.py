"""What an .onnx file must keep before onnxruntime sees it: complete, alone, bounded, true to its shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.intake.folder import MAX_RANK, check_file, check_shape, refuse

MAX_NODES = 100_000
MAX_GRAPHS_DEPTH = 8  # graphs inside the attributes of If and Loop
MAX_KERNEL = 1024  # kernel, stride, dilation
MAX_PADDING = 1 << 16
_GEOMETRY = {"kernel_shape": MAX_KERNEL, "strides": MAX_KERNEL, "dilations": MAX_KERNEL}
# Where a tensor of each type keeps its values when they are not raw bytes, and how many per element.
_FIELDS = {
    1: ("float_data", 1), 2: ("int32_data", 1), 3: ("int32_data", 1), 4: ("int32_data", 1),
    5: ("int32_data", 1), 6: ("int32_data", 1), 7: ("int64_data", 1), 8: ("string_data", 1),
    9: ("int32_data", 1), 10: ("int32_data", 1), 11: ("double_data", 1), 12: ("uint64_data", 1),
    13: ("uint64_data", 1), 14: ("float_data", 2), 15: ("double_data", 2), 16: ("int32_data", 1),
}  # fmt: skip
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64}
_BITS |= {15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}


def check(path: Path) -> None:
    """Raises ArtifactError for anything but one self-contained, bounded graph."""
    check_file(path)
    model = _parse(path)
    if not model.graph.node or not model.graph.output:
        raise refuse(path, "is no ONNX model: it has no graph.")
    if len(model.functions) > MAX_NODES:
        raise refuse(path, f"defines {len(model.functions)} functions.")
    if not model.opset_import:
        raise refuse(path, "is no ONNX model: it names no operator set.")
    counted = 0
    for graph, depth in _list_graphs(path, model):
        counted += len(graph.node)
        if counted > MAX_NODES:
            raise refuse(path, f"holds more than {MAX_NODES:,} nodes.")
        _check_graph(path, graph, outer=depth == 0)


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise refuse(path, f"is cut short, damaged, or no ONNX file ({error}).") from error
    return model


def _list_graphs(path: Path, model: Any) -> Iterator[tuple[Any, int]]:
    """The graph, those inside its attributes, and the bodies of local functions, with their depth."""
    waiting = [(model.graph, 0), *((function, 1) for function in model.functions)]
    while waiting:
        graph, depth = waiting.pop()
        if depth > MAX_GRAPHS_DEPTH:
            raise refuse(path, f"nests graphs deeper than {MAX_GRAPHS_DEPTH}.")
        yield graph, depth
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend((inner, depth + 1) for inner in attribute.graphs)
                if attribute.HasField("g"):
                    waiting.append((attribute.g, depth + 1))


def _check_graph(path: Path, graph: Any, *, outer: bool) -> None:
    for tensor in getattr(graph, "initializer", ()):  # functions have none
        _check_tensor(path, tensor, f"tensor {tensor.name!r}")
    if len(getattr(graph, "sparse_initializer", ())):
        raise refuse(path, "holds sparse tensors, which nothing of ours writes.")
    for kind, values in (
        ("input", getattr(graph, "input", ())),
        ("output", getattr(graph, "output", ())),
        ("value", getattr(graph, "value_info", ())),
    ):
        for value in values:
            if not isinstance(value, str):  # a function lists bare names
                _check_value(path, value, f"{kind} {value.name!r}")
    written: set[str] = set()
    for node in graph.node:
        _check_node(path, node)
        for name in node.output:
            if name and name in written:
                raise refuse(path, f"writes {name!r} twice.")
            written.add(name)
    if outer:
        known = written | {t.name for t in graph.initializer} | {i.name for i in graph.input}
        for output in graph.output:
            if output.name not in known:
                raise refuse(path, f"output {output.name!r} is computed by no node.")


def _check_node(path: Path, node: Any) -> None:
    what = f"{node.op_type or 'node'} {node.name or (node.output[0] if node.output else '')!r}"
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _check_tensor(path, attribute.t, f"{what}: {attribute.name}")
        for tensor in attribute.tensors:
            _check_tensor(path, tensor, f"{what}: {attribute.name}")
        if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
            raise refuse(path, f"{what} holds a sparse tensor.")
        limit = _GEOMETRY.get(attribute.name)
        if limit is not None:
            _check_numbers(path, attribute.ints, 1, limit, f"{what}: {attribute.name}")
        elif attribute.name in ("pads", "output_padding"):
            _check_numbers(path, attribute.ints, -MAX_PADDING, MAX_PADDING, f"{what}: {attribute.name}")
        elif attribute.name == "group":
            _check_numbers(path, [attribute.i], 1, MAX_PADDING, f"{what}: {attribute.name}")


def _check_numbers(path: Path, values: Any, low: int, high: int, what: str) -> None:
    if len(values) > 2 * MAX_RANK:
        raise refuse(path, f"{what} lists {len(values)} numbers.")
    for value in values:
        if not low <= value <= high:
            raise refuse(path, f"{what} is {list(values)}; expected {low} to {high}.")


def _check_tensor(path: Path, tensor: Any, what: str) -> None:
    """Declared type and shape must account for exactly the bytes that are stored."""
    if tensor.data_location == tensor.EXTERNAL or len(tensor.external_data):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        raise refuse(
            path,
            f"{what} keeps its values in another file, {location!r}: only what is inside is covered by the "
            "hash and can be shipped.",
        )
    count = check_shape(path, list(tensor.dims), what, zero=True)
    if tensor.data_type not in _BITS and tensor.data_type not in _FIELDS:
        raise refuse(path, f"{what} has the unknown type {tensor.data_type}.")
    if tensor.HasField("raw_data"):
        if tensor.data_type not in _BITS:
            raise refuse(path, f"{what} stores strings as raw bytes.")
        expected = -(-count * _BITS[tensor.data_type] // 8)
        if len(tensor.raw_data) != expected:
            raise refuse(path, f"{what} holds {len(tensor.raw_data)} bytes; its shape takes {expected}.")
        return
    if tensor.data_type not in _FIELDS:
        if count:
            raise refuse(path, f"{what} holds no values; its shape takes {count}.")
        return
    field, per_element = _FIELDS[tensor.data_type]
    found = len(getattr(tensor, field))
    if found != count * per_element:
        raise refuse(path, f"{what} holds {found} values; its shape takes {count * per_element}.")


def _check_value(path: Path, value: Any, what: str) -> None:
    """Shapes of inputs, outputs and notes: fixed sides bounded, symbolic ones allowed."""
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        return
    dims = value.type.tensor_type.shape.dim
    fixed = [d.dim_value for d in dims if d.WhichOneof("value") == "dim_value"]
    if len(dims) > MAX_RANK:
        raise refuse(path, f"{what} has {len(dims)} dimensions; the limit is {MAX_RANK}.")
    check_shape(path, fixed, what)
