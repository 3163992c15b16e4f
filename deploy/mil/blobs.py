"""Read tensors out of a package's weight file with numpy, checking every offset and size."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.errors import ArtifactError

Array = npt.NDArray[Any]

_SENTINEL = 0xDEADBEEF
_HEADER_BYTES = 64  # of the file, and of each tensor's own record
_VERSION = 2
# The type codes that weight.bin stores beside each tensor.
_CODES = {
    "fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int4": 8, "uint1": 9,
    "uint2": 10, "uint4": 11, "uint3": 12, "uint6": 13, "int32": 14, "uint32": 15,
}  # fmt: skip
# MIL's name of an element type -> how numpy holds it once unpacked.
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "int4": np.int8, "uint1": np.uint8, "uint2": np.uint8, "uint3": np.uint8, "uint4": np.uint8,
    "uint6": np.uint8, "string": np.str_,
}  # fmt: skip
PACKED_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


def bits_of(dtype: str) -> int:
    """Stored bits per element of a numeric MIL type."""
    return PACKED_BITS.get(dtype) or 8 * np.dtype(NUMPY_TYPES[dtype]).itemsize


def count_bytes(dtype: str, count: int) -> int:
    """Bytes that ``count`` elements take when stored."""
    return -(-bits_of(dtype) * count // 8)


def unpack_bits(data: npt.NDArray[np.uint8], bits: int, count: int, *, signed: bool = False) -> Array:
    """Elements of 1..8 bits, packed from the least significant bit on and across byte borders.

    Returns:
        (count,) uint8, or int8 in two's complement when ``signed``.
    """
    if bits == 8:
        values = data[:count].copy()
    else:
        flags = np.unpackbits(data, count=bits * count, bitorder="little").reshape(count, bits)
        values = np.packbits(flags, axis=1, bitorder="little")[:, 0]
    if not signed:
        return values
    shift = 8 - bits
    return np.right_shift(np.left_shift(values, shift).view(np.int8), shift)


def decode_bytes(data: npt.NDArray[np.uint8], dtype: str, count: int) -> Array:
    """Stored bytes as a flat array of ``count`` elements."""
    bits = PACKED_BITS.get(dtype)
    if bits is not None:
        return unpack_bits(data, bits, count, signed=dtype == "int4")
    return data.view(NUMPY_TYPES[dtype])[:count]


class WeightFiles:
    """The weight files of one package, mapped read-only and opened when first needed."""

    def __init__(self, model_file: Path) -> None:
        self.folder = model_file.parent
        self._maps: dict[str, npt.NDArray[np.uint8]] = {}

    def read(self, file_name: str, offset: int, dtype: str, count: int, place: str) -> Array:
        """The tensor recorded at ``offset`` as a flat array of ``count`` elements.

        Raises:
            ArtifactError: the file is missing or truncated, or its record is not that tensor.
        """
        data = self._open(file_name, place)
        name = self._resolve(file_name).name
        if dtype not in _CODES:
            raise ArtifactError(f"{name}: {place} has type {dtype}, which no weight file holds.")
        if offset < _HEADER_BYTES or offset % _HEADER_BYTES or offset + _HEADER_BYTES > data.size:
            raise ArtifactError(
                f"{name}: {place} is said to lie at byte {offset}, but the file has {data.size} bytes.",
                hint="The file is truncated or belongs to another package; build or download it again.",
            )
        record = data[offset : offset + _HEADER_BYTES]
        sentinel, code = (int(v) for v in record[:8].view(np.uint32))
        size, start = (int(v) for v in record[8:24].view(np.uint64))
        expected = count_bytes(dtype, count)
        if sentinel != _SENTINEL or code != _CODES[dtype] or size != expected:
            raise ArtifactError(
                f"{name}: the record of {place} at byte {offset} is damaged: found marker {sentinel:#x}, "
                f"type {code}, {size} bytes; expected {_SENTINEL:#x}, {_CODES[dtype]} ({dtype}), {expected}.",
            )
        if start % _HEADER_BYTES or start + size > data.size:
            raise ArtifactError(
                f"{name}: {place} takes bytes {start} to {start + size}, but the file has {data.size}.",
                hint="The file is truncated; build or download the package again.",
            )
        return decode_bytes(data[start : start + size], dtype, count)

    def _resolve(self, file_name: str) -> Path:
        relative = file_name.removeprefix("@model_path/")
        path = self.folder / relative
        parts = Path(relative).parts
        plain = relative.isprintable() and "\\" not in relative
        if not plain or relative.startswith("/") or ".." in parts or not parts:
            raise ArtifactError(f"The model points to the weight file {file_name!r}, outside its package.")
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ArtifactError(f"The weight file {file_name!r} is a link out of the package.")
        return path

    def _open(self, file_name: str, place: str) -> npt.NDArray[np.uint8]:
        if file_name in self._maps:
            return self._maps[file_name]
        path = self._resolve(file_name)
        try:
            with path.open("rb") as stream:
                # A mapped file costs no memory until its bytes are read, whatever its size.
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path}: the weight file is missing, and {place} needs it.",
                hint="Copy the whole .mlpackage folder, not only its model file.",
            ) from error
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ArtifactError(f"{path}: the weight file cannot be read: {error}") from error
        data = np.frombuffer(mapped, np.uint8)
        version = int(data[4:8].view(np.uint32)[0]) if data.size >= _HEADER_BYTES else None
        if version != _VERSION:
            raise ArtifactError(
                f"{path}: not a weight file of version {_VERSION} (found {version}).",
                hint="The file is damaged; build or download the package again.",
            )
        self._maps[file_name] = data
        return data
