"""Palettes: look-up tables for kernels, fitted by weighted k-means, and how they are kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.errors import ArtifactError

PALETTES = "palettes.safetensors"  # in a prepared folder
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
_ROUNDS = 40


@dataclass(frozen=True)
class Table:
    """A kernel as indices into tables, each shared by a group of output channels.

    Entries and scales are float16 numbers, as the file stores them, so that the values here are the file's.
    """

    indices: U8  # (O, I, kh, kw)
    entries: F32  # (groups, 2**bits), sorted
    scale: F32 | None = None  # (O,): of each output channel

    @property
    def bits(self) -> int:
        """Of one index."""
        return int(self.entries.shape[1]).bit_length() - 1

    @property
    def values(self) -> F32:
        """The kernel (O, I, kh, kw)."""
        outputs = self.indices.shape[0]
        group = np.repeat(np.arange(len(self.entries)), outputs // len(self.entries))
        found = self.entries[group[:, None], self.indices.reshape(outputs, -1)]
        if self.scale is not None:
            found = found * self.scale[:, None]
        return np.asarray(found, np.float32).reshape(self.indices.shape)


@dataclass(frozen=True)
class Codes:
    """A kernel as 8-bit codes with a scale per output channel, no zero point."""

    indices: npt.NDArray[np.int8]  # (O, I, kh, kw), -127..127
    scale: F32  # (O,), float16 numbers

    @property
    def values(self) -> F32:
        """The kernel (O, I, kh, kw)."""
        return np.asarray(self.indices * self.scale[:, None, None, None], np.float32)


def to_half(values: npt.ArrayLike) -> F32:
    """Rounded to float16, in float32."""
    return np.asarray(values).astype(np.float16).astype(np.float32)


def find_group_size(outputs: int, wanted: int) -> int:
    """The largest group of at most ``wanted`` output channels (0: all) that divides them evenly."""
    wanted = min(wanted or outputs, outputs)
    return next(size for size in range(wanted, 0, -1) if outputs % size == 0)


def normalise(kernel: F64) -> F32:
    """A float16 scale for each output channel: its largest weight; 1 for a channel of zeros."""
    largest = np.abs(kernel.reshape(len(kernel), -1)).max(1)
    scale = to_half(largest)
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def fit_entries(values: F64, weights: F64, bits: int) -> F64:
    """The sorted 2**bits numbers that stand for ``values`` with a small weighted squared error (Lloyd).

    The better of two starts: entries spread evenly, and half-way to where most values are.
    """
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order] + 1e-30 * (weights.max() or 1.0) + 1e-300
    count = 2**bits
    even = np.linspace(values[0], values[-1], count)
    mass = np.cumsum(weights)
    dense = np.interp((np.arange(count) + 0.5) / count * mass[-1], mass, values)
    found = [_iterate(values, weights, start) for start in (even, np.sort(0.5 * dense + 0.5 * even))]
    losses = [float(np.sum(weights * (values - one[nearest(one, values)]) ** 2)) for one in found]
    return found[int(np.argmin(losses))]


def _iterate(values: F64, weights: F64, entries: F64) -> F64:
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    for _ in range(_ROUNDS):
        ends = np.searchsorted(values, (entries[1:] + entries[:-1]) / 2)
        ends = np.concatenate([[0], ends, [values.size]])
        held = np.diff(mass[ends])
        moved = np.where(held > 0, np.diff(moment[ends]) / np.where(held > 0, held, 1), entries)
        if np.allclose(moved, entries, rtol=0, atol=1e-9):
            break
        entries = np.sort(moved)
    return np.asarray(entries, np.float64)


def nearest(entries: F64, values: F64) -> npt.NDArray[np.int64]:
    """Index of the nearest of sorted entries."""
    return np.asarray(np.searchsorted((entries[1:] + entries[:-1]) / 2, values), np.int64)


def fit_table(
    kernel: npt.NDArray[np.floating[Any]],
    bits: int,
    group_size: int = 0,
    *,
    channel_scale: bool = False,
    weights: F64 | None = None,
) -> Table:
    """Tables of 2**bits entries for a kernel.

    Args:
        kernel: (O, I, kh, kw).
        bits: 1 to 8.
        group_size: output channels that share a table; 0: all of them.
        channel_scale: divide each output channel by its largest weight first.
        weights: of each value's squared error, in the kernel's shape; None: all alike.
    """
    outputs = len(kernel)
    flat = np.asarray(kernel, np.float64).reshape(outputs, -1)
    importance = np.ones(flat.shape) if weights is None else weights.reshape(flat.shape)
    scale = normalise(flat) if channel_scale else None
    if scale is not None:
        flat = flat / scale[:, None]
        importance = importance * np.asarray(scale, np.float64)[:, None] ** 2
    size = find_group_size(outputs, group_size)
    entries, indices = [], np.empty(flat.shape, np.uint8)
    for start in range(0, outputs, size):
        rows = slice(start, start + size)
        found = to_half(fit_entries(flat[rows].ravel(), importance[rows].ravel(), bits))
        indices[rows] = nearest(found.astype(np.float64), flat[rows])
        entries.append(found)
    return Table(indices.reshape(kernel.shape), np.stack(entries), scale)


def save_tables(path: Path, tables: Mapping[str, Table | Codes]) -> None:
    """Write tables by layer name."""
    from safetensors.numpy import save_file

    stored: dict[str, npt.NDArray[np.generic]] = {}
    for name, table in tables.items():
        stored[f"{name}/indices"] = table.indices
        if isinstance(table, Table):
            stored[f"{name}/entries"] = table.entries
        if table.scale is not None:
            stored[f"{name}/scale"] = table.scale
    save_file(dict(sorted(stored.items())), str(path))


def load_tables(path: Path) -> dict[str, Table | Codes]:
    """Tables by layer name; raises ArtifactError when they are missing or damaged."""
    from safetensors.numpy import load_file

    found: dict[str, Table | Codes] = {}
    try:
        stored = load_file(str(path))
        for name in sorted({key.rpartition("/")[0] for key in stored}):
            indices, scale = stored[f"{name}/indices"], stored.get(f"{name}/scale")
            if f"{name}/entries" in stored:
                found[name] = Table(indices, stored[f"{name}/entries"], scale)
            else:
                found[name] = Codes(indices, stored[f"{name}/scale"])
    except Exception as error:  # safetensors raises types of its own
        raise ArtifactError(
            f"{path}: palettes cannot be read: {error}",
            hint="Run `nailtool build-variants`; it will be made again.",
        ) from error
    return found
