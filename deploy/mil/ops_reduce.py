"""MIL reductions, running sums and normalisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from deploy.mil.ops_layout import resolve_axis
from deploy.mil.registry import Ints, handles


def _reduction(
    name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor], *, exact: bool = False
) -> None:
    def compute(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        chosen = tuple(range(x.dim())) if axes is None else tuple(resolve_axis(a, x.dim()) for a in axes)
        result = function(x, chosen, keep_dims)
        return result if result.dtype == x.dtype else result.to(x.dtype)

    compute.__doc__ = f"MIL {name} over axes (all of them without ``axes``)."
    handles(name, exact=exact)(compute)


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).trunc()


_reduction("reduce_sum", lambda x, axes, keep: x.sum(axes, keepdim=keep))
_reduction("reduce_mean", _mean)
_reduction("reduce_prod", _product)
_reduction("reduce_max", lambda x, axes, keep: x.amax(axes, keepdim=keep), exact=True)
_reduction("reduce_min", lambda x, axes, keep: x.amin(axes, keepdim=keep), exact=True)
_reduction("reduce_l1_norm", lambda x, axes, keep: x.abs().sum(axes, keepdim=keep))
_reduction("reduce_l2_norm", lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt())
_reduction("reduce_sum_square", lambda x, axes, keep: x.square().sum(axes, keepdim=keep))
_reduction("reduce_log_sum", lambda x, axes, keep: x.sum(axes, keepdim=keep).log())
_reduction("reduce_log_sum_exp", lambda x, axes, keep: x.float().logsumexp(axes, keepdim=keep))

IndexType = Literal["int32", "uint16"]


@handles("reduce_argmax", exact=True)
def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: IndexType = "int32"
) -> Tensor:
    """Where the largest value along an axis stands (the first of equals), int32."""
    return x.argmax(axis, keepdim=keep_dims).to(torch.int32)


@handles("reduce_argmin", exact=True)
def reduce_argmin(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: IndexType = "int32"
) -> Tensor:
    """Where the smallest value along an axis stands (the first of equals), int32."""
    return x.argmin(axis, keepdim=keep_dims).to(torch.int32)


@handles("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum; exclusive starts with 0, reverse runs from the end."""
    if reverse:
        x = x.flip(axis)
    total = torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        zero = torch.zeros_like(total.narrow(axis, 0, 1))
        total = torch.cat([zero, total.narrow(axis, 0, total.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


@handles("batch_norm")
def batch_norm(
    x: Tensor,
    *,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta per channel of (N, C, *D)."""
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@handles("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Each channel of each image normalised over its own (N, C, *D) values."""
    axes = tuple(range(2, x.dim()))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@handles("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalised over ``axes`` (all without them); gamma and beta have those dimensions."""
    rank = x.dim()
    chosen = sorted(range(rank) if axes is None else (resolve_axis(a, rank) for a in axes))
    if chosen == list(range(chosen[0], rank)):
        return functional.layer_norm(x, x.shape[chosen[0] :], gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, chosen, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = [x.shape[i] if i in chosen else 1 for i in range(rank)]
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@handles("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares over the last three dimensions + epsilon)."""
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


@handles("local_response_norm")
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha / size * sum of squares over ``size`` neighbouring channels) ** beta.

    Of three dimensions the first counts as channels, as coremltools' tests of Apple's runtime expect.
    """
    wide = x.unsqueeze(0) if x.dim() == 3 else x
    return functional.local_response_norm(wide, size, alpha, beta, k).reshape(x.shape)
