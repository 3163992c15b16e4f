"""Why a layer differs: hypotheses are recomputed with torch, and one is believed when the error vanishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmark.layer_map import Point
from benchmark.layer_tolerance import Tolerance
from benchmark.torch_graph import TorchGraph, TorchNode

F32 = npt.NDArray[np.float32]
_PARTLY = 0.1  # a hypothesis that leaves less than this share of the error is told as likely, unconfirmed


@dataclass(frozen=True)
class Cause:
    """One explanation. ``residual``: error left under it, as a share of the layer's range."""

    name: str  # "dropped bias", "dilation", ...
    detail: str  # one sentence
    residual: float
    module: str = ""  # where another module than the layer's own is to blame
    confirmed: bool = True


@dataclass(frozen=True)
class Hypothesis:
    """A change to the network that would make it compute what the file computes."""

    name: str
    detail: str
    changes: Mapping[str, Mapping[str, Any]]  # torch node -> replaced parameters
    module: str = ""


@dataclass
class Case:
    """One diverging layer with all that is needed to explain it."""

    graph: TorchGraph
    point: Point
    given: dict[str, torch.Tensor]  # the file's own tensors the step rests on, by torch node
    found: torch.Tensor  # what the file computes
    limits: Tolerance
    weight: F32 | None = None  # kernel in the file
    fetch: Callable[[str], torch.Tensor] | None = None  # any other tensor of the file, by name
    tensors: Mapping[str, str] = field(default_factory=dict)  # file tensor -> torch node
    base: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # changes that are no defect

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight_is_ours and self.conv is not None:
            self.base = {self.conv.name: {"weight": torch.tensor(self.weight)}}

    @property
    def weight_is_ours(self) -> bool:
        """The file's kernel is the trained one, but for its format's rounding."""
        if self.weight is None or self.conv is None:
            return False
        return self.limits.same_kernel(self.weight, self.conv.parameters["weight"].numpy())

    @property
    def tolerance(self) -> float:
        """Of the arithmetic, and of a bias that is stored as the kernel is."""
        return self.limits.arithmetic + self._bias_rounding

    @cached_property
    def _bias_rounding(self) -> float:
        bias = self.conv.parameters["bias"] if self.conv is not None else None
        if bias is None or self.limits.weight < 1e-5:  # float32; unknown formats have their own margin
            return 0.0
        return self.limits.weight * float(bias.abs().max()) / self.scale

    @property
    def limit(self) -> float:
        """Error at which a layer is right: with the stored weights' rounding where that stays unknown."""
        return self.tolerance + (0.0 if self.base else self.limits.stored)

    @property
    def steps(self) -> list[TorchNode]:
        """Torch steps between the given tensors and the layer's end."""
        return self.graph.between(list(self.given), self.point.node)

    @property
    def conv(self) -> TorchNode | None:
        """The step's convolution."""
        return next((n for n in reversed(self.steps) if n.kind == "conv"), None)

    def find(self, *kinds: str) -> TorchNode | None:
        """The last step of one of these kinds."""
        return next((n for n in reversed(self.steps) if n.kind in kinds), None)

    def expected(self, changes: Mapping[str, Mapping[str, Any]] | None = None) -> torch.Tensor:
        """What torch makes of the file's own inputs, under a hypothesis."""
        merged: dict[str, dict[str, Any]] = {name: dict(values) for name, values in self.base.items()}
        for name, values in (changes or {}).items():
            merged.setdefault(name, {}).update(values)
        return self.graph.evaluate(self.point.node, self.given, merged)

    @cached_property
    def scale(self) -> float:
        """Range of what is expected: errors are told as shares of it."""
        return find_range(self.expected())

    def residual(self, value: torch.Tensor) -> float:
        """Largest difference to what the file computes, as a share of the layer's range."""
        if value.shape != self.found.shape:
            return np.inf
        difference = float((value - self.found).abs().max()) / self.scale
        return difference if np.isfinite(difference) else np.inf

    @property
    def error(self) -> float:
        """The divergence itself."""
        return self.residual(self.expected())

    def try_all(self, hypotheses: Iterable[Hypothesis]) -> Cause | None:
        """The first hypothesis under which the error vanishes, or the best one that explains most of it."""
        best: Cause | None = None
        error = self.error
        for hypothesis in hypotheses:
            try:
                residual = self.residual(self.expected(hypothesis.changes))
            except RuntimeError:  # shapes that torch cannot convolve: not what the file does
                continue
            sure = self._agrees(hypothesis, residual, error)
            cause = Cause(hypothesis.name, hypothesis.detail, residual, hypothesis.module, confirmed=sure)
            if sure:
                return cause
            if residual <= _PARTLY * min(error, 1e9) and (best is None or residual < best.residual):
                best = cause
        return best

    def _agrees(self, hypothesis: Hypothesis, residual: float, error: float) -> bool:
        """Whether the error vanished, and proves something: a kernel must also be the file's own."""
        conv = self.conv
        if conv is not None and self.weight is not None and "weight" in hypothesis.changes.get(conv.name, {}):
            weight = hypothesis.changes[conv.name]["weight"].detach().numpy()
            if np.array_equal(weight, self.weight):
                return residual <= self.tolerance
            return residual <= self.limit and self.limits.same_kernel(self.weight, weight, 2)
        return residual <= min(self.limit, 0.3 * error)


def find_range(value: torch.Tensor) -> float:
    """Largest minus smallest value; the largest magnitude when all are equal."""
    low, high = float(value.min()), float(value.max())
    return (high - low) or abs(high) or 1.0


def explain_steps(case: Case) -> Cause | None:
    """Activations, sums, resizes and pools: everything but the convolution itself."""
    return case.try_all(_suggest_steps(case))


def _suggest_steps(case: Case) -> Iterable[Hypothesis]:
    for node in reversed(case.steps):
        if node.kind in ("clip", "relu"):
            yield from _suggest_clips(case, node)
        elif node.kind == "resize":
            yield from _suggest_resizes(node)
        elif node.kind == "pool":
            yield Hypothesis(
                "pooling", "it takes the maximum, the network the mean", {node.name: {"mode": "max"}}
            )
        elif node.kind == "sub":
            said = "the mean colour is not subtracted"
            yield Hypothesis("normalization", said, {node.name: {"skip": True}}, node.module)
        elif node.kind == "add":
            yield Hypothesis("missing operand", "only the first operand arrives", {node.name: {"skip": True}})


def _suggest_clips(case: Case, node: TorchNode) -> Iterable[Hypothesis]:
    low, high = node.parameters.get("min", 0.0), node.parameters.get("max", np.inf)
    ours = f"the network clips to [{low:g}, {high:g}]"
    gone = f"the activation is missing from the file; {ours}"
    yield Hypothesis("missing activation", gone, {node.name: {"skip": True}}, node.module)
    if node.kind == "relu":  # as a clip it can take bounds
        return
    if node.name != case.point.node:
        return
    found = (float(case.found.min()), float(case.found.max()))
    for bounds in ((low, np.inf), (low, found[1]), found, (found[0], high), (-np.inf, high)):
        said = "no upper bound" if bounds == (low, np.inf) else f"[{bounds[0]:g}, {bounds[1]:g}]"
        change = {node.name: {"min": bounds[0], "max": bounds[1]}}
        yield Hypothesis("clip bound", f"it clips to {said}; {ours}", change, node.module)


def _suggest_resizes(node: TorchNode) -> Iterable[Hypothesis]:
    ours = "the network interpolates bilinearly with half-pixel centres (corners not aligned)"
    for name, said, change in (
        ("corner alignment", "it aligns the corners", {"align_corners": True}),
        ("coordinate mode", "it samples without half-pixel centres (asymmetric)", {"mode": "asymmetric"}),
        ("interpolation mode", "it repeats the nearest pixel", {"mode": "nearest"}),
        ("interpolation mode", "it interpolates bicubically", {"mode": "bicubic"}),
    ):
        yield Hypothesis(name, f"{said}; {ours}", {node.name: change}, node.module)


def explain_wiring(case: Case) -> Cause | None:
    """The layer reads other tensors than the network's step does."""
    if case.fetch is None:
        return None
    layer = case.point.via[0] if case.point.via else case.point.layer
    theirs = [name for name in layer.inputs if name in case.tensors]
    expected = list(case.given)
    strange = [name for name in theirs if case.tensors[name] not in expected]
    missing = [name for name in expected if name not in {case.tensors[t] for t in theirs}]
    for tensor in strange or theirs:  # another tensor, or one operand twice
        value = case.fetch(tensor)
        for leaf in missing:
            if value.shape != case.given[leaf].shape:
                continue
            result = case.graph.evaluate(case.point.node, {**case.given, leaf: value}, case.base)
            residual = case.residual(result)
            if residual <= case.limit:
                read, ours = (case.graph.nodes[n].module for n in (case.tensors[tensor], leaf))
                return Cause("wrong input", f"it reads {read}; the network reads {ours} here", residual)
    return None


def explain_overflow(case: Case) -> Cause | None:
    """Infinite or undefined values, and values beyond what float16 holds."""
    finite = torch.isfinite(case.found)
    if bool(finite.all()):
        return None
    bad = int((~finite).sum())
    largest = max(float(case.graph.evaluate(n.name, case.given, case.base).abs().max()) for n in case.steps)
    limit = float(np.finfo(np.float16).max)
    if largest > limit:
        detail = (
            f"{bad} values are not finite: the network reaches {largest:.4g} here, float16 ends at {limit:g}"
        )
        return Cause("fp16 overflow", detail, 0.0)
    stored = case.weight is not None and not np.isfinite(case.weight).all()
    source = "its kernel holds values that are not finite" if stored else "its inputs are finite"
    if stored:
        return Cause("damaged weight", f"{bad} values are not finite; {source}", 0.0)
    return Cause("not a number", f"{bad} values are not finite; {source}", 0.0, confirmed=False)


def explain_values(case: Case) -> Cause | None:
    """The right values in the wrong place: permuted channels, other layout, flips, constant factor."""
    expected, found = case.expected(), case.found
    limit = case.limit
    if expected.numel() != found.numel():
        return None
    if expected.shape == found.shape:
        order = match_channels(expected, found)
        if order is not None and order != list(range(len(order))):
            residual = case.residual(expected[:, order])
            if residual <= limit:
                detail = f"the file's channels hold the network's channels {tell_order(order)}"
                return Cause("channel permutation", detail, residual)
    for said, value in _rearrange(expected, tuple(found.shape)):
        residual = case.residual(value)
        if residual <= limit:
            return Cause("layout", f"the values are the network's, {said}", residual)
    return _explain_factor(case, expected, limit)


def _rearrange(x: torch.Tensor, shape: tuple[int, ...]) -> Iterable[tuple[str, torch.Tensor]]:
    if x.dim() != 4:
        return
    yield "with height and width exchanged", x.transpose(2, 3)
    yield "mirrored left to right", x.flip(3)
    yield "upside down", x.flip(2)
    yield "turned by 180°", x.flip(2, 3)
    yield "read channels-last where they are channels-first", x.permute(0, 2, 3, 1).reshape(shape)
    n, c, h, w = x.shape
    yield "read channels-first where they are channels-last", x.reshape(n, h, w, c).permute(0, 3, 1, 2)


def _explain_factor(case: Case, expected: torch.Tensor, limit: float) -> Cause | None:
    if expected.shape != case.found.shape:
        return None
    if float(case.found.abs().max()) == 0.0:
        return Cause("zeros", "the file computes nothing but zeros here", 0.0)
    factor = float((expected * case.found).sum() / (expected * expected).sum().clamp_min(1e-30))
    residual = case.residual(expected * factor)
    adds = [n for n in case.graph.users[case.point.node] if case.graph.nodes[n].kind == "add"]
    if residual <= limit and adds and abs(factor - 2) < 1e-3:
        add = case.graph.nodes[adds[0]]
        return Cause("wrong input", "it adds a tensor to itself; the network adds two", residual, add.module)
    if residual <= limit:
        return Cause("scale", f"all values are {factor:.6g} times the network's", residual)
    return None


def match_channels(expected: torch.Tensor, found: torch.Tensor) -> list[int] | None:
    """For each channel of the file the network's most similar one; None when that is no permutation."""
    channels = expected.shape[1]
    a = expected.transpose(0, 1).reshape(channels, -1)[:, ::7].double()
    b = found.transpose(0, 1).reshape(channels, -1)[:, ::7].double()
    order = torch.cdist(b, a).argmin(1).tolist()
    return order if sorted(order) == list(range(channels)) else None


def tell_order(order: list[int]) -> str:
    """A permutation in words: in full when short, else the places that moved."""
    if len(order) <= 12:
        return f"{order}"
    moved = [f"{place}←{source}" for place, source in enumerate(order) if place != source]
    return f"{', '.join(moved[:8])}{', …' if len(moved) > 8 else ''} ({len(moved)} moved)"
