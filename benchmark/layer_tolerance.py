"""How far one layer fed with its own inputs may be from torch, by arithmetic and by weight format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmark.layer_map import relative_distance
from nailcore.artifact import Artifact
from nailcore.runtime import Layer

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """What a layer may differ by, as shares of its range of values.

    One layer adds one rounding of its output and the rounding of its sums. Figures: the largest errors
    measured on clean files (see docs/bisect.md) times a margin of three or more.
    """

    arithmetic: float
    stored: float  # what the stored weights may add to an output, where their kernel cannot be read
    weight: float  # largest difference of one weight, relative to it; 0: judged by distance
    distance: float  # relative L2 distance of a kernel

    def same_kernel(self, found: F32, expected: F32, roundings: int = 1) -> bool:
        """Equal but for what the format rounds off, once or more often."""
        if found.shape != expected.shape or not np.isfinite(found).all():
            return False
        if not self.weight:
            return relative_distance(found, expected) <= self.distance
        return not bool(self.find_changes(found, expected, roundings).any())

    def find_changes(self, found: F32, expected: F32, roundings: int = 1) -> npt.NDArray[np.bool_]:
        """Where a kernel differs by more than its format's rounding."""
        smallest = 2.0**-24 if self.weight > 1e-5 else 1e-12  # float16's subnormal step
        rounding = roundings * (self.weight or self.distance)
        return np.asarray(np.abs(found - expected) > rounding * 1.001 * np.abs(expected) + smallest)


_ARITHMETIC = {
    "float32": 1e-5,
    "float32 on a GPU": 1e-4,
    "float16": 1.5e-3,
    "float16 on a GPU": 7e-3,
    "int8": 0.15,  # an image whose values leave the calibrated range is clipped
}
_STORED = {"float32": (0.0, 1e-6, 1e-6), "float16": (2e-3, 2.0**-11, 1e-3), "compressed": (0.2, 0.0, 0.2)}


def find_tolerance(artifact: Artifact, engine: str, layers: Sequence[Layer]) -> Tolerance:
    """Tolerances by the arithmetic and the weight format the recipe, the engine and the layers tell of."""
    recipe = artifact.made_by.config.get("recipe", {})
    quantized = any("quantize" in layer.op.lower() for layer in layers)
    half = artifact.kind == "coreml" and recipe.get("compute_dtype") == "float16"
    arithmetic = "float32"
    if quantized or half:
        arithmetic = "int8" if quantized else "float16"
    elif "webg" in engine:  # WebGL and WebGPU
        arithmetic = f"float{16 if engine.endswith('fp16') else 32} on a GPU"
    stored = str(recipe.get("weights_dtype", "float32"))
    if quantized:
        stored = "compressed"  # whatever the recipe says of it
    if half and stored == "float32":
        stored = "float16"
    output, weight, distance = _STORED.get(stored, _STORED["compressed"])
    return Tolerance(_ARITHMETIC[arithmetic], output, weight, distance)
