"""What a .tflite file must keep before LiteRT sees it: offsets in bounds, shapes true, operators known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from deploy.intake.flatbuffer import FieldType, FlatbufferError, FlatbufferWalker, Schema
from deploy.intake.folder import MAX_RANK, check_file, check_shape, refuse

MAX_OPERATORS = 100_000
MAX_KERNEL = 1024
_BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 10: 64, 12: 64, 15: 32, 16: 16, 17: 4}
# Operators that run code of another origin, call other graphs, or keep state between runs.
_REFUSED_OPERATORS = (
    "CUSTOM", "DELEGATE", "CALL", "CALL_ONCE", "IF", "WHILE", "VAR_HANDLE", "READ_VARIABLE",
    "ASSIGN_VARIABLE", "HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE",
    "PLACEHOLDER_FOR_GREATER_OP_CODES",
)  # fmt: skip
# Option tables that hold more than scalars; the others are walked as scalars of up to eight bytes.
_VECTOR_OPTIONS = {"ReshapeOptions": {0: ("new_shape", "[i]")}, "SqueezeOptions": {0: ("dims", "[i]")}}
_REFUSED_OPTIONS = ("ConcatEmbeddingsOptions", "VarHandleOptions", "BucketizeOptions")
# Scalars of options that a kernel divides by or loops over, by position in their table.
_GEOMETRY: dict[str, dict[int, tuple[str, str]]] = {
    "Conv2DOptions": {
        1: ("stride_w", "i"), 2: ("stride_h", "i"), 4: ("dilation_w", "i"), 5: ("dilation_h", "i"),
    },
    "DepthwiseConv2DOptions": {
        1: ("stride_w", "i"), 2: ("stride_h", "i"), 3: ("multiplier", "i"), 5: ("dilation_w", "i"),
        6: ("dilation_h", "i"),
    },
    "Pool2DOptions": {1: ("stride_w", "i"), 2: ("stride_h", "i"), 3: ("filter_w", "i"), 4: ("filter_h", "i")},
    "TransposeConvOptions": {1: ("stride_w", "i"), 2: ("stride_h", "i")},
}  # fmt: skip
_REQUIRED = ("stride_w", "stride_h", "filter_w", "filter_h")  # zero when absent


def check(path: Path) -> None:
    """Raises ArtifactError for anything but one bounded graph of known operators."""
    check_file(path)
    data = path.read_bytes()
    try:
        model = FlatbufferWalker(data, _schema()).read_root("Model", b"TFL3")
    except (FlatbufferError, UnicodeDecodeError, OverflowError) as error:
        raise refuse(path, f"is no TFLite file, or a damaged one: it {error}.") from error
    graphs = model["subgraphs"] or []
    if model["version"] != 3 or len(graphs) != 1:
        raise refuse(path, f"has version {model['version']} and {len(graphs)} graphs; expected 3 and one.")
    graph = graphs[0]
    if not graph["operators"] or len(graph["operators"]) > MAX_OPERATORS or not graph["outputs"]:
        raise refuse(path, "has a graph without operators or outputs, or with too many.")
    tensors = graph["tensors"] or []
    buffers = [one["data"] or (0, 0) for one in model["buffers"] or []]
    for index, tensor in enumerate(tensors):
        _check_tensor(path, tensor, buffers, f"tensor {tensor['name'] or index!r}")
    constants = {i for i, tensor in enumerate(tensors) if buffers[tensor["buffer"] or 0][1]}
    for note in model["metadata"] or []:
        if (note["buffer"] or 0) >= len(buffers):
            raise refuse(path, f"keeps note {note['name']!r} in buffer {note['buffer']} of {len(buffers)}.")
    _check_operators(path, model, graph, constants)
    _check_signatures(path, model, graph)


def _check_tensor(path: Path, tensor: Mapping[str, Any], buffers: list[tuple[int, int]], what: str) -> None:
    kind = tensor["type"] or 0
    if kind not in _BITS:
        raise refuse(path, f"{what} has the unknown type {kind}.")
    if tensor["is_variable"]:
        raise refuse(path, f"{what} keeps its value from one run to the next.")
    count = check_shape(path, list(tensor["shape"] or ()), what)
    buffer = tensor["buffer"] or 0
    if buffer >= len(buffers):
        raise refuse(path, f"{what} lies in buffer {buffer} of {len(buffers)}.")
    stored, expected = buffers[buffer][1], -(-count * _BITS[kind] // 8)
    if stored not in (0, expected):
        raise refuse(path, f"{what} holds {stored} bytes; its shape takes {expected}.")
    quantization = tensor["quantization"]
    if quantization is not None:
        _check_quantization(path, tensor, quantization, what)


def _check_quantization(path: Path, tensor: Mapping[str, Any], values: Mapping[str, Any], what: str) -> None:
    scales, zeros = values["scale"] or (), values["zero_point"] or ()
    axis, shape = values["quantized_dimension"] or 0, tensor["shape"] or ()
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise refuse(path, f"{what} has a scale that is no positive number.")
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise refuse(path, f"{what} has {len(scales)} scales, which fit no side of its shape.")
    if len(zeros) not in (0, 1, len(scales)):
        raise refuse(path, f"{what} has {len(zeros)} zero points for {len(scales)} scales.")


def _check_operators(path: Path, model: Mapping[str, Any], graph: Mapping[str, Any], known: set[int]) -> None:
    """Indices in range, every input written before it is read, sizes that can be divided by."""
    words = _words()
    codes = model["operator_codes"] or []
    count = len(graph["tensors"] or [])
    ready = known | {i for i in graph["inputs"] or () if 0 <= i < count}
    for place, operator in enumerate(graph["operators"]):
        index = operator["opcode_index"] or 0
        if index >= len(codes):
            raise refuse(path, f"operator {place} has code {index} of {len(codes)}.")
        # Newer files write the code as 32 bits and keep the old 8-bit field for old readers.
        code = max(codes[index]["builtin_code"] or 0, codes[index]["deprecated_code"] or 0)
        word = words.get(code)
        what = f"operator {place} ({word or code})"
        if word is None or word in _REFUSED_OPERATORS:
            raise refuse(path, f"{what} is not one this reader executes.")
        for one in operator["inputs"] or ():
            if one != -1 and one not in ready:
                raise refuse(path, f"{what} reads tensor {one}, which nothing has written before.")
        for one in operator["outputs"] or ():
            if not 0 <= one < count or one in ready:
                raise refuse(path, f"{what} writes tensor {one}, which is taken or does not exist.")
            ready.add(one)
        if not operator["outputs"]:
            raise refuse(path, f"{what} writes nothing.")
        _check_geometry(path, operator, what)
    for one in (*(graph["outputs"] or ()), *(graph["inputs"] or ())):
        if one not in ready:
            raise refuse(path, f"its output or input {one} is written by nothing.")


def _check_geometry(path: Path, operator: Mapping[str, Any], what: str) -> None:
    options = operator["options"]
    table = _option_tables().get(operator["options_type"] or 0, "")
    for name, _ in _GEOMETRY.get(table, {}).values():
        value = None if options is None else options[name]
        if value is None and name not in _REQUIRED:
            continue  # absent dilations and multipliers mean one
        if not 1 <= (value or 0) <= MAX_KERNEL:
            raise refuse(path, f"{what} has {name} {value or 0}; expected 1 to {MAX_KERNEL}.")


def _check_signatures(path: Path, model: Mapping[str, Any], graph: Mapping[str, Any]) -> None:
    count = len(graph["tensors"] or [])
    signatures = model["signatures"] or []
    if len(signatures) != 1 or signatures[0]["subgraph"] or not signatures[0]["outputs"]:
        raise refuse(path, "has no signature, so its outputs have no names; expected one.")
    for side in ("inputs", "outputs"):
        entries = signatures[0][side] or []
        names = [entry["name"] or "" for entry in entries]
        if len(set(names)) != len(names) or "" in names:
            raise refuse(path, f"names its {side} {names}; expected different names.")
        if side == "inputs" and len(entries) != 1:
            raise refuse(path, f"has {len(entries)} inputs; expected one image.")
        for entry in entries:
            index = entry["tensor"] or 0
            if index >= count or index not in (graph[side] or ()):
                raise refuse(
                    path, f"says that {entry['name']!r} is tensor {index}, which is none of its {side}."
                )


@cache
def _words() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as generated

    codes = vars(generated.BuiltinOperator)
    return {value: key for key, value in codes.items() if not key.startswith("_")}


@cache
def _option_tables() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as generated

    kinds = vars(generated.BuiltinOptions)
    return {value: key for key, value in kinds.items() if not key.startswith("_")}


def _pick_options(values: Mapping[str, Any]) -> str | None:
    name = _option_tables().get(values["options_type"] or 0)
    return None if name in (None, "NONE") or name in _REFUSED_OPTIONS else name


@cache
def _schema() -> Schema:
    """The part of TFLite's schema that is not refused as a whole, by field position."""
    tables: dict[str, dict[int, tuple[str, FieldType]]] = {
        "Model": {
            0: ("version", "I"), 1: ("operator_codes", "[OperatorCode]"), 2: ("subgraphs", "[SubGraph]"),
            3: ("description", "str"), 4: ("buffers", "[Buffer]"), 5: ("metadata_buffer", "[i]"),
            6: ("metadata", "[Metadata]"), 7: ("signatures", "[SignatureDef]"),
        },
        "OperatorCode": {
            0: ("deprecated_code", "b"), 1: ("custom_code", "str"), 2: ("version", "i"),
            3: ("builtin_code", "i"),
        },
        "SubGraph": {
            0: ("tensors", "[Tensor]"), 1: ("inputs", "[i]"), 2: ("outputs", "[i]"),
            3: ("operators", "[Operator]"), 4: ("name", "str"), 5: ("debug", "i"),
        },
        "Tensor": {
            0: ("shape", "[i]"), 1: ("type", "b"), 2: ("buffer", "I"), 3: ("name", "str"),
            4: ("quantization", "Quantization"), 5: ("is_variable", "?"), 7: ("shape_signature", "[i]"),
            8: ("has_rank", "?"),
        },
        "Quantization": {
            0: ("min", "[f]"), 1: ("max", "[f]"), 2: ("scale", "[f]"), 3: ("zero_point", "[q]"),
            6: ("quantized_dimension", "i"),
        },
        "Operator": {
            0: ("opcode_index", "I"), 1: ("inputs", "[i]"), 2: ("outputs", "[i]"), 3: ("options_type", "B"),
            4: ("options", _pick_options), 6: ("custom_format", "b"), 8: ("intermediates", "[i]"),
            13: ("debug", "i"),
        },
        "Buffer": {0: ("data", "[bytes]")},
        "Metadata": {0: ("name", "str"), 1: ("buffer", "I")},
        "SignatureDef": {
            0: ("inputs", "[TensorMap]"), 1: ("outputs", "[TensorMap]"), 2: ("key", "str"),
            4: ("subgraph", "I"),
        },
        "TensorMap": {0: ("name", "str"), 1: ("tensor", "I")},
    }  # fmt: skip
    for name in _option_tables().values():
        # A scalar's width is not told by the file: one byte is surely there, and the table's own size
        # was checked; the fields that matter are read at their true width.
        known: dict[int, tuple[str, FieldType]] = {i: (f"field{i}", "B") for i in range(MAX_RANK * 3)}
        tables[name] = known | dict(_GEOMETRY.get(name, {})) | dict(_VECTOR_OPTIONS.get(name, {}))
    return tables
