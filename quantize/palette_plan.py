"""How each kernel is stored, and bits spread so that a package stays below a share of its float32 form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nailcore.errors import NailtoolError
from quantize.layer_names import choose_float_layers, list_convolutions
from quantize.palette_fit import Choice, Linear, Statistics, measure_error
from quantize.palettes import find_group_size, fit_table
from quantize.recipe import Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

# Kernels of fewer values keep float16: they stand first or last, where errors spread furthest, and a table
# with what the format adds to it would save them little.
SMALL_VALUES = 1600
_BITS = {"palette8": (8,), "palette6": (4, 6, 8), "palette4": (2, 3, 4, 6, 8)}
# Bytes of a package, measured on ours: what the program says of a layer, in float32 and shortened, of a
# kernel that stays and of each decompression. A blob has 64 bytes of header and is padded to 64; equal ones
# are stored once, as are the first kernels of both branches.
_LAYER_FLOAT32, _LAYER, _KERNEL, _DECOMPRESSION, _BLOB = 1620, 610, 190, 335, 64


def plan_bits(
    network: ExportForm, recipe: Recipe, statistics: Statistics, float_layers: tuple[str, ...] = ()
) -> dict[str, Choice] | dict[str, Linear]:
    """A choice for each kernel that is rounded; the others keep float16.

    With ``size_ratio`` the bits are spread so that the expected change of the nail logits is smallest for the
    bytes that are left; without, every kernel gets the bits the recipe is called after.

    Raises:
        UnknownNameError: a layer to keep in float does not exist.
        NailtoolError: not even the fewest bits reach the size.
    """
    layers = list_convolutions(network)
    kernels = {name: np.asarray(conv.weight.detach().numpy(), np.float32) for name, conv in layers.items()}
    named = choose_float_layers((*recipe.weights.keep_float, *float_layers), layers)
    keep = {
        # Where activations are rounded, it is they that a layer in float is spared.
        *(named if recipe.activations is None else ()),
        *(name for name, kernel in kernels.items() if kernel.size <= SMALL_VALUES),
    }
    if recipe.weights_dtype == "int8":
        return {name: Linear() for name in kernels if name not in keep}
    group = recipe.weights.group_size
    bits = _BITS[recipe.weights_dtype]
    if recipe.weights.size_ratio is None:
        chosen = Choice(int(recipe.weights_dtype[-1]), group, recipe.weights.channel_scale)
        return {name: chosen for name in kernels if name not in keep}
    if not recipe.weights.channel_scale and not group:
        bits = tuple(b for b in bits if b != 3)  # iOS 16 has no 3-bit indices
    options = {
        name: [Choice(b, group, recipe.weights.channel_scale) for b in bits]
        for name in kernels
        if name not in keep
    }
    budget = recipe.weights.size_ratio * _estimate_float32(kernels)
    budget -= sum(_LAYER + _blob(2 * len(kernel)) for kernel in kernels.values())
    budget -= _KERNEL * len(keep) + _blobs([kernels[name] for name in keep], 2)
    errors = {name: _list_errors(kernels[name], found, name, statistics) for name, found in options.items()}
    sizes = {
        name: [estimate_size(kernels[name].shape, one) for one in found] for name, found in options.items()
    }
    picked = _spread(errors, sizes, budget)
    return {name: options[name][i] for name, i in picked.items()}


def estimate_size(shape: tuple[int, ...], choice: Choice) -> int:
    """Bytes that a kernel (O, I, kh, kw) takes of a package."""
    groups = shape[0] // find_group_size(shape[0], choice.group_size)
    size = _blob(-(-int(np.prod(shape)) * choice.bits // 8)) + _blob(2 * groups * 2**choice.bits)
    size += _DECOMPRESSION
    return size + (_DECOMPRESSION + _blob(2 * shape[0]) if choice.channel_scale else 0)


def _blob(size: int) -> int:
    return _BLOB + -(-size // _BLOB) * _BLOB


def _blobs(kernels: Iterable[npt.NDArray[np.float32]], value_bytes: int) -> int:
    """Of kernels that stay, equal ones once."""
    sizes = {kernel.tobytes(): _blob(value_bytes * kernel.size) for kernel in kernels}
    return sum(sizes.values())


def _estimate_float32(kernels: Mapping[str, npt.NDArray[np.float32]]) -> int:
    biases = sum(_blob(4 * len(kernel)) for kernel in kernels.values())
    return _LAYER_FLOAT32 * len(kernels) + biases + _blobs(kernels.values(), 4)


def _list_errors(
    kernel: npt.NDArray[np.float32], options: list[Choice], name: str, statistics: Statistics
) -> list[float]:
    curvature, influence = statistics.curvature[name], statistics.influence[name]
    flat = kernel.astype(np.float64).reshape(len(kernel), -1)
    diagonal = np.einsum("...dd->...d", curvature)
    weights = np.broadcast_to(diagonal, flat.shape) * (influence + 1e-3 * influence.mean() + 1e-30)[:, None]
    found = []
    for one in options:
        table = fit_table(kernel, one.bits, one.group_size, channel_scale=one.channel_scale, weights=weights)
        loss = table.values.astype(np.float64).reshape(flat.shape) - flat
        found.append(measure_error(loss, curvature, influence))
    return found


def _spread(
    errors: Mapping[str, list[float]], sizes: Mapping[str, list[int]], budget: float
) -> dict[str, int]:
    """One option per kernel: the smallest sum of errors whose sizes fit, by a price per byte."""

    def pick(price: float) -> dict[str, int]:
        return {
            name: int(np.argmin(np.asarray(errors[name]) + price * np.asarray(sizes[name])))
            for name in errors
        }

    def weigh(picked: Mapping[str, int]) -> int:
        return sum(sizes[name][i] for name, i in picked.items())

    low, high = 1e-15, 1e6
    if weigh(pick(high)) > budget:
        raise NailtoolError(
            f"The fewest bits leave palettes of {weigh(pick(high)):,} bytes; the size asked for has room "
            f"for {budget:,.0f}.",
            hint="Raise size_ratio in the recipe.",
        )
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if weigh(pick(middle)) <= budget else (middle, high)
    picked = pick(high)
    # What is left buys the best steps that still fit.
    while True:
        room = budget - weigh(picked)
        steps = [
            ((errors[n][i] - errors[n][j]) / max(1, sizes[n][j] - sizes[n][i]), n, j)
            for n, i in picked.items()
            for j in range(len(sizes[n]))
            if errors[n][j] < errors[n][i] and sizes[n][j] - sizes[n][i] <= room
        ]
        if not steps:
            return picked
        _, name, j = max(steps)
        picked[name] = j
