"""Why a convolution differs: its kernel, its bias, its geometry; each hypothesis tested by recomputing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmark.causes import Case, Cause, Hypothesis, tell_order
from benchmark.layer_map import relative_distance
from benchmark.torch_graph import NormStatistics, TorchNode

F32 = npt.NDArray[np.float32]
_EPSILONS = (1e-5, 1e-3, 1e-4, 1e-6, 1e-2, 1e-12, 0.0)  # what frameworks use, tried before a fitted value
_SAME = 2e-3  # relative L2 distance below which two kernels are the same but for rounding
_FEW = 0.02  # share of a kernel's values that may differ for it to be called damaged, not stale


def explain_conv(case: Case) -> Cause | None:
    """The kernel first when the file shows it, then geometry, then bias; None when nothing explains it."""
    conv = case.conv
    if conv is None:
        return None
    readable = case.weight is not None
    if not readable or not case.weight_is_ours:
        cause = case.try_all(_suggest_kernels(case, conv))
        if cause is not None and cause.confirmed:
            return cause
        named = _name_kernel(case, conv)
        if named is not None:
            return named
    for suggest in (_suggest_geometry, _suggest_biases):
        cause = case.try_all(suggest(case, conv))
        if cause is not None and cause.confirmed:
            return cause
    fitted = _explain_affine(case, conv)
    return fitted or cause


def explain_kernel_overflow(case: Case) -> Cause | None:
    """A finite kernel whose products are not: recomputing with it must overflow at the same places."""
    conv = case.conv
    if conv is None or case.weight is None or case.weight_is_ours:
        return None
    ours = _own_weight(conv)
    if case.weight.shape != ours.shape or not np.isfinite(case.weight).all():
        return None
    again = case.expected(_change(conv, case.weight))
    name, detail = _describe_kernel(case, conv, case.weight, ours)
    lost = ~torch.isfinite(case.found)
    if bool((torch.isfinite(again) == ~lost).all()):
        return Cause(name, f"{detail}; its products overflow", 0.0)
    # Values within a rounding of the limit may fall to either side.
    beyond, limit = again.abs(), float(np.finfo(np.float16).max)
    if bool((beyond[lost] > 0.99 * limit).all()) and bool((beyond[~lost] < 1.01 * limit).all()):
        said = f"{detail}; its products reach {float(beyond.max()):.4g}, float16 ends at {limit:g}"
        return Cause("fp16 overflow", said, 0.0)
    return Cause(name, f"{detail}; its products overflow", 0.0, confirmed=False)


def _own_weight(node: TorchNode) -> F32:
    return np.asarray(node.parameters["weight"].detach().numpy())


def _change(node: TorchNode, weight: F32, **more: Any) -> dict[str, dict[str, Any]]:
    return {node.name: {"weight": torch.tensor(np.ascontiguousarray(weight)), **more}}


def _suggest_kernels(case: Case, conv: TorchNode) -> Iterable[Hypothesis]:
    """Rearrangements of the trained kernel that the file may hold instead."""
    ours = _own_weight(conv)
    yield from _suggest_epsilons(case, conv)
    if ours.shape[2] > 1:
        swapped = ours.transpose(0, 1, 3, 2)
        yield Hypothesis(
            "transposed weight", "its kernel has rows and columns exchanged", _change(conv, swapped)
        )
        turned = ours[:, :, ::-1, ::-1]
        yield Hypothesis("flipped weight", "its kernel is turned by 180°", _change(conv, turned))
        yield Hypothesis("flipped weight", "its kernel is mirrored", _change(conv, ours[:, :, :, ::-1]))
        yield Hypothesis("flipped weight", "its kernel is upside down", _change(conv, ours[:, :, ::-1]))
    if ours.shape[0] == ours.shape[1]:
        exchanged = ours.transpose(1, 0, 2, 3)
        said = "its kernel has input and output channels exchanged"
        yield Hypothesis("transposed weight", said, _change(conv, exchanged))
    yield Hypothesis("sign-flipped weight", "its kernel has the opposite sign", _change(conv, -ours))
    if ours.shape[1] == 3:
        said = "its kernel takes the colours in the order BGR, the network RGB"
        yield Hypothesis("colour order", said, _change(conv, ours[:, ::-1]))
    for other in case.graph.nodes.values():
        if other.kind != "conv" or other.name == conv.name or _own_weight(other).shape != ours.shape:
            continue
        if np.array_equal(_own_weight(other), ours):
            continue
        said = f"it holds the kernel of {other.module}"
        yield Hypothesis("foreign weight", said, _change(conv, _own_weight(other)))
        both = _change(conv, _own_weight(other), bias=other.parameters["bias"])
        yield Hypothesis("foreign weight", f"it holds kernel and bias of {other.module}", both)


def _suggest_epsilons(case: Case, conv: TorchNode) -> Iterable[Hypothesis]:
    norm = case.graph.norms.get(conv.module)
    if norm is None:
        return
    candidates = list(_EPSILONS)
    fitted = _fit_epsilon(case, conv, norm)
    if fitted is not None:
        candidates.append(fitted)
    theirs, ours = case.weight, _own_weight(conv)
    ratios = {e: ((norm.variance + norm.epsilon) / (norm.variance + e)).sqrt() for e in candidates}
    least = max(1e-6, 2 * case.limits.weight)  # a change that the format's rounding would hide
    candidates = [e for e in candidates if float((ratios[e] - 1).abs().max()) > least]
    kernels = {e: ours * ratio.numpy()[:, None, None, None] for e, ratio in ratios.items()}
    if theirs is not None and theirs.shape == ours.shape:
        candidates.sort(key=lambda e: relative_distance(kernels[e], theirs))
    for epsilon in candidates:
        ratio, weight = ratios[epsilon], kernels[epsilon]
        bias = norm.beta - (norm.beta - conv.parameters["bias"]) * ratio
        low, high = float(ratio.min()), float(ratio.max())
        said = (
            f"it was folded with a BatchNorm epsilon of {epsilon:.3g}, the network has {norm.epsilon:g} "
            f"(channels scaled by {low:.6g} to {high:.6g})"
        )
        yield Hypothesis("wrong epsilon", said, _change(conv, weight, bias=bias))
        yield Hypothesis("wrong epsilon", f"{said}, in the kernel alone", _change(conv, weight))


def _fit_epsilon(case: Case, conv: TorchNode, norm: NormStatistics) -> float | None:
    """The epsilon that best explains the ratio of the kernels, channel by channel."""
    ratio = _channel_ratio(case, conv)
    if ratio is None or not (ratio > 0).all():
        return None
    variance = norm.variance.numpy().astype(np.float64)
    fitted = (variance + norm.epsilon) / ratio**2 - variance
    moved = np.abs(ratio - 1)
    value = float(np.average(fitted, weights=moved)) if moved.sum() else float(np.median(fitted))
    return value if np.isfinite(value) and value >= 0 else None


def _channel_ratio(case: Case, conv: TorchNode) -> npt.NDArray[np.float64] | None:
    """Kernel in the file over the trained one, per output channel; None when they are not parallel."""
    ours = _own_weight(conv)
    if case.weight is None or case.weight.shape != ours.shape:
        return None
    a = ours.reshape(len(ours), -1).astype(np.float64)
    b = case.weight.reshape(len(ours), -1).astype(np.float64)
    norm = np.maximum((a * a).sum(1), 1e-30)
    ratio = (a * b).sum(1) / norm
    left = np.linalg.norm(b - a * ratio[:, None]) / max(float(np.linalg.norm(b)), 1e-30)
    return np.asarray(ratio) if left < _SAME else None


def _name_kernel(case: Case, conv: TorchNode) -> Cause | None:
    """What the file's kernel is, when it is no rearrangement; confirmed by recomputing with it."""
    theirs, ours = case.weight, _own_weight(conv)
    if theirs is None or theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return None
    fit = case.try_all([Hypothesis("", "", _change(conv, theirs))])
    bias = None
    if fit is None or not fit.confirmed:
        bias = _fit_bias(case, conv, theirs)
        fit = case.try_all([Hypothesis("", "", _change(conv, theirs, bias=bias))])
    residual = fit.residual if fit else case.residual(case.expected(_change(conv, theirs)))
    confirmed = fit is not None and fit.confirmed
    name, detail = _describe_kernel(case, conv, theirs, ours)
    if bias is not None and confirmed:
        detail += "; its bias differs too"
    return Cause(name, detail, residual, confirmed=confirmed)


def _describe_kernel(case: Case, conv: TorchNode, theirs: F32, ours: F32) -> tuple[str, str]:
    return _describe_scale(case, conv, theirs, ours) or _describe_difference(case, theirs, ours)


def _describe_scale(case: Case, conv: TorchNode, theirs: F32, ours: F32) -> tuple[str, str] | None:
    """The trained kernel times something."""
    inputs = _input_ratio(theirs, ours) if ours.shape[1] == 3 else None
    if inputs is not None:
        std = ", ".join(f"{s / r:.4g}" for s, r in zip(_std(case), inputs, strict=True))
        trained = ", ".join(f"{s:g}" for s in _std(case))
        return "normalization", f"its kernel divides the colours by ({std}), the network by ({trained})"
    ratio = _channel_ratio(case, conv)
    rounding = max(1e-6, case.limits.weight)
    if ratio is None or np.abs(ratio - 1).max() < 0.25 * rounding:
        return None
    scaled = (ours * ratio[:, None, None, None]).astype(np.float32)
    if case.limits.weight and not case.limits.same_kernel(theirs, scaled, 3):
        return None
    if np.ptp(ratio) < max(1e-4, 2 * case.limits.weight) * abs(ratio.mean()):
        return "weight scale", f"its kernel is {ratio.mean():.6g} times the trained one"
    told = f"{ratio.min():.6g} to {ratio.max():.6g}"
    return "channel scale", f"its kernel's channels are {told} times the trained ones"


def _describe_difference(case: Case, theirs: F32, ours: F32) -> tuple[str, str]:
    for axis, what in ((0, "output"), (1, "input")):
        order = _match_rows(theirs, ours, axis)
        if order is not None:
            return (
                "channel permutation",
                f"its kernel's {what} channels are the trained ones {tell_order(order)}",
            )
    changed = case.limits.find_changes(theirs, ours)
    share = float(changed.mean())
    if not theirs.any():
        return "damaged weight", "its kernel is all zeros"
    if share <= _FEW:
        place = tuple(int(i) for i in np.argwhere(changed)[0])
        return (
            "damaged weight",
            f"{int(changed.sum())} of {theirs.size} kernel values differ, first at {place}",
        )
    distance = relative_distance(theirs, ours)
    said = f"{share:.0%} of the values differ, relative distance {distance:.3g}"
    return "stale weight", f"its kernel is another training's: {said}"


def _std(case: Case) -> tuple[float, ...]:
    return case.graph.variant.std


def _input_ratio(theirs: F32, ours: F32) -> list[float] | None:
    """Factor per input channel, when that explains the whole kernel."""
    ratio = (theirs.astype(np.float64) * ours).sum((0, 2, 3)) / (ours.astype(np.float64) ** 2).sum((0, 2, 3))
    explained = relative_distance((ours * ratio[None, :, None, None]).astype(np.float32), theirs) < _SAME
    return [float(r) for r in ratio] if explained and (ratio > 0).all() else None


def _match_rows(theirs: F32, ours: F32, axis: int) -> list[int] | None:
    a = np.moveaxis(ours, axis, 0).reshape(ours.shape[axis], -1).astype(np.float64)
    b = np.moveaxis(theirs, axis, 0).reshape(theirs.shape[axis], -1).astype(np.float64)
    squares = (b * b).sum(1)[:, None] + (a * a).sum(1)[None] - 2 * b @ a.T
    order = [int(i) for i in squares.argmin(1)]
    if sorted(order) != list(range(len(a))) or order == list(range(len(a))):
        return None
    return order if relative_distance(b.astype(np.float32), a[order].astype(np.float32)) < _SAME else None


def _suggest_geometry(case: Case, conv: TorchNode) -> Iterable[Hypothesis]:
    p = conv.parameters
    kernel = int(p["weight"].shape[2])
    (dilation, _), (stride, _) = p["dilation"], p["stride"]
    left, right, top, bottom = p["padding"]
    for other in range(1, 5):
        if kernel == 1 or other == dilation:
            continue
        same = other * (kernel // 2)
        said = f"its dilation is {other}, the network's {dilation}"
        for padding in ((same,) * 4, p["padding"]):
            change = {conv.name: {"dilation": (other, other), "padding": padding}}
            yield Hypothesis("dilation", said, change)
    yield from _suggest_paddings(case, conv, left + right)
    for other in (1, 2, 4):
        if other != stride:
            said = f"its stride is {other}, the network's {stride}"
            yield Hypothesis("stride", said, {conv.name: {"stride": (other, other)}})
    if top != left or bottom != right:
        swapped = (top, bottom, left, right)
        yield Hypothesis("padding", "its paddings are exchanged", {conv.name: {"padding": swapped}})


def _suggest_paddings(case: Case, conv: TorchNode, total: int) -> Iterable[Hypothesis]:
    ours = conv.parameters["padding"]
    if total == 0:
        return
    told = f"the network pads {ours[0]} on each side"
    for padding in _list_paddings(conv, total):
        if padding != ours:
            left, right, top, bottom = padding
            said = f"it pads {top} above, {bottom} below, {left} left, {right} right; {told}"
            yield Hypothesis("padding", said, {conv.name: {"padding": padding}})
    for mode in ("replicate", "reflect", "circular"):
        yield Hypothesis("padding", f"it pads by {mode}; {told} with zeros", {conv.name: {"pad_mode": mode}})
    if conv.parameters["weight"].shape[1] == 3:
        mean = float(case.graph.network.mean.mean())
        said = f"it pads with {-mean:g} (black); the network pads with the mean colour (zero)"
        yield Hypothesis("padding", said, {conv.name: {"pad_value": -mean}})


def _list_paddings(conv: TorchNode, total: int) -> Iterable[tuple[int, int, int, int]]:
    """Smaller and larger amounts split alike on both axes, then every split of the network's amount."""
    for amount in range(2 * total + 1):
        for before in range(amount + 1):
            yield (before, amount - before, before, amount - before)
    splits = [(before, total - before) for before in range(total + 1)]
    yield from ((*across, *down) for across in splits for down in splits)


def _suggest_biases(case: Case, conv: TorchNode) -> Iterable[Hypothesis]:
    bias = conv.parameters["bias"]
    if bias is not None:
        yield Hypothesis("dropped bias", "it adds no bias", {conv.name: {"bias": torch.zeros_like(bias)}})
        yield Hypothesis("changed bias", "its bias has the opposite sign", {conv.name: {"bias": -bias}})
    for other in case.graph.nodes.values():
        if other.kind == "conv" and other.name != conv.name and other.shape[1] == conv.shape[1]:
            change = {conv.name: {"bias": other.parameters["bias"]}}
            yield Hypothesis("foreign bias", f"it adds the bias of {other.module}", change)
    weight = case.weight if case.weight is not None and case.weight_is_ours else _own_weight(conv)
    fitted = _fit_bias(case, conv, weight)
    if fitted is not None and bias is not None:
        moved = (fitted - bias).abs()
        order = [int(i) for i in moved.argsort(descending=True)[:3]]
        few = ", ".join(f"channel {i}: {float(fitted[i]):.4g} for {float(bias[i]):.4g}" for i in order)
        yield Hypothesis("changed bias", f"its bias differs ({few})", {conv.name: {"bias": fitted}})


def _linear_part(case: Case, conv: TorchNode, weight: F32) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(convolution without bias, places where the activation does not saturate); None after other steps."""
    later = case.graph.between([*case.given, conv.name], case.point.node)
    if any(node.kind not in ("clip", "relu") for node in later):
        return None
    change = {conv.name: {"weight": torch.tensor(np.ascontiguousarray(weight)), "bias": None}}
    plain = case.graph.evaluate(conv.name, case.given, change)
    if plain.shape != case.found.shape:
        return None
    free = torch.isfinite(case.found)
    for node in later:
        free &= case.found > node.parameters.get("min", 0.0) + 1e-6
        free &= case.found < node.parameters.get("max", np.inf) - 1e-6
    return plain, free


def _fit_bias(case: Case, conv: TorchNode, weight: F32) -> torch.Tensor | None:
    """The bias that makes the file's values out of a kernel: the median difference of each channel."""
    parts = _linear_part(case, conv, weight)
    bias = conv.parameters["bias"]
    if parts is None or bias is None:
        return None
    plain, free = parts
    fitted: torch.Tensor = bias.clone()
    difference = case.found - plain
    for channel in range(len(fitted)):
        inside = difference[:, channel][free[:, channel]]
        if len(inside):
            fitted[channel] = inside.median()
        elif float(case.found[:, channel].max()) <= 0:  # never active: any low enough bias will do
            fitted[channel] = torch.minimum(bias[channel], -plain[:, channel].max())
    return fitted


def _explain_affine(case: Case, conv: TorchNode) -> Cause | None:
    """A factor and an offset per channel, fitted on unsaturated places (for files that hide kernels)."""
    parts = _linear_part(case, conv, _own_weight(conv))
    if parts is None or case.weight is not None:
        return None
    plain, free = parts
    ratio = np.ones(plain.shape[1])
    for channel in range(plain.shape[1]):
        x, y = plain[:, channel][free[:, channel]], case.found[:, channel][free[:, channel]]
        if len(x) > 8 and float(x.std()) > 0:
            ratio[channel] = float(((x - x.mean()) * (y - y.mean())).mean() / x.var(unbiased=False))
    weight = (_own_weight(conv) * ratio[:, None, None, None]).astype(np.float32)
    change = _change(conv, weight, bias=_fit_bias(case, conv, weight))
    said = f"its channels are {ratio.min():.6g} to {ratio.max():.6g} times the trained ones"
    return case.try_all([Hypothesis("channel scale", said, change)])
