"""A model file opened for execution on any machine: the MIL reference, never Apple's hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deploy.intake import check_intake
from deploy.mil import handlers as _handlers  # noqa: F401 - registers all handlers
from deploy.mil.blobs import NUMPY_TYPES, Array, WeightFiles, bits_of
from deploy.mil.constants import (
    ARGUMENTS,
    Materialized,
    StoredForm,
    check_arguments,
    describe_form,
    materialize,
)
from deploy.mil.interface import Feature, feed_image, read_inputs, read_outputs
from deploy.mil.plan import ConstantPool, Plan, describe_layer
from deploy.mil.program import Constant, Operation, Program, Reference, read_program, walk_operations
from deploy.mil.reader import read_spec
from deploy.mil.registry import to_tensor, torch_type
from deploy.mil.steps import Mode
from nailcore.errors import ArtifactError, ConversionError, DataError, NailtoolError, UnknownNameError
from nailcore.runtime import Layer

Precision = Literal["declared", "fp32"]
Accumulate = Literal["fp32", "fp16"]


def load_package(path: Path, *, function: str = "") -> MilModel:
    """Open a saved .mlpackage and check everything that can be told without an input.

    Args:
        path: the package folder (or a .mlmodel file of an ML program).
        function: of a file with several; default: the one the file names as default.

    Raises:
        ArtifactError: missing, truncated, or contradicting itself.
        ConversionError: another kind of model, or an operation, argument or mode that is not known.
    """
    if path.is_dir():
        check_intake("coreml", path)
    spec, model_file = read_spec(path)
    try:
        program = read_program(spec, WeightFiles(model_file), function)
        return MilModel(spec, program, path)
    except NailtoolError as error:
        raise _name(error, path) from error


def _name(error: NailtoolError, path: Path) -> NailtoolError:
    """The same error, beginning with the file it is about."""
    if path.name in error.message:
        return error
    named = ArtifactError if isinstance(error, ArtifactError) else ConversionError
    return named(f"{path.name}: {error.message}", hint=error.hint)


class MilModel:
    """One function of a model file, with its constants decompressed and ready to run.

    Attributes:
        inputs: what must be passed to `run`, with shapes, element types and colour spaces.
        outputs: what `run` returns, in the file's order.
        layers: all operations that compute something, in the order of execution.
        opset: 15 to 18, after the iOS release.
    """

    def __init__(self, spec: Any, program: Program, path: Path) -> None:
        self.path = path
        self.program = program
        self.opset = program.opset
        self.inputs: tuple[Feature, ...] = read_inputs(spec, program)
        self.outputs: tuple[Feature, ...] = read_outputs(spec, program)
        self.metadata: dict[str, str] = dict(spec.description.metadata.userDefined)
        self._operations = list(walk_operations(program.block))
        self._materialized = _materialize_all(program, self._operations)
        constants = dict(program.constants)
        for name, made in self._materialized.items():
            constants[name] = Constant(made.dtype, made.value, in_weight_file=True)
        self._pool = ConstantPool(constants)
        self._plans: dict[Mode, Plan] = {}
        self._plan(Mode())  # refuses what it does not know
        self.layers: list[Layer] = [
            describe_layer(op, constants) for op in self._operations if not op.op.startswith("constexpr_")
        ]

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        precision: Precision = "declared",
        accumulate: Accumulate = "fp32",
        watch: Callable[[Layer, tuple[Tensor, ...]], None] | None = None,
    ) -> dict[str, Array]:
        """Execute the program once.

        Args:
            inputs: by name; tensors of the shape and type of `Feature`, images as in `feed_image`.
            precision: "declared" rounds each result that the file declares float16 to float16;
                "fp32" computes all floats in float32 with the file's (rounded) weights.
            accumulate: "fp16" also keeps sums of products in float16, see `deploy.mil.precision`.
            watch: called after each operation with its results. They are held in float32 where the
                file says float16, and may be released or overwritten once it returns: copy to keep.

        Returns:
            Arrays by output name, of the element types in `outputs`.

        Raises:
            UnknownNameError, DataError: inputs that do not fit.
            ArtifactError, ConversionError: the program cannot be computed; names the operation.
        """
        if accumulate == "fp16" and precision == "fp32":
            raise ConversionError('accumulate="fp16" needs precision="declared".')
        half = precision == "declared"
        plan = self._plan(Mode(half, accumulate == "fp16"))
        with torch.inference_mode():
            results = plan.execute(self._feed(inputs, half), watch)
        return {f.name: _finish(f, value, half) for f, value in zip(self.outputs, results, strict=True)}

    @property
    def classes(self) -> tuple[str | int, ...]:
        """A classifier's class names, in the order of the probabilities it returns; else empty."""
        for operation in self._operations:
            for binding in operation.inputs.get("classes", ()):
                known = binding if isinstance(binding, Constant) else self._pool.constants[binding.name]
                return tuple(known.value)
        return ()

    def read_weight(self, name: str) -> Array | None:
        """A decompressed weight in float32.

        Args:
            name: a layer (the name of its output), giving its kernel as the file holds it, (O, C/g, *K)
                for a convolution; or a constant.

        Returns:
            None for a layer without a constant weight.
        """
        for operation in self._operations:
            if operation.name == name and not operation.op.startswith("constexpr_"):
                binding = operation.inputs.get("weight", (None,))[0]
                if isinstance(binding, Reference):
                    return self._float_constant(binding.name)
                return None if binding is None else np.asarray(binding.value, np.float32)
        if name in self._pool.constants:
            return self._float_constant(name)
        raise UnknownNameError("layer or constant", name, [layer.name for layer in self.layers])

    def constants(self) -> Iterator[tuple[str, str, Array, StoredForm]]:
        """Every constant in the file's order: name, operation, dense values, stored form.

        Floats come as float32, integers and booleans as they are; strings are left out. Constants that
        only feed a decompression are part of its result and do not appear on their own.
        """
        for made in self.materialized():
            value = made.value
            yield (
                made.name,
                made.op,
                value.astype(np.float32) if value.dtype.kind == "f" else value,
                made.form,
            )

    def materialized(self) -> Iterator[Materialized]:
        """Every constant with its declared element type; see `constants`."""
        fed = _read_by(self._operations, constexpr=True)
        used = _read_by(self._operations, constexpr=False) | set(self.program.block.outputs)
        for name, constant in self.program.constants.items():
            if isinstance(constant.value, np.ndarray) and constant.dtype != "string" and name not in fed:
                form = StoredForm("plain", bits_of(constant.dtype))
                yield Materialized(name, "const", constant.dtype, constant.value, form)
        for name, made in self._materialized.items():
            if name in used:  # a sparse form's own mask may be read by nobody
                yield made

    def _float_constant(self, name: str) -> Array | None:
        constant = self._pool.constants.get(name)
        if constant is None or not isinstance(constant.value, np.ndarray):
            return None
        return np.asarray(constant.value, np.float32)

    def _plan(self, mode: Mode) -> Plan:
        if mode not in self._plans:
            self._plans[mode] = Plan(self.program.block, self._pool, self.opset, mode, frozenset())
        return self._plans[mode]

    def _feed(self, inputs: Mapping[str, Any], half: bool) -> dict[str, Tensor]:
        for name in inputs:
            if name not in {f.name for f in self.inputs}:
                raise UnknownNameError("input", name, [f.name for f in self.inputs])
        kinds = dict(self.program.block.inputs)
        return {f.name: self._feed_one(f, inputs, kinds[f.name].dtype, half) for f in self.inputs}

    def _feed_one(self, feature: Feature, inputs: Mapping[str, Any], dtype: str, half: bool) -> Tensor:
        value = inputs.get(feature.name)
        if value is None:
            if feature.default is None:
                raise DataError(
                    f"Input '{feature.name}' is missing; it needs {feature.shape} {feature.dtype}."
                )
            value = np.full(feature.shape, feature.default, np.float32)
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DataError(f"Input '{feature.name}' is not a numeric array ({array.dtype}).")
        if feature.image is not None:
            array = feed_image(feature, array)
        feature.check_shape(array.shape)
        wanted = torch_type(dtype)
        whole = wanted.is_floating_point or array.dtype.kind != "f" or np.array_equal(array, np.trunc(array))
        if not whole:
            raise DataError(f"Input '{feature.name}' takes whole numbers ({dtype}).")
        if dtype == "fp16" and half:
            array = array.astype(np.float16)
        return to_tensor(array.astype(NUMPY_TYPES[dtype]) if not wanted.is_floating_point else array, dtype)


def _finish(feature: Feature, value: Any, half: bool) -> Array:
    if isinstance(value, dict):
        return np.array(list(value.values()), np.float32)
    if not isinstance(value, Tensor):
        return np.asarray(value)
    dtype = feature.dtype
    if dtype == "fp16" and not half:
        dtype = "fp32"
    wanted: Any = NUMPY_TYPES.get(dtype)
    array: Array = value.numpy()
    # The result may share memory with a cached constant or an input: hand out its own.
    return np.array(array, dtype=wanted, copy=True, order="C")


def _read_by(operations: list[Operation], *, constexpr: bool) -> set[str]:
    return {
        b.name
        for op in operations
        if op.op.startswith("constexpr_") == constexpr
        for bindings in op.inputs.values()
        for b in bindings
        if isinstance(b, Reference)
    }


def _materialize_all(program: Program, operations: list[Operation]) -> dict[str, Materialized]:
    """Decompress every constexpr in the file's order, so that nested ones find their arguments dense."""
    made: dict[str, Materialized] = {}
    for operation in operations:
        if operation.op.startswith("constexpr_"):
            made.update(_materialize_one(operation, program, made))
    return made


def _materialize_one(
    operation: Operation, program: Program, made: dict[str, Materialized]
) -> dict[str, Materialized]:
    place = operation.place
    if operation.op not in ARGUMENTS:
        raise ConversionError(f"{place}: this executor does not know the operation '{operation.op}'.")
    check_arguments(operation.op, set(operation.inputs), place)
    values: dict[str, Any] = {}
    sources: dict[str, Constant | StoredForm] = {}
    for key, bindings in operation.inputs.items():
        if len(bindings) != 1:
            raise ArtifactError(f"{place}: {key} is bound to {len(bindings)} values.")
        binding = bindings[0]
        if isinstance(binding, Reference) and binding.name in made:
            values[key], sources[key] = made[binding.name].value, made[binding.name].form
            continue
        constant = binding if isinstance(binding, Constant) else program.constants.get(binding.name)
        if constant is None:
            raise ArtifactError(f"{place}: {key} is not a constant.")
        values[key], sources[key] = constant.value, constant
    dtypes = tuple(t.dtype for _, t in operation.outputs)
    try:
        results = materialize(operation.op, values, dtypes)
    except (ValueError, IndexError, TypeError) as error:
        raise ArtifactError(f"{place} cannot be decompressed: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{place}: {error.message}.") from error
    form = describe_form(operation.op, sources, values)
    out = {}
    for (name, declared), value in zip(operation.outputs, results, strict=True):
        if declared.shape is not None and value.shape != declared.shape:
            raise ArtifactError(f"{place}: declares {declared}, holds {value.shape}.")
        out[name] = Materialized(name, operation.op, declared.dtype, value, form)
    return out
