"""Turn the operations of a block into steps that can be run again and again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.mil.precision import round_half
from deploy.mil.program import Block, Constant, Operation, Reference, TensorType
from deploy.mil.registry import (
    HANDLERS,
    Context,
    Handler,
    Parameter,
    convert_value,
    to_tensor,
    torch_type,
)
from nailcore.errors import ArtifactError, ConversionError, NailtoolError
from nailcore.runtime import Layer

Values = dict[str, Any]  # tensor name -> value while running
Watch = Callable[[Layer, tuple[Tensor, ...]], None]
_MAX_ITERATIONS = 100_000
_SHOWN_ELEMENTS = 16  # larger constants are weights, not attributes


@dataclass(frozen=True)
class Mode:
    """How numbers are treated: one plan is made per mode."""

    round_fp16: bool = True
    half_accumulation: bool = False


class ConstantPool:
    """Constants by name, each turned into a tensor at most once for all plans of a model."""

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        self.constants = constants
        self._tensors: dict[str, Tensor] = {}

    def tensor(self, name: str, place: str) -> Tensor:
        """A named constant as a tensor."""
        if name not in self._tensors:
            self._tensors[name] = make_tensor(self.constants[name], place)
        return self._tensors[name]


def make_tensor(constant: Constant, place: str) -> Tensor:
    """A constant as a tensor.

    Raises:
        ConversionError: it is a string or a list.
    """
    if not isinstance(constant.value, np.ndarray) or constant.dtype == "string":
        raise ConversionError(f"{place}: a {constant.dtype} stands where a tensor is expected.")
    return to_tensor(constant.value, constant.dtype)


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


class Plan:
    """The steps of one block in order, each releasing what nobody reads after it."""

    def __init__(
        self, block: Block, pool: ConstantPool, opset: int, mode: Mode, outer: frozenset[str]
    ) -> None:
        self.block = block
        self.inputs = tuple(name for name, _ in block.inputs)
        self._pool = pool
        visible = set(outer) | set(self.inputs)
        self.steps: list[Step] = []
        for operation in block.operations:
            if operation.op.startswith("constexpr_"):
                continue  # materialized when the file was opened
            self.steps.append(self._make_step(operation, opset, mode, visible))
            visible.update(name for name, _ in operation.outputs)
        for name in block.outputs:
            if name not in visible and name not in pool.constants:
                raise ArtifactError(f"Output '{name}' of {block.name} is written by no operation.")
        self._plan_release()

    def execute(self, values: Values, watch: Watch | None) -> list[Any]:
        """Run all steps; ``values`` holds the inputs and is used up."""
        for step in self.steps:
            step.run(values, watch)
        return [
            values[n] if n in values else self._pool.tensor(n, f"output '{n}'") for n in self.block.outputs
        ]

    def _plan_release(self) -> None:
        last: dict[str, int] = {name: -1 for name in self.inputs}
        for index, operation in enumerate(self._operations):
            last.update({name: index for name, _ in operation.outputs})
            last.update({name: index for name in _read_names(operation) if name in last})
        for name in self.block.outputs:
            last.pop(name, None)
        for index, step in enumerate(self.steps):
            step.free = tuple(name for name, where in last.items() if where == index)

    @property
    def _operations(self) -> list[Operation]:
        return [op for op in self.block.operations if not op.op.startswith("constexpr_")]

    def _make_step(self, operation: Operation, opset: int, mode: Mode, visible: set[str]) -> Step:
        for bindings in operation.inputs.values():
            for binding in bindings:
                if isinstance(binding, Constant):
                    continue
                if binding.name not in visible and binding.name not in self._pool.constants:
                    raise ArtifactError(f"{operation.place} reads '{binding.name}', written nowhere before.")
        layer = describe_layer(operation, self._pool.constants)
        if operation.op == "cond":
            return self._make_cond(operation, layer, opset, mode, visible)
        if operation.op == "while_loop":
            return self._make_loop(operation, layer, opset, mode, visible)
        if operation.blocks:
            raise ConversionError(
                f"{operation.place} has nested blocks, which are known for cond and while_loop."
            )
        handler = find_handler(operation)
        step = Step(operation, layer, mode)
        context = Context(
            opset,
            tuple(t.dtype for _, t in operation.outputs),
            mode.half_accumulation and operation.outputs[0][1].dtype == "fp16",
            operation.place,
        )
        fixed, dynamic = self._sort_arguments(operation, handler)
        if handler.wants_context:
            fixed["context"] = context
        step.bind(handler, fixed, dynamic)
        return step

    def _sort_arguments(
        self, operation: Operation, handler: Handler
    ) -> tuple[dict[str, Any], dict[str, Dynamic]]:
        place, constants = operation.place, self._pool.constants
        for key in operation.inputs:
            if key not in handler.parameters:
                raise ConversionError(f"{place} has the argument {key}, which this executor does not know.")
        fixed: dict[str, Any] = {}
        dynamic: dict[str, Dynamic] = {}
        for key, parameter in handler.parameters.items():
            bindings = operation.inputs.get(key)
            if not bindings:
                if parameter.required:
                    raise ArtifactError(f"{place} lacks its argument {key}.")
                continue
            known = [_find_constant(b, constants) for b in bindings]
            if parameter.kind == "tensors":
                names = tuple(self._bind_tensor(b, place) for b in bindings)
                dynamic[key] = Dynamic(parameter, names, variadic=True)
            elif all(c is not None for c in known):
                fixed[key] = self._fix(parameter, bindings, [c for c in known if c is not None], place)
            elif len(bindings) == 1:
                dynamic[key] = Dynamic(parameter, (bindings[0].name,), variadic=False)  # type: ignore[union-attr]
            else:
                raise ConversionError(f"{place}: {key} is bound to {len(bindings)} values, expected one.")
        return fixed, dynamic

    def _fix(self, parameter: Parameter, bindings: Any, known: list[Constant], place: str) -> Any:
        if parameter.kind == "tensor":
            if len(bindings) != 1:
                raise ConversionError(f"{place}: {parameter.name} is bound to {len(bindings)} tensors.")
            bound = self._bind_tensor(bindings[0], place)
            return self._pool.tensor(bound, place) if isinstance(bound, str) else bound
        if len(known) == 1:
            return convert_value(parameter, known[0].value, place)
        return tuple(v for c in known for v in convert_value(parameter, c.value, place))

    def _bind_tensor(self, binding: Any, place: str) -> str | Tensor:
        if isinstance(binding, Constant):
            return make_tensor(binding, place)
        if binding.name in self._pool.constants:
            return self._pool.tensor(binding.name, place)
        return str(binding.name)

    def _make_cond(
        self, operation: Operation, layer: Layer, opset: int, mode: Mode, visible: set[str]
    ) -> Step:
        if len(operation.blocks) != 2 or len(operation.inputs.get("pred", ())) != 1:
            raise ArtifactError(f"{operation.place} needs a predicate and two blocks.")
        step = CondStep(operation, layer, mode)
        first, second = (Plan(b, self._pool, opset, mode, frozenset(visible)) for b in operation.blocks)
        step.branches = (first, second)
        name = self._bind_tensor(operation.inputs["pred"][0], operation.place)
        step.predicate = Dynamic(Parameter("pred", "tensor", True), (name,), variadic=False)
        return step

    def _make_loop(
        self, operation: Operation, layer: Layer, opset: int, mode: Mode, visible: set[str]
    ) -> Step:
        variables = operation.inputs.get("loop_vars", ())
        sizes = {len(b.inputs) for b in operation.blocks}
        if len(operation.blocks) != 2 or sizes != {len(variables)}:
            raise ArtifactError(
                f"{operation.place} needs two blocks that take its {len(variables)} variables."
            )
        step = LoopStep(operation, layer, mode)
        step.condition, step.body = (
            Plan(b, self._pool, opset, mode, frozenset(visible)) for b in operation.blocks
        )
        step.variables = tuple(self._bind_tensor(b, operation.place) for b in variables)
        return step


def find_handler(operation: Operation) -> Handler:
    """The handler of an operation.

    Raises:
        ConversionError: this executor does not know the operation.
    """
    handler = HANDLERS.get(operation.op)
    if handler is None:
        raise ConversionError(
            f"{operation.place}: this executor does not know the operation '{operation.op}'.",
            hint="docs/mil-ops.md lists the operations it knows.",
        )
    return handler


def _find_constant(binding: Any, constants: Mapping[str, Constant]) -> Constant | None:
    return binding if isinstance(binding, Constant) else constants.get(binding.name)


def _held_type(declared: TensorType) -> torch.dtype | None:
    if declared.dtype in ("string", "list", "dictionary"):
        return None
    return torch_type(declared.dtype)


def _read_names(operation: Operation) -> set[str]:
    """Everything an operation reads, its inner blocks included."""
    names = {b.name for bs in operation.inputs.values() for b in bs if isinstance(b, Reference)}
    for block in operation.blocks:
        names.update(block.outputs)
        for inner in block.operations:
            names |= _read_names(inner)
    return names


def describe_layer(operation: Operation, constants: Mapping[str, Constant]) -> Layer:
    """An operation as the report shows it: small constants as attributes, tensors by name."""
    attributes: dict[str, Any] = {}
    inputs: list[str] = []
    for key, bindings in operation.inputs.items():
        for binding in bindings:
            constant = _find_constant(binding, constants)
            if constant is None:
                inputs.append(binding.name)  # type: ignore[union-attr]
            elif isinstance(constant.value, np.ndarray):
                if constant.value.size <= _SHOWN_ELEMENTS and not constant.in_weight_file:
                    attributes[key] = constant.value.tolist()
                elif key == "bias":
                    attributes[key] = "present"
            else:
                attributes[key] = constant.value
    if operation.op in ("conv", "conv_transpose") and "bias" not in operation.inputs:
        attributes["bias"] = "none"
    return Layer(operation.name, operation.op, attributes, tuple(dict.fromkeys(inputs)))
