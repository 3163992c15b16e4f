"""Stored weights of a package, decompressed, each with what its storage form allows it to lose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.mil.blobs import bits_of, unpack_bits
from deploy.mil.program import Constant, Operation, Program, Reference
from nailcore.errors import ArtifactError

F64 = npt.NDArray[np.float64]
FLOATS = ("fp16", "fp32", "fp64")


@dataclass(frozen=True)
class Palette:
    """Look-up tables: each covers one block of the weight; entries are vectors (mostly of length 1)."""

    entries: F64  # (blocks along each axis of the weight..., entries, vector length)
    vector_axis: int = 0  # the weight's axis along which a vector's elements lie
    scale: F64 | None = None  # of the weight's shape, where the tables themselves are quantized ...
    offset: F64 | None = None  # ... weight = scale * (entry - offset)

    def blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], F64]]:
        """(place in a weight of this shape, its (entries, vector length) table)."""
        counts = self.entries.shape[:-2]
        sizes = [length // count for length, count in zip(shape, counts, strict=True)]
        for block in itertools.product(*map(range, counts)):
            place = tuple(slice(i * size, (i + 1) * size) for i, size in zip(block, sizes, strict=True))
            yield place, self.entries[block]


@dataclass(frozen=True)
class Stored:
    """One constant, decompressed: float64 for floats, integers, booleans or strings else."""

    name: str
    form: str  # "fp16", "int8 linear", "6-bit palette", "sparse fp16", ...
    value_type: str  # MIL's word for the type the program sees
    values: npt.NDArray[Any]
    is_weight: bool = False  # lies in weight.bin
    step: F64 | None = None  # linear quantization: the distance of neighbouring codes at each value
    levels: int = 0  # linear quantization: how many codes there are
    saturated: npt.NDArray[np.bool_] | None = None  # its code is the last one of a range with a zero point
    palette: Palette | None = None
    kept: npt.NDArray[np.bool_] | None = None  # sparse: where a value is stored at all

    @property
    def is_float(self) -> bool:
        """Whether rounding may touch it at all."""
        return self.value_type in FLOATS


def is_compressed(op: Operation) -> bool:
    """Whether an operation decompresses a stored weight."""
    return op.op.startswith("constexpr_")


def read_constants(program: Program) -> dict[str, Stored]:
    """Every constant of the program by the name of its tensor, decompressed.

    Written apart from the executor's own decompressions, so that each can be checked with the other.

    Raises:
        ArtifactError: a constant contradicts its own declaration, or is stored in an unknown way.
    """
    known = {name: read_constant(constant, name) for name, constant in program.constants.items()}
    for op in program.block.operations:
        if not is_compressed(op):
            continue
        if op.op not in _DECOMPRESSIONS:
            raise ArtifactError(
                f"{op.place}: a weight is stored in a way that is not known here "
                f"(known: {', '.join(sorted(_DECOMPRESSIONS))})."
            )
        try:
            for (name, _), stored in zip(op.outputs, _DECOMPRESSIONS[op.op](_Reader(op, known)), strict=True):
                known[name] = replace(stored, name=name, is_weight=True)
        except (ValueError, IndexError, TypeError) as error:
            raise ArtifactError(f"{op.place}: the weight cannot be decompressed: {error}.") from error
    return known


def read_constant(constant: Constant, name: str) -> Stored:
    """An uncompressed constant."""
    kind = constant.dtype
    values = np.asarray(constant.value, dtype=np.float64 if kind in FLOATS else None)
    return Stored(name, kind, kind, values, constant.in_weight_file)


class _Reader:
    """The arguments of one decompression."""

    def __init__(self, op: Operation, known: dict[str, Stored]) -> None:
        self.op, self.known, self.name = op, known, op.name
        self.out_type = op.outputs[-1][1].dtype

    def find(self, argument: str) -> Stored | None:
        """One argument, None where it is left out."""
        if argument not in self.op.inputs:
            return None
        binding = self.op.inputs[argument][0]
        if isinstance(binding, Reference):
            if binding.name not in self.known:
                raise ValueError(f"{argument} refers to '{binding.name}', which is no constant")
            return self.known[binding.name]
        return read_constant(binding, f"{self.name}.{argument}")

    def get(self, argument: str) -> Stored:
        """One argument that must be there."""
        found = self.find(argument)
        if found is None:
            raise ValueError(f"it has no {argument}")
        return found

    def rounded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """In the precision of the program."""
        if self.out_type not in FLOATS:
            return values
        with np.errstate(over="ignore"):
            small = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[self.out_type]
            return np.asarray(values).astype(small).astype(np.float64)


def _spread(blocks: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Repeat per-block values along every axis until they cover the shape."""
    if blocks.ndim != len(shape):
        raise ValueError(f"{blocks.ndim} axes of blocks for a weight of {len(shape)}")
    for axis, (length, count) in enumerate(zip(shape, blocks.shape, strict=True)):
        if not count or length % count:
            raise ValueError(f"{count} blocks along axis {axis}, which is {length} long")
        blocks = np.repeat(blocks, length // count, axis)
    return blocks


def _along(values: npt.NDArray[Any], axis: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if values.ndim == 0 or values.size == 1:
        return np.broadcast_to(values.reshape(()), shape)
    placed = [1] * len(shape)
    placed[axis] = values.size
    return np.broadcast_to(values.reshape(placed), shape)


def _affine(reader: _Reader) -> list[Stored]:
    """iOS 16: scale * (code - zero point), per tensor or per channel."""
    codes, scale, zero = (reader.get(n) for n in ("quantized_data", "scale", "zero_point"))
    axis = int(reader.get("axis").values)
    shape = codes.values.shape
    step = _along(scale.values.astype(np.float64), axis, shape)
    shift = _along(zero.values.astype(np.float64), axis, shape)
    values = step * (codes.values.astype(np.float64) - shift)
    return [_linear(reader.name, reader.out_type, reader.rounded(values), codes, step=step, shift=shift)]


def _linear(
    name: str, value_type: str, values: npt.NDArray[Any], codes: Stored, *, step: F64, shift: F64
) -> Stored:
    bits = bits_of(codes.value_type)
    lowest = 0 if codes.value_type.startswith("u") else -(1 << (bits - 1))
    ends = np.isin(codes.values.reshape(values.shape), (lowest, lowest + (1 << bits) - 1))
    return Stored(
        name,
        f"{codes.value_type} linear",
        value_type,
        values,
        step=np.abs(step),
        levels=1 << bits,
        saturated=ends & (shift != 0),
    )


def _shift_scale(reader: _Reader) -> list[Stored]:
    """iOS 18: scale * (data - offset), per block; the data may itself be a palette."""
    data, scale, offset = reader.get("data"), reader.get("scale"), reader.find("offset")
    shape = data.values.shape
    step = _spread(scale.values.astype(np.float64), shape)
    shift = _spread(offset.values.astype(np.float64), shape) if offset else np.zeros(shape)
    values = reader.rounded(step * (data.values.astype(np.float64) - shift))
    if data.palette is None:
        return [_linear(reader.name, reader.out_type, values, data, step=step, shift=shift)]
    palette = replace(data.palette, scale=step, offset=shift)
    return [Stored(reader.name, data.form, reader.out_type, values, palette=palette)]


def _look_up(indices: npt.NDArray[Any], lut: npt.NDArray[Any], vector_axis: int) -> npt.NDArray[Any]:
    """Indices (d1, ..., dk) through tables (b1, ..., bk, entries, v): dk' = dk * v on the vector axis."""
    length = lut.shape[-1]
    tables = lut
    for axis, (size, count) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True)):
        if not count or size % count:
            raise ValueError(f"{count} tables along axis {axis}, which is {size} long")
        tables = np.repeat(tables, size // count, axis)
    if indices.size and int(indices.max()) >= lut.shape[-2]:
        raise ValueError(f"index {int(indices.max())} into a table of {lut.shape[-2]}")
    places = indices.astype(np.int64)[..., None, None]
    vectors = np.take_along_axis(tables, places, axis=-2)[..., 0, :]  # (d1, ..., dk, v)
    moved = np.moveaxis(vectors, -1, vector_axis + 1)
    shape = list(indices.shape)
    shape[vector_axis] *= length
    return moved.reshape(shape)


def _vector_axis(reader: _Reader, rank: int) -> int:
    found = reader.find("vector_axis")
    return int(found.values) % rank if found is not None else 0


def _palette_form(lut: npt.NDArray[Any]) -> str:
    bits = max(1, math.ceil(math.log2(max(2, lut.shape[-2]))))
    return f"{bits}-bit palette" + (f" of {lut.shape[-1]}-vectors" if lut.shape[-1] > 1 else "")


def _lut(reader: _Reader) -> list[Stored]:
    """A palette: packed indices and one table (iOS 16), or blocks of tables of vectors (iOS 18)."""
    indices, lut = reader.get("indices").values, reader.get("lut").values
    declared = reader.find("shape")
    if declared is not None:
        shape = tuple(int(n) for n in declared.values)
        bits, count = max(1, math.ceil(math.log2(max(2, lut.size)))), math.prod(shape)
        if indices.size != -(-count * bits // 8):
            raise ValueError(f"{indices.size} bytes of indices for {count} weights of {bits} bits")
        indices = unpack_bits(indices.astype(np.uint8).ravel(), bits, count).reshape(shape)
        lut = lut.reshape((1,) * len(shape) + (lut.size, 1))
    axis = _vector_axis(reader, indices.ndim)
    values = reader.rounded(_look_up(indices, lut, axis))
    palette = Palette(lut.astype(np.float64), axis)
    return [Stored(reader.name, _palette_form(lut), reader.out_type, values, palette=palette)]


def _sparse(reader: _Reader) -> list[Stored]:
    """Values where the mask has a one, zero elsewhere."""
    nonzero, mask = reader.get("nonzero_data"), reader.get("mask").values
    declared = reader.find("shape")
    if declared is not None:
        shape = tuple(int(n) for n in declared.values)
        if mask.size != -(-math.prod(shape) // 8):
            raise ValueError(f"{mask.size} bytes of mask for {math.prod(shape)} weights")
        mask = unpack_bits(mask.astype(np.uint8).ravel(), 1, math.prod(shape)).reshape(shape)
    kept = mask.astype(np.bool_)
    if int(kept.sum()) != nonzero.values.size:
        raise ValueError(f"the mask keeps {int(kept.sum())} values, {nonzero.values.size} are stored")

    def scatter(flat: npt.NDArray[Any]) -> F64:
        dense = np.zeros(kept.shape)
        dense[kept] = flat.ravel()
        return dense

    palette = nonzero.palette
    if palette is not None and palette.scale is not None and palette.offset is not None:
        palette = replace(palette, scale=scatter(palette.scale), offset=scatter(palette.offset))
    return [
        replace(
            nonzero,
            form=f"sparse {nonzero.form}",
            value_type=reader.out_type,
            values=scatter(nonzero.values),
            step=scatter(nonzero.step) if nonzero.step is not None else None,
            saturated=scatter(nonzero.saturated) > 0 if nonzero.saturated is not None else None,
            palette=palette,
            kept=kept,
        )
    ]


def _mask_of(reader: _Reader, argument: str) -> npt.NDArray[np.bool_]:
    return np.asarray(reader.get(argument).values, np.bool_)


def _sparse_lut(reader: _Reader) -> list[Stored]:
    """iOS 18: the stored values of a sparse weight come from a palette."""
    kept, nonzero, lut = (
        _mask_of(reader, "indices_mask"),
        reader.get("indices_nonzero_data"),
        reader.get("lut"),
    )
    axis = _vector_axis(reader, kept.ndim)
    indices = np.zeros(kept.shape, np.int64)
    indices[kept] = nonzero.values.ravel()
    table = lut.values
    dense = _look_up(indices, table, axis)
    mask = np.repeat(kept, table.shape[-1], axis)
    palette = Palette(table.astype(np.float64), axis)
    data = Stored(reader.name, _palette_form(table), lut.value_type, dense[mask], palette=palette)
    return [Stored(reader.name, "uint1", "uint1", mask.astype(np.uint8)), data]


def _sparse_shift_scale(reader: _Reader) -> list[Stored]:
    """iOS 18: the stored values of a sparse weight are quantized."""
    kept, data = _mask_of(reader, "data_mask"), reader.get("nonzero_data")
    scale, offset = reader.get("scale"), reader.find("offset")
    step = _spread(scale.values.astype(np.float64), kept.shape)[kept]
    shift = _spread(offset.values.astype(np.float64), kept.shape)[kept] if offset else np.zeros(step.shape)
    values = step * (data.values.astype(np.float64).ravel() - shift)
    mask = Stored(reader.name, "uint1", "uint1", kept.astype(np.uint8))
    if data.palette is not None:
        palette = replace(data.palette, scale=step, offset=shift)
        return [mask, Stored(reader.name, data.form, scale.value_type, values, palette=palette)]
    return [mask, _linear(reader.name, scale.value_type, values, data, step=step, shift=shift)]


def _cast(reader: _Reader) -> list[Stored]:
    source = reader.get("source_val")
    return [replace(source, value_type=reader.out_type)]


_DECOMPRESSIONS = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_lut_to_dense": _lut,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_lut_to_sparse": _sparse_lut,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_cast": _cast,
}
