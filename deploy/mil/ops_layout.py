"""MIL operations that only move, cut, join or repeat values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from deploy.mil.registry import Bools, Context, Ints, Tensors, handles
from nailcore.errors import ConversionError


def resolve_axis(axis: int, rank: int) -> int:
    """A negative axis counted from the front."""
    resolved = axis + rank if axis < 0 else axis
    if not 0 <= resolved < max(rank, 1):
        raise ConversionError(f"axis {axis} is outside a tensor of rank {rank}")
    return resolved


@handles("transpose", exact=True)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Dimensions in another order."""
    return x.permute(perm)


@handles("reshape", exact=True)
def reshape(x: Tensor, shape: Ints, context: Context) -> Tensor:
    """Same values in another shape: 0 keeps a dimension, -1 takes what is left.

    Since iOS 17 the dimensions that 0 keeps are counted from the end, and those beyond x's are 1.
    """
    if context.opset < 17 and 0 in shape and len(shape) != x.dim():
        raise ConversionError(f"shape {shape} keeps a dimension, but x has rank {x.dim()}")
    kept = (1,) * (len(shape) - x.dim()) + tuple(x.shape)[max(0, x.dim() - len(shape)) :]
    return x.reshape([k if s == 0 else s for s, k in zip(shape, kept, strict=True)])


@handles("reshape_like", exact=True)
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    """Reshape to pieces of other tensors' shapes, one after the other."""
    shape: list[int] = []
    for reference, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[begin:] if mask else reference.shape[begin:end]
    return x.reshape(shape)


@handles("expand_dims", exact=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """Insert dimensions of size 1 at these places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        x = x.unsqueeze(axis)
    return x


@handles("squeeze", exact=True)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Remove dimensions of size 1 (all of them without ``axes``)."""
    if axes is None:
        return x.squeeze()
    for axis in sorted((resolve_axis(a, x.dim()) for a in axes), reverse=True):
        if x.shape[axis] != 1:
            raise ConversionError(f"cannot squeeze axis {axis} of size {x.shape[axis]}")
        x = x.squeeze(axis)
    return x


@handles("flatten2d", exact=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Two dimensions: those before ``axis`` and the rest."""
    resolved = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:resolved]), -1)


@handles("concat", exact=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Join along an axis; interleaved: one element of each in turn."""
    if values[0].dim() == 0:
        return torch.stack(values)
    if not interleave:
        return torch.cat(values, axis)
    where = resolve_axis(axis, values[0].dim())
    return torch.stack(values, where + 1).flatten(where, where + 1)


@handles("stack", exact=True)
def stack(values: Tensors, axis: int) -> Tensor:
    """Join along a new axis."""
    return torch.stack(values, axis)


@handles("split", exact=True)
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    """Equal parts, or parts of given sizes."""
    if split_sizes is not None:
        return tuple(torch.split(x, list(split_sizes), axis))
    if num_splits is None or x.shape[axis] % num_splits:
        raise ConversionError(f"axis {axis} of {tuple(x.shape)} has no {num_splits} equal parts")
    return tuple(torch.split(x, x.shape[axis] // num_splits, axis))


@handles("tile", exact=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    """Repeat along each dimension."""
    return x.repeat(reps) if x.dim() else x.clone()


@handles("reverse", exact=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Turn round along axes (all of them without ``axes``)."""
    return x.flip(tuple(range(x.dim())) if axes is None else axes)


@handles("reverse_sequence", exact=True)
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Turn round the first lengths[i] elements along ``seq_axis`` of each slice of ``batch_axis``."""
    batch, seq = resolve_axis(batch_axis, x.dim()), resolve_axis(seq_axis, x.dim())
    if batch == seq or len(lengths) != x.shape[batch]:
        raise ConversionError(f"{len(lengths)} lengths, seq_axis {seq_axis}, batch_axis {batch_axis}")
    out = x.clone()
    for i, length in enumerate(lengths):
        piece = x.select(batch, i)
        axis = seq - (seq > batch)
        out.select(batch, i).narrow(axis, 0, length).copy_(piece.narrow(axis, 0, length).flip(axis))
    return out


@handles("crop", exact=True)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Cut the last two dimensions: (top, bottom) and (left, right)."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def slice_axis(x: Tensor, axis: int, start: int | None, stop: int | None, step: int) -> Tensor:
    """``x[start:stop:step]`` along one axis with numpy's meaning, negative steps included."""
    chosen = range(*slice(start, stop, step).indices(x.shape[axis]))
    if step > 0:
        first = chosen.start if chosen else 0
        piece = x.narrow(axis, first, (len(chosen) - 1) * step + 1 if chosen else 0)
        return piece if step == 1 else piece[(slice(None),) * axis + (slice(None, None, step),)]
    return x.index_select(axis, torch.tensor(list(chosen), dtype=torch.long))


def find_slices(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    masks: tuple[Bools | None, Bools | None, Bools | None],
) -> list[tuple[int | None, int | None, int]]:
    """Start, stop and step per dimension; a squeezed one keeps exactly one element."""
    begin_mask, end_mask, squeeze_mask = masks
    rank = x.dim()
    if len(begin) != rank or len(end) != rank:
        raise ConversionError(f"begin {begin} and end {end} do not fit rank {rank}")
    found: list[tuple[int | None, int | None, int]] = []
    for i in range(rank):
        step = stride[i] if stride else 1
        start = None if begin_mask and begin_mask[i] else begin[i]
        stop = None if end_mask and end_mask[i] else end[i]
        if squeeze_mask and squeeze_mask[i]:
            index = start or 0
            index += x.shape[i] if index < 0 else 0
            if not 0 <= index < x.shape[i]:
                raise ConversionError(f"index {start} is outside dimension {i} of size {x.shape[i]}")
            start, stop, step = index, index + 1, 1
        found.append((start, stop, step))
    return found


@handles("slice_by_index", exact=True)
def slice_by_index(
    x: Tensor,
    *,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """numpy's slicing; squeezed dimensions are taken at ``begin`` and dropped."""
    slices = find_slices(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    for axis, (start, stop, step) in enumerate(slices):
        if (start, stop, step) != (None, None, 1):
            x = slice_axis(x, axis, start, stop, step)
    for axis in reversed([i for i, flag in enumerate(squeeze_mask or ()) if flag]):
        x = x.squeeze(axis)
    return x


@handles("slice_by_size", exact=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """``size[i]`` elements from ``begin[i]`` on; -1 takes all that are left."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


@handles("slice_update", exact=True)
def slice_update(
    x: Tensor,
    *,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """A copy of x with a slice replaced."""
    slices = find_slices(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    chosen = [range(*slice(*s).indices(n)) for s, n in zip(slices, x.shape, strict=True)]
    index = torch.meshgrid(*[torch.tensor(list(c), dtype=torch.long) for c in chosen], indexing="ij")
    out = x.clone()
    out[index] = update.reshape(index[0].shape)
    return out


@handles("pad", exact=True)
def pad(
    x: Tensor,
    pad: Ints,
    mode: Literal["constant", "reflect", "replicate"] = "constant",
    constant_val: float = 0.0,
) -> Tensor:
    """Pad the last len(pad) / 2 dimensions, each by (before, after)."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    if len(pad) % 2 or len(pairs) > x.dim() or min(pad, default=0) < 0:
        raise ConversionError(f"pad {pad} does not fit rank {x.dim()}")
    if mode == "constant":
        return functional.pad(x, [side for pair in reversed(pairs) for side in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        size = x.shape[axis]
        if before == after == 0:
            continue
        if mode == "reflect" and max(before, after) >= size:
            raise ConversionError(f"cannot reflect {max(before, after)} elements of {size}")
        index = torch.arange(-before, size + after)
        if mode == "reflect":
            index = (size - 1) - ((size - 1) - index.abs()).abs()
        x = x.index_select(axis, index.clamp(0, size - 1))
    return x


@handles("pixel_shuffle", exact=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """(N, C * f², H, W) to (N, C, H * f, W * f)."""
    return functional.pixel_shuffle(x, upscale_factor)


@handles("pixel_unshuffle", exact=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """(N, C, H * f, W * f) to (N, C * f², H, W)."""
    return functional.pixel_unshuffle(x, downscale_factor)


@handles("depth_to_space", exact=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Like pixel_shuffle with the channel index as (block row, block column, channel)."""
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


@handles("space_to_depth", exact=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of depth_to_space."""
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * b * b, h // b, w // b)


def _pairs(values: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    if len(values) != 4:
        raise ConversionError(f"expected (2, 2) values, found {len(values)}")
    return (values[0], values[1]), (values[2], values[3])


@handles("space_to_batch", exact=True)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """(N, C, H, W) to (N * bh * bw, C, H / bh, W / bw) after zero padding."""
    (top, bottom), (left, right) = _pairs(paddings)
    bh, bw = block_shape
    x = functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4)
    return blocks.reshape(bh * bw * n, c, h // bh, w // bw)


@handles("batch_to_space", exact=True)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """The inverse of space_to_batch; ``crops`` takes the padding off."""
    (top, bottom), (left, right) = _pairs(crops)
    bh, bw = block_shape
    n, c, h, w = x.shape
    blocks = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1)
    out = blocks.reshape(n // (bh * bw), c, h * bh, w * bw)
    return out[:, :, top : h * bh - bottom, left : w * bw - right]


@handles("sliding_windows", exact=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows along an axis: that axis counts windows, a new one after it their elements."""
    where = resolve_axis(axis, x.dim())
    return x.unfold(where, size, stride).movedim(-1, where + 1)


@handles("band_part", exact=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside a band of the last two dimensions; negative: keep that whole triangle."""
    row = torch.arange(x.shape[-2])[:, None]
    column = torch.arange(x.shape[-1])[None, :]
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        keep &= row - column <= lower
    if upper >= 0:
        keep &= column - row <= upper
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


@handles("shape", exact=True)
def shape_of(x: Tensor) -> Tensor:
    """The sizes of all dimensions, int32."""
    return torch.tensor(x.shape, dtype=torch.int32)
