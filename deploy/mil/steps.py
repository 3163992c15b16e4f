"""One operation as a step that can be run again and again: arguments, results, what the file declares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deploy.mil.precision import round_half
from deploy.mil.program import Operation, TensorType
from deploy.mil.registry import Handler, Parameter, convert_value, torch_type
from nailcore.errors import ArtifactError, ConversionError, NailtoolError
from nailcore.runtime import Layer

if TYPE_CHECKING:
    from deploy.mil.plan import Plan

Values = dict[str, Any]  # tensor name -> value while running
Watch = Callable[[Layer, tuple[Tensor, ...]], None]
_MAX_ITERATIONS = 100_000


@dataclass(frozen=True)
class Mode:
    """How numbers are treated: one plan is made per mode."""

    round_fp16: bool = True
    half_accumulation: bool = False


@dataclass(frozen=True)
class Dynamic:
    """An argument that is known only while running."""

    parameter: Parameter
    names: tuple[str | Tensor, ...]  # tensor names; constants among them are tensors already
    variadic: bool

    def read(self, values: Values, place: str) -> Any:
        """The argument's value now."""
        if self.variadic:
            return tuple(values[n] if isinstance(n, str) else n for n in self.names)
        name = self.names[0]
        value = values[name] if isinstance(name, str) else name
        return value if self.parameter.kind == "tensor" else convert_value(self.parameter, value, place)


class Step:
    """One operation, ready to run."""

    def __init__(self, operation: Operation, layer: Layer, mode: Mode) -> None:
        self.layer = layer
        self.place = operation.place
        self.outputs = operation.outputs
        self.names = tuple(name for name, _ in operation.outputs)
        self.free: tuple[str, ...] = ()
        self.types = tuple(_held_type(t) for _, t in operation.outputs)
        self.mode = mode
        self.function: Callable[..., Any] | None = None
        self.tensors: tuple[tuple[str, str], ...] = ()  # the plain ones: argument, tensor name
        self.others: tuple[tuple[str, Dynamic], ...] = ()
        self.rounded: tuple[bool, ...] = ()

    def bind(self, handler: Handler, fixed: dict[str, Any], dynamic: dict[str, Dynamic]) -> None:
        """Fix what is known; ``dynamic`` stays open until the step runs."""
        self.function = functools.partial(handler.function, **fixed)
        plain = {k: d for k, d in dynamic.items() if d.parameter.kind == "tensor"}
        self.tensors = tuple((k, str(d.names[0])) for k, d in plain.items())
        self.others = tuple((k, d) for k, d in dynamic.items() if k not in plain)
        fp16 = [t.dtype == "fp16" for _, t in self.outputs]
        self.rounded = tuple(f and self.mode.round_fp16 and not handler.exact for f in fp16)

    def run(self, values: Values, watch: Watch | None) -> None:
        """Compute, check against what the file declares, store and release.

        Raises:
            ConversionError: the operation cannot be computed.
            ArtifactError: the result is not what the file declares.
        """
        arguments = {key: values[name] for key, name in self.tensors}
        sources = tuple(arguments.values())
        for key, dynamic in self.others:
            value = arguments[key] = dynamic.read(values, self.place)
            if dynamic.variadic:
                sources += value
        results = self.compute(arguments)
        if len(results) != len(self.outputs):
            raise ArtifactError(f"{self.place} declares {len(self.outputs)} outputs, but has {len(results)}.")
        for i, (name, declared) in enumerate(self.outputs):
            value = self._check(results[i], i, declared)
            if self.rounded[i]:
                value = round_half(value, sources)
            values[name] = value
        if watch is not None:
            watch(self.layer, tuple(values[name] for name in self.names))
        for name in self.free:
            del values[name]

    def compute(self, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """The handler's results; whatever it raises is named with its place."""
        if self.function is None:
            raise ConversionError(f"{self.place}: was never bound to a handler.")
        try:
            results = self.function(**arguments)
        except NailtoolError as error:
            raise type(error)(f"{self.place}: {error.message}.", hint=error.hint) from error
        except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
            shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in arguments.items() if isinstance(v, Tensor))
            raise ArtifactError(
                f"{self.place} cannot be computed with {shapes or 'its arguments'}: {error}",
                hint="Either the file contradicts itself, or this is a defect of the executor.",
            ) from error
        return results if isinstance(results, tuple) else (results,)

    def _check(self, value: Any, index: int, declared: TensorType) -> Any:
        wanted = self.types[index]
        if wanted is None or not isinstance(value, Tensor):
            return value
        shape = declared.shape
        if shape is not None and value.shape != shape:
            matches = len(shape) == value.dim() and all(
                w is None or w == s for w, s in zip(shape, value.shape, strict=True)
            )
            if not matches:
                raise ArtifactError(
                    f"{self.place}: the file declares {declared}, computing gives {tuple(value.shape)}."
                )
        if value.dtype != wanted:
            if value.is_floating_point() or wanted.is_floating_point or wanted == torch.bool:
                raise ConversionError(
                    f"{self.place}: the file declares {declared}, computing gives {value.dtype}."
                )
            value = value.to(wanted)
        return value


class CondStep(Step):
    """`cond`: one of two blocks runs."""

    branches: tuple[Plan, Plan]
    predicate: Dynamic

    def run(self, values: Values, watch: Watch | None) -> None:
        """Run the chosen block with everything it can see."""
        name = self.predicate.names[0]
        chosen = bool(values[name] if isinstance(name, str) else name)
        results = self.branches[0 if chosen else 1].execute(dict(values), watch)
        _store(self, results, values, watch)


class LoopStep(Step):
    """`while_loop`: a body runs as long as a condition holds."""

    condition: Plan
    body: Plan
    variables: tuple[str | Tensor, ...]

    def run(self, values: Values, watch: Watch | None) -> None:
        """Run the loop; its variables pass from round to round."""
        state = [values[v] if isinstance(v, str) else v for v in self.variables]
        for _ in range(_MAX_ITERATIONS):
            inner = dict(values) | dict(zip(self.condition.inputs, state, strict=True))
            if not bool(self.condition.execute(inner, watch)[0]):
                _store(self, state, values, watch)
                return
            inner = dict(values) | dict(zip(self.body.inputs, state, strict=True))
            state = self.body.execute(inner, watch)
        raise ConversionError(f"{self.place} did not end within {_MAX_ITERATIONS} rounds.")


def _store(step: Step, results: list[Any], values: Values, watch: Watch | None) -> None:
    if len(results) != len(step.names):
        raise ArtifactError(f"{step.place}: its blocks give {len(results)} values for {len(step.names)}.")
    values.update(zip(step.names, results, strict=True))
    if watch is not None:
        watch(step.layer, tuple(results))
    for name in step.free:
        del values[name]


def _held_type(declared: TensorType) -> torch.dtype | None:
    if declared.dtype in ("string", "list", "dictionary"):
        return None
    return torch_type(declared.dtype)
