"""The error of a kernel's 8 bits: as measured on logits, and shared by equal kernels."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch

from quantize import find_recipe
from quantize.kernel_errors import measure_kernel_errors, ranks_kernels, round_affine
from quantize.layer_names import list_convolutions
from tests.quantize.small_network import tiny_images, tiny_network


@cache
def errors() -> dict[str, float]:
    return measure_kernel_errors(tiny_network(), tiny_images())


def measure_change(layer: str) -> float:
    """Mean squared change of the nail margin when one kernel alone is rounded."""
    x = torch.from_numpy(tiny_images().transpose(0, 3, 1, 2).copy()).float()
    changed = copy.deepcopy(tiny_network())
    kernel = list_convolutions(changed)[layer].weight
    with torch.inference_mode():
        kernel.copy_(torch.from_numpy(round_affine(kernel.numpy())))
        ours, theirs = tiny_network()(x)[0], changed(x)[0]
        return float(((ours[:, 1] - ours[:, 0]) - (theirs[:, 1] - theirs[:, 0])).square().mean())


def test_the_estimate_ranks_kernels_as_rounding_each_alone_does() -> None:
    found = errors()
    assert set(found) == set(list_convolutions(tiny_network()))
    ranked = sorted(found, key=found.__getitem__, reverse=True)
    assert ranked[0].endswith("stage2.0.layers.0")  # depthwise, one loud channel
    loud, middle, quiet = (
        sum(measure_change(layer) for layer in ranked[start : start + 3]) for start in (0, 22, 55)
    )
    assert loud > 5 * middle > 10 * quiet


def test_equal_kernels_share_their_errors_and_heads_of_no_nail_have_none() -> None:
    found = errors()
    assert found["network.high.stage2.0.layers.0"] == found["network.low.stage2.0.layers.0"]
    assert found["network.high.stage4.0.layers.3"] != found["network.low.stage4.0.layers.3"]
    assert found["network.output.heads.finger"] == 0


def test_levels_hold_zero_and_are_half_a_step_away_at_most() -> None:
    kernel = np.random.default_rng(0).normal(0.3, 1, (8, 4, 3, 3)).astype(np.float32)
    kernel[0, 0, 0, 0] = 0
    rounded = round_affine(kernel)
    assert rounded[0, 0, 0, 0] == 0
    assert np.abs(rounded - kernel).max() <= 1.001 * np.ptp(kernel) / 255
    assert np.abs(np.median(np.abs(rounded - kernel))) <= 0.26 * np.ptp(kernel) / 255
    assert len(np.unique(rounded)) <= 256


def test_only_recipes_that_spread_16_bits_ask_for_it() -> None:
    assert ranks_kernels(find_recipe("uint8"))
    assert not any(ranks_kernels(find_recipe(name)) for name in ("uint16", "palette-4", "int8-weights"))
