"""Integer activations of a CoreML package: do their levels fit what its float sibling computes?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmark.coreml_identity import Package
from nailcore.runtime import Layer

if TYPE_CHECKING:
    import torch

# Ranges come from other photographs: a few values lie beyond them, and none is so wide that it wastes levels.
MAX_CLIPPED_SHARE = 0.02
MAX_WIDTH = 4.0  # times the span seen


def check_quantizers(
    shipped: Package, sibling: Package, path: Path, input_name: str, images: Iterable[npt.NDArray[np.uint8]]
) -> list[str]:
    """What is wrong with the levels of a package's integer tensors, by what its float sibling computes.

    Each tensor that is rounded must be rounded and widened with the same scale and zero point; its levels
    must hold all but 2 % of the values the sibling gives for it, and span at most four times as much.

    Args:
        shipped, sibling: opened packages, of the same operations.
        path: of the sibling.
        input_name: of both.
        images: (H, W, 3) uint8 RGB of the package's size.
    """
    from deploy.mil import load_package

    problems = [
        f"'{q.name}' widens with another scale or zero point" for q in shipped.quantizers if not q.agrees
    ]
    wanted: dict[str, set[tuple[float, float]]] = {}
    for one in shipped.quantizers:
        name = sibling.nodes[one.source.node].name if one.source.node >= 0 else input_name
        wanted.setdefault(name, set()).add((one.low, one.high))
    spans = {name: (np.inf, -np.inf) for name in wanted}
    clipped: dict[tuple[str, tuple[float, float]], list[int]] = {}

    def look(name: str, values: torch.Tensor) -> None:
        low, high = (float(value) for value in values.aminmax())
        spans[name] = min(spans[name][0], low), max(spans[name][1], high)
        for levels in wanted[name]:
            step = (levels[1] - levels[0]) / 255
            outside = int(((values < levels[0] - step) | (values > levels[1] + step)).sum())
            seen = clipped.setdefault((name, levels), [0, 0])
            seen[0], seen[1] = seen[0] + outside, seen[1] + values.numel()

    def watch(layer: Layer, outputs: tuple[torch.Tensor, ...]) -> None:
        if layer.name in wanted:
            look(layer.name, outputs[0].float())

    model = load_package(path)
    for image in images:
        model.run({input_name: image}, precision="fp32", watch=watch)
    for (name, levels), (outside, count) in clipped.items():
        low, high = spans[name]
        span = max(high, 0.0) - min(low, 0.0)
        if outside > MAX_CLIPPED_SHARE * count:
            share = outside / count
            problems.append(
                f"{share:.1%} of '{name}' lies beyond its levels {levels[0]:.3g} to {levels[1]:.3g}"
            )
        elif levels[1] - levels[0] > MAX_WIDTH * span:
            problems.append(
                f"the levels of '{name}' reach from {levels[0]:.3g} to {levels[1]:.3g}, "
                f"its values from {low:.3g} to {high:.3g}"
            )
    return problems
