"""The torch network as a graph of named steps, each of which can be recomputed alone and with changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from torch import fx, nn

from nailcore.errors import NailtoolError
from nailcore.nets import ExportForm
from nailcore.nets.mobilenetv2 import BATCHNORM_EPSILON
from nailcore.nets.weights import load_weights
from nailcore.variant import Variant

IMAGE = "image"  # the name of the graph's input
Changes = Mapping[str, Mapping[str, Any]]  # node -> parameters that replace its own
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TorchNode:
    """One step of the network that computes something; Identity modules are seen through."""

    name: str  # unique in the graph
    module: str  # "low.stage4.1.layers.3", "fusion16.upsample": how people find it in the code
    kind: str  # conv, clip, relu, add, resize, pool, sub, input
    inputs: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of its output as float32."""
        return 4 * int(np.prod(self.shape))

    @property
    def attributes(self) -> dict[str, str]:
        """Parameters in words, without the weights themselves."""
        said: dict[str, str] = {}
        for key, value in self.parameters.items():
            if key == "weight":
                said["kernel"] = "×".join(map(str, value.shape))
            elif key == "bias":
                said["bias"] = "none" if value is None else "present"
            elif key == "constant":
                said[key] = ", ".join(f"{v:g}" for v in value.flatten().tolist())
            else:
                said[key] = str(value)
        return said


@dataclass(frozen=True)
class NormStatistics:
    """What a BatchNorm held before it was folded; all (channels,) float32."""

    gamma: torch.Tensor
    beta: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    epsilon: float = BATCHNORM_EPSILON


class TorchGraph:
    """The export form of a variant, traced once; ``nodes`` are in the order of execution."""

    def __init__(self, variant: Variant, weights: Path) -> None:
        self.variant = variant
        cascade = load_weights(variant, weights)
        self.norms = _find_norms(cascade)
        self.network = ExportForm(cascade, variant).eval()
        self._traced = fx.symbolic_trace(self.network)
        shapes = _Recorder(self._traced, None)
        shapes.run(torch.zeros(1, 3, variant.height_px, variant.width_px))
        self.nodes: dict[str, TorchNode] = {}
        self._alias: dict[str, str] = {}  # nodes that pass their input on, by what they pass on
        for node in self._traced.graph.nodes:
            self._add(node, shapes.shapes)
        outputs = next(node for node in self._traced.graph.nodes if node.op == "output").args[0]
        self.outputs = {
            name: self._alias.get(node.name, node.name)
            for name, node in zip(self.network.names, outputs, strict=True)
        }
        self.users: dict[str, list[str]] = {name: [] for name in self.nodes}
        for each in self.nodes.values():
            for source in each.inputs:
                self.users[source].append(each.name)

    def _add(self, node: fx.Node, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if node.op in ("output", "get_attr"):
            return
        inputs = tuple(
            self._alias.get(a.name, a.name)
            for a in node.args
            if isinstance(a, fx.Node) and a.op != "get_attr"
        )
        if node.op == "placeholder":
            described: tuple[str, str, dict[str, Any]] | None = ("input", IMAGE, {})
        else:
            described = self._describe(node)
        if described is None:
            self._alias[node.name] = inputs[0]
            return
        kind, label, parameters = described
        self.nodes[node.name] = TorchNode(node.name, label, kind, inputs, parameters, shapes[node.name])

    def _describe(self, node: fx.Node) -> tuple[str, str, dict[str, Any]] | None:
        """(kind, module name, parameters) of a node; None when it passes its input on."""
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            label = str(node.target).removeprefix("network.")
            if isinstance(module, nn.Conv2d):
                return "conv", label, _describe_conv(module)
            if isinstance(module, nn.ReLU6):
                return "clip", label, {"min": 0.0, "max": 6.0}
            described: tuple[str, str, dict[str, Any]] | None = ("unknown", label, {})
            if isinstance(module, nn.Identity):
                described = None
        else:
            stack = list(node.meta.get("nn_module_stack") or ())
            owner = stack[-1].removeprefix("network.") + "." if stack else ""
            kind, label, parameters = self._describe_function(node)
            described = (kind, owner + label, parameters)
        if described is not None and described[0] == "unknown":
            raise NailtoolError(
                f"The network's step {node.name} ({node.target}) is of no kind the layer map knows.",
                hint="Teach benchmark/torch_graph.py the new operation.",
            )
        return described

    def _describe_function(self, node: fx.Node) -> tuple[str, str, dict[str, Any]]:
        """(kind, short name, parameters) of a call of a function."""
        constant: Any = node.args[1] if len(node.args) > 1 else None
        name = getattr(node.target, "__name__", "")
        if name == "sub" and isinstance(constant, fx.Node):
            return "sub", "normalize", {"constant": getattr(self.network, str(constant.target))}
        if name == "interpolate":
            keys = ("scale_factor", "mode", "align_corners")
            return "resize", "upsample", {key: node.kwargs[key] for key in keys}
        if name == "avg_pool2d":
            return "pool", "avg_pool", {"kernel": constant, "mode": "average"}
        return (name, name, {}) if name in ("add", "relu") else ("unknown", name, {})

    def run(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, F32]:
        """Values of nodes by the network's own forward pass, for one (1, H, W, 3) RGB image."""
        recorder = _Recorder(self._traced, set(names))
        with torch.inference_mode():
            recorder.run(as_input(image))
        return {name: recorder.values[name].numpy() for name in names}

    def evaluate(
        self, end: str, given: Mapping[str, torch.Tensor], changes: Changes | None = None
    ) -> torch.Tensor:
        """The value of ``end`` computed from the tensors given, with some parameters replaced.

        Args:
            end: node name.
            given: values of nodes it may rest on; everything between them and ``end`` is recomputed.
            changes: by node name; see ``compute`` for the parameters of each kind.
        """
        known = dict(given)
        with torch.inference_mode():
            return self._evaluate(end, known, changes or {})

    def _evaluate(self, name: str, known: dict[str, torch.Tensor], changes: Changes) -> torch.Tensor:
        if name not in known:
            node = self.nodes[name]
            inputs = [self._evaluate(source, known, changes) for source in node.inputs]
            known[name] = compute(node.kind, inputs, {**node.parameters, **changes.get(name, {})})
        return known[name]

    def leaves(self, end: str, available: Mapping[str, Any]) -> list[str]:
        """The nearest nodes above ``end`` whose values are available (``end`` itself excluded)."""
        found: dict[str, None] = {}
        waiting = list(self.nodes[end].inputs)
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in available or self.nodes[name].kind == "input":
                found[name] = None
            else:
                waiting.extend(self.nodes[name].inputs)
        return [name for name in self.nodes if name in found]

    def between(self, leaves: Sequence[str], end: str) -> list[TorchNode]:
        """The steps recomputed for ``end`` (itself included), in order of execution."""
        found: set[str] = set()
        waiting = [end]
        while waiting:
            name = waiting.pop()
            if name in found or name in leaves:
                continue
            found.add(name)
            waiting.extend(self.nodes[name].inputs)
        return [node for name, node in self.nodes.items() if name in found]


def as_input(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 0..255."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))).float()


def compute(kind: str, inputs: Sequence[torch.Tensor], p: Mapping[str, Any]) -> torch.Tensor:
    """One step of a kind. A parameter ``skip`` passes the first input on; ``pad_mode`` is F.pad's."""
    return inputs[0] if p.get("skip") else _STEPS[kind](inputs, p)


def _convolve(x: torch.Tensor, p: Mapping[str, Any]) -> torch.Tensor:
    mode, value = p.get("pad_mode", "constant"), p.get("pad_value", 0.0)
    padded = F.pad(x, p["padding"], mode=mode, value=value if mode == "constant" else None)
    return F.conv2d(padded, p["weight"], p["bias"], p["stride"], 0, p["dilation"], p["groups"])


def _pool(x: torch.Tensor, p: Mapping[str, Any]) -> torch.Tensor:
    return F.max_pool2d(x, p["kernel"]) if p["mode"] == "max" else F.avg_pool2d(x, p["kernel"])


def _resize(x: torch.Tensor, p: Mapping[str, Any]) -> torch.Tensor:
    if p["mode"] == "asymmetric":  # output pixel i reads input i / scale, without half-pixel centres
        return _resize_asymmetric(x, int(p["scale_factor"]))
    if p["mode"] == "bilinear":
        align = bool(p["align_corners"])
        return F.interpolate(x, scale_factor=p["scale_factor"], mode="bilinear", align_corners=align)
    return F.interpolate(x, scale_factor=p["scale_factor"], mode=p["mode"])


def _resize_asymmetric(x: torch.Tensor, scale: int) -> torch.Tensor:
    for axis in (2, 3):
        place = torch.arange(x.shape[axis] * scale) / scale
        low = place.floor().long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        share = (place - low).view([-1 if a == axis else 1 for a in range(4)])
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


_STEPS: dict[str, Callable[[Sequence[torch.Tensor], Mapping[str, Any]], torch.Tensor]] = {
    "conv": lambda inputs, p: _convolve(inputs[0], p),
    "clip": lambda inputs, p: inputs[0].clamp(p["min"], p["max"]),
    "relu": lambda inputs, p: inputs[0].relu(),
    "add": lambda inputs, p: inputs[0] + inputs[1],
    "sub": lambda inputs, p: torch.sub(inputs[0], p["constant"]),
    "pool": lambda inputs, p: _pool(inputs[0], p),
    "resize": lambda inputs, p: _resize(inputs[0], p),
}


def _describe_conv(conv: nn.Conv2d) -> dict[str, Any]:
    vertical, horizontal = (int(side) for side in conv.padding)
    return {
        "weight": conv.weight,
        "bias": conv.bias,
        "stride": tuple(conv.stride),
        "padding": (horizontal, horizontal, vertical, vertical),  # left, right, top, bottom as F.pad has it
        "dilation": tuple(conv.dilation),
        "groups": conv.groups,
    }


def _find_norms(cascade: nn.Module) -> dict[str, NormStatistics]:
    """BatchNorm statistics by the module name of the convolution they belong to."""
    found: dict[str, NormStatistics] = {}
    for path, parent in cascade.named_modules():
        children = list(parent.named_children())
        for (name, conv), (_, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                mean, variance = norm.running_mean, norm.running_var
                assert mean is not None and variance is not None  # noqa: S101 - they track statistics
                found[f"{path}.{name}".lstrip(".")] = NormStatistics(
                    norm.weight.detach(), norm.bias.detach(), mean, variance, norm.eps
                )
    return found


class _Recorder(fx.Interpreter):
    """Runs the traced network; keeps copies of the values asked for (ReLU6 works in place)."""

    def __init__(self, module: fx.GraphModule, names: set[str] | None) -> None:
        super().__init__(module)
        self.names = names
        self.values: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.shapes[n.name] = tuple(value.shape)
            if self.names is not None and n.name in self.names:
                self.values[n.name] = value.clone()
        return value
