"""What a TF.js folder must keep before a browser loads it: complete, alone, and true to its own lists."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.intake.documents import read_json
from deploy.intake.folder import (
    MAX_DOCUMENT_BYTES,
    check_listing,
    check_relative,
    check_shape,
    list_folder,
    refuse,
)

MODEL_FILE = "model.json"
MAX_NODES = 100_000
MAX_STRIDE = 1024
_BYTES = {"float32": 4, "int32": 4, "bool": 1, "uint8": 1, "complex64": 8}
_CONVOLUTIONS = (
    "Conv2D",
    "_FusedConv2D",
    "FusedConv2D",
    "DepthwiseConv2dNative",
    "FusedDepthwiseConv2dNative",
)
_QUANTIZED_BYTES = {"float16": 2, "uint8": 1, "uint16": 2}


class _LieError(Exception):
    """A sentence about model.json, without its path."""


def check(path: Path) -> None:
    """Raises ArtifactError for anything but a complete graph model that contradicts itself nowhere."""
    found = list_folder(path)
    document = _read_document(path)
    file = path / MODEL_FILE
    try:
        _check_format(document)
        weights = _check_weights(path, _get(document, "weightsManifest", list), found)
        _check_graph(file, _get(_get(document, "modelTopology", dict), "node", list), document, weights)
    except _LieError as lie:
        raise refuse(file, f"{lie}.") from lie


def _read_document(path: Path) -> dict[str, Any]:
    file = path / MODEL_FILE
    document = read_json(file, MAX_DOCUMENT_BYTES, "a TF.js model")
    if not isinstance(document, dict):
        raise refuse(file, f"is not a TF.js model: it holds a {type(document).__name__}.")
    return document


def _check_format(document: dict[str, Any]) -> None:
    if _get(document, "format", str) != "graph-model":
        raise _LieError(f"has format {document['format'][:40]!r}; expected 'graph-model'")


def _get(holder: Any, key: str, kind: type[Any]) -> Any:
    if not isinstance(holder, dict):
        raise _LieError(f"is not a TF.js model: {key!r} is looked for in a {type(holder).__name__}")
    if not isinstance(holder.get(key), kind):
        found = holder.get(key)
        raise _LieError(f"is not a TF.js model: {key!r} is {type(found).__name__}, expected {kind.__name__}")
    return holder[key]


def _check_weights(path: Path, groups: list[Any], found: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by name; shards named, present, alone and of the size the weights take."""
    file = path / MODEL_FILE
    shapes: dict[str, tuple[int, ...]] = {}
    shards: list[str] = []
    for group in groups:
        names = [str(check_relative(file, name, "a shard's path")) for name in _get(group, "paths", list)]
        expected = 0
        for weight in _get(group, "weights", list):
            name, shape, size = _check_weight(file, weight)
            if name in shapes:
                raise _LieError(f"declares weight {name!r} twice")
            shapes[name] = shape
            expected += size
        if len(set(names)) != len(names) or set(names) & set(shards):
            raise _LieError("lists a shard twice")
        shards += names
        missing = [name for name in names if name not in found]
        if missing:
            raise refuse(path, f"shard {missing[0]!r} is missing.")
        stored = sum(found[name] for name in names)
        if stored != expected:
            raise refuse(path, f"{', '.join(names)} hold {stored} bytes, not {expected}.")
    check_listing(path, found, [MODEL_FILE, *shards])
    return shapes


def _check_weight(file: Path, weight: Any) -> tuple[str, tuple[int, ...], int]:
    name, shape = _get(weight, "name", str), _get(weight, "shape", list)
    count = check_shape(file, shape, f"weight {name!r}", zero=True)
    dtype = _get(weight, "dtype", str)
    if dtype not in _BYTES:
        raise _LieError(f"weight {name!r} has type {dtype!r}; expected one of {', '.join(_BYTES)}")
    each = _BYTES[dtype]
    if "quantization" in weight:
        stored = _get(weight, "quantization", dict)
        kind = _get(stored, "dtype", str)
        if kind not in _QUANTIZED_BYTES or dtype not in ("float32", "int32"):
            raise _LieError(f"weight {name!r} is stored as {kind!r}, which TF.js cannot read")
        each = _QUANTIZED_BYTES[kind]
        if kind != "float16":
            for key in ("min", "scale"):
                value = stored.get(key)
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise _LieError(f"weight {name!r} has {key} {value!r}; expected a number")
    return name, tuple(shape), count * each


def _check_graph(
    file: Path, nodes: list[Any], document: dict[str, Any], weights: dict[str, tuple[int, ...]]
) -> None:
    if not 0 < len(nodes) <= MAX_NODES:
        raise _LieError(f"has {len(nodes)} nodes; expected 1 to {MAX_NODES:,}")
    sources: dict[str, list[str]] = {}
    ops: dict[str, str] = {}
    for node in nodes:
        name, op = _get(node, "name", str), _get(node, "op", str)
        if name in sources:
            raise _LieError(f"has two nodes {name!r}")
        inputs = node.get("input", [])
        if not isinstance(inputs, list) or not all(isinstance(i, str) and i for i in inputs):
            raise _LieError(f"node {name!r} has inputs that are no names")
        sources[name], ops[name] = [one.removeprefix("^").partition(":")[0] for one in inputs], op
        attributes = node.get("attr", {})
        if not isinstance(attributes, dict):
            raise _LieError(f"node {name!r} has attributes that are no object")
        _check_attributes(file, name, attributes)
        if op == "Const":
            _check_constant(name, attributes, weights)
    if strangers := sorted(name for name in weights if ops.get(name) != "Const"):
        raise _LieError(f"stores weight {strangers[0]!r}, which no node reads")
    _check_order(sources)
    _check_kernels(sources, ops, weights)
    _check_signature(document, sources)


def _check_kernels(
    sources: dict[str, list[str]], ops: dict[str, str], weights: dict[str, tuple[int, ...]]
) -> None:
    """Every convolution has a kernel of four sides, and every alias something it stands for."""
    for name, op in ops.items():
        if op == "Identity" and not sources[name]:
            raise _LieError(f"node {name!r} stands for nothing")
        if op not in _CONVOLUTIONS:
            continue
        kernel = sources[name][1] if len(sources[name]) > 1 else name
        while ops[kernel] == "Identity":
            kernel = sources[kernel][0]
        if len(weights.get(kernel, ())) != 4:
            raise _LieError(f"convolution {name!r} has no kernel of four sides")


def _check_constant(name: str, attributes: dict[str, Any], weights: dict[str, tuple[int, ...]]) -> None:
    if name not in weights:
        raise _LieError(f"constant {name!r} has no weight")
    if "value" not in attributes:  # the list of weights is then the only one to say it
        return
    tensor = _get(_get(attributes, "value", dict), "tensor", dict)
    declared = _read_sizes(tensor.get("tensorShape", {}), f"constant {name!r}")
    if declared != weights[name]:
        raise _LieError(
            f"constant {name!r} has shape {list(declared)} in the graph, "
            f"{list(weights[name])} in the list of weights"
        )


def _read_sizes(shape: Any, what: str) -> tuple[int, ...]:
    """protobuf's JSON writes int64 as text."""
    dims = shape.get("dim", []) if isinstance(shape, dict) else None
    if not isinstance(dims, list):
        raise _LieError(f"{what} has a shape that is no list of sizes")
    sizes: list[int] = []
    for dim in dims:
        size = dim.get("size", "0") if isinstance(dim, dict) else None
        sizes.append(_read_number(size, what))
    return tuple(sizes)


def _read_number(value: Any, what: str) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or len(text) > 20 or not text.removeprefix("-").isdecimal():
        raise _LieError(f"{what}: {str(value)[:40]!r} is no whole number")
    return int(text)


def _read_text(value: Any, what: str) -> None:
    try:
        base64.b64decode(value)
    except (TypeError, ValueError) as error:
        raise _LieError(f"{what} is no base64 text") from error


def _read_real(value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _LieError(f"{what}: {str(value)[:40]!r} is no number")


def _read_flag(value: Any, what: str) -> None:
    if not isinstance(value, bool):
        raise _LieError(f"{what}: {str(value)[:40]!r} is neither true nor false")


_SCALARS: dict[str, Callable[[Any, str], object]] = {
    "s": _read_text,
    "i": _read_number,
    "f": _read_real,
    "b": _read_flag,
}


def _check_attributes(file: Path, name: str, attributes: dict[str, Any]) -> None:
    """Values of the kinds protobuf's JSON has, and sizes that a kernel would loop over or divide by."""
    for key, value in attributes.items():
        if not isinstance(value, dict):
            raise _LieError(f"node {name!r}: attribute {key!r} is no object")
        items = value.get("list", {})
        if not isinstance(items, dict) or not all(isinstance(one, list) for one in items.values()):
            raise _LieError(f"node {name!r}: attribute {key!r} holds no list")
        scalars = [(kind, value[kind]) for kind in _SCALARS if kind in value]
        scalars += [(kind, one) for kind, listed in items.items() for one in listed if kind in _SCALARS]
        for kind, one in scalars:
            _SCALARS[kind](one, f"node {name!r}: {key}")
    for key in ("strides", "dilations", "ksize", "explicit_paddings"):
        if key not in attributes:
            continue
        listed = _get(attributes[key], "list", dict)
        values = [_read_number(v, f"node {name!r}: {key}") for v in listed.get("i", [])]
        least = 0 if key == "explicit_paddings" else 1
        if len(values) not in (0, 4, 8) or not all(least <= value <= MAX_STRIDE for value in values):
            raise _LieError(f"node {name!r}: {key} is {values}; expected sizes from {least} to {MAX_STRIDE}")
    if "shape" in attributes and isinstance(attributes["shape"], dict) and "shape" in attributes["shape"]:
        sizes = _read_sizes(attributes["shape"]["shape"], f"node {name!r}")
        check_shape(file, [1 if size == -1 else size for size in sizes], f"node {name!r}", zero=True)


def _check_order(sources: dict[str, list[str]]) -> None:
    """Every input is a node, and no node waits for itself."""
    waiting = {name: len(set(inputs)) for name, inputs in sources.items()}
    readers: dict[str, list[str]] = {name: [] for name in sources}
    for name, inputs in sources.items():
        for source in set(inputs):
            if source not in readers:
                raise _LieError(f"node {name!r} reads {source!r}, which does not exist")
            readers[source].append(name)
    ready = [name for name, count in waiting.items() if count == 0]
    done = 0
    while ready:
        name = ready.pop()
        done += 1
        for reader in readers[name]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if done != len(sources):
        circular = next(name for name, count in waiting.items() if count > 0)
        raise _LieError(f"node {circular!r} waits for its own result")


def _check_signature(document: dict[str, Any], sources: dict[str, list[str]]) -> None:
    signature = _get(document, "signature", dict)
    for side in ("inputs", "outputs"):
        entries = _get(signature, side, dict)
        if not entries:
            raise _LieError(f"names no {side}")
        for key, entry in entries.items():
            node = _get(entry, "name", str).partition(":")[0]
            if node not in sources:
                raise _LieError(f"{side[:-1]} {key!r} is {node!r}, which does not exist")
