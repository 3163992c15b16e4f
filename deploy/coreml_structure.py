"""What can be told of a saved CoreML package without executing it: input, outputs, resizes, precision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, ConversionError
from nailcore.facts import Check
from nailcore.variant import Variant

if TYPE_CHECKING:  # the pipeline reads a target's declarations; torch must not come with them
    from deploy.mil.program import Operation, Program

INPUT_NAME = "image"


def read_package(path: Path) -> tuple[Any, Program]:
    """The specification (``Model_pb2.Model``) and the program of the package at ``path``.

    Raises:
        ArtifactError: it is missing, damaged, contradicts itself, or is of a kind or opset that is not
            supported.
    """
    from deploy.mil.blobs import WeightFiles
    from deploy.mil.program import read_program
    from deploy.mil.reader import read_spec

    try:
        spec, model_file = read_spec(path)
        return spec, read_program(spec, WeightFiles(model_file))
    except ConversionError as error:
        raise ArtifactError(f"{path.name}: {error.message}", hint=error.hint) from error


def describe_ops(path: Path) -> dict[str, Any]:
    """How often each operation occurs, for the manifest."""
    spec, program = read_package(path)
    counts = Counter(op.op for op in program.block.operations)
    return {"ops": dict(sorted(counts.items())), "specification_version": spec.specificationVersion}


def _attribute(program: Program, op: Operation, name: str) -> Any:
    """The value of an op's constant argument as a Python value; None where it is left out or computed."""
    from deploy.mil.program import Constant, Reference

    if name not in op.inputs:
        return None
    binding = op.inputs[name][0]
    constant = program.constants.get(binding.name) if isinstance(binding, Reference) else binding
    if not isinstance(constant, Constant):
        return None
    return constant.value.tolist() if isinstance(constant.value, np.ndarray) else constant.value


def check_structure(variant: Variant, artifact: Artifact, path: Path) -> list[Check]:
    """What can be told of a saved package without executing it.

    Raises:
        ArtifactError: the package cannot be read.
    """
    spec, program = read_package(path)
    return [
        _check_input(variant, spec),
        _check_outputs(variant, spec, program),
        _check_resizes(program),
        _check_dilations(variant, program),
        _check_precision(artifact, program),
    ]


def _check_input(variant: Variant, spec: Any) -> Check:
    from coremltools.proto import FeatureTypes_pb2

    feature = spec.description.input[0]
    image = feature.type.imageType
    rgb = image.colorSpace == FeatureTypes_pb2.ImageFeatureType.RGB
    found = (feature.name, image.height, image.width)
    expected = (INPUT_NAME, variant.height_px, variant.width_px)
    space = "RGB" if rgb else FeatureTypes_pb2.ImageFeatureType.ColorSpace.Name(image.colorSpace)
    return Check(
        name="input is an RGB image of the variant's size",
        passed=found == expected and rgb,
        detail=f"{found[0]}: {image.width}×{image.height} {space}",
    )


def _check_outputs(variant: Variant, spec: Any, program: Program) -> Check:
    shapes = {name: kind.shape for op in program.block.operations for name, kind in op.outputs}
    names = [feature.name for feature in spec.description.output]
    found = [(name, shapes.get(name)) for name in names]
    expected = [
        (o.name, (1, o.channels, variant.output_height, variant.output_width)) for o in variant.outputs
    ]
    return Check(
        name="outputs keep names, order and shapes",
        passed=found == expected,
        detail=", ".join(f"{name} {shape}" for name, shape in found),
    )


def _check_resizes(program: Program) -> Check:
    resizes = [op for op in program.block.operations if op.op in ("upsample_bilinear", "resize_bilinear")]
    aligned = [
        op.name
        for op in resizes
        if op.op != "upsample_bilinear" or _attribute(program, op, "align_corners") is not False
    ]
    return Check(
        name="every resize is bilinear ×2 with half-pixel centres",
        passed=len(resizes) == 3 and not aligned,
        detail=f"{len(resizes)} resizes; with other corners: {', '.join(aligned) or 'none'}",
    )


def _check_dilations(variant: Variant, program: Program) -> Check:
    import torch

    from nailcore.nets.cascade import build_cascade

    found: Counter[int] = Counter()
    for op in program.block.operations:
        if op.op == "conv":
            found[int((_attribute(program, op, "dilations") or [1])[0])] += 1
    network = build_cascade(variant)
    del network.fusion16.branch, network.fusion8.branch
    expected = Counter(m.dilation[0] for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    return Check(
        name="convolutions keep their count and dilations",
        passed=found == expected,
        detail=f"by dilation {dict(sorted(found.items()))}, torch {dict(sorted(expected.items()))}",
    )


def _check_precision(artifact: Artifact, program: Program) -> Check:
    config = artifact.made_by.config.get("recipe", {})
    compute = config.get("compute_dtype") if isinstance(config, dict) else None
    wanted = "fp32" if compute in (None, "float32") else "fp16"  # integers are widened to it between pairs
    convolutions = [op for op in program.block.operations if op.op == "conv"]
    other = [op for op in convolutions if op.outputs[0][1].dtype != wanted]
    return Check(
        name=f"convolutions compute in {wanted}",
        passed=bool(convolutions) and not other,
        detail=f"{len(convolutions) - len(other)} of {len(convolutions)} do",
    )
