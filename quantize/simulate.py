"""Fake quantization of the export form in torch, layer by layer, where onnx rounds its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from torch import fx, nn

from nailcore.errors import NailtoolError
from nailcore.nets.cascade import upsample2
from nailcore.nets.export_form import ExportForm
from quantize.layer_names import choose_float_layers
from quantize.ranges import Observer
from quantize.recipe import Calibration, Recipe
from quantize.rounding import Grid, make_grid, round_straight_through, round_tensor, round_weight

Kind = Literal["normalize", "conv", "add", "pool", "upsample"]
Ranges = dict[str, tuple[float, float]]  # tensor, by the step that writes it -> (low, high)
Values = dict[str, torch.Tensor]  # by the step that writes them
IMAGE = "image"
# It writes values between those it reads: one scale serves both sides, as in onnxruntime.
KEEPS_RANGE = ("upsample",)


@dataclass(frozen=True)
class Step:
    """One operation with the activation that a runtime fuses into it; it writes the tensor of its name."""

    name: str  # torch module name of a convolution; of other steps the owner's name and what is done
    kind: Kind
    inputs: tuple[str, ...]
    activation: Literal["", "relu", "relu6"] = ""


@dataclass(frozen=True)
class Scheme:
    """How many levels weights and activations have, and what stays in float."""

    weight_bits: int = 8
    activation_bits: int = 8  # 0: kernels alone are rounded
    per_channel: bool = True
    symmetric: bool = False  # activations have their zero in the middle of the levels
    keep_float: frozenset[str] = frozenset()  # names of convolutions
    glue: bool = True  # additions compute in integers, and upsampling in front of an integer convolution
    # As quantize.onnx_rewrite leaves the graph: the image's bytes enter as they are, and a pointwise
    # convolution that only another one reads becomes one with it.
    rewritten: bool = False

    @classmethod
    def of(cls, recipe: Recipe, layers: Sequence[str], float_layers: Iterable[str] = ()) -> Scheme:
        """The scheme of an integer recipe.

        Raises:
            NailtoolError: the recipe computes in float, or asks for what integers cannot.
            UnknownNameError: a layer to keep in float does not exist.
        """
        if recipe.activations is None:
            raise NailtoolError(
                f"Recipe '{recipe.name}' computes in float: there are no activations to simulate.",
                hint="Choose a recipe whose compute_dtype is int8.",
            )
        if recipe.weights.granularity == "per-group":
            raise NailtoolError(f"Recipe '{recipe.name}': integer arithmetic has no groups of channels.")
        return cls(
            per_channel=recipe.weights.granularity == "per-channel",
            symmetric=recipe.activations.symmetric,
            keep_float=frozenset(choose_float_layers((*recipe.weights.keep_float, *float_layers), layers)),
            rewritten="onnx" in recipe.targets,
        )

    @classmethod
    def of_weights(cls, recipe: Recipe, layers: Sequence[str]) -> Scheme:
        """The scheme of a recipe that rounds kernels to int8 and computes in float; raises as ``of``."""
        return cls(
            activation_bits=0,
            per_channel=recipe.weights.granularity == "per-channel",
            keep_float=frozenset(choose_float_layers(recipe.weights.keep_float, layers)),
            glue=False,
        )

    def only(self, layer: str, layers: Iterable[str]) -> Scheme:
        """The same levels for one convolution and the tensors it reads and writes; all else in float."""
        return replace(self, keep_float=frozenset(layers) - {layer}, glue=False)

    def without(self, *layers: str) -> Scheme:
        """The same, these convolutions kept in float as well."""
        return replace(self, keep_float=self.keep_float | set(layers))


@dataclass(frozen=True)
class Plan:
    """What a scheme rounds: convolutions with integer kernels, and tensors."""

    integer: frozenset[str]
    rounded: frozenset[str]
    merged: frozenset[str] = frozenset()  # convolutions that the one behind them takes in


# -- what the network does -------------------------------------------------------------------------
def list_steps(network: ExportForm) -> tuple[Step, ...]:
    """The operations of a network in the order of execution, activations fused; traced, not executed."""
    return _read_graph(fx.symbolic_trace(network))[0]


def list_layers(steps: Sequence[Step]) -> tuple[str, ...]:
    """Names of the convolutions."""
    return tuple(step.name for step in steps if step.kind == "conv")


def _read_graph(traced: fx.GraphModule) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Steps, and the names of the outputs' tensors."""
    steps: dict[str, Step] = {}
    tensor_of: dict[str, str] = {}  # fx node -> the tensor it stands for
    outputs: tuple[str, ...] = ()
    for node in traced.graph.nodes:
        sources = tuple(
            tensor_of[a.name] for a in node.args if isinstance(a, fx.Node) and a.name in tensor_of
        )
        if node.op == "placeholder":
            tensor_of[node.name] = IMAGE
        elif node.op == "output":
            outputs = tuple(tensor_of[each.name] for each in node.args[0])
        elif node.op != "get_attr":
            name, kind = _describe(node, traced)
            if kind in ("relu", "relu6"):
                name = sources[0]
                steps[name] = replace(steps[name], activation=kind)
            elif kind == "identity":
                name = sources[0]
            else:
                steps[name] = Step(name, kind, sources)
            tensor_of[node.name] = name
    return tuple(steps.values()), outputs


def _describe(node: fx.Node, traced: fx.GraphModule) -> tuple[str, Any]:
    """(name, kind) of an operation."""
    if node.op == "call_module":
        kinds = {nn.Conv2d: "conv", nn.ReLU6: "relu6", nn.Identity: "identity"}
        found = kinds.get(type(traced.get_submodule(str(node.target))))
    else:
        functions = {"sub": "normalize", "avg_pool2d": "pool", "interpolate": "upsample"}
        function = getattr(node.target, "__name__", "")
        found = functions.get(function, function if function in ("add", "relu") else None)
    if found is None:
        raise NailtoolError(
            f"The network's operation {node.name} ({node.target}) is of no kind the simulation knows.",
            hint="Teach quantize/simulate.py the new operation.",
        )
    if node.op == "call_module":
        return str(node.target), found
    stack = [str(owner) for owner in node.meta.get("nn_module_stack") or () if owner]
    return ".".join([*stack[-1:], found]), found


# -- executing it ----------------------------------------------------------------------------------
class Simulation(nn.Module):
    """An export form whose tensors are rounded as an integer runtime rounds them.

    A convolution's kernel is rounded unless it is kept in float. A tensor is rounded when a step that
    computes in integers writes or reads it: pairs of Quantize and Dequantize stand on tensors, so a
    float layer between integer ones still reads and writes rounded values. With everything in float
    the result is the export form's own, bit for bit. Biases (int32 in the file) stay as they are, and
    sums are made in float: both errors are far below one level.
    """

    def __init__(self, network: ExportForm, scheme: Scheme, ranges: Ranges) -> None:
        super().__init__()
        self.network = network
        self.steps, self.outputs = _read_graph(fx.symbolic_trace(network))
        self.layers = list_layers(self.steps)
        self._step_of = {step.name: step for step in self.steps}
        self._users: dict[str, list[str]] = {}
        for step in self.steps:
            for source in step.inputs:
                self._users.setdefault(source, []).append(step.name)
        self.pairs = self._find_pairs()
        self._inner_of = {outer: inner for inner, outer in self.pairs.items()}
        self._last_user = {source: users[-1] for source, users in self._users.items()}
        self.ranges = dict(ranges)
        # Kernels in training, rounded by whoever trains them: name -> (kernel, bias).
        self.trained: Callable[[str], tuple[torch.Tensor, torch.Tensor | None]] | None = None
        self._kernels: Values = {}  # rounded, of weights that do not change
        self.scheme = scheme
        self.plan = self.make_plan(scheme)

    def set_scheme(self, scheme: Scheme) -> None:
        """Choose the levels and what stays in float; raises as ``make_plan``."""
        plan, levels = self.make_plan(scheme), (scheme.weight_bits, scheme.per_channel)
        if levels != (self.scheme.weight_bits, self.scheme.per_channel):
            self._kernels.clear()
        self.scheme, self.plan = scheme, plan

    def make_plan(self, scheme: Scheme) -> Plan:
        """What a scheme rounds.

        Raises:
            UnknownNameError: a layer does not exist.
            NailtoolError: a tensor that is to be rounded has no range.
        """
        integer = frozenset(self.layers) - frozenset(choose_float_layers(scheme.keep_float, self.layers))
        if not scheme.activation_bits:
            return Plan(integer, frozenset())
        merged: frozenset[str] = frozenset()
        exact: frozenset[str] = frozenset()
        if scheme.rewritten:
            merged = frozenset(a for a, b in self.pairs.items() if {a, b} <= integer)
            stems = {name for name in self.layers if name.endswith(".stage1.0")}
            exact = frozenset(s.name for s in self.steps if s.kind in ("normalize", "pool"))
            exact = exact if stems <= integer or not scheme.glue else frozenset()
        glue = {
            step.name
            for step in self.steps
            if step.kind == "add"
            or (step.kind == "upsample" and integer.intersection(self._users.get(step.name, ())))
        }
        glue = glue if scheme.glue else set()
        rounded = set(integer | glue)
        for step in self.steps:
            if step.name in integer or step.name in glue:
                rounded.update(step.inputs)
        rounded -= {IMAGE, *merged, *exact}
        missing = sorted({self._range_key(name) for name in rounded} - set(self.ranges))
        if missing:
            raise NailtoolError(
                f"No range was measured for the tensor {missing[0]} ({len(missing)} in all).",
                hint="Measure the ranges of this very network first.",
            )
        return Plan(integer, frozenset(rounded), merged)

    def _find_pairs(self) -> dict[str, str]:
        """Pointwise convolution -> the only reader of it, pointwise as well, as in ``merge_pointwise``."""
        pairs: dict[str, str] = {}
        for step in self.steps:
            inner = self._step_of.get(step.inputs[0])
            if step.kind != "conv" or inner is None or inner.kind != "conv" or inner.activation:
                continue
            first, second = self.find_conv(inner.name), self.find_conv(step.name)
            pointwise = first.kernel_size == second.kernel_size == (1, 1)
            size = second.out_channels * first.in_channels
            small = size <= 2 * (first.weight.numel() + second.weight.numel())
            if pointwise and small and len(self._users[inner.name]) == 1 and inner.name not in pairs.values():
                pairs[inner.name] = step.name
        return pairs

    def find_conv(self, name: str) -> nn.Conv2d:
        """A convolution of the network."""
        conv = self.network.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 - the graph says so
        return conv

    def _range_key(self, name: str) -> str:
        """The tensor whose range a tensor has."""
        step = self._step_of.get(name)
        while step is not None and step.kind in KEEPS_RANGE:
            name = step.inputs[0]
            step = self._step_of.get(name)
        return name

    # -- forward passes -------------------------------------------------------------------------
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) RGB 0..255 -> logits (N, C, H/4, W/4), as ``ExportForm.forward``."""
        values = {IMAGE: image}
        for step in self.steps:
            values[step.name] = self._run(step, [values[source] for source in step.inputs])
            for source in step.inputs:  # as few tensors at once as the network needs
                if self.is_done(source, step):
                    values.pop(source, None)
        return tuple(values[name] for name in self.outputs)

    def is_done(self, tensor: str, step: Step) -> bool:
        """Whether nobody reads a tensor after this step."""
        return self._last_user[tensor] == step.name and tensor not in self.outputs

    def run_all(self, image: torch.Tensor) -> Values:
        """Every tensor of a forward pass by name; about 0.1 GB for one image of 480 px."""
        values = {IMAGE: image}
        for step in self.steps:
            values[step.name] = self._run(step, [values[source] for source in step.inputs])
        return values

    def run_changed(self, before: Values, was: Plan) -> tuple[torch.Tensor, ...]:
        """Logits under the scheme as it is now, from all tensors of the same image under another plan.

        Only what the difference reaches is computed again. Levels must be the same in both.
        """
        changed: Values = {}
        for step in self.steps:
            name = step.name
            own = (name in was.integer) != (name in self.plan.integer)
            own |= (name in was.rounded) != (name in self.plan.rounded)
            own |= (name in was.merged) != (name in self.plan.merged)
            if own or any(source in changed for source in step.inputs):
                inputs = [changed.get(source, before[source]) for source in step.inputs]
                changed[name] = self._run(step, inputs)
        return tuple(changed.get(name, before[name]) for name in self.outputs)

    def _run(self, step: Step, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.finish(step, self.compute(step, inputs))

    def compute(self, step: Step, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """A step from its inputs, before its activation and before its tensor is rounded."""
        x = inputs[0]
        if step.name in self.plan.merged:
            return x  # for the convolution behind it, which does the work of both
        if step.kind == "conv":
            return self._convolve(step.name, x)
        if step.kind == "add":
            return x + inputs[1]
        if step.kind == "normalize":
            return x - self.network.mean
        return F.avg_pool2d(x, 2) if step.kind == "pool" else upsample2(x)

    def finish(self, step: Step, y: torch.Tensor) -> torch.Tensor:
        """The activation and the rounding of what a step computed."""
        grid = self._find_grid(step.name) if step.name in self.plan.rounded else None
        # Clipping to a grid that ends where the activation does, or before, is the activation.
        ends = 6 if step.activation == "relu6" else np.inf
        clipped = grid is not None and grid.zero_point == 0 and grid.high < ends + grid.scale / 2
        if step.activation and not clipped and step.name not in self.plan.merged:
            y = F.relu6(y) if step.activation == "relu6" else F.relu(y)
        if grid is None:
            return y
        return round_straight_through(y, grid) if y.requires_grad else round_tensor(y, grid)

    def _convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        conv = self.find_conv(name)
        kernel, bias = conv.weight, conv.bias
        if name in self.plan.integer:
            kernel, bias = self.trained(name) if self.trained else self._round_kernel(name)
        if name in self.plan.integer and conv.kernel_size == (1, 1):
            # On one thread torch's convolution takes a slow way for 1×1 kernels, and a slower one back.
            return F.linear(x.permute(0, 2, 3, 1), kernel[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return F.conv2d(x, kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def find_inner(self, name: str) -> str | None:
        """The convolution that this one takes in under the plan."""
        inner = self._inner_of.get(name)
        return inner if inner in self.plan.merged else None

    def _round_kernel(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        inner, conv = self.find_inner(name), self.find_conv(name)
        key = f"{inner}>{name}" if inner else name
        kernel, bias = conv.weight, conv.bias
        if inner:
            first = self.find_conv(inner)
            kernel, bias = merge_kernels(first.weight, first.bias, kernel, bias)
        if key not in self._kernels:
            self._kernels[key] = round_weight(
                kernel, self.scheme.weight_bits, per_channel=self.scheme.per_channel
            )
        return self._kernels[key], bias

    def _find_grid(self, name: str) -> Grid:
        low, high = self.ranges[self._range_key(name)]
        return make_grid(low, high, self.scheme.activation_bits, symmetric=self.scheme.symmetric)


def align_means(simulation: Simulation, clean: Simulation, images: torch.Tensor) -> dict[str, float]:
    """Shift the biases of the integer convolutions so that channels have the float network's mean outputs.

    Layer by layer, each seeing what the rounded and corrected layers before it give. ``clean`` is the same
    network with everything in float; images (N, 3, H, W). Returns the largest shift of each layer.
    """
    rounded: Values = {IMAGE: images}
    plain: Values = {IMAGE: images}
    shifts = {}
    with torch.no_grad():
        for step in simulation.steps:
            y = simulation.compute(step, [rounded[source] for source in step.inputs])
            wanted = clean.compute(step, [plain[source] for source in step.inputs])
            conv = simulation.find_conv(step.name) if step.kind == "conv" else None
            is_whole = step.name in simulation.plan.integer and step.name not in simulation.plan.merged
            if conv is not None and conv.bias is not None and is_whole:
                shift = wanted.mean((0, 2, 3)) - y.mean((0, 2, 3))
                conv.bias.add_(shift)
                y = y + shift[None, :, None, None]
                shifts[step.name] = float(shift.abs().max())
            rounded[step.name], plain[step.name] = simulation.finish(step, y), clean.finish(step, wanted)
            for source in step.inputs:
                if simulation.is_done(source, step):
                    rounded.pop(source, None)
                    plain.pop(source, None)
    return shifts


def merge_kernels(
    inner: torch.Tensor, inner_bias: torch.Tensor | None, outer: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pointwise kernel (O, I, 1, 1) and bias that do the work of two, ``inner`` first."""
    matrix = outer[:, :, 0, 0].double()
    kernel = (matrix @ inner[:, :, 0, 0].double()).float()[:, :, None, None]
    if inner_bias is not None:
        through = (matrix @ inner_bias.double()).float()
        bias = through if bias is None else bias + through
    return kernel, bias


def observe_ranges(network: ExportForm, images: npt.NDArray[np.uint8], calibration: Calibration) -> Ranges:
    """The range of every tensor over images (N, H, W, 3) RGB, in float, one image at a time."""
    layers = list_layers(list_steps(network))
    plain = Simulation(network, Scheme(keep_float=frozenset(layers), glue=False), {})
    observers: dict[str, Observer] = {}
    for second in (False, True) if calibration.method != "min-max" else (False,):
        for image in images:
            with torch.inference_mode():
                values = plain.run_all(as_input(image[None]))
            for name, value in values.items():
                observer = observers.setdefault(name, Observer())
                (observer.count if second else observer.see)(value.numpy())
    del observers[IMAGE]
    chosen = {
        name: observer.choose(calibration.method, calibration.percentile)
        for name, observer in observers.items()
    }
    return {name: (range_.low, range_.high) for name, range_ in chosen.items()}


def as_input(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 0..255, channels last in memory.

    Depthwise convolutions on CPUs take half the time in that order.
    """
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
