"""MIL element-wise arithmetic, comparisons, logic, unary functions and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from deploy.mil.registry import Context, handles, torch_type
from nailcore.errors import ConversionError

_INTEGER_KINDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


def _settle(result: Tensor, context: Context) -> Tensor:
    """A float result where the file declares integers is cut towards zero, as MIL does."""
    dtype = context.dtypes[0]
    if result.is_floating_point() and dtype in _INTEGER_KINDS:
        return result.trunc().to(torch_type(dtype))
    return result


def _binary(name: str, function: Any, *, exact: bool = False) -> None:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = function(x, y)
        return result

    compute.__doc__ = f"MIL {name}, with broadcasting."
    handles(name, exact=exact)(compute)


for _name, _function in {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}.items():
    _binary(_name, _function)
_binary("maximum", torch.maximum, exact=True)
_binary("minimum", torch.minimum, exact=True)


@handles("real_div")
def real_div(x: Tensor, y: Tensor, context: Context) -> Tensor:
    """x / y; between integers the quotient is cut towards zero."""
    return _settle(torch.true_divide(x, y), context)


@handles("floor_div")
def floor_div(x: Tensor, y: Tensor, context: Context) -> Tensor:
    """floor(x / y)."""
    return _settle(torch.floor_divide(x, y), context)


@handles("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """x - floor(x / y) * y: the sign follows y."""
    return torch.remainder(x, y)


@handles("pow")
def power(x: Tensor, y: Tensor, context: Context) -> Tensor:
    """x to the power of y."""
    if x.is_floating_point() or y.is_floating_point():
        return torch.pow(x, y)
    return _settle(torch.pow(x.double(), y.double()), context)


def _unary(name: str, function: Callable[[Tensor], Tensor], *, exact: bool = False) -> None:
    def compute(x: Tensor) -> Tensor:
        return function(x)

    compute.__doc__ = f"MIL {name}."
    handles(name, exact=exact)(compute)


for _unary_name, _unary_function in {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "logical_not": torch.logical_not,
}.items():
    _unary(_unary_name, _unary_function)
for _unary_name, _unary_function in {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round": torch.round,  # halves to even
    "sign": torch.sign,
}.items():
    _unary(_unary_name, _unary_function, exact=True)


@handles("identity", exact=True)
def identity(x: Tensor) -> Tensor:
    """x."""
    return x


@handles("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@handles("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@handles("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@handles("clip", exact=True)
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """x limited to alpha..beta."""
    return x.clamp(alpha, beta)


@handles("threshold", exact=True)
def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha)."""
    return x.clamp(min=alpha)


@handles("select", exact=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond, else b."""
    return torch.where(cond.bool(), a, b)


CastType = Literal[
    "fp16", "fp32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool", "fp64"
]
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


@handles("cast")
def cast(x: Tensor, dtype: CastType, context: Context) -> Tensor:
    """Floats become integers by cutting towards zero; anything not 0 becomes true.

    Raises:
        ConversionError: a value does not fit the integer type, which MIL leaves undefined.
    """
    if dtype == "bool":
        return x != 0
    if dtype in _LIMITS and not context.opset < 17:
        low, high = _LIMITS[dtype]
        if x.numel() and (x.min() < low or x.max() > high):
            raise ConversionError(f"values from {x.min():g} to {x.max():g} do not fit {dtype}")
    held = torch_type(dtype)
    if x.is_floating_point() and not held.is_floating_point:
        # Infinities and values beyond int32 saturate, as the conversions of CPUs for it do.
        limits = torch.iinfo(held)
        x = x.double().nan_to_num(0.0).clamp(limits.min, limits.max)
    return x.to(held)


@handles("relu", exact=True)
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@handles("relu6", exact=True)
def relu6(x: Tensor) -> Tensor:
    """x limited to 0..6."""
    return x.clamp(0.0, 6.0)
