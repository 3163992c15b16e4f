"""What rounding each kernel to one scale per tensor does to the nail logits: which kernels earn more bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantize.layer_names import list_convolutions
from quantize.ranges import Range, choose_affine
from quantize.recipe import Activations, Recipe
from quantize.round_weights import MAX_IMAGES

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm


def ranks_kernels(recipe: Recipe) -> bool:
    """Whether a target gives some kernels more bits, as far as a size allows: TF.js' way."""
    return recipe.weights_dtype == "uint8" and recipe.weights.size_ratio is not None


def measure_kernel_errors(network: ExportForm, images: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Torch name of each convolution -> expected squared change of the nail logits, kernel in 8 bits.

    Kernels that are equal (both branches begin with the same frozen stages) share the sum of their errors,
    because a file stores them once.

    Args:
        network: in export form; it is not changed.
        images: calibration images (N, H, W, 3) uint8 RGB; the first ``MAX_IMAGES`` are looked at.
    """
    import torch

    from quantize.palette_fit import measure_error, measure_statistics

    x = torch.from_numpy(np.ascontiguousarray(images[:MAX_IMAGES].transpose(0, 3, 1, 2))).float()
    statistics = measure_statistics(network, x)
    errors: dict[str, float] = {}
    groups: dict[bytes, list[str]] = {}
    for name, conv in list_convolutions(network).items():
        kernel = conv.weight.detach().numpy()
        loss = (round_affine(kernel).astype(np.float64) - kernel).reshape(len(kernel), -1)
        errors[name] = measure_error(loss, statistics.curvature[name], statistics.influence[name])
        groups.setdefault(repr(kernel.shape).encode() + kernel.tobytes(), []).append(name)
    for names in groups.values():
        total = sum(errors[name] for name in names)
        errors |= dict.fromkeys(names, total)
    return errors


def round_affine(kernel: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A kernel with 256 levels between its extremes, one of which is 0."""
    affine = choose_affine(Range(float(kernel.min()), float(kernel.max())), Activations())
    return affine.round(np.asarray(kernel, np.float32))
