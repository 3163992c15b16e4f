"""Rounding to few levels as onnx's QuantizeLinear does it, with straight-through gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Grid:
    """Evenly spaced levels ``scale * (k - zero_point)`` for k in 0..count - 1."""

    scale: float
    zero_point: int
    count: int

    @property
    def low(self) -> float:
        """The lowest level."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """The highest level."""
        return self.scale * (self.count - 1 - self.zero_point)


def make_grid(low: float, high: float, bits: int = 8, *, symmetric: bool = False) -> Grid:
    """The grid that covers low..high and holds zero exactly; for 8 bits that of ``ranges.choose_affine``.

    A range without extent (a tensor that was always zero) gives the scale 1.
    """
    low, high, count = min(low, 0.0), max(high, 0.0), 2**bits
    if symmetric:
        scale = float(np.float32(max(-low, high) / (count // 2 - 1)))
        return Grid(scale if scale > np.finfo(np.float32).tiny else 1.0, count // 2, count)
    scale = float(np.float32((high - low) / (count - 1)))
    if scale <= np.finfo(np.float32).tiny:  # denormal: some processors flush it to 0
        return Grid(1.0, 0, count)
    return Grid(scale, min(max(round(-low / scale), 0), count - 1), count)


def round_tensor(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The nearest level of each value (ties to even), clipped to the grid's ends; no gradient."""
    first, last = -grid.zero_point, grid.count - 1 - grid.zero_point
    return x.mul(1 / grid.scale).round_().clamp_(first, last).mul_(grid.scale)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.grid = grid
        return round_tensor(x, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        # In one pass: the gradient where low < x < high, else 0.
        return torch.ops.aten.hardtanh_backward(gradients[0], x, ctx.grid.low, ctx.grid.high), None


def round_straight_through(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """``round_tensor`` whose gradient passes where the value was inside the grid, and stops outside."""
    rounded: torch.Tensor = _RoundStraightThrough.apply(x, grid)  # type: ignore[no-untyped-call]
    return rounded


def measure_scale(weight: torch.Tensor, bits: int = 8, *, per_channel: bool = True) -> torch.Tensor:
    """Step of a symmetric grid over a kernel (outputs, inputs / groups, kh, kw), one per output or one.

    Shaped to be multiplied with the kernel. The largest weight is the outermost level; a kernel of
    zeros has the step 1.
    """
    axes = tuple(range(1, weight.dim())) if per_channel else tuple(range(weight.dim()))
    largest = weight.detach().abs().amax(axes, keepdim=True)
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), torch.ones_like(largest))


def round_weight(weight: torch.Tensor, bits: int = 8, *, per_channel: bool = True) -> torch.Tensor:
    """A kernel on the symmetric grid that ``measure_scale`` finds; no gradient."""
    half, scale = 2 ** (bits - 1) - 1, measure_scale(weight, bits, per_channel=per_channel)
    return weight.detach().div(scale).round_().clamp_(-half, half).mul_(scale)


def round_to_integers(levels: torch.Tensor) -> torch.Tensor:
    """The nearest integers; the gradient passes straight through."""
    return levels + (levels.detach().round() - levels.detach())
