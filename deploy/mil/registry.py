"""Handlers of MIL operations: typed functions whose signatures say which arguments they accept."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from nailcore.errors import ConversionError

Ints: TypeAlias = tuple[int, ...]
Bools: TypeAlias = tuple[bool, ...]
Tensors: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Context:
    """What a handler may need to know besides its arguments."""

    opset: int  # 15..18
    dtypes: tuple[str, ...]  # element type of each output, as the file declares it
    half_accumulation: bool = False  # accumulate sums of products in float16
    place: str = ""


@dataclass(frozen=True)
class Parameter:
    """One argument of a handler."""

    name: str
    kind: str  # "tensor", "tensors", "ints", "bools", "int", "float", "bool", "str"
    required: bool
    choices: tuple[str, ...] = ()
    optional: bool = False  # None is a value of its own


@dataclass(frozen=True)
class Handler:
    """A function that computes one operation."""

    op: str
    function: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    wants_context: bool
    exact: bool  # only moves or selects values: a float16 result needs no rounding


HANDLERS: dict[str, Handler] = {}
_KINDS: dict[Any, str] = {
    Tensor: "tensor",
    Tensors: "tensors",
    Ints: "ints",
    Bools: "bools",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    list: "list",
}
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def handles(*names: str, exact: bool = False) -> Callable[[FunctionT], FunctionT]:
    """Register a function as the handler of these operations.

    Its parameters carry MIL's argument names; ``Literal`` annotations list the values it knows.
    """

    def register(function: FunctionT) -> FunctionT:
        hints = typing.get_type_hints(function)
        parameters = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name != "context":
                parameters[parameter.name] = _describe(parameter, hints[parameter.name])
        for name in names:
            if name in HANDLERS:
                raise ValueError(f"two handlers for {name}")
            HANDLERS[name] = Handler(
                op=name,
                function=function,
                parameters=parameters,
                wants_context="context" in hints,
                exact=exact,
            )
        return function

    return register


def _describe(parameter: inspect.Parameter, hint: Any) -> Parameter:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [a for a in typing.get_args(hint) if a is not type(None)]
        optional = len(parts) < len(typing.get_args(hint))
        hint = parts[0]
    required = parameter.default is inspect.Parameter.empty
    if typing.get_origin(hint) is Literal:
        return Parameter(parameter.name, "str", required, typing.get_args(hint), optional)
    kind = _KINDS.get(hint)
    if kind is None:
        raise TypeError(f"{parameter.name}: handlers cannot take {hint}")
    return Parameter(parameter.name, kind, required, (), optional)


def convert_value(parameter: Parameter, value: Any, place: str) -> Any:
    """A constant (numpy array, string, list) or a runtime tensor as the type a parameter asks for.

    Raises:
        ConversionError: the value has another form, or is a mode the handler does not know.
    """
    kind = parameter.kind
    try:
        if kind == "str":
            return _choose(parameter, value, place)
        if kind in ("tensor", "tensors", "list"):
            return value
        flat = value.reshape(-1).tolist() if hasattr(value, "reshape") else [value]
        if kind == "ints":
            return tuple(int(v) for v in flat)
        if kind == "bools":
            return tuple(bool(v) for v in flat)
        if len(flat) != 1:
            raise ConversionError(f"{place}: {parameter.name} has {len(flat)} values, expected one.")
        return {"int": int, "float": float, "bool": bool}[kind](flat[0])
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{place}: {parameter.name} cannot be read as {kind}: {error}.") from error


def _choose(parameter: Parameter, value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ConversionError(f"{place}: {parameter.name} is not a string.")
    if not parameter.choices:
        return value
    for choice in parameter.choices:
        if choice.lower() == value.lower():
            return choice
    raise ConversionError(
        f"{place}: {parameter.name} is {value!r}; known: {', '.join(parameter.choices)}.",
        hint="This executor refuses what it does not know, rather than guess.",
    )


_TORCH_TYPES = {
    "fp16": torch.float32, "fp32": torch.float32, "fp64": torch.float64, "bool": torch.bool,
    "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "int4": torch.int8, "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8,
    "uint4": torch.uint8, "uint6": torch.uint8, "uint8": torch.uint8,
    # torch computes little with the wider unsigned types: the next wider signed one holds them.
    "uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64,
}  # fmt: skip


def torch_type(dtype: str) -> torch.dtype:
    """How a MIL element type is held while executing; float16 values are held in float32."""
    if dtype not in _TORCH_TYPES:
        raise ConversionError(f"Tensors of type {dtype} are not supported.")
    return _TORCH_TYPES[dtype]


def to_tensor(value: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """A constant as a torch tensor of its own memory."""
    held = torch_type(dtype)
    numpy_type = {torch.float32: np.float32, torch.int32: np.int32, torch.int64: np.int64}.get(held)
    return torch.from_numpy(np.array(value, dtype=numpy_type, copy=True, order="C"))
