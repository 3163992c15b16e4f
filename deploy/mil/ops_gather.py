"""MIL gathering, scattering, sorting, and tensors made from scratch."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deploy.mil.ops_layout import resolve_axis
from deploy.mil.registry import Context, Ints, handles, torch_type
from nailcore.errors import ConversionError

ScatterMode = Literal["add", "div", "max", "min", "mul", "sub", "update"]


def _check_indices(indices: Tensor, size: int, context: Context) -> Tensor:
    """Indices from 0 on; up to iOS 16 negative ones count from the end, since iOS 17 they are undefined."""
    found = indices.long()
    if found.numel() == 0:
        return found
    lowest, highest = int(found.min()), int(found.max())
    floor = -size if context.opset < 17 else 0
    if lowest < floor or highest >= size:
        raise ConversionError(f"indices from {lowest} to {highest} are outside {floor}..{size - 1}")
    return torch.where(found < 0, found + size, found)


@handles("gather", exact=True)
def gather(
    x: Tensor,
    *,
    indices: Tensor,
    context: Context,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of x along an axis; the first ``batch_dims`` dimensions go in step with the indices'."""
    where = resolve_axis(axis, x.dim())
    index = _check_indices(indices, x.shape[where], context)
    if batch_dims == 0:
        picked = x.index_select(where, index.reshape(-1))
        return picked.reshape(*x.shape[:where], *index.shape, *x.shape[where + 1 :])
    batch = x.shape[:batch_dims]
    pairs = zip(x.flatten(0, batch_dims - 1), index.flatten(0, batch_dims - 1), strict=True)
    rows = []
    for source, chosen in pairs:
        inner = where - batch_dims
        picked = source.index_select(inner, chosen.reshape(-1))
        rows.append(picked.reshape(*source.shape[:inner], *chosen.shape, *source.shape[inner + 1 :]))
    stacked = torch.stack(rows)
    return stacked.reshape(*batch, *stacked.shape[1:])


@handles("gather_along_axis", exact=True)
def gather_along_axis(
    x: Tensor, indices: Tensor, context: Context, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """numpy.take_along_axis."""
    where = resolve_axis(axis, x.dim())
    return torch.gather(x, where, _check_indices(indices, x.shape[where], context))


@handles("gather_nd", exact=True)
def gather_nd(
    x: Tensor, indices: Tensor, context: Context, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of x at the index tuples in the last dimension of ``indices``."""
    if batch_dims:
        batch = x.shape[:batch_dims]
        pairs = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
        rows = torch.stack([_gather_tuples(source, chosen, context) for source, chosen in pairs])
        return rows.reshape(*batch, *rows.shape[1:])
    return _gather_tuples(x, indices, context)


def _gather_tuples(x: Tensor, indices: Tensor, context: Context) -> Tensor:
    columns = [_check_indices(c, x.shape[i], context) for i, c in enumerate(indices.unbind(-1))]
    return x[tuple(columns)]


_REDUCTIONS: dict[str, Any] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip


def _scatter_tuples(data: Tensor, index: tuple[Tensor, ...], updates: Tensor, mode: str) -> Tensor:
    """Apply updates one index after the other, so that repeated indices accumulate."""
    out = data.clone()
    flat = [i.reshape(-1).tolist() for i in index]
    pieces = updates.reshape(len(flat[0]), *data.shape[len(index) :])
    for position, piece in zip(zip(*flat, strict=True), pieces, strict=True):
        target = out[position]
        target.copy_(piece if mode == "update" else _REDUCTIONS[mode](target, piece))
    return out


@handles("scatter")
def scatter(
    data: Tensor,
    *,
    indices: Tensor,
    updates: Tensor,
    context: Context,
    axis: int = 0,
    mode: ScatterMode = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Combine slices of ``updates`` into ``data`` along an axis."""
    where = resolve_axis(axis, data.dim())
    index = _check_indices(indices, data.shape[where], context)
    moved = updates.movedim(tuple(range(where, where + index.dim())), tuple(range(index.dim())))
    return _scatter_tuples(data.movedim(where, 0), (index,), moved, mode).movedim(0, where).contiguous()


@handles("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    *,
    indices: Tensor,
    updates: Tensor,
    context: Context,
    axis: int = 0,
    mode: ScatterMode = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Combine each update with the element its index names along an axis."""
    where = resolve_axis(axis, data.dim())
    index = list(torch.meshgrid(*[torch.arange(n) for n in indices.shape], indexing="ij"))
    index[where] = _check_indices(indices, data.shape[where], context)
    return _scatter_tuples(data, tuple(index), updates, mode)


@handles("scatter_nd")
def scatter_nd(
    data: Tensor,
    *,
    indices: Tensor,
    updates: Tensor,
    context: Context,
    mode: ScatterMode = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Combine updates into ``data`` at the index tuples in the last dimension of ``indices``."""
    columns = [_check_indices(c, data.shape[i], context) for i, c in enumerate(indices.unbind(-1))]
    return _scatter_tuples(data, tuple(columns), updates, mode)


@handles("topk", exact=True)
def topk(
    x: Tensor,
    *,
    context: Context,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: Literal["int32", "uint16"] = "int32",
) -> tuple[Tensor, ...]:
    """The k largest (smallest) values, best first, and where they stood; of equals the first."""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices.to(torch.int32)) if return_indices else (values,)


@handles("argsort", exact=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Indices that sort an axis, largest first unless ascending; int32."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(torch.int32)


@handles("non_zero", exact=True)
def non_zero(x: Tensor) -> Tensor:
    """(count, rank) int32: where x is not zero."""
    return torch.nonzero(x).to(torch.int32)


@handles("one_hot", exact=True)
def one_hot(
    indices: Tensor,
    *,
    one_hot_vector_size: int,
    context: Context,
    axis: int = -1,
    on_value: float = 1.0,
    off_value: float = 0.0,
) -> Tensor:
    """A new axis with ``on_value`` at each index; an index outside it leaves only ``off_value``."""
    where = axis + indices.dim() + 1 if axis < 0 else axis
    shape = [1] * (indices.dim() + 1)
    shape[where] = -1
    hit = indices.unsqueeze(where) == torch.arange(one_hot_vector_size).reshape(shape)
    return torch.where(hit, on_value, off_value).to(torch_type(context.dtypes[0]))


def _fill(shape: Ints, value: float, context: Context) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64).to(torch_type(context.dtypes[0]))


@handles("fill")
def fill(shape: Ints, context: Context, value: float = 0.0) -> Tensor:
    """A tensor full of one value."""
    return _fill(shape, value, context)


@handles("fill_like")
def fill_like(ref_tensor: Tensor, context: Context, value: float = 0.0) -> Tensor:
    """A tensor of another one's shape, full of one value."""
    return _fill(tuple(ref_tensor.shape), value, context)


@handles("range_1d")
def range_1d(end: float, start: float, step: float, context: Context) -> Tensor:
    """start, start + step, ... up to but without ``end``."""
    if step == 0:
        raise ConversionError("a range with step 0")
    count = max(0, math.ceil((end - start) / step))
    values = start + step * np.arange(count)
    return torch.from_numpy(values).to(torch_type(context.dtypes[0]))
