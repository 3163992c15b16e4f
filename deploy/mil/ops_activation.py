"""MIL activations with parameters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from deploy.mil.registry import handles


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) shaped to broadcast over (N, C, *D)."""
    return values.reshape(-1, *[1] * (x.dim() - 2)) if values.numel() > 1 else values.reshape(())


@handles("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(x, beta) where x >= 0, else min(alpha * x, beta)."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@handles("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return functional.elu(x, alpha)


@handles("gelu")
def gelu(
    x: Tensor, mode: Literal["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"] = "EXACT"
) -> Tensor:
    """Gaussian error linear unit, exact or by one of two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@handles("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x >= 0, else alpha * x."""
    return functional.leaky_relu(x, alpha)


@handles("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta."""
    return alpha * x + beta


@handles("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x where x > 0, else its channel's alpha times x; x is (N, C, *D)."""
    return torch.where(x > 0, x, _per_channel(alpha, x) * x)


@handles("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@handles("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@handles("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta limited to 0..1."""
    return (alpha * x + beta).clamp(0.0, 1.0)


@handles("silu")
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return functional.silu(x)


@handles("softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, torch.zeros(()))


@handles("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha * log(1 + exp(beta * x)) with alpha and beta per channel."""
    return _per_channel(alpha, x) * torch.logaddexp(_per_channel(beta, x) * x, torch.zeros(()))


@handles("softsign")
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return functional.softsign(x)


@handles("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax along an axis."""
    return torch.softmax(x, axis)


@handles("thresholded_relu", exact=True)
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x >= alpha, else 0."""
    return torch.where(x >= alpha, x, 0.0)
