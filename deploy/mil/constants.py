"""MIL's compressed constants: the constexpr_* operations, computed once with numpy when a file is opened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.mil.blobs import Array, bits_of, unpack_bits
from deploy.mil.program import Constant
from nailcore.errors import ArtifactError


@dataclass(frozen=True)
class StoredForm:
    """How a constant lies in the file, and what bounds its error.

    ``scale`` broadcasts over blocks of the weight (linear quantization: values are whole multiples of
    it apart from an offset); ``palette`` holds the entries that values are picked from.
    """

    scheme: str  # "plain", "linear", "palette", "sparse", "cast"; joined with "+" when nested
    bits: int  # per stored element
    scale: Array | None = field(default=None, repr=False, compare=False)
    palette: Array | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.scheme} {self.bits} bit"


@dataclass(frozen=True)
class Materialized:
    """A constant ready for use: its declared element type, dense values and stored form."""

    name: str
    op: str  # "const" or the constexpr operation
    dtype: str
    value: Array
    form: StoredForm


Values = dict[str, Any]  # argument name -> numpy array, string or None


def _plain(values: Values, name: str) -> Array:
    value = values.get(name)
    if not isinstance(value, np.ndarray):
        raise ArtifactError(f"{name} is missing or not a tensor")
    return value


def _float_type(dtype: str) -> type[np.floating[Any]]:
    return np.float16 if dtype == "fp16" else np.float32


def _blockwise(values: Array, shape: tuple[int, ...], name: str) -> Array:
    """Repeat block values so that they cover ``shape``."""
    if values.ndim != len(shape) or any(n % v for n, v in zip(shape, values.shape, strict=True) if v):
        raise ArtifactError(f"{name} of shape {values.shape} does not divide {shape} into blocks")
    for axis, (have, want) in enumerate(zip(values.shape, shape, strict=True)):
        if 1 < have < want:
            values = np.repeat(values, want // have, axis)
    return values


def _along_axis(values: Array, shape: tuple[int, ...], axis: int) -> Array:
    if values.ndim == 0:
        return values
    if values.ndim != 1 or not -len(shape) <= axis < len(shape) or values.size != shape[axis]:
        raise ArtifactError(f"{values.shape} values do not fit axis {axis} of {shape}")
    wanted = [1] * len(shape)
    wanted[axis] = -1
    return values.reshape(wanted)


def affine_dequantize(values: Values, dtype: str) -> Array:
    """iOS 16: scale * (data - zero point) along an axis."""
    data, axis = _plain(values, "quantized_data"), int(_plain(values, "axis"))
    zero = _along_axis(_plain(values, "zero_point"), data.shape, axis).astype(np.float32)
    scale = _along_axis(_plain(values, "scale"), data.shape, axis).astype(np.float32)
    return ((data.astype(np.float32) - zero) * scale).astype(_float_type(dtype))


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None, dtype: str) -> Array:
    """iOS 18: scale * (data - offset), one scale and offset per block."""
    steps = data.astype(np.float32)
    if offset is not None:
        if offset.shape != scale.shape:
            raise ArtifactError(f"offset of shape {offset.shape} with scale of {scale.shape}")
        steps = steps - _blockwise(offset.astype(np.float32), data.shape, "offset")
    return (steps * _blockwise(scale.astype(np.float32), data.shape, "scale")).astype(_float_type(dtype))


def lut_to_dense_packed(values: Values) -> Array:
    """iOS 16: a palette for the whole tensor, indices packed into bytes."""
    lut, packed = _plain(values, "lut"), _plain(values, "indices")
    shape = tuple(int(s) for s in _plain(values, "shape").reshape(-1))
    count, bits = math.prod(shape), int(lut.size).bit_length() - 1
    if lut.size != 1 << bits or not 1 <= bits <= 8 or packed.size != -(-count * bits // 8):
        raise ArtifactError(f"a palette of {lut.size} and {packed.size} index bytes for shape {shape}")
    picked: Array = lut.reshape(-1)[unpack_bits(packed.reshape(-1), bits, count)].reshape(shape)
    return picked


def lut_to_dense(indices: Array, lut: Array, vector_axis: int | None) -> Array:
    """iOS 18: palettes per block; vectors of a palette are laid along ``vector_axis``."""
    if lut.ndim != indices.ndim + 2:
        raise ArtifactError(f"a palette of shape {lut.shape} for indices of {indices.shape}")
    entries, vector = lut.shape[-2:]
    if indices.size and int(indices.max()) >= entries:
        raise ArtifactError(f"an index of {int(indices.max())} into a palette of {entries}")
    groups = lut.shape[:-2]
    if any(n % g for n, g in zip(indices.shape, groups, strict=True)):
        raise ArtifactError(f"palettes {groups} do not divide {indices.shape} into blocks")
    where = np.zeros(indices.shape, np.int64)  # which palette each index belongs to
    for axis, (size, group) in enumerate(zip(indices.shape, groups, strict=True)):
        step = np.arange(size) // (size // group) if size else np.arange(0)
        where = where * group + step.reshape([-1 if i == axis else 1 for i in range(indices.ndim)])
    picked: Array = lut.reshape(-1, entries, vector)[where, indices]
    if vector == 1:
        return picked[..., 0]
    if vector_axis is None:
        raise ArtifactError("a palette of vectors without vector_axis")
    axis = vector_axis % indices.ndim
    shape = [n * vector if i == axis else n for i, n in enumerate(indices.shape)]
    return np.moveaxis(picked, -1, axis + 1).reshape(shape)


def sparse_to_dense_packed(values: Values) -> Array:
    """iOS 16: a bit mask packed into bytes says where the non-zero values stand."""
    data, mask = _plain(values, "nonzero_data"), _plain(values, "mask")
    shape = tuple(int(s) for s in _plain(values, "shape").reshape(-1))
    count = math.prod(shape)
    if mask.size != -(-count // 8):
        raise ArtifactError(f"a mask of {mask.size} bytes for shape {shape}")
    bits = np.unpackbits(mask.reshape(-1).view(np.uint8), bitorder="little", count=count)
    return sparse_to_dense(data, bits.reshape(shape))


def sparse_to_dense(data: Array, mask: Array) -> Array:
    """Non-zero values put where the mask is set, row by row."""
    chosen = mask != 0
    if data.ndim != 1 or int(chosen.sum()) != data.size:
        raise ArtifactError(f"{data.shape} values for {int(chosen.sum())} set bits of the mask")
    dense = np.zeros(mask.shape, data.dtype)
    dense[chosen] = data
    return dense


def _vector_axis(values: Values) -> int | None:
    axis = values.get("vector_axis")
    return None if axis is None else int(axis)


def _make_blockwise(values: Values, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
    data, scale = _plain(values, "data"), _plain(values, "scale")
    return (blockwise_shift_scale(data, scale, values.get("offset"), dtypes[0]),)


def _make_lut(values: Values, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
    if "shape" in values:
        return (lut_to_dense_packed(values),)
    return (lut_to_dense(_plain(values, "indices"), _plain(values, "lut"), _vector_axis(values)),)


def _make_sparse(values: Values, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
    if "shape" in values:
        return (sparse_to_dense_packed(values),)
    return (sparse_to_dense(_plain(values, "nonzero_data"), _plain(values, "mask")),)


def _make_lut_to_sparse(values: Values, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
    mask, data = _plain(values, "indices_mask"), _plain(values, "indices_nonzero_data")
    lut, axis = _plain(values, "lut"), _vector_axis(values)
    dense = lut_to_dense(sparse_to_dense(data, mask), lut, axis)
    if lut.shape[-1] > 1 and axis is not None:
        mask = np.repeat(mask, lut.shape[-1], axis)
    return mask, dense[mask != 0]


def _make_sparse_blockwise(values: Values, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
    mask, data = _plain(values, "data_mask"), _plain(values, "nonzero_data")
    scale, offset = _plain(values, "scale"), values.get("offset")
    dense = blockwise_shift_scale(sparse_to_dense(data, mask), scale, offset, dtypes[-1])
    return mask, dense[mask != 0]


_MAKERS: dict[str, Callable[[Values, tuple[str, ...]], tuple[Array, ...]]] = {
    "constexpr_affine_dequantize": lambda values, dtypes: (affine_dequantize(values, dtypes[0]),),
    "constexpr_cast": lambda values, dtypes: (_plain(values, "source_val").astype(_float_type(dtypes[0])),),
    "constexpr_blockwise_shift_scale": _make_blockwise,
    "constexpr_lut_to_dense": _make_lut,
    "constexpr_sparse_to_dense": _make_sparse,
    "constexpr_lut_to_sparse": _make_lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _make_sparse_blockwise,
}


def materialize(op: str, values: Values, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
    """Outputs of one constexpr operation; both forms (up to iOS 17, since iOS 18) by their arguments.

    Args:
        op: a key of `ARGUMENTS`, e.g. "constexpr_lut_to_dense".
        values: its arguments, already materialized.
        dtypes: declared element type of each output.

    Raises:
        ArtifactError: the arguments contradict each other.
    """
    return _MAKERS[op](values, dtypes)


# Argument names of each operation, for both forms; those with "?" may be missing.
ARGUMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "constexpr_affine_dequantize": (("quantized_data", "zero_point", "scale", "axis"),),
    "constexpr_cast": (("source_val", "output_dtype"),),
    "constexpr_blockwise_shift_scale": (("data", "scale", "offset?"),),
    "constexpr_lut_to_dense": (("indices", "lut", "shape"), ("indices", "lut", "vector_axis?")),
    "constexpr_sparse_to_dense": (("nonzero_data", "mask", "shape"), ("nonzero_data", "mask")),
    "constexpr_lut_to_sparse": (("indices_mask", "indices_nonzero_data", "lut", "vector_axis?"),),
    "constexpr_sparse_blockwise_shift_scale": (("data_mask", "nonzero_data", "scale", "offset?"),),
}


def check_arguments(op: str, names: set[str], place: str) -> None:
    """Refuse arguments that no form of a constexpr operation has.

    Raises:
        ArtifactError: naming what is missing or unknown.
    """
    for form in ARGUMENTS[op]:
        required = {a for a in form if not a.endswith("?")}
        if required <= names <= {a.rstrip("?") for a in form}:
            return
    forms = " or ".join(", ".join(form) for form in ARGUMENTS[op])
    raise ArtifactError(f"{place} has the arguments {', '.join(sorted(names))}; expected {forms}.")


def describe_form(op: str, bindings: dict[str, Constant | StoredForm], values: Values) -> StoredForm:
    """The stored form of a constexpr's result; nested ones are named from the inside out."""
    sources = ("quantized_data", "data", "indices", "nonzero_data", "indices_nonzero_data", "source_val")
    source = next((bindings[s] for s in sources if s in bindings), None)
    if isinstance(source, StoredForm):
        inner, bits, palette, scale = source.scheme, source.bits, source.palette, source.scale
    else:
        inner, palette, scale = "", None, None
        bits = bits_of(source.dtype) if isinstance(source, Constant) else 0
    if op == "constexpr_lut_to_dense" and "shape" in values:
        bits = int(values["lut"].size).bit_length() - 1
    entries = bindings.get("lut")
    if isinstance(entries, StoredForm) and not inner:
        inner, scale = entries.scheme, entries.scale
    if "lut" in values:
        scheme, palette = "palette", values["lut"]
    elif "scale" in values:
        scheme, scale = "linear", values["scale"]
        if "quantized_data" in values:
            scale = _along_axis(scale, values["quantized_data"].shape, int(values["axis"]))
    else:
        scheme = "cast" if op == "constexpr_cast" else "sparse"
    return StoredForm(f"{inner}+{scheme}" if inner else scheme, bits, scale, palette)
