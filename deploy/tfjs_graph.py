"""A TF.js graph model on disk, read without TF.js: its layers in order of execution, and its kernels."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.intake import check_intake
from nailcore.errors import ArtifactError, UnknownNameError
from nailcore.runtime import Layer

HINT = "Run `nailtool build-variants`; it will be made again."
_BYTES = {"float32": 4, "int32": 4, "float16": 2, "uint16": 2, "uint8": 1, "bool": 1}
_NUMPY: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "int32": np.int32,
    "float16": np.float16,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_PASSIVE = frozenset({"Const", "Placeholder", "PlaceholderWithDefault", "Identity", "NoOp"})
_CONVOLUTIONS = frozenset({"Conv2D", "_FusedConv2D", "FusedConv2D"})
_DEPTHWISE = frozenset({"DepthwiseConv2dNative", "FusedDepthwiseConv2dNative"})
# What a constant operand means, where the operation gives it a name.
_OPERANDS = {
    "ResizeBilinear": {1: "size"},
    "ResizeNearestNeighbor": {1: "size"},
    "Pad": {1: "paddings"},
    "PadV2": {1: "paddings", 2: "constant_values"},
    "MirrorPad": {1: "paddings"},
    "Reshape": {1: "shape"},
    "Transpose": {1: "perm"},
    "Mean": {1: "axis"},
    "ExpandDims": {1: "dim"},
    "SpaceToBatchND": {1: "block_shape", 2: "paddings"},
    "BatchToSpaceND": {1: "block_shape", 2: "crops"},
}
_MAX_CONSTANT = 16  # larger operands are weights


def check_folder(path: Path) -> None:
    """A graph model's folder must be readable, complete and of the size its manifest promises.

    Raises:
        ArtifactError: naming the file.
    """
    check_intake("tfjs", path)


def _stored_dtype(weight: Mapping[str, Any]) -> str:
    return str(weight.get("quantization", {}).get("dtype", weight["dtype"]))


def _stored_bytes(weight: Mapping[str, Any]) -> int:
    return int(math.prod(weight["shape"])) * _BYTES[_stored_dtype(weight)]


class GraphModel:
    """The graph and the weights of a checked folder.

    Raises:
        ArtifactError: the graph is not one (a cycle, an unknown name, a node without an operation).
    """

    def __init__(self, path: Path) -> None:
        check_folder(path)
        self.path = path
        try:
            document = json.loads((path / "model.json").read_text("utf-8"))
            self._groups: list[dict[str, Any]] = document["weightsManifest"]
            nodes: list[dict[str, Any]] = document["modelTopology"]["node"]
            self._nodes = {str(node["name"]): node for node in nodes}
            self._order = self._sort()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = "its graph has a cycle" if isinstance(error, CycleError) else repr(error)
            raise ArtifactError(f"{path / 'model.json'}: not a TF.js model: {reason}", hint=HINT) from error

    def _sort(self) -> list[str]:
        """Names in an order of execution that follows the file where the graph leaves a choice."""
        place = {name: index for index, name in enumerate(self._nodes)}
        sorter = TopologicalSorter({name: _inputs(node) for name, node in self._nodes.items()})
        sorter.prepare()
        order: list[str] = []
        ready: list[str] = []
        while sorter.is_active():
            ready += sorter.get_ready()
            ready.sort(key=place.__getitem__, reverse=True)
            name = ready.pop()
            order.append(name)
            sorter.done(name)
        return order

    def list_layers(self) -> list[Layer]:
        """All nodes that compute something, in order of execution; aliases of tensors are looked through."""
        return [self._describe(name) for name in self._order if self._nodes[name]["op"] not in _PASSIVE]

    def _describe(self, name: str) -> Layer:
        node = self._nodes[name]
        op = str(node["op"])
        attributes = {
            key: value
            for key, given in sorted(node.get("attr", {}).items())
            if (value := _decode(given)) is not None
        }
        inputs: list[str] = []
        for place, given in enumerate(_inputs(node)):
            source = self._resolve(given)
            if self._nodes[source]["op"] != "Const":
                inputs.append(source)
                continue
            meaning = _OPERANDS.get(op, {}).get(place)
            small = math.prod(self._weights[source][0]["shape"]) <= _MAX_CONSTANT
            if meaning or (small and op not in _CONVOLUTIONS | _DEPTHWISE):
                attributes[meaning or f"constant_{place}"] = self.read_tensor(source).tolist()
        return Layer(name, op, attributes, tuple(inputs))

    def _resolve(self, name: str) -> str:
        while self._nodes[name]["op"] == "Identity":
            name = _inputs(self._nodes[name])[0]
        return name

    @cached_property
    def _weights(self) -> dict[str, tuple[dict[str, Any], int, int]]:
        """Weight name -> (its entry, number of its group, offset in the group's bytes)."""
        found = {}
        for number, group in enumerate(self._groups):
            offset = 0
            for weight in group["weights"]:
                found[str(weight["name"])] = (weight, number, offset)
                offset += _stored_bytes(weight)
        return found

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [
            b"".join((self.path / shard).read_bytes() for shard in group["paths"]) for group in self._groups
        ]

    def read_tensor(self, name: str) -> npt.NDArray[Any]:
        """A constant as the runtime sees it: decompressed, in the file's own layout and kind of number."""
        if name not in self._weights:
            raise UnknownNameError("weight", name, self._weights)
        weight, group, offset = self._weights[name]
        shape = tuple(weight["shape"])
        stored = np.frombuffer(
            self._bytes[group], _NUMPY[_stored_dtype(weight)], math.prod(shape), offset
        ).reshape(shape)
        quantization = weight.get("quantization")
        if not quantization or quantization["dtype"] == "float16":
            return np.asarray(stored, _NUMPY[weight["dtype"]])
        scale, lowest = float(quantization["scale"]), float(quantization["min"])
        return np.asarray(stored.astype(np.float64) * scale + lowest, np.float32)

    def read_weight(self, name: str) -> npt.NDArray[np.float32] | None:
        """Kernel of a convolution node as (out, in/groups, kh, kw); None for other nodes."""
        if name not in self._nodes:
            raise UnknownNameError("layer", name, self._nodes)
        node = self._nodes[name]
        if node["op"] not in _CONVOLUTIONS | _DEPTHWISE:
            return None
        kernel = self.read_tensor(self._resolve(_inputs(node)[1])).astype(np.float32)
        if node["op"] in _DEPTHWISE:  # (kh, kw, channels, multiplier)
            height, width, channels, multiplier = kernel.shape
            kernel = kernel.reshape(height, width, 1, channels * multiplier)
        return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def _inputs(node: Mapping[str, Any]) -> list[str]:
    """Names of the nodes whose tensors a node reads; control inputs ("^name") carry none."""
    return [str(name).split(":")[0] for name in node.get("input", []) if not str(name).startswith("^")]


def _decode(value: Mapping[str, Any]) -> Any:
    """A protobuf attribute in JSON as a plain value; None for kinds of numbers and for tensors."""
    if "list" in value:
        for kind, items in value["list"].items():
            return None if kind == "type" else [_decode({kind: item}) for item in items]
        return []
    if "s" in value:
        return base64.b64decode(value["s"]).decode("utf-8", "replace")
    if "i" in value:
        return int(value["i"])
    for kind in ("f", "b"):
        if kind in value:
            return value[kind]
    return None
