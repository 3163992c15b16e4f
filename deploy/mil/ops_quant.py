"""MIL quantization at run time: quantize and dequantize."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deploy.mil.ops_layout import resolve_axis
from deploy.mil.registry import handles, torch_type
from nailcore.errors import ConversionError

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar or per-channel vector shaped to broadcast over x."""
    if values.dim() == 0:
        return values
    if axis is None:
        raise ConversionError("a scale per channel needs an axis")
    shape = [1] * x.dim()
    shape[resolve_axis(axis, x.dim())] = -1
    return values.reshape(shape)


@handles("quantize")
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: Literal["int8", "uint8"],
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point), halves rounded to even."""
    low, high = _RANGES[output_dtype]
    steps = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point.float(), input, axis)
    return steps.clamp(low, high).to(torch_type(output_dtype))


@handles("dequantize")
def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """scale * (input - zero_point)."""
    steps = input.float()
    if zero_point is not None:
        steps = steps - _along(zero_point.float(), input, axis)
    return steps * _along(scale, input, axis)
