"""A network of the smallest shipped kind and images for it: what the tests of quantization share."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from model_zoo import find_variant, weights_path
from nailcore.nets import load_network
from nailcore.nets.export_form import ExportForm
from nailcore.variant import Variant
from quantize.recipe import Calibration
from quantize.simulate import Ranges, list_layers, list_steps, observe_ranges

SIDE = 64  # px: every step of the network still has something to do


def tiny_variant() -> Variant:
    """The shipped 43-layer network on images of 64 px."""
    return find_variant("nail43-288").model_copy(
        update={"name": f"nail43-{SIDE}", "height_px": SIDE, "width_px": SIDE}
    )


@cache
def tiny_network() -> ExportForm:
    """Shipped weights in export form; copy it before you change it."""
    variant = find_variant("nail43-288")
    return load_network(variant, weights_path(variant))


def tiny_images(count: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, 64, 64, 3) smooth colour fields: noise alone would not look like anything to the network."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in small])


@cache
def tiny_ranges() -> Ranges:
    """Extremes over the images."""
    return observe_ranges(tiny_network(), tiny_images(), Calibration())


def tiny_layers() -> tuple[str, ...]:
    """Names of the convolutions."""
    return list_layers(list_steps(tiny_network()))
