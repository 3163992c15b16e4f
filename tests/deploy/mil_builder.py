"""Small packages for the tests of the MIL reference: from torch modules, or from MIL written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deploy.coremltools_import import import_coremltools, silence_coremltools
from deploy.mil import MilModel, load_package

Array = npt.NDArray[Any]
OPSETS = (15, 16, 17, 18)


def target_of(opset: int) -> Any:
    """coremltools' deployment target of an iOS release."""
    return getattr(import_coremltools().target, f"iOS{opset}")


def convert_module(
    module: torch.nn.Module,
    example: Sequence[torch.Tensor],
    path: Path,
    *,
    opset: int = 15,
    half: bool = False,
    inputs: Sequence[Any] | None = None,
    **options: Any,
) -> MilModel:
    """Trace and convert a module, save it, and open what was saved."""
    ct = import_coremltools()
    with silence_coremltools(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), tuple(example))  # type: ignore[no-untyped-call]
        model = ct.convert(
            traced,
            inputs=inputs or [ct.TensorType(f"x{i}", shape=t.shape) for i, t in enumerate(example)],
            minimum_deployment_target=target_of(opset),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            convert_to="mlprogram",
            skip_model_load=True,
            **options,
        )
        model.save(str(path))
    return load_package(path)


def convert_exported(module: torch.nn.Module, example: torch.Tensor, path: Path, *, opset: int) -> MilModel:
    """The other way into coremltools: torch.export instead of a trace."""
    ct = import_coremltools()
    with silence_coremltools(), torch.no_grad():
        exported = torch.export.export(module.eval(), (example,)).run_decompositions({})
        model = ct.convert(
            exported,
            minimum_deployment_target=target_of(opset),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(path))
    return load_package(path)


def run_module(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> list[Array]:
    """What torch computes, as arrays."""
    with torch.inference_mode():
        result = module.eval()(*example)
    return [r.numpy() for r in (result if isinstance(result, tuple | list) else (result,))]


def build_package(
    build: Callable[..., Any], inputs: dict[str, Array], path: Path, *, opset: int = 15, half: bool = False
) -> MilModel:
    """A package from ``build(mb, **variables)``, which writes MIL with coremltools' own builder."""
    ct = import_coremltools()
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its name everywhere
    from coremltools.converters.mil.mil import types

    kinds = {"f": types.fp32, "i": types.int32, "u": types.int32, "b": types.bool}
    places = {k: mb.placeholder(shape=v.shape, dtype=kinds[v.dtype.kind]) for k, v in inputs.items()}
    program = mil.Program()
    with silence_coremltools(), mil.Function(places, opset_version=target_of(opset)) as function:
        results = build(mb, **function.inputs)
        function.set_outputs(list(results) if isinstance(results, list | tuple) else [results])
    program.add_function("main", function)
    with silence_coremltools():
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=target_of(opset),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return load_package(path)


def infer_value(name: str, opset: int, arguments: dict[str, Any]) -> list[Array]:
    """What coremltools itself computes for an operation on constants (its value inference)."""
    import_coremltools()
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its name everywhere

    with silence_coremltools(), mil.Function({}, opset_version=target_of(opset)):
        result = getattr(mb, name)(**arguments)
        variables = result if isinstance(result, tuple | list) else (result,)
        if any(v.val is None for v in variables):
            raise AssertionError(f"{name}: coremltools infers no value")
        return [np.asarray(v.val) for v in variables]
