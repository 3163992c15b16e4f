"""Turn the operations of a block into steps that can be run again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from deploy.mil.program import Block, Constant, Operation, Reference
from deploy.mil.registry import (
    HANDLERS,
    Context,
    Handler,
    Parameter,
    convert_value,
    to_tensor,
)
from deploy.mil.steps import CondStep, Dynamic, LoopStep, Mode, Step, Values, Watch
from nailcore.errors import ArtifactError, ConversionError
from nailcore.runtime import Layer

_SHOWN_ELEMENTS = 16  # larger constants are weights, not attributes


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
