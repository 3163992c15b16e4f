"""The program inside a model file as plain data: operations, blocks, constants and their types."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from deploy.mil.blobs import NUMPY_TYPES, PACKED_BITS, Array, WeightFiles, count_bytes, decode_bytes
from nailcore.errors import ArtifactError, ConversionError, UnknownNameError

OPSETS = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18}  # name in the file -> iOS
_TYPE_NAMES = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4",
    36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
_IN_BYTES = {"fp16", "int8", "uint8", "uint32", *PACKED_BITS}  # inline values of these are raw bytes
_MAX_INLINE_ELEMENTS = 1 << 26
_MAX_DEPTH = 32  # of nested blocks


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; None stands for a size known only at run time."""

    dtype: str  # "fp16", "int32", "string", ...; "list" and "dictionary" for those containers
    shape: tuple[int | None, ...] | None  # None: the rank too is unknown

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[...]"
        return f"{self.dtype}[{', '.join('?' if s is None else str(s) for s in self.shape)}]"


@dataclass(frozen=True)
class Constant:
    """A value that is part of the file; sub-byte integers are unpacked to one byte each."""

    dtype: str
    value: Any  # numpy array of its shape; str for a single string; list for a list
    in_weight_file: bool = False


@dataclass(frozen=True)
class Reference:
    """The output of an earlier operation, or an input of a block."""

    name: str


Binding: TypeAlias = Constant | Reference


@dataclass(frozen=True)
class Operation:
    """One operation: its word, where it stands, what it reads and writes."""

    op: str
    index: int  # within its block
    block: str
    inputs: dict[str, tuple[Binding, ...]]
    outputs: tuple[tuple[str, TensorType], ...]
    blocks: tuple[Block, ...] = ()

    @property
    def name(self) -> str:
        """The name of its first output."""
        return self.outputs[0][0] if self.outputs else "(no output)"

    @property
    def place(self) -> str:
        """How messages call it."""
        return f"operation {self.index} of {self.block}, {self.op} '{self.name}'"


@dataclass(frozen=True)
class Block:
    """Operations in the order of execution, and what they pass in and out."""

    name: str
    inputs: tuple[tuple[str, TensorType], ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """One function of a model file."""

    function: str
    opset: int  # 15..18, after the iOS release
    block: Block
    constants: dict[str, Constant] = field(repr=False)  # outputs of `const` operations, by name


def read_program(spec: Any, files: WeightFiles, function: str = "") -> Program:
    """Parse one function (default: the file's default one).

    Raises:
        ArtifactError: the file contradicts itself or its weight file.
        ConversionError: a newer opset, or types that are not supported.
    """
    functions = spec.mlProgram.functions
    name = function or spec.description.defaultFunctionName or "main"
    if name not in functions:
        if function or len(functions) != 1:
            raise UnknownNameError("function of the model", name, functions.keys())
        name = next(iter(functions))
    proto = functions[name]
    if proto.opset not in OPSETS:
        raise ConversionError(
            f"The model uses opset {proto.opset!r}; supported: {', '.join(OPSETS)} (iOS 15 to 18)."
        )
    if proto.opset not in proto.block_specializations:
        raise ArtifactError(f"Function '{name}' declares opset {proto.opset} and holds no program for it.")
    parser = _Parser(files)
    inputs = tuple((i.name, _read_type(i.type, f"input '{i.name}'")) for i in proto.inputs)
    block = parser.read_block(proto.block_specializations[proto.opset], name, inputs, 0)
    return Program(name, OPSETS[proto.opset], block, parser.constants)


class _Parser:
    def __init__(self, files: WeightFiles) -> None:
        self.files = files
        self.constants: dict[str, Constant] = {}

    def read_block(
        self, proto: Any, name: str, inputs: tuple[tuple[str, TensorType], ...], depth: int
    ) -> Block:
        if depth > _MAX_DEPTH:
            raise ArtifactError(f"Blocks are nested deeper than {_MAX_DEPTH} levels at '{name}'.")
        operations = []
        for index, op in enumerate(proto.operations):
            if op.type == "const":
                self._read_const(op, index, name)
            else:
                operations.append(self._read_operation(op, index, name, depth))
        return Block(name, inputs, tuple(operations), tuple(proto.outputs))

    def _read_const(self, op: Any, index: int, block: str) -> None:
        if len(op.outputs) != 1 or "val" not in op.attributes:
            raise ArtifactError(f"Operation {index} of {block}: a const without a value or a name.")
        name = op.outputs[0].name
        if name in self.constants:
            raise ArtifactError(f"Operation {index} of {block}: the constant '{name}' is defined twice.")
        constant = self._read_value(op.attributes["val"], f"constant '{name}'")
        declared = _read_type(op.outputs[0].type, f"constant '{name}'")
        if constant.dtype != declared.dtype or (
            isinstance(constant.value, np.ndarray) and constant.value.shape != declared.shape
        ):
            raise ArtifactError(
                f"Constant '{name}' is declared {declared}, but its value is of another type."
            )
        self.constants[name] = constant

    def _read_operation(self, op: Any, index: int, block: str, depth: int) -> Operation:
        first = op.outputs[0].name if op.outputs else "(no output)"
        place = f"operation {index} of {block}, {op.type} '{first}'"
        inputs = {
            key: tuple(self._read_binding(b, f"{key} of {place}") for b in argument.arguments)
            for key, argument in op.inputs.items()
        }
        if op.type.startswith("constexpr_"):  # up to iOS 17 their arguments are attributes
            for key, value in op.attributes.items():
                if key != "name" and key not in inputs:
                    inputs[key] = (self._read_value(value, f"{key} of {place}"),)
        outputs = tuple((o.name, _read_type(o.type, place)) for o in op.outputs)
        blocks = tuple(
            self.read_block(
                b,
                f"block {i} of {op.type} '{first}'",
                tuple((v.name, _read_type(v.type, place)) for v in b.inputs),
                depth + 1,
            )
            for i, b in enumerate(op.blocks)
        )
        return Operation(op.type, index, block, inputs, outputs, blocks)

    def _read_binding(self, binding: Any, place: str) -> Binding:
        kind = binding.WhichOneof("binding")
        if kind == "name":
            return Reference(binding.name)
        if kind == "value":
            return self._read_value(binding.value, place)
        raise ArtifactError(f"The {place} is bound to nothing.")

    def _read_value(self, value: Any, place: str) -> Constant:
        kind = value.WhichOneof("value")
        if kind == "immediateValue" and value.immediateValue.WhichOneof("value") == "list":
            items = [self._read_value(v, place).value for v in value.immediateValue.list.values]
            return Constant("list", [i.item() if isinstance(i, np.ndarray) else i for i in items])
        declared = _read_type(value.type, place)
        if declared.shape is None or None in declared.shape:
            raise ArtifactError(f"The {place} is a constant of unknown shape.")
        shape = tuple(s for s in declared.shape if s is not None)
        count = math.prod(shape)
        if kind == "blobFileValue":
            blob = value.blobFileValue
            flat = self.files.read(blob.fileName, int(blob.offset), declared.dtype, count, place)
            return Constant(declared.dtype, flat.reshape(shape), in_weight_file=True)
        if kind != "immediateValue" or value.immediateValue.WhichOneof("value") != "tensor":
            raise ConversionError(f"The {place} holds a constant of an unsupported form ({kind}).")
        return _read_inline(value.immediateValue.tensor, declared.dtype, shape, count, place)


def _read_inline(tensor: Any, dtype: str, shape: tuple[int, ...], count: int, place: str) -> Constant:
    field_name = tensor.WhichOneof("value")
    if field_name is None:
        values: Any = []
    else:
        values = getattr(tensor, field_name).values
    if count > _MAX_INLINE_ELEMENTS:
        raise ArtifactError(f"The {place} claims {count} inline elements.")
    if dtype == "string":
        if len(values) != count:
            raise ArtifactError(f"The {place} holds {len(values)} strings, expected {count}.")
        return Constant(
            dtype, str(values[0]) if shape == () else np.array(list(values), np.str_).reshape(shape)
        )
    if field_name == "bytes":
        data = np.frombuffer(values, np.uint8)
        if data.size != count_bytes(dtype, count):
            raise ArtifactError(
                f"The {place} holds {data.size} bytes, expected {count_bytes(dtype, count)} for {dtype}."
            )
        return Constant(dtype, decode_bytes(data, dtype, count).reshape(shape))
    if dtype in _IN_BYTES and count:
        raise ArtifactError(f"The {place} is {dtype} and not stored as bytes.")
    if len(values) != count:
        raise ArtifactError(f"The {place} holds {len(values)} values, expected {count}.")
    array: Array = np.array(list(values)).astype(NUMPY_TYPES[dtype]).reshape(shape)
    return Constant(dtype, array)


def _read_type(value_type: Any, place: str) -> TensorType:
    kind = value_type.WhichOneof("type")
    if kind in ("listType", "dictionaryType"):
        return TensorType(kind.removesuffix("Type"), None)
    if kind != "tensorType":
        raise ConversionError(f"The {place} has an unsupported type ({kind}).")
    tensor = value_type.tensorType
    if tensor.dataType not in _TYPE_NAMES:
        raise ConversionError(f"The {place} has an unsupported element type (code {tensor.dataType}).")
    dtype = _TYPE_NAMES[tensor.dataType]
    shape: list[int | None] = []
    for dimension in tensor.dimensions:
        if dimension.WhichOneof("dimension") == "constant":
            shape.append(int(dimension.constant.size))
        elif dimension.unknown.variadic:
            return TensorType(dtype, None)
        else:
            shape.append(None)
    if tensor.rank != len(shape):
        raise ArtifactError(f"The {place} declares rank {tensor.rank} and {len(shape)} dimensions.")
    return TensorType(dtype, tuple(shape))


def walk_operations(block: Block) -> Iterator[Operation]:
    """All operations of a block and the blocks inside it, in the order of the file."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from walk_operations(inner)
