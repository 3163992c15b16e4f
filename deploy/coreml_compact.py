"""Small print of CoreML packages: equal constants and weights once, short inner names, nothing unread."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WEIGHTS = Path("weights") / "weight.bin"  # beside the model file
_ALIGNMENT = 64  # bytes: of each record's header, and of what each tensor begins at
_RECORD = struct.Struct("<IIQQ")  # marker, type, size, offset of the data; zeros follow
_INT8 = 21  # MIL.proto's number of the type


def compact(block: Any, model_file: Path) -> None:
    """Make a program and its weight file smaller without changing what it computes, in place.

    Names of weights stay, since they say which layer they are of, and so do those of inputs and outputs.

    Args:
        block: operations of the specification (``MIL_pb2.Block``), which the caller writes.
        model_file: beside which the weight file lies.
    """
    weights = model_file.parent / WEIGHTS
    data = weights.read_bytes()
    drop_zero_points(block, data)
    weights.write_bytes(pack_weights(block, data))
    share_constants(block)
    shorten_names(block)


def drop_zero_points(block: Any, data: bytes) -> None:
    """A vector of zero points that are all 0 becomes one 0, which stands in the program."""
    for op in block.operations:
        if op.type != "constexpr_affine_dequantize":
            continue
        value = op.attributes["zero_point"]
        if value.HasField("blobFileValue") and not any(_read_blob(data, value.blobFileValue.offset)):
            value.Clear()
            value.type.tensorType.dataType = _INT8
            value.immediateValue.tensor.bytes.values = b"\0"


def pack_weights(block: Any, data: bytes) -> bytes:
    """The weight file with what the program reads, each content once; offsets in ``block`` follow."""
    records: dict[tuple[int, bytes], int] = {}
    packed = bytearray(_ALIGNMENT)
    for value in _list_values(block):
        if not value.HasField("blobFileValue"):
            continue
        blob = value.blobFileValue
        marker, kind, size, _ = _RECORD.unpack_from(data, blob.offset)
        content = _read_blob(data, blob.offset)
        place = records.get((kind, content))
        if place is None:
            place = records[kind, content] = len(packed)
            header = bytearray(data[blob.offset : blob.offset + _ALIGNMENT])
            _RECORD.pack_into(header, 0, marker, kind, size, place + _ALIGNMENT)
            packed += header + content
            packed += bytes(-len(packed) % _ALIGNMENT)
        blob.offset = place
    packed[:_ALIGNMENT] = data[:_ALIGNMENT]
    struct.pack_into("<I", packed, 0, len(records))
    return bytes(packed)


def share_constants(block: Any) -> None:
    """Keep one of all small constants that are equal, in place: strides and pads say the same 60 times.

    Constants in the weight file and outputs of the program stay.
    """
    kept: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    operations = []
    for op in block.operations:
        _rename_inputs(op, renamed)
        if op.type == "const" and not op.attributes["val"].HasField("blobFileValue"):
            name = op.outputs[0].name
            value = op.attributes["val"].SerializeToString(deterministic=True)
            if name not in block.outputs:
                if value in kept:
                    renamed[name] = kept[value]
                    continue
                kept[value] = name
        operations.append(op)
    copies = []
    for op in operations:
        copied = type(op)()
        copied.CopyFrom(op)
        copies.append(copied)
    del block.operations[:]
    block.operations.extend(copies)


def shorten_names(block: Any) -> None:
    """Call tensors t0, t1, ... and small constants c0, c1, ..., in place, but for outputs.

    Weights lose what the converter adds to their layers' names.
    """
    renamed: dict[str, str] = {}
    taken = {one.name for op in block.operations for one in op.outputs} | set(block.outputs)
    numbers = {"c": 0, "t": 0}
    for op in block.operations:
        _rename_inputs(op, renamed)
        stored = any(value.HasField("blobFileValue") for value in op.attributes.values())
        letter = "c" if op.type == "const" else "t"
        for output in op.outputs:
            if output.name in block.outputs:
                continue
            if stored or op.type.startswith("constexpr_"):
                short = re.sub(r"_(to|cast)_fp16$", "", output.name)
                if short != output.name and short in taken:
                    continue
            else:
                while (short := f"{letter}{numbers[letter]}") in taken:
                    numbers[letter] += 1
            taken.add(short)
            renamed[output.name] = output.name = short
        if len(op.outputs) == 1 and "name" in op.attributes:
            op.attributes["name"].immediateValue.tensor.strings.values[0] = op.outputs[0].name


def _rename_inputs(op: Any, renamed: dict[str, str]) -> None:
    for binding in op.inputs.values():
        for argument in binding.arguments:
            if argument.WhichOneof("binding") == "name":
                argument.name = renamed.get(argument.name, argument.name)


def _list_values(block: Any) -> Iterator[Any]:
    """Every stored value of the program."""
    for op in block.operations:
        yield from (op.attributes[key] for key in sorted(op.attributes))
        for key in sorted(op.inputs):
            for argument in op.inputs[key].arguments:
                if argument.WhichOneof("binding") == "value":
                    yield argument.value


def _read_blob(data: bytes, record: int) -> bytes:
    _, _, size, start = _RECORD.unpack_from(data, record)
    return data[start : start + size]
