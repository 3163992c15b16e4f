"""MIL matrix products: linear, matmul, einsum and attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from deploy.mil.precision import accumulate_half, blocks
from deploy.mil.registry import Context, Tensors, handles, torch_type
from nailcore.errors import ConversionError


def _matmul(x: Tensor, y: Tensor, context: Context) -> Tensor:
    if x.is_floating_point() != y.is_floating_point():  # since iOS 17 a constant may be of another type
        result = torch.matmul(x.float(), y.float())
        held = torch_type(context.dtypes[0])
        return result if held.is_floating_point else result.trunc().to(held)
    if not (context.half_accumulation and x.is_floating_point()) or min(x.dim(), y.dim()) < 2:
        return torch.matmul(x, y)
    return accumulate_half(x[..., b] @ y[..., b, :] for b in blocks(x.shape[-1]))


@handles("linear")
def linear(x: Tensor, weight: Tensor, context: Context, bias: Tensor | None = None) -> Tensor:
    """(..., K) by (O, K)."""
    mixed = x.is_floating_point() != weight.is_floating_point()
    if mixed or (context.half_accumulation and x.dim() > 1):
        total = _matmul(x, weight.T, context)
        return total if bias is None else total + bias.to(total.dtype)
    return functional.linear(x, weight, bias)


@handles("matmul")
def matmul(
    x: Tensor, y: Tensor, context: Context, transpose_x: bool = False, transpose_y: bool = False
) -> Tensor:
    """Matrix product with numpy's broadcasting."""
    if transpose_x and x.dim() > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.dim() > 1:
        y = y.transpose(-1, -2)
    return _matmul(x, y, context)


@handles("einsum")
def einsum(values: Tensors, equation: str, context: Context) -> Tensor:
    """Einstein's sum, e.g. "nchw,nwhu->nchu"."""
    if "->" not in equation:
        raise ConversionError(f"equation {equation!r} has no '->'")
    left, right = equation.replace(" ", "").split("->")
    terms = left.split(",")
    summed = [c for c in dict.fromkeys(left) if c not in right + ","]
    if not context.half_accumulation or len(summed) != 1 or len(terms) != len(values):
        return torch.einsum(equation, *values)
    axes = [t.index(summed[0]) if summed[0] in t else None for t in terms]
    count = max(v.shape[a] for v, a in zip(values, axes, strict=True) if a is not None)
    return accumulate_half(
        torch.einsum(
            equation,
            *(
                v if a is None else v.narrow(a, b.start, b.stop - b.start)
                for v, a in zip(values, axes, strict=True)
            ),
        )
        for b in blocks(count)
    )


@handles("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, context: Context, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(Q Kᵀ / sqrt(E) + mask) V; a boolean mask keeps where it is true."""
    scores = _matmul(query, key.transpose(-1, -2), context) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    return _matmul(torch.softmax(scores, -1), value, context)
