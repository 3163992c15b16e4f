"""Bias correction: the mean by which rounding shifts a convolution's channels is taken out of its bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2; the
means come from calibration images, and count what rounding the inputs does as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.onnx_ranges import execute_graph
from quantize.ranges import Affine, round_kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
ENOUGH_IMAGES = 12  # a mean over all positions of a map settles sooner than an extreme


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    dilations: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, node: Any, kernel: tuple[int, int]) -> Geometry:
        """Of an ONNX convolution."""
        import onnx

        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        top, left, bottom, right = found.get("pads", (0, 0, 0, 0))
        return cls(
            kernel,
            tuple(found.get("strides", (1, 1))),
            (top, left, bottom, right),
            tuple(found.get("dilations", (1, 1))),
            found.get("group", 1),
        )

    def average_taps(self, x: F32) -> F64:
        """(N, C, h, w) -> mean of what each tap of the kernel sees, row by row: (N, C, taps)."""
        top, left, bottom, right = self.pads
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
        rows, columns = (size - far for size, far in zip(padded.shape[2:], reach, strict=True))
        starts = [range(0, far + 1, d) for far, d in zip(reach, self.dilations, strict=True)]
        # Columns first: the rows that are left are few.
        means = [
            padded[:, :, :, dx : dx + columns : self.strides[1]].mean(3, dtype=np.float64) for dx in starts[1]
        ]
        return np.stack(
            [mean[:, :, dy : dy + rows : self.strides[0]].mean(2) for dy in starts[0] for mean in means], -1
        )


def correct_biases(
    model: Any,
    affines: Mapping[str, Affine] | None,
    images: npt.NDArray[np.uint8],
    keep_float: Collection[str] = (),
    *,
    per_channel: bool,
) -> dict[str, float]:
    """Change the biases of a float graph that is about to be quantized, in place.

    Args:
        model: onnx.ModelProto, float; every convolution has a name and a bias of its own or a shared one.
        affines: how activations will be rounded, by tensor; None: they stay in float.
        images: calibration images (N, H, W, 3) uint8 RGB.
        keep_float: names of convolutions that stay as they are.
        per_channel: how weights will be rounded.

    Returns:
        name of each corrected convolution -> largest change of a bias.
    """
    import onnx

    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "Conv" and n.name not in keep_float]
    nodes = [n for n in nodes if affines is None or n.input[0] in affines]
    if not nodes:
        return {}
    means = _measure_means(model, nodes, values, affines, images)
    changes = {}
    for node in nodes:
        weight = values[node.input[1]].astype(np.float64)
        rounded = round_kernel(values[node.input[1]], per_channel=per_channel).astype(np.float64)
        wanted, found = means[node.name]  # (C, taps) each
        change = _apply(weight, wanted, node) - _apply(rounded, found, node)
        name = f"{node.name}.corrected_bias"
        bias = (values[node.input[2]] + change).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, name))
        node.input[2] = name
        changes[node.name] = float(np.abs(change).max())
    return changes


def _apply(weight: F64, means: F64, node: Any) -> F64:
    """What a kernel (O, C/groups, kh, kw) makes of the mean (C, taps) its taps see: (O,)."""
    flat = weight.reshape(*weight.shape[:2], -1)
    if flat.shape[1] == len(means):
        return np.asarray(np.einsum("oct,ct->o", flat, means))
    groups = len(means) // flat.shape[1]
    seen = means.reshape(groups, 1, flat.shape[1], -1)
    parts = flat.reshape(groups, -1, *flat.shape[1:])
    return np.asarray(np.einsum("goct,gnct->go", parts, seen)).reshape(-1)


def _measure_means(
    model: Any,
    nodes: list[Any],
    values: Mapping[str, F32],
    affines: Mapping[str, Affine] | None,
    images: npt.NDArray[np.uint8],
) -> dict[str, tuple[F64, F64]]:
    """Per convolution: mean of what each tap sees, before and after its input is rounded."""
    totals: dict[str, F64] = {}
    inputs = list(dict.fromkeys(node.input[0] for node in nodes))
    images = images[:: max(1, len(images) // ENOUGH_IMAGES)][:ENOUGH_IMAGES]
    for tensor, value in execute_graph(model, inputs, images):
        both = np.concatenate([value, value if affines is None else affines[tensor].round(value)])
        for node in (n for n in nodes if n.input[0] == tensor):
            shape = values[node.input[1]].shape
            geometry = Geometry.of(node, (shape[2], shape[3]))
            sums = geometry.average_taps(both)
            totals[node.name] = totals.get(node.name, np.zeros_like(sums)) + sums / len(images)
    return {name: (found[0], found[1]) for name, found in totals.items()}
