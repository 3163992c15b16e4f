"""Identity gate of CoreML: is the shipped package its float32 sibling, but for the rounding it declares?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.coreml_bounds import Breach, measure_loss
from deploy.coreml_weights import FLOATS, Stored, is_compressed, read_constant, read_constants
from deploy.mil.blobs import WeightFiles
from deploy.mil.program import Operation, Program, Reference, read_program
from deploy.mil.reader import read_spec
from nailcore.errors import ArtifactError
from nailcore.storage import hash_file, list_files

# What compression passes and converters note about themselves says nothing about the program.
_TOOL_NOTES = "com.github.apple.coremltools."


@dataclass(frozen=True)
class Source:
    """Where a tensor comes from, by position: names may differ between siblings."""

    node: int  # index among the compared operations; -1 - i: the function's input i
    output: int = 0


@dataclass(frozen=True)
class Node:
    """One operation that computes something, its casts and decompressions looked through."""

    name: str
    op: str
    inputs: Mapping[str, tuple[Source | Stored, ...]]
    shapes: tuple[Any, ...]
    nested: bool


@dataclass(frozen=True)
class Quantizer:
    """A tensor rounded to integers and back: its levels, and whether both directions say the same."""

    name: str
    source: Source
    low: float
    high: float
    agrees: bool


@dataclass(frozen=True)
class Package:
    """A saved package as the identity gate sees it."""

    path: Path
    spec: Any
    nodes: tuple[Node, ...]
    outputs: Mapping[str, Source]
    constants: Mapping[str, Stored]
    hashes: Mapping[str, str]  # of every file below it
    quantizers: tuple[Quantizer, ...] = ()  # looked through, as casts are


@dataclass
class Findings:
    """What differs, worst things first come first, and how close to its bound the worst weight is."""

    breaches: list[str] = field(default_factory=list)
    operations: int = 0
    constants: int = 0
    weights: int = 0
    bound_share: float = 0.0  # 1: a weight lost all that its storage form allows
    worst_weight: str = ""


def open_package(path: Path) -> Package:
    """Read a package for comparison.

    Raises:
        ArtifactError: it is damaged or contradicts itself.
        ConversionError: it is of a kind or opset that is not supported.
    """
    spec, model_file = read_spec(path)
    program = read_program(spec, WeightFiles(model_file))
    constants = read_constants(program)
    nodes, outputs, quantizers = _look_through(program, constants)
    hashes = {file.relative_to(path).as_posix(): hash_file(file) for file in list_files(path)}
    return Package(path, spec, nodes, outputs, constants, hashes, quantizers)


def _look_through(
    program: Program, constants: Mapping[str, Stored]
) -> tuple[tuple[Node, ...], dict[str, Source], tuple[Quantizer, ...]]:
    types = {name: kind.dtype for name, kind in program.block.inputs}
    types |= {name: kind.dtype for op in program.block.operations for name, kind in op.outputs}
    known: dict[str, Source | Stored] = dict(constants)
    known |= {name: Source(-1 - i) for i, (name, _) in enumerate(program.block.inputs)}
    nodes: list[Node] = []
    steps: dict[str, tuple[Any, ...]] = {}  # of each integer tensor
    quantizers: list[Quantizer] = []
    for op in program.block.operations:
        if is_compressed(op):
            continue
        if op.op in ("quantize", "dequantize"):
            source = _resolve(op, "input", known)[0]
            known[op.outputs[0][0]] = source
            if op.op == "quantize":
                steps[op.outputs[0][0]] = _read_steps(op, known, op.outputs[0][1].dtype)
            elif isinstance(source, Source):
                quantizers.append(_pair(op, source, steps, known))
            continue
        if _is_float_cast(op, types):
            known[op.name] = _resolve(op, "x", known)[0]
            continue
        inputs = {key: _resolve(op, key, known) for key in sorted(op.inputs)}
        shapes = tuple(kind.shape for _, kind in op.outputs)
        for i, (name, _) in enumerate(op.outputs):
            known[name] = Source(len(nodes), i)
        nodes.append(Node(op.name, op.op, inputs, shapes, bool(op.blocks)))
    outputs = {}
    for name in program.block.outputs:
        computed = known.get(name)
        if not isinstance(computed, Source):
            raise ArtifactError(f"Output '{name}' is not computed by the program.")
        outputs[name] = computed
    return tuple(nodes), outputs, tuple(quantizers)


def _read_steps(op: Operation, known: Mapping[str, Source | Stored], dtype: str) -> tuple[Any, ...]:
    """(scale, zero point, integer type) of a quantize or dequantize, one for the whole tensor."""
    found: list[float] = []
    for argument in ("scale", "zero_point"):
        if argument not in op.inputs:
            found.append(0.0)
            continue
        value = _resolve(op, argument, known)[0]
        if isinstance(value, Source) or value.values.size != 1:
            raise ArtifactError(f"{op.place}: {argument} is not one number, which is all that is known here.")
        found.append(float(value.values.reshape(())))
    return found[0], found[1], dtype


def _pair(
    op: Operation,
    source: Source,
    steps: Mapping[str, tuple[Any, ...]],
    known: Mapping[str, Source | Stored],
) -> Quantizer:
    binding = op.inputs["input"][0]
    written = steps.get(binding.name) if isinstance(binding, Reference) else None
    if written is None:
        raise ArtifactError(f"{op.place}: dequantizes what nothing quantized.")
    scale, zero, dtype = written
    lowest = -128 if dtype == "int8" else 0
    agrees = _read_steps(op, known, dtype) == written
    return Quantizer(op.name, source, scale * (lowest - zero), scale * (lowest + 255 - zero), agrees)


def _is_float_cast(op: Operation, types: Mapping[str, str]) -> bool:
    source = op.inputs["x"][0] if op.op == "cast" and "x" in op.inputs else None
    return (
        isinstance(source, Reference)
        and types.get(source.name, "fp32") in FLOATS
        and op.outputs[0][1].dtype in FLOATS
    )


def _resolve(
    op: Operation, argument: str, known: Mapping[str, Source | Stored]
) -> tuple[Source | Stored, ...]:
    found: list[Source | Stored] = []
    for binding in op.inputs[argument]:
        if not isinstance(binding, Reference):
            found.append(read_constant(binding, f"{op.name}.{argument}"))
        elif binding.name in known:
            found.append(known[binding.name])
        else:
            raise ArtifactError(f"{op.place}: {argument} refers to '{binding.name}', which nothing computes.")
    return tuple(found)


def compare_packages(shipped: Package, sibling: Package, *, exact: bool = False) -> Findings:
    """All that tells the shipped package from its sibling beyond rounding within each weight's bound.

    ``exact``: the sibling's kernels were rounded to the shipped levels before (see ``measure_loss``).
    """
    findings = Findings(operations=len(shipped.nodes))
    findings.breaches += _compare_descriptions(shipped, sibling)
    if [n.op for n in shipped.nodes] != [n.op for n in sibling.nodes]:
        findings.breaches.append(_first_other_op(shipped, sibling))
        return findings  # positions mean nothing any more
    for ours, theirs in zip(shipped.nodes, sibling.nodes, strict=True):
        findings.breaches += _compare_nodes(ours, theirs, findings, exact=exact)
    for name, source in sibling.outputs.items():
        found = shipped.outputs.get(name)
        if found != source:
            came = shipped.nodes[found.node].name if found and found.node >= 0 else "nothing"
            wanted = sibling.nodes[source.node].name if source.node >= 0 else "the input"
            findings.breaches.append(f"output '{name}' is computed by '{came}', in the sibling by '{wanted}'")
    return findings


def _first_other_op(shipped: Package, sibling: Package) -> str:
    for i, (ours, theirs) in enumerate(zip(shipped.nodes, sibling.nodes, strict=False)):
        if ours.op != theirs.op:
            return f"operation {i} is {ours.op} '{ours.name}', in the sibling {theirs.op} '{theirs.name}'"
    longer, whose = max(
        (shipped, "the shipped file"), (sibling, "the sibling"), key=lambda p: len(p[0].nodes)
    )
    extra = longer.nodes[min(len(shipped.nodes), len(sibling.nodes))]
    return (
        f"{len(shipped.nodes)} operations, in the sibling {len(sibling.nodes)}; "
        f"{extra.op} '{extra.name}' is in {whose} alone"
    )


def _compare_nodes(ours: Node, theirs: Node, findings: Findings, *, exact: bool) -> Iterator[str]:
    label = f"{ours.op} '{ours.name}'"
    if ours.nested or theirs.nested:
        yield f"{label} holds blocks of its own, which are not compared"
    if ours.shapes != theirs.shapes:
        yield f"{label} has output shape {ours.shapes}, in the sibling {theirs.shapes}"
    for argument in sorted({*ours.inputs, *theirs.inputs}):
        if argument not in ours.inputs or argument not in theirs.inputs:
            where = "no" if argument not in ours.inputs else "an additional"
            yield f"{label} has {where} {argument}"
            continue
        pair = ours.inputs[argument], theirs.inputs[argument]
        if len(pair[0]) != len(pair[1]):
            yield f"{label}: {argument} has {len(pair[0])} values, in the sibling {len(pair[1])}"
            continue
        for a, b in zip(*pair, strict=True):
            yield from _compare_arguments(f"{argument} of {label}", a, b, findings, exact=exact)


def _compare_arguments(
    place: str, ours: Source | Stored, theirs: Source | Stored, findings: Findings, *, exact: bool
) -> Iterator[str]:
    if isinstance(ours, Source) or isinstance(theirs, Source):
        if ours != theirs:
            yield f"{place} comes from another operation than in the sibling"
        return
    findings.constants += 1
    findings.weights += ours.is_weight
    if ours.values.shape != theirs.values.shape:
        yield f"{place} has shape {ours.values.shape}, in the sibling {theirs.values.shape}"
    elif ours.is_float and theirs.is_float:
        share, breach = measure_loss(ours, np.asarray(theirs.values, np.float64), exact=exact)
        if share > findings.bound_share:
            findings.bound_share, findings.worst_weight = share, ours.name
        if breach is not None:
            yield _describe_breach(place, ours, breach)
    elif ours.is_float != theirs.is_float or not np.array_equal(ours.values, theirs.values):
        yield f"{place} is {_show(ours.values)}, in the sibling {_show(theirs.values)}"


def _describe_breach(place: str, stored: Stored, breach: Breach) -> str:
    what = "weight" if stored.is_weight else "constant"
    return f"{what} '{stored.name}' ({place}, {stored.form}) {breach}"


def _show(values: npt.NDArray[Any]) -> str:
    text = str(values.tolist())
    return text if len(text) <= 60 else text[:57] + "..."


def _compare_descriptions(shipped: Package, sibling: Package) -> Iterator[str]:
    ours, theirs = shipped.spec.description, sibling.spec.description
    for kind in ("input", "output"):
        a, b = (list(map(_describe_feature, getattr(d, kind))) for d in (ours, theirs))
        if [name for name, _ in a] != [name for name, _ in b]:
            yield f"{kind}s are {[name for name, _ in a]}, in the sibling {[name for name, _ in b]}"
            continue
        for (name, found), (_, expected) in zip(a, b, strict=True):
            if found != expected:
                yield f"{kind} '{name}' is {found}, in the sibling {expected}"
    for key in ("shortDescription", "versionString", "author", "license"):
        found, expected = getattr(ours.metadata, key), getattr(theirs.metadata, key)
        if found != expected:
            yield f"metadata {key} is '{found}', in the sibling '{expected}'"
    notes = [
        {k: v for k, v in d.metadata.userDefined.items() if not k.startswith(_TOOL_NOTES)}
        for d in (ours, theirs)
    ]
    if notes[0] != notes[1]:
        yield f"metadata notes are {notes[0]}, in the sibling {notes[1]}"
    if sorted(shipped.hashes) != sorted(sibling.hashes):
        odd = sorted(set(shipped.hashes) ^ set(sibling.hashes))
        yield f"files of one package are missing in the other: {', '.join(odd)}"


def _describe_feature(feature: Any) -> tuple[str, str]:
    """Name and type in words; the element type of an array may be rounded, all else may not differ."""
    from coremltools.proto import FeatureTypes_pb2

    kind = type(feature.type)()
    kind.CopyFrom(feature.type)
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        space = FeatureTypes_pb2.ImageFeatureType.ColorSpace.Name(image.colorSpace)
        words = f"image {image.width}×{image.height} {space}"
        image.width = image.height = image.colorSpace = 0
    elif kind.WhichOneof("Type") == "multiArrayType":
        words = f"array {list(kind.multiArrayType.shape)}"
        kind.multiArrayType.dataType = 0
        del kind.multiArrayType.shape[:]
    else:
        words = str(kind.WhichOneof("Type"))
    rest = " ".join(str(kind).split())
    return feature.name, f"{words} ({rest})" if kind.ByteSize() > 2 else words


def find_foreign_weights(package: Package, tensors: Mapping[str, npt.NDArray[np.float32]]) -> list[str]:
    """What a float32 package holds that is not, bit for bit, a tensor of the torch network, and reverse.

    ``tensors``: of the export form, by torch name. Equal tensors may be stored once, under one name.
    """
    stored = {name: c for name, c in package.constants.items() if c.is_weight}
    spelled = {name.replace(".", "_"): value for name, value in tensors.items()}
    problems = []
    contents = {value.tobytes() for value in spelled.values()}
    for name, constant in stored.items():
        expected = spelled.get(name)
        found = np.asarray(constant.values, np.float32)
        if expected is None:
            # A shared tensor keeps the name of its first user.
            if found.tobytes() not in contents:
                problems.append(f"weight '{name}' is no tensor of the torch network")
        elif found.shape != expected.shape or found.tobytes() != expected.tobytes():
            problems.append(f"weight '{name}' is not bit for bit the torch network's")
    present = {np.asarray(c.values, np.float32).tobytes() for c in package.constants.values() if c.is_float}
    problems += [
        f"tensor '{name}' of the torch network is missing"
        for name, value in tensors.items()
        if value.tobytes() not in present
    ]
    return problems
