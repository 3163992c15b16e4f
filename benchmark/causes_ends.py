"""Why a file differs at its two ends: what it makes of the image, and what it calls its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from benchmark.causes import Case, Cause, find_range, match_channels, tell_order

_COLOURS = ("red", "green", "blue")


def explain_normalization(case: Case) -> Cause | None:
    """The first step: constants, colour order, gamma, off-by-one crops, overflow of uint8."""
    node = case.graph.nodes[case.point.node]
    if node.kind not in ("sub", "input"):  # some files copy the image before they touch it
        return None
    image = case.given.get(node.inputs[0] if node.inputs else node.name)
    if image is None or image.shape != case.found.shape:
        return None
    mean = node.parameters.get("constant", torch.zeros(1, 3, 1, 1))
    for order in itertools.permutations(range(3)):
        cause = _explain_affine(case, image[:, list(order)], mean, order)
        if cause is not None:
            return cause
    for name, detail, seen in _distort(image):
        residual = case.residual(seen - mean)
        if residual <= case.tolerance:
            return Cause(name, detail, residual)
    return _explain_shift(case, image - mean)


def _explain_affine(
    case: Case, image: torch.Tensor, mean: torch.Tensor, order: tuple[int, ...]
) -> Cause | None:
    """found = image · factor − offset per colour, whatever the constants are."""
    x = image.transpose(0, 1).reshape(3, -1).double()
    y = case.found.transpose(0, 1).reshape(3, -1).double()
    centred = x - x.mean(1, keepdim=True)
    factor = (centred * (y - y.mean(1, keepdim=True))).sum(1) / (centred * centred).sum(1).clamp_min(1e-30)
    offset = x.mean(1) * factor - y.mean(1)
    fitted = (x * factor[:, None] - offset[:, None]).reshape(3, *image.shape[2:])[None].float()
    residual = case.residual(fitted)
    if residual > case.tolerance:
        return None
    said = []
    if order != (0, 1, 2):
        name = "BGR" if order == (2, 1, 0) else " ".join(_COLOURS[i] for i in order)
        said.append(f"takes the colours in the order {name}, the network RGB")
    if not torch.allclose(factor, torch.ones(3).double(), rtol=1e-4):
        said.append(f"multiplies by ({_tell(factor)})")
    if not torch.allclose(offset, mean.flatten().double() * factor, rtol=1e-4, atol=1e-3):
        said.append(f"subtracts ({_tell(offset / factor)}), the network ({_tell(mean.flatten())})")
    swapped = order != (0, 1, 2)
    return Cause("colour order" if swapped else "normalization", f"it {' and '.join(said)}", residual)


def _tell(values: torch.Tensor) -> str:
    return ", ".join(f"{float(v):.5g}" for v in values)


def _distort(image: torch.Tensor) -> Iterable[tuple[str, str, torch.Tensor]]:
    """Common mistakes of preprocessing, applied to the raw image (N, 3, H, W), 0..255."""
    unit = image / 255
    linear = torch.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    encoded = torch.where(unit <= 0.0031308, unit * 12.92, 1.055 * unit.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
    yield "gamma", "it sees linear light where the network was trained on sRGB", linear * 255
    yield "gamma", "it sees sRGB encoded twice", encoded * 255
    yield "gamma", "it applies a gamma of 2.2", unit**2.2 * 255
    yield (
        "overflow",
        "its pixels are read as signed bytes: 128 and above wrap around",
        (torch.where(image > 127, image - 256, image)),
    )
    yield "layout", "height and width are exchanged", image.transpose(2, 3)
    yield "layout", "the image is mirrored", image.flip(3)
    yield "layout", "the image is upside down", image.flip(2)


def _explain_shift(case: Case, expected: torch.Tensor) -> Cause | None:
    """The same picture a pixel or two aside: judged away from the edges."""
    for down, right in itertools.product(range(-2, 3), repeat=2):
        moved = torch.roll(expected, (down, right), (2, 3))[:, :, 2:-2, 2:-2]
        difference = (moved - case.found[:, :, 2:-2, 2:-2]).abs()
        if (down or right) and float(difference.max()) / case.scale <= case.tolerance:
            said = f"the picture is moved by {down} px down and {right} px to the right"
            return Cause("spatial shift", said, float(difference.max()) / case.scale)
    return None


def explain_output(
    name: str,
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    tolerance: float,
) -> Cause | None:
    """Why an output differs although the layers behind all outputs agree.

    Args:
        name: the output that differs.
        expected: what the file's own last layers hold, by our output names.
        found: what the file gives out by those names.
        tolerance: as a share of an output's range.
    """
    value = found[name]
    exchanged = {
        ours: theirs
        for theirs in found
        for ours in expected
        if ours != theirs and _close(found[theirs], expected[ours], tolerance)
    }
    if name in exchanged.values():
        pairs = ", ".join(f"'{theirs}' holds {ours}" for ours, theirs in sorted(exchanged.items()))
        return Cause("exchanged outputs", f"the outputs' names are exchanged: {pairs}", 0.0)
    ours = expected[name]
    if ours.shape == value.shape:
        order = match_channels(ours, value)
        if order is not None and _close(value, ours[:, order], tolerance):
            said = f"the file's channels hold the network's channels {tell_order(order)}"
            return Cause("channel permutation", said, 0.0)
    return _explain_extra_step(ours, value, tolerance)


def _explain_extra_step(ours: torch.Tensor, value: torch.Tensor, tolerance: float) -> Cause | None:
    axes = {1: "channels", 2: "rows", 3: "columns"}
    for axis, what in axes.items():
        if _close(value, ours.softmax(axis), tolerance):
            wrong = "" if axis == 1 else ", the wrong axis"
            return Cause("softmax", f"the file gives softmax over the {what}{wrong}, the network logits", 0.0)
    for said, other in (
        ("the sigmoid of the logits", ours.sigmoid()),
        ("the rectified logits", ours.relu()),
        ("the negative of the logits", -ours),
        ("the logits with height and width exchanged", ours.transpose(2, 3)),
        ("the logits mirrored left to right", ours.flip(3)),
        ("the logits upside down", ours.flip(2)),
        ("the logits as channels-last", ours.permute(0, 2, 3, 1)),
        ("the logits as channels-last under the shape of channels-first",
         ours.permute(0, 2, 3, 1).reshape(ours.shape)),
    ):  # fmt: skip
        if _close(value, other, tolerance):
            return Cause("extra step", f"the file gives {said}", 0.0)
    if value.shape == ours.shape:
        factor = float((ours * value).sum() / (ours * ours).sum().clamp_min(1e-30))
        if _close(value, ours * factor, tolerance):
            return Cause("scale", f"the file gives {factor:.6g} times the logits", 0.0)
    return None


def _close(value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if value.shape != expected.shape:
        return False
    difference = float((value - expected).abs().max()) / find_range(expected)
    return bool(np.isfinite(difference)) and difference <= tolerance
