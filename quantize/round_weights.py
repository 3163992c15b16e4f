"""Rounds a network's weights before they are written: palettes or 8-bit codes, biases that make up for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantize.palettes import PALETTES, save_tables
from quantize.recipe import Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

MAX_IMAGES = 12  # all are in memory at once, as are a layer's activations: 0.6 GB at 480 px


def rounds_weights(recipe: Recipe) -> bool:
    """Whether a network's weights are rounded before a target stores them: CoreML's way."""
    stored = recipe.weights_dtype == "int8" or recipe.weights_dtype.startswith("palette")
    return stored and {"coreml", "tflite"} >= {*recipe.targets} and recipe.calibration is not None


def round_weights(
    network: ExportForm,
    recipe: Recipe,
    images: npt.NDArray[np.uint8],
    folder: Path,
    float_layers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Round the network in place, write its palettes into ``folder``; returns notes for the card.

    ``images``: (N, H, W, 3) uint8 RGB; the first ``MAX_IMAGES`` are looked at.

    Raises:
        UnknownNameError, NailtoolError: see ``plan_bits``.
    """
    import torch

    from quantize.palette_fit import Choice, measure_statistics, round_layers
    from quantize.palette_plan import plan_bits

    x = torch.from_numpy(np.ascontiguousarray(images[:MAX_IMAGES].transpose(0, 3, 1, 2))).float()
    statistics = measure_statistics(network, x)
    choices = plan_bits(network, recipe, statistics, float_layers)
    tables = round_layers(network, x, choices, statistics)
    if tables:
        save_tables(folder / PALETTES, tables)
    bits = {name: one.bits if isinstance(one, Choice) else 8 for name, one in choices.items()}
    return {"bits": bits, "kernels by bits": dict(sorted(Counter(map(str, bits.values())).items()))}
