"""The first layer of a shipped file that leaves its tolerance, by torch module name, with a tested cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmark.causes import (
    Case,
    Cause,
    explain_overflow,
    explain_steps,
    explain_values,
    explain_wiring,
    find_range,
)
from benchmark.causes_conv import explain_conv, explain_kernel_overflow
from benchmark.causes_ends import explain_normalization, explain_output
from benchmark.layer_map import LayerMap, Point, map_layers
from benchmark.layer_tolerance import find_tolerance
from benchmark.torch_graph import TorchGraph, as_input
from deploy import find_target
from model_zoo import find_variant
from nailcore.artifact import Artifact
from nailcore.divergence_facts import Divergence
from nailcore.errors import DataError, MissingToolError
from nailcore.facts import ArtifactRef
from nailcore.runtime import Images, Layer, Runner, Tracer
from nailcore.storage import hash_file

CHUNK_BYTES = 64 << 20  # tensors of the file held at once; each chunk costs one run of the file


@dataclass(frozen=True)
class LayerCheck:
    """One layer of the file against torch's step on the same inputs."""

    point: Point
    module: str
    relative: float  # largest difference over the range of the expected values; infinite: other shape or NaN
    tolerance: float
    passed: bool
    case: Case | None = None  # present when it failed


class Bisection:
    """A file and the network side by side; ``check`` walks the layers of one image."""

    def __init__(
        self, artifact: Artifact, runner: Runner, graph: TorchGraph, engine: str, chunk_bytes: int
    ) -> None:
        if not (hasattr(runner, "trace") and hasattr(runner, "list_layers")):
            raise MissingToolError(
                f"{artifact.label}: {runner.runtime} does not show what its layers compute.",
                hint="Choose another engine of this target.",
            )
        self.artifact = artifact
        self.runner = runner
        self.tracer = cast(Tracer, runner)
        self.graph = graph
        self.chunk_bytes = chunk_bytes
        self.map: LayerMap = map_layers(self.tracer, graph, artifact.output_names, artifact.input_name)
        layers = self.tracer.list_layers()
        self._layers = {layer.name for layer in layers}
        self.tolerance = find_tolerance(artifact, engine, layers)

    def check(self, image: Images) -> Iterator[LayerCheck]:
        """All layers in order of execution; a few tensors are in memory at a time.

        Args:
            image: (1, H, W, 3) uint8 RGB.
        """
        self._image = image
        raw = next(node.name for node in self.graph.nodes.values() if node.kind == "input")
        holder: dict[str, str] = {}  # torch node -> file tensor that stands for it, so far
        for chunk in self._chunk(holder):
            wanted: dict[str, None] = {}
            for point, leaves in chunk:
                wanted.update(dict.fromkeys([*leaves.values(), point.layer.name]))
            held = {
                name: torch.from_numpy(np.ascontiguousarray(value))
                for name, value in self.tracer.trace(image, list(wanted)).items()
            }
            for point, leaves in chunk:
                given = {node: held[tensor] for node, tensor in leaves.items()}
                if point.kind != "same" and raw in self.graph.leaves(point.node, leaves):
                    given[raw] = as_input(image)
                yield self._check_point(point, given, held[point.layer.name])

    def _chunk(self, holder: dict[str, str]) -> Iterator[list[tuple[Point, dict[str, str]]]]:
        chunk: list[tuple[Point, dict[str, str]]] = []
        tensors: dict[str, int] = {}
        for point in self.map.points:
            if point.kind == "same":
                nodes = [point.node] if point.node in holder else []
            else:
                nodes = [node for node in self.graph.leaves(point.node, holder) if node in holder]
            leaves = {node: holder[node] for node in nodes}
            size = self.graph.nodes[point.node].size_bytes
            new = {tensor: self.graph.nodes[node].size_bytes for node, tensor in leaves.items()}
            new[point.layer.name] = size
            if chunk and sum({**tensors, **new}.values()) > self.chunk_bytes:
                yield chunk
                chunk, tensors = [], {}
            chunk.append((point, leaves))
            tensors.update(new)
            holder[point.node] = point.layer.name
        if chunk:
            yield chunk

    def _check_point(self, point: Point, given: dict[str, torch.Tensor], found: torch.Tensor) -> LayerCheck:
        limits = self.tolerance
        weight, kernel_ok = None, True
        if point.kind == "same":
            given = given or {point.node: as_input(self._image)}  # a cast of the image itself
        elif point.core and point.kernel_is_whole:
            weight = self.tracer.read_weight(point.core)
        case = Case(self.graph, point, given, found, limits, weight, self._fetch, self.map.tensors)
        limit = case.tolerance
        if case.conv is not None:
            kernel_ok = weight is None or case.weight_is_ours
            limit = case.limit
        relative = case.error
        passed = kernel_ok and relative <= limit
        module = self.graph.nodes[point.node].module
        return LayerCheck(point, module, relative, limit, passed, None if passed else case)

    def is_correction(self, check: LayerCheck, cause: Cause) -> bool:
        """Whether a failed layer of a calibrated file differs by its bias alone, by less than rounding may.

        Bias correction does that on purpose; it leaves the kernel and the rest of the step alone.
        """
        recipe = self.artifact.made_by.config.get("recipe", {})
        if recipe.get("calibration") is None or self.tolerance.weight:
            return False
        if check.relative > self.tolerance.stored:
            return False
        return cause.name == "changed bias" and cause.confirmed

    def _fetch(self, tensor: str) -> torch.Tensor:
        if self.graph.nodes[self.map.tensors[tensor]].kind == "input" and tensor not in self._layers:
            return as_input(self._image)
        return torch.from_numpy(self.tracer.trace(self._image, [tensor])[tensor])

    def check_outputs(self, image: Images) -> tuple[str, Cause, torch.Tensor, torch.Tensor] | None:
        """(output, cause, expected, found) of the first output that is not what its last layer holds."""
        found = {name: torch.from_numpy(value) for name, value in self.runner.run(image).items()}
        expected: dict[str, torch.Tensor] = {}
        holder = {node: tensor for tensor, node in self.map.tensors.items()}
        for name, node in self.graph.outputs.items():
            leaves = [node] if node in holder else self.graph.leaves(node, holder)
            given = {leaf: self._fetch(holder[leaf]) for leaf in leaves}
            expected[name] = self.graph.evaluate(node, given)
        limit = self.tolerance.arithmetic
        for name, value in expected.items():
            same = found[name].shape == value.shape
            error = float((found[name] - value).abs().max()) / find_range(value) if same else np.inf
            if error <= limit:
                continue
            cause = explain_output(name, expected, found, limit)
            return name, cause or _unexplained(), value, found[name]
        return None


def _unexplained() -> Cause:
    return Cause("unexplained", "none of the known causes explains it", np.inf, confirmed=False)


def diagnose(check: LayerCheck) -> Cause:
    """The likeliest cause of a failed layer."""
    case = check.case
    if case is None:
        raise ValueError(f"{check.point.layer.name} passed")
    cause = explain_overflow(case)
    if cause is not None:
        return cause if cause.confirmed else explain_kernel_overflow(case) or cause
    missing = _explain_missing_activation(case)
    if missing is not None:
        return missing
    guesses: list[Cause] = []
    for explain in (explain_normalization, explain_conv, explain_steps, explain_wiring, explain_values):
        cause = explain(case)
        if cause is not None and cause.confirmed:
            return cause
        if cause is not None:
            guesses.append(cause)
    return min(guesses, key=lambda guess: guess.residual) if guesses else _unexplained()


def _explain_missing_activation(case: Case) -> Cause | None:
    """The file has no layer for an activation: its values are those before it."""
    point, graph = case.point, case.graph
    if not point.instead:
        return None
    before = graph.evaluate(point.instead, case.given, case.base)
    residual = case.residual(before)
    if residual > case.limit:
        return None
    node = graph.nodes[point.node]
    bounds = (
        f"clips to [{node.parameters['min']:g}, {node.parameters['max']:g}]" if node.kind == "clip" else ""
    )
    said = f"the file has no activation here; the network {bounds or 'rectifies'}"
    return Cause("missing activation", said, residual, node.module)


def locate(expected: torch.Tensor, found: torch.Tensor, margin: int) -> tuple[str, list[int]]:
    """Where the error sits, in words, and the channels that differ (empty: all of them)."""
    if expected.shape != found.shape:
        return f"the shape is {tuple(found.shape)}, the network's {tuple(expected.shape)}", []
    error = (found - expected).abs()
    error = torch.where(torch.isfinite(error), error, torch.full_like(error, float(find_range(expected))))
    peak = error.flatten(2).amax((0, 2)) if error.dim() == 4 else error.flatten()
    hit = [int(i) for i in (peak > 0.01 * peak.max()).nonzero().flatten()]
    channels = [] if len(hit) == len(peak) else hit
    words = [_tell_place(error, margin)] if error.dim() == 4 else []
    words.append(_tell_channels(hit, len(peak)))
    constant = _tell_pattern(expected, found)
    return ", ".join([*words, *([constant] if constant else [])]), channels


def _tell_place(error: torch.Tensor, margin: int) -> str:
    squared = (error.double() ** 2).sum((0, 1))
    total = float(squared.sum()) or 1.0
    if min(squared.shape) <= 2 * margin + 2:
        return "everywhere"
    inside = float(squared[margin:-margin, margin:-margin].sum()) / total
    if inside < 0.02:
        sides = {
            "top": squared[:margin], "bottom": squared[-margin:],
            "left": squared[:, :margin], "right": squared[:, -margin:],
        }  # fmt: skip
        hit = [name for name, part in sides.items() if float(part.sum()) > 0.02 * total]
        return f"only within {margin} px of the edge ({', '.join(hit)})"
    return "everywhere"


def _tell_channels(hit: list[int], count: int) -> str:
    if len(hit) == count:
        return "all channels"
    shown = ", ".join(map(str, hit[:8])) + (", …" if len(hit) > 8 else "")
    return f"{len(hit)} of {count} channels ({shown})"


def _tell_pattern(expected: torch.Tensor, found: torch.Tensor) -> str:
    if expected.dim() != 4:
        return ""
    difference = (found - expected).double()
    spread = difference.flatten(2).std(2).max()
    level = difference.flatten(2).mean(2).abs().max()
    return "constant in each channel" if float(level) > 0 and float(spread) < 0.01 * float(level) else ""


def find_first_divergence(
    artifact: Artifact,
    path: Path,
    weights: Path,
    images: Images,
    engine: str = "",
    *,
    names: Sequence[str] = (),
    chunk_bytes: int = CHUNK_BYTES,
) -> Divergence | None:
    """The first layer that does not compute what torch computes from the same inputs; None: all do.

    Every layer is judged by its own error: torch's step is fed with the file's own input tensors, so
    earlier errors and a quantizer's rounding upstream do not count. Then the outputs are compared by name.

    Args:
        artifact: its manifest.
        path: the file to execute.
        weights: of the network it was built from.
        images: (N, H, W, 3) uint8 RGB at the variant's size; the first one that diverges is told.
        engine: of the target; default: its usual one.
        names: of the images, for the result.
        chunk_bytes: bound on the tensors held at once (one layer and its inputs always fit).

    Raises:
        ArtifactError: the file cannot be opened, or is of another network.
        MissingToolError: the engine is not here, or does not show its layers.
        WeightsError, DataError: no reference, no image.
    """
    if not len(images):
        raise DataError("No image to look for a divergence with.")
    variant = find_variant(artifact.variant)
    graph = TorchGraph(variant, weights)
    target = find_target(artifact.kind)
    runner = target.open_runner(artifact, path, engine)
    try:
        search = Bisection(artifact, runner, graph, engine or target.ENGINES[0].name, chunk_bytes)
        facts = {
            "artifact": ArtifactRef.of(artifact),
            "weights_sha256": hash_file(weights),
            "engine": engine or target.ENGINES[0].name,
            "runtime": runner.runtime,
            "versions": {**runner.versions, "torch": str(torch.__version__)},
            "layers": len(search.map.points),
        }
        for place in range(len(images)):
            facts["image"] = names[place] if place < len(names) else f"image {place + 1}"
            found = _search_image(search, images[place : place + 1], facts)
            if found is not None:
                return found
        return None
    finally:
        runner.close()


def _search_image(search: Bisection, image: Images, facts: Mapping[str, Any]) -> Divergence | None:
    checked = 0
    for check in search.check(image):
        checked += 1
        if check.passed:
            continue
        cause = diagnose(check)
        if not search.is_correction(check, cause):
            return _tell_layer(search, image, check, cause, {**facts, "layers_checked": checked})
    wrong = search.check_outputs(image)
    return _tell_output(search, wrong, {**facts, "layers_checked": checked}) if wrong else None


def _tell_layer(
    search: Bisection, image: Images, check: LayerCheck, cause: Cause, facts: dict[str, Any]
) -> Divergence:
    case, point, graph = check.case, check.point, search.graph
    assert case is not None  # noqa: S101 - a failed check carries its case
    expected = graph.evaluate(point.node, case.given)
    difference = _max_abs(expected, case.found)
    reference = torch.from_numpy(search.graph.run(image, [point.node])[point.node])
    conv = case.conv
    margin = 1
    if conv is not None:
        margin = max(1, int(conv.parameters["dilation"][0]) * (conv.parameters["weight"].shape[2] // 2))
    where, channels = locate(expected, case.found, margin)
    core = next((layer for layer in point.via if layer.name == point.core), point.layer)
    main = conv if conv is not None and point.core else graph.nodes[point.node]
    return Divergence(
        **facts,
        layer=core.name,
        op=core.op,
        module=cause.module or main.module,
        torch_op=main.kind,
        file_attributes=_say(core, point.via),
        torch_attributes=main.attributes,
        max_abs=difference,
        relative=None if difference is None else difference / find_range(expected),
        tolerance=check.tolerance,
        accumulated_max_abs=_max_abs(reference, case.found),
        where=where,
        channels=channels,
        cause=cause.name,
        detail=cause.detail,
        confirmed=cause.confirmed,
        residual=cause.residual if np.isfinite(cause.residual) else None,
    )


def _tell_output(
    search: Bisection, wrong: tuple[str, Cause, torch.Tensor, torch.Tensor], facts: dict[str, Any]
) -> Divergence:
    name, cause, expected, found = wrong
    node = search.graph.nodes[search.graph.outputs[name]]
    difference = _max_abs(expected, found)
    where, channels = locate(expected, found, 1)
    return Divergence(
        **facts,
        layer=search.artifact.output_names[name],
        op="output",
        module=node.module,
        torch_op=node.kind,
        file_attributes={"tensor": search.artifact.output_names[name], "shape": str(tuple(found.shape))},
        torch_attributes={"output": name, "shape": str(tuple(expected.shape))},
        max_abs=difference,
        relative=None if difference is None else difference / find_range(expected),
        tolerance=search.tolerance.arithmetic,
        accumulated_max_abs=difference,
        where=where,
        channels=channels,
        cause=cause.name,
        detail=cause.detail,
        confirmed=cause.confirmed,
        residual=cause.residual if np.isfinite(cause.residual) else None,
    )


def _say(layer: Layer, via: Sequence[Layer]) -> dict[str, str]:
    said = {key: str(value) for key, value in layer.attributes.items()}
    others = [each.op for each in via if each.name != layer.name]
    return {**said, **({"together with": ", ".join(others)} if others else {})}


def _max_abs(expected: torch.Tensor, found: torch.Tensor) -> float | None:
    if expected.shape != found.shape:
        return None
    value = float((expected - found).abs().max())
    return value if np.isfinite(value) else None
