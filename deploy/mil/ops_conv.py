"""MIL convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from deploy.mil.ops_layout import slice_axis
from deploy.mil.precision import accumulate_half, blocks
from deploy.mil.registry import Context, Ints, handles
from nailcore.errors import ConversionError

PadType = Literal["valid", "same", "same_lower", "custom"]

_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d,
}  # fmt: skip
_MAX_POOL: dict[int, Callable[..., Any]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}

Pads = list[tuple[int, int]]  # before and after, per spatial dimension


def find_pads(
    pad_type: str, pad: Ints | None, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> Pads:
    """Padding before and after each spatial dimension; ``kernel`` includes dilation.

    "same" puts the odd one at the end, "same_lower" at the start: outputs have ceil(size / stride).
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * len(sizes):
            raise ConversionError(f"pad_type custom needs {2 * len(sizes)} pad values, found {pad}")
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    pads = []
    for size, k, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, stride * math.ceil(size / stride) - size + k - stride)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if pad_type == "same" else (more, less))
    return pads


def _pad(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    flat = [side for pair in reversed(pads) for side in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def _dilate(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def _expect_spatial(name: str, values: Sequence[int], dims: int) -> None:
    if len(values) != dims:
        raise ConversionError(f"{name} has {len(values)} values for {dims} spatial dimensions")


@handles("conv")
def conv(
    x: Tensor,
    *,
    weight: Tensor,
    context: Context,
    bias: Tensor | None = None,
    strides: Ints = (),
    pad_type: PadType = "valid",
    pad: Ints | None = None,
    dilations: Ints = (),
    groups: int = 1,
) -> Tensor:
    """(N, C, *D) by (O, C / groups, *K)."""
    dims = x.dim() - 2
    strides, dilations = strides or (1,) * dims, dilations or (1,) * dims
    _expect_spatial("strides", strides, dims)
    _expect_spatial("dilations", dilations, dims)
    kernel = _dilate(weight.shape[2:], dilations)
    pads = find_pads(pad_type, pad, x.shape[2:], kernel, strides)
    if context.half_accumulation:
        total = accumulate_half(_conv_partials(_pad(x, pads), weight, strides, dilations, groups))
        return total if bias is None else total + bias.view(-1, *[1] * dims)
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = _pad(x, pads), [0] * dims
    return _CONV[dims](x, weight, bias, strides, padding, dilations, groups)


def _conv_partials(
    x: Tensor, weight: Tensor, strides: Ints, dilations: Ints, groups: int
) -> Iterator[Tensor]:
    """Sums of products over blocks of the input channels of each kernel tap."""
    dims = x.dim() - 2
    kernel = weight.shape[2:]
    out = [(x.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(dims)]
    per_group = weight.shape[1]
    for tap in range(math.prod(kernel)):
        where: list[int] = []
        rest = tap
        for size in reversed(kernel):
            where.insert(0, rest % size)
            rest //= size
        window = x
        for axis, (w, d, n, s) in enumerate(zip(where, dilations, out, strides, strict=True), start=2):
            window = slice_axis(window, axis, w * d, w * d + (n - 1) * s + 1, s)
        grouped = window.reshape(window.shape[0], groups, per_group, *window.shape[2:])
        weights = weight.flatten(2)[:, :, tap].reshape(*weight.shape[:2], *[1] * dims)
        for block in blocks(per_group):
            part = grouped[:, :, block].flatten(1, 2)
            yield _CONV[dims](part, weights[:, block], groups=groups)


@handles("conv_transpose")
def conv_transpose(
    x: Tensor,
    *,
    weight: Tensor,
    context: Context,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: Literal["valid", "same", "custom"] = "valid",
    strides: Ints = (),
    dilations: Ints = (),
    groups: int = 1,
) -> Tensor:
    """(N, C, *D) by (C, O / groups, *K): the gradient of a convolution with regard to its input."""
    dims = x.dim() - 2
    strides, dilations = strides or (1,) * dims, dilations or (1,) * dims
    _expect_spatial("strides", strides, dims)
    _expect_spatial("dilations", dilations, dims)
    kernel = _dilate(weight.shape[2:], dilations)
    sizes = list(x.shape[2:])
    full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, kernel, strict=True)]
    out = list(output_shape[-dims:]) if output_shape else None
    if pad_type == "same":
        out = out or [n * s for n, s in zip(sizes, strides, strict=True)]
        totals = [max(0, f - o) for f, o in zip(full, out, strict=True)]
        pads = [(t // 2, t - t // 2) for t in totals]
    else:
        pads = find_pads(pad_type, pad, sizes, kernel, strides)
        out = out or [f - a - b for f, (a, b) in zip(full, pads, strict=True)]
    if not context.half_accumulation and all(
        before == after and f - 2 * before == o for f, (before, after), o in zip(full, pads, out, strict=True)
    ):
        padding = [before for before, _ in pads]
        return _TRANSPOSED[dims](x, weight, bias, strides, padding, 0, groups, dilations)
    if context.half_accumulation:
        whole = accumulate_half(_transposed_partials(x, weight, strides, dilations, groups))
    else:
        whole = _TRANSPOSED[dims](x, weight, None, strides, 0, 0, groups, dilations)
    # Cut the wanted window out of the whole gradient; beyond its end nothing was accumulated.
    cut = whole
    for axis, ((before, _), size) in enumerate(zip(pads, out, strict=True), start=2):
        cut = slice_axis(cut, axis, before, before + size, 1)
    cut = _pad(cut, [(0, o - n) for o, n in zip(out, cut.shape[2:], strict=True)])
    return cut.clone() if bias is None else cut + bias.view(-1, *[1] * dims)


def _transposed_partials(
    x: Tensor, weight: Tensor, strides: Ints, dilations: Ints, groups: int
) -> Iterator[Tensor]:
    dims = x.dim() - 2
    per_group = x.shape[1] // groups
    grouped = x.reshape(x.shape[0], groups, per_group, *x.shape[2:])
    kernels = weight.reshape(groups, per_group, *weight.shape[1:])
    for block in blocks(per_group):
        part, kernel = grouped[:, :, block].flatten(1, 2), kernels[:, block].flatten(0, 1)
        yield _TRANSPOSED[dims](part, kernel, None, strides, 0, 0, groups, dilations)


def _ceil_pads(x: Tensor, kernel: Ints, strides: Ints, pads: Pads) -> Pads:
    """Extend the padding at the end so that flooring gives the sizes of ceil mode."""
    extended = []
    for size, k, stride, (before, after) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        out = math.ceil((size + before + after - k) / stride) + 1
        if (out - 1) * stride >= size + before:  # no window may start in the padding at the end
            out -= 1
        extended.append((before, max(after, (out - 1) * stride + k - size - before)))
    return extended


def _pool_setup(
    x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints | None
) -> tuple[int, Ints, Pads]:
    dims = x.dim() - 2
    _expect_spatial("kernel_sizes", kernel, dims)
    strides = strides or (1,) * dims
    _expect_spatial("strides", strides, dims)
    return dims, strides, find_pads(pad_type, pad, x.shape[2:], kernel, strides)


@handles("max_pool", exact=True)
def max_pool(
    x: Tensor,
    *,
    kernel_sizes: Ints,
    pad_type: PadType,
    strides: Ints = (),
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Padding never wins: it counts as minus infinity."""
    dims, strides, pads = _pool_setup(x, kernel_sizes, strides, pad_type, pad)
    if ceil_mode:
        pads = _ceil_pads(x, kernel_sizes, strides, pads)
    pooled: Tensor = _MAX_POOL[dims](_pad(x, pads, -math.inf), kernel_sizes, strides)
    return pooled


@handles("avg_pool")
def avg_pool(
    x: Tensor,
    *,
    kernel_sizes: Ints,
    pad_type: PadType,
    strides: Ints = (),
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean over windows; padding counts as zeros unless excluded, a window's overhang never counts."""
    dims, strides, pads = _pool_setup(x, kernel_sizes, strides, pad_type, pad)
    pool = _AVG_POOL[dims]
    if all(a == b and 2 * a <= k for (a, b), k in zip(pads, kernel_sizes, strict=True)):
        padding = [a for a, _ in pads]
        return pool(x, kernel_sizes, strides, padding, ceil_mode, not exclude_padding_from_average)
    extended = _ceil_pads(x, kernel_sizes, strides, pads) if ceil_mode else pads
    counted = torch.ones(1, 1, *x.shape[2:])
    if not exclude_padding_from_average:
        counted = _pad(counted, pads, 1.0)
        overhang = [(0, e[1] - p[1]) for e, p in zip(extended, pads, strict=True)]
        counted = _pad(counted, overhang)
    else:
        counted = _pad(counted, extended)
    return pool(_pad(x, extended), kernel_sizes, strides) / pool(counted, kernel_sizes, strides)


@handles("l2_pool")
def l2_pool(
    x: Tensor,
    *,
    kernel_sizes: Ints,
    pad_type: PadType,
    strides: Ints = (),
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Square root of the sum of squares over windows."""
    dims, strides, pads = _pool_setup(x, kernel_sizes, strides, pad_type, pad)
    if ceil_mode:
        pads = _ceil_pads(x, kernel_sizes, strides, pads)
    means = _AVG_POOL[dims](_pad(x.square(), pads), kernel_sizes, strides)
    return (means * math.prod(kernel_sizes)).sqrt()
